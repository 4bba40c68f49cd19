"""`verify` and `export` on a small real run: what is wrong inside a shard is told although every checksum agrees.

What can be mended by the same command is in test_pack.
"""

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
from pipeline.pack import read_index
from pipeline.store import RunDir
from schemas.arrow_file import read_table, table_bytes, with_facts
from schemas.errors import DamagedSampleError, LedgerError, RecipeError
from schemas.shard import INDEX, MEMBERS
from schemas.shard_file import SampleLocation, ShardFacts, ShardReader, ShardWriter, locations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Damage = Callable[[Run], None]


@pytest.fixture
def opened(light_run: tuple[Path, Path]) -> Run:
    return Run(str(light_run[1]))


def first(run: Run) -> str:
    return run.dir.names("shards")[0].removesuffix(".tar")


def places_of(run: Run) -> list[SampleLocation]:
    return locations(read_index(run.dir, first(run)), MEMBERS)


def edit_row(run: Run, **changes: Any) -> None:
    """Changes columns of the first row of the first index."""
    table = read_index(run.dir, first(run))
    rows = table.to_pylist()
    rows[0] |= changes
    run.dir.write(f"index/{first(run)}.arrow", table_bytes(pa.Table.from_pylist(rows, schema=table.schema)))


def rewrite(run: Run, members: tuple[str, ...], **payloads: bytes) -> None:
    """Writes the first shard again with these members, some with other payloads, and everything said of it true."""
    name, index = first(run), read_index(run.dir, first(run))
    facts = ShardFacts.of(index, name)
    with ShardReader(run.dir.open(f"shards/{name}.tar")) as reader:
        samples = [(place, reader.sample(place)) for place in places_of(run)]
    rows = []
    with open(run.dir.url(f"shards/{name}.tar"), "wb") as file, ShardWriter(file, f"{name}.tar", members) as shard:
        for (place, found), row in zip(samples, index.to_pylist(), strict=True):
            ours = {member: bytes(found.get(member, b"")) for member in members} | payloads
            written = shard.add(place.clip_id, ours).columns()
            rows.append(row | {column: value for column, value in written.items() if column in INDEX.names})
    told = ShardFacts(shard.sha256, shard.num_bytes, facts.split, facts.unit, facts.embedder, facts.embedding_dim)
    schema = with_facts(INDEX, told.to_metadata())
    run.dir.write(f"index/{name}.arrow", table_bytes(pa.Table.from_pylist(rows, schema=schema)))
    manifest = json.loads(run.dir.read("index/manifest.json"))
    manifest["shards"][0] |= {"sha256": shard.sha256, "bytes": shard.num_bytes}
    run.dir.write("index/manifest.json", json.dumps(manifest).encode())


def add_source(run: Run) -> None:
    table = read_table(run.dir.read("sources.arrow"))
    run.dir.write("sources.arrow", table_bytes(pa.concat_tables([table, table.slice(0, 1)])))


FINDINGS: dict[str, tuple[Damage, list[str]]] = {
    "nothing": (lambda run: None, []),
    "other places in the index": (
        lambda run: edit_row(run, json_offset=places_of(run)[0].members["json"][0] + 1),
        ["the index gives other bytes of {} than webdataset", "cannot be decoded"],
    ),
    "other frames in the index": (lambda run: edit_row(run, num_frames=7), ["frames, the index says 7"]),
    "an unknown clip": (
        lambda run: edit_row(run, clip_id="unknown"),
        ["1 kept clips are not packed, 1 packed clips are not kept"],
    ),
    "a clip cut otherwise": (
        lambda run: edit_row(run, cut_sha256="00"),
        ["1 clips, {} among them, were cut otherwise than the ledger says"],
    ),
    "a picture that is none": (lambda run: rewrite(run, MEMBERS, mp4=b"no picture" * 99), ["{} cannot be decoded"]),
    "an annotation that is none": (lambda run: rewrite(run, MEMBERS, json=b"{"), ["{} cannot be decoded"]),
    "references that are none": (lambda run: rewrite(run, MEMBERS, **{"refs.flac": b"fLaC"}), ["{} cannot be decoded"]),
    "other members": (
        lambda run: rewrite(run, ("mp4", "flac", "refs.flac", "json", "txt")),
        ["first sample has members ['flac', 'json', 'mp4', 'refs.flac', 'txt'], expected"],
    ),
    "a source that is not settled": (add_source, ["1 of 5 sources are not settled"]),
    "no list of sources": (
        lambda run: run.dir.write("sources.arrow", b""),
        ["sources.arrow cannot be read"],
    ),
}


@pytest.mark.parametrize("damage", FINDINGS)
def test_every_damage_is_told_and_nothing_else(opened: Run, damage: str) -> None:
    clip_id = read_index(opened.dir, first(opened))["clip_id"][0].as_py()
    act, expected = FINDINGS[damage]
    act(opened)
    found = list(problems(Run(opened.dir.uri)))
    assert len(found) == len(expected), found
    for problem, wanted in zip(found, expected, strict=True):
        assert wanted.format(clip_id) in problem if "{}" in wanted else wanted in problem


def test_shards_on_an_object_store_are_streamed_and_opened_too(opened: Run) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in Path(opened.dir.root).rglob("*"):
        relative = path.relative_to(opened.dir.root)
        if path.is_file() and relative.parts[0] in ("shards", "index", "sources.arrow"):
            memory.pipe_file(f"/verify/{relative}", path.read_bytes())
    opened.dir = RunDir("memory://verify")
    assert list(problems(opened)) == []
    name = opened.dir.names("shards")[0]
    data = bytearray(memory.cat_file(f"/verify/shards/{name}"))
    data[600] ^= 1
    memory.pipe_file(f"/verify/shards/{name}", bytes(data))
    assert [problem.partition(" ")[0] for problem in problems(opened)] == [f"shards/{name}", f"{name}:"]
    memory.rm("/verify", recursive=True)


def test_export_writes_clips_and_refuses_damaged_ones(opened: Run, tmp_path: Path) -> None:
    done = export_nava(opened, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert (done.num_records, done.duration_s) == (4, pytest.approx(12.0, abs=0.5))
    (place, *_) = places_of(opened)
    with ShardReader(opened.dir.open(f"shards/{place.shard}")) as reader:
        members = reader.sample(place)
        assert Path(records[0]["video_info"][0]["data_path"]).read_bytes() == bytes(members["mp4"])
    path = Path(opened.dir.root, "shards", place.shard)
    data = bytearray(path.read_bytes())
    data[place.members["mp4"][0]] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedSampleError, match="CRC-32"):
        export_nava(opened, tmp_path / "again")
    path.unlink()
    with pytest.raises(LedgerError, match=f"{path.name} is missing"):
        export_nava(opened, tmp_path / "again")
    with pytest.raises(RecipeError, match=r"--split valid is not known. Did you mean 'validation'"):
        export_nava(opened, tmp_path / "again", "valid")
