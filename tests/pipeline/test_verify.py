"""`verify` on small runs of the real ledger and writer: a sound one is sound, and each damage is told and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.ask.queries import Run
from pipeline.ask.verify import problems
from pipeline.export import export_nava
from pipeline.pack import ShardTask, read_index, write_manifest
from pipeline.store import RunDir
from schemas.arrow_file import read_table, table_bytes, with_facts
from schemas.errors import DamagedSampleError
from schemas.shard import INDEX, MEMBERS, index_rows
from schemas.shard_file import SampleLocation, ShardFacts, ShardReader, ShardWriter, locations
from tests.model.curated_shards import KnownClip, write_run
from tests.pipeline.toy_run import make_run, toy_source

Damage = Callable[[Run], None]


def pack(run: Run, shards: list[list[str]]) -> Run:
    """Shards of these clips, as packing leaves them."""
    write_run(Path(run.dir.root), [[KnownClip(name, 0.4) for name in names] for names in shards])
    write_manifest(run.dir, [ShardTask(f"{at:05d}", "train", [], "") for at in range(len(shards))], run.recipe)
    return run


@pytest.fixture
def measured(tmp_path: Path, toy_recipe: dict[str, Any]) -> Run:
    """A run of two sources with five kept clips, not packed."""
    sources = [toy_source("good.mp4"), toy_source("bad.mp4", faults={"shot_split": "item"})]
    return make_run(toy_recipe, sources, tmp_path / "run")


@pytest.fixture
def kept(measured: Run) -> list[str]:
    """Ids of its kept clips."""
    return [r["row_id"] for r in measured.ledger.settled("clip").to_pylist() if r["verdict"]["status"] == "keep"]


@pytest.fixture
def packed(measured: Run, kept: list[str]) -> Run:
    """The same run, its clips in two shards."""
    return pack(measured, [kept[:3], kept[3:]])


def places_of(run: Run, name: str = "00000") -> list[SampleLocation]:
    return locations(read_index(run.dir, name), MEMBERS)


def flip(run: Run, offset: int) -> None:
    path = Path(run.dir.root, "shards/00000.tar")
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def edit_rows(run: Run, **columns: Callable[[dict[str, Any]], Any]) -> None:
    """Changes columns of the first row of the first index."""
    table = read_index(run.dir, "00000")
    rows = table.to_pylist()
    rows[0] |= {name: change(rows[0]) for name, change in columns.items()}
    run.dir.write("index/00000.arrow", table_bytes(pa.Table.from_pylist(rows, schema=table.schema)))


def edit_manifest(run: Run, **changes: Any) -> None:
    content = json.loads(run.dir.read("index/manifest.json"))
    run.dir.write("index/manifest.json", json.dumps(content | changes).encode())


def rewrite(run: Run, members: tuple[str, ...], **payloads: bytes) -> None:
    """Writes the first shard again with these members, some with other payloads, and everything said of it true."""
    index = read_index(run.dir, "00000")
    with ShardReader(run.dir.open("shards/00000.tar")) as reader:
        samples = [(place, reader.sample(place)) for place in places_of(run)]
    rows = []
    with open(run.dir.url("shards/00000.tar"), "wb") as file, ShardWriter(file, "00000.tar", members) as shard:
        for (place, found), row in zip(samples, index.to_pylist(), strict=True):
            ours = {name: bytes(found.get(name, b"")) for name in members} | payloads
            written = shard.add(place.clip_id, ours).columns()
            rows.append(row | {name: value for name, value in written.items() if name in INDEX.names})
    facts = ShardFacts(shard.sha256, shard.num_bytes, "train").to_metadata()
    run.dir.write("index/00000.arrow", table_bytes(pa.Table.from_pylist(rows, schema=with_facts(INDEX, facts))))
    write_manifest(run.dir, [ShardTask(name, "train", [], "") for name in ("00000", "00001")], run.recipe)


def truncate(run: Run) -> None:
    path = Path(run.dir.root, "shards/00000.tar")
    path.write_bytes(path.read_bytes()[: places_of(run)[1].offset])


def drop_column(run: Run) -> None:
    run.dir.write("index/00000.arrow", table_bytes(read_index(run.dir, "00000").drop_columns(["fps"])))


def add_source(run: Run) -> None:
    table = read_table(run.dir.read("sources.arrow"))
    run.dir.write("sources.arrow", table_bytes(pa.concat_tables([table, table.slice(0, 1)])))


CHANGED = "shards/00000.tar has changed since it was written (sha256 differs)"
THREE_LOST = "shards and ledger disagree: 3 kept clips are not packed, 0 packed clips are not kept"
FINDINGS: dict[str, tuple[Damage, list[str]]] = {
    "nothing": (lambda run: None, []),
    "a byte of a sample": (
        lambda run: flip(run, places_of(run)[1].members["flac"][0] + 3),
        [CHANGED, r"00000.tar: sample {1} is damaged (crc32 differs)"],
    ),
    "a byte after the last sample": (lambda run: flip(run, -1), [CHANGED]),
    "the first header": (
        lambda run: flip(run, 0),
        [CHANGED, "00000.tar: sample {0} is damaged (crc32 differs)", "00000.tar: webdataset cannot read"],
    ),
    "the end is cut off": (
        truncate,
        [CHANGED, *(f"00000.tar: sample {{{at}}} is damaged (crc32 differs)" for at in (1, 2))],
    ),
    "no shard": (lambda run: run.dir.remove("shards/00000.tar"), ["shards/00000.tar is missing", THREE_LOST]),
    "no index": (lambda run: run.dir.remove("index/00000.arrow"), ["/index/00000.arrow is not there.", THREE_LOST]),
    "an index that is none": (
        lambda run: run.dir.write("index/00000.arrow", b"ARROW"),
        ["index/00000.arrow is not an Arrow IPC file", THREE_LOST],
    ),
    "an index of other columns": (drop_column, ["index of 00000.tar has other columns", THREE_LOST]),
    "other places in the index": (
        lambda run: edit_rows(run, json_offset=lambda row: row["json_offset"] + 1),
        ["00000.tar: the index gives other bytes of {0} than webdataset"],
    ),
    "other frames in the index": (
        lambda run: edit_rows(run, num_frames=lambda row: 7),
        ["00000.tar: {0}.mp4 decodes to 10 frames, the index says 7"],
    ),
    "an unknown clip": (
        lambda run: edit_rows(run, clip_id=lambda row: "unknown"),
        ["shards and ledger disagree: 1 kept clips are not packed, 1 packed clips are not kept"],
    ),
    "a picture that is none": (
        lambda run: rewrite(run, MEMBERS, mp4=b"no picture" * 99),
        ["00000.tar: {0} cannot be decoded"],
    ),
    "an annotation that is none": (lambda run: rewrite(run, MEMBERS, json=b"{"), ["00000.tar: {0} cannot be decoded"]),
    "other members": (
        lambda run: rewrite(run, ("mp4", "flac", "json", "txt")),
        ["00000.tar: first sample has members ['flac', 'json', 'mp4', 'txt'], expected ['flac', 'json', 'mp4', 'npy']"],
    ),
    "no manifest": (
        lambda run: run.dir.remove("index/manifest.json"),
        ["index/manifest.json is missing: packing did not finish"],
    ),
    "a manifest that is none": (
        lambda run: run.dir.write("index/manifest.json", b"{"),
        ["the manifest of the shards cannot be read"],
    ),
    "another contract": (
        lambda run: edit_manifest(run, contract_version=9),
        ["shards follow contract 9, this program 1"],
    ),
    "a source that is not settled": (add_source, ["1 of 3 sources are not settled"]),
}


@pytest.mark.parametrize("damage", FINDINGS)
def test_every_damage_is_told_and_nothing_else(packed: Run, damage: str) -> None:
    ids = [row.clip_id for row in index_rows(read_index(packed.dir, "00000"))]
    act, expected = FINDINGS[damage]
    act(packed)
    found = list(problems(packed))
    assert len(found) == len(expected), found
    for problem, wanted in zip(found, expected, strict=True):
        assert wanted.format(*ids) in problem if "{" in wanted else wanted in problem


def test_a_clip_in_two_shards_is_told(measured: Run, kept: list[str]) -> None:
    assert list(problems(pack(measured, [kept, kept[:2]]))) == ["2 clips are packed twice"]


def test_shards_on_an_object_store_are_streamed_and_opened_too(packed: Run) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in Path(packed.dir.root).rglob("*"):
        if path.is_file() and path.parent.name in ("run", "shards", "index"):
            memory.pipe_file(f"/verify/{path.relative_to(packed.dir.root)}", path.read_bytes())
    packed.dir = RunDir("memory://verify")
    assert list(problems(packed)) == []
    data = bytearray(memory.cat_file("/verify/shards/00001.tar"))
    data[600] ^= 1
    memory.pipe_file("/verify/shards/00001.tar", bytes(data))
    assert [problem.partition(" ")[0] for problem in problems(packed)] == ["shards/00001.tar", "00001.tar:"]
    memory.rm("/verify", recursive=True)


def test_export_writes_clips_and_refuses_damaged_ones(packed: Run, tmp_path: Path) -> None:
    done = export_nava(packed, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert (done.num_records, done.duration_s) == (5, pytest.approx(5 * 0.4))
    with ShardReader(packed.dir.open("shards/00000.tar")) as reader:
        first = bytes(reader.sample(places_of(packed)[0])["mp4"])
    assert Path(records[0]["video_info"][0]["data_path"]).read_bytes() == first
    flip(packed, places_of(packed)[2].members["mp4"][0])
    with pytest.raises(DamagedSampleError, match="CRC-32"):
        export_nava(packed, tmp_path / "again")
