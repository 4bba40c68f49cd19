"""Takedown of a source, a voice and a face: gone from every file of a run, and nothing else has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stages
from pipeline.ask.marks import MarkFile, marks_file_of
from pipeline.ask.queries import Run, balance
from pipeline.ask.verify import problems
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.pack import read_index, read_manifest
from pipeline.run import run as curate
from pipeline.takedown import Somebody, TakedownRequest, chosen, takedown
from pipeline.tombstones import Tombstones
from schemas.arrow_file import facts_of, read_table, table_bytes, with_facts
from schemas.errors import LedgerError, RecipeError
from schemas.records import Source
from schemas.shard import LATENT_MEMBER, MEMBERS
from schemas.shard_file import ShardReader, ShardWriter, locations
from tests.pipeline import toy_people
from tests.pipeline.toy_people import person_source

WEB = "https://example.com/"
SOURCES = [
    person_source(f"{WEB}talk{at}.mp4", voices={"A": at % 6, "B": 20 + at}, faces=[at % 5, 40 + at]) for at in range(12)
]
VOICE_OF = {f"{WEB}talk{at}.mp4" for at in range(12) if at % 6 == 2}
FACE_OF = {f"{WEB}talk{at}.mp4" for at in range(12) if at % 5 == 3}


@pytest.fixture(autouse=True)
def people() -> Iterator[None]:
    with patch.dict(stages.CATALOG, toy_people.CATALOG, clear=True):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people") / "run"
    with patch.dict(stages.CATALOG, toy_people.CATALOG, clear=True):
        curate_people(SOURCES, folder)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Run:
    shutil.copytree(whole, tmp_path / "run")
    return opened(tmp_path / "run")


def opened(folder: Path) -> Run:
    return Run(str(folder), folder.parent / "cache")


def curate_people(sources: list[Source], folder: Path, **changes: Any) -> None:
    curate(parse_recipe(toy_people.RECIPE | changes), sources, str(folder), here, quiet=True)


def rows_of(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """Every row of the ledger; what stages cost is no part of it, nor what one says of all clips together."""
    left_out = ("cost", "alike.group")
    return {
        (row["source_id"], row["row_id"]): {key: value for key, value in row.items() if key not in left_out}
        for row in run.ledger.rows(None)
    }


def samples_of(run: Run) -> dict[str, dict[str, bytes]]:
    found = {}
    for shard in read_manifest(run.dir).shards:
        index = read_index(run.dir, shard.index.removesuffix(".arrow"))
        with ShardReader(run.dir.open(f"shards/{shard.name}")) as reader:
            for place in locations(index, MEMBERS):
                found[place.clip_id] = {name: bytes(data) for name, data in reader.sample(place).items()}
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_of(folder: Path) -> dict[str, bytes]:
    """What every file holds: its bytes, and of a table its values too, which may lie there compressed."""
    held = files_of(folder)
    for name, data in held.items():
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            batches = table.cast(table.schema.remove_metadata())
            held[name] = data + json.dumps(table.to_pylist(), default=str).encode() + table_bytes(batches)
    return held


def needles_of(run: Run, gone: set[str]) -> dict[str, bytes]:
    """Ids, names and vectors of sources, as bytes that would be found wherever they are written."""
    found: dict[str, bytes] = {}
    ids = {source.source_id for source in SOURCES if source.uri in gone}
    for row in run.ledger.rows(None, pl.col("source_id").is_in(list(ids))):
        for name in ("row_id", "source_id", "asset_id", "source.uri", "parent_id", "cut.sha256"):
            if row.get(name):
                found[f"{name} {row[name]}"] = row[name].encode()
        people = [*(row["voices.speakers"] or ()), *(row["faces.tracks"] or ())]
        for at, person in enumerate(people):
            vector = np.array(person["embedding"], np.float32)
            found[f"vector {at} of {row['row_id']}"] = vector.tobytes()
    return found


def latents_of(run: Run, folder: Path) -> None:
    """What `nava-train encode` leaves, as far as its shards go: a latent shard beside each curated one."""
    (folder / "shards").mkdir(parents=True)
    (folder / "index").mkdir()
    left_out: dict[str, str] = {}
    for shard in read_manifest(run.dir).shards:
        index = read_index(run.dir, shard.index.removesuffix(".arrow"))
        rows, out = [], {}
        with open(folder / "shards" / shard.name, "wb") as file, ShardWriter(file, shard.name, (LATENT_MEMBER,)) as tar:
            for number, row in enumerate(index.select(["clip_id", "source", "split"]).to_pylist()):
                if shard is read_manifest(run.dir).shards[0] and number == 0:
                    out[row["clip_id"]] = "too_short: it is"
                    continue
                place = tar.add(row["clip_id"], {LATENT_MEMBER: row["clip_id"].encode() * 9})
                rows.append({**row, "source_clip_id": row["clip_id"], "shard": shard.name, **place.columns()})
        left_out |= out
        columns = {name: [each[name] for each in rows] for name in rows[0]} if rows else {}
        table = pa.table(columns)
        facts = {"contract_version": "2", "identity": "x", "num_samples": str(len(rows)), "left_out": json.dumps(out)}
        (folder / "index" / shard.index).write_bytes(table_bytes(table.cast(with_facts(table.schema, facts))))
    told = {"contract_version": 2, "num_clips": 0, "num_samples": 0, "num_left_out_by_reason": {}, "left_out": left_out}
    (folder / "index" / "manifest.json").write_text(json.dumps(told | {"shards": [], "encode": {}, "network": {}}))


WISHES = {
    "addresses": (
        TakedownRequest(keys=("talk4.mp4",), lists=("list.txt",)),
        {f"{WEB}talk{at}.mp4" for at in (1, 4, 7, 10, 11)},
    ),
    "voice": (TakedownRequest(people=(Somebody("voice", "talk2.mp4:A"),)), VOICE_OF),
}


@pytest.mark.parametrize("name", sorted(WISHES))
@pytest.mark.slow
def test_what_is_taken_down_is_in_no_file_and_all_else_is_as_it_was(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, gone = WISHES[name]
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text(f"# asked on Monday\n{WEB}talk7.mp4\n{WEB}talk1*\n")
    check_gone(run, request, gone, tmp_path)


def check_gone(run: Run, request: TakedownRequest, gone: set[str], tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    latents_of(run, latents)
    clip_ids = {row["row_id"]: row["source_id"] for row in run.ledger.rows("clip")}
    gone_ids = {source.source_id for source in SOURCES if source.uri in gone}
    marks = MarkFile(marks_file_of(run.dir.uri, run.cache))
    for clip_id in clip_ids:
        marks.add(clip_id, "good")
    rows, samples, needles = rows_of(run), samples_of(run), needles_of(run, gone)
    shards, old = files_of(Path(run.dir.uri) / "shards"), files_of(latents)
    assert len(needles) > 10
    searched = texts_of(tmp_path)
    assert all(any(needle in data for data in searched.values()) for needle in needles.values()), "the search finds"

    found = chosen(run, request)
    assert {each.uri for each in found} == gone
    Path(tmp_path / "list.txt").unlink(missing_ok=True)
    done = takedown(run, found, "asked to", [latents])

    left = [
        (what, name) for name, data in texts_of(tmp_path).items() for what, needle in needles.items() if needle in data
    ]
    assert not left
    after = opened(tmp_path / "run")
    assert rows_of(after) == {key: row for key, row in rows.items() if key[0] not in gone_ids}
    now = samples_of(after)
    assert now == {key: sample for key, sample in samples.items() if clip_ids[key] not in gone_ids}
    assert done.num_kept_clips == len(samples) - len(now) > 0
    kept = files_of(Path(run.dir.uri) / "shards")
    same = {name for name in shards if kept.get(name) == shards[name]}
    assert len(same) == done.num_shards_left_alone > 0, "shards without any of it are the same files"
    assert set(kept) - same == set(done.packed_anew)
    assert balance(after.ledger).difference_us == 0
    assert not list(problems_but_media(after))
    check_latents(latents, old, {key for key in clip_ids if clip_ids[key] in gone_ids})
    assert set(marks.all()) == {key for key in clip_ids if clip_ids[key] not in gone_ids}
    (stone,) = Tombstones.of(after.dir).stones
    assert (stone.reason, stone.num_sources, stone.date[:2]) == ("asked to", len(gone), "20")


def problems_but_media(run: Run) -> Iterator[str]:
    """Toy clips do not decode; everything else of `verify` holds."""
    return (each for each in problems(run) if "cannot be decoded" not in each)


def check_latents(folder: Path, before: dict[str, bytes], gone: set[str]) -> None:
    told = json.loads((folder / "index" / "manifest.json").read_text())
    tables = {path.stem: read_table(path) for path in (folder / "index").glob("*.arrow")}
    held: dict[str, bytes] = {}
    for stem, table in tables.items():
        assert facts_of(table.schema)["num_samples"] == str(table.num_rows)
        with ShardReader(folder / "shards" / f"{stem}.tar") as reader:
            held |= {p.clip_id: bytes(reader.sample(p)[LATENT_MEMBER]) for p in locations(table, (LATENT_MEMBER,))}
    assert held == {key: key.encode() * 9 for key in held}
    assert not gone & (set(held) | set(told["left_out"]))
    assert told["num_samples"] == len(held) > 0
    now = files_of(folder)
    assert any(now.get(name) == data for name, data in before.items() if name.endswith(".tar"))


def test_a_face_takes_every_source_in_which_it_is_seen(run: Run, tmp_path: Path) -> None:
    clip = run.ledger.rows("clip", pl.col("source_id") == SOURCES[3].source_id)[0]["row_id"]
    request = TakedownRequest(people=(Somebody("face", f"{clip}:0"),))
    check_gone(run, request, FACE_OF, tmp_path)


def test_of_what_was_skipped_only_the_line_of_the_very_address_goes(run: Run, tmp_path: Path) -> None:
    listed = [f"{WEB}talk1.mp4", f"{WEB}talk1.mp4.part", f"{WEB}talk10.mp4", f"{WEB}talk"]
    path = tmp_path / "run" / "skipped.tsv"
    path.write_text("".join(f"links seen before\t{name}\n" for name in listed))
    takedown(run, chosen(run, TakedownRequest(keys=("talk1.mp4",))), "asked to")
    assert path.read_text() == "".join(f"links seen before\t{name}\n" for name in listed[1:])


def test_people_are_named_by_vectors_and_told_apart(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "voice.npy", np.array(toy_people.vector_of(2, "a recording of theirs"), np.float32))
    request = TakedownRequest(people=(Somebody("voice", str(tmp_path / "voice.npy")),))
    assert {each.uri for each in chosen(run, request)} == VOICE_OF
    assert all("cosine" in each.why for each in chosen(run, request))
    assert not chosen(run, TakedownRequest(people=request.people, same_voice=0.99999))
    with pytest.raises(LedgerError, match=r"talk2\.mp4:A, talk2\.mp4:B"):
        chosen(run, TakedownRequest(people=(Somebody("voice", "talk2.mp4"),)))
    np.save(tmp_path / "short.npy", np.ones(3, np.float32))
    with pytest.raises(RecipeError, match="3 numbers"):
        chosen(run, TakedownRequest(people=(Somebody("voice", str(tmp_path / "short.npy")),)))


@pytest.mark.slow
def test_the_same_bytes_go_wherever_they_lie_and_none_comes_back(tmp_path: Path) -> None:
    again = person_source("talk0.mp4", voices={"A": 0}, faces=[])
    copy = Source(source_id="scopy", uri="copy.mp4", metadata=again.metadata)
    folder = tmp_path / "run"
    curate_people([again, copy, *SOURCES[1:3]], folder)
    run = opened(folder)
    found = chosen(run, TakedownRequest(keys=(again.source_id,)))
    assert {each.uri for each in found} == {"talk0.mp4", "copy.mp4"}
    takedown(run, found, "asked to")
    curate_people([again, copy, *SOURCES[1:3]], folder)
    assert not run.ledger.rows("asset", pl.col("source.uri").is_in(["talk0.mp4", "copy.mp4"]))
    with pytest.raises(RecipeError, match="were taken down"):
        curate_people([again], folder)
    renamed = Source(source_id="srenamed", uri="renamed.mp4", metadata=again.metadata)
    curate_people([renamed, *SOURCES[1:3]], folder)
    assert any("srenamed" in each for each in problems(opened(folder)))
    takedown(opened(folder), [], "")
    assert not list(problems_but_media(opened(folder)))
    assert not opened(folder).ledger.rows("asset", pl.col("source.uri") == "renamed.mp4")


def test_a_takedown_that_was_cut_short_goes_on(run: Run, tmp_path: Path) -> None:
    found = chosen(run, TakedownRequest(keys=("talk5.mp4",)))
    with (
        patch("pipeline.takedown.remove.measure", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        takedown(run, found, "asked to")
    told = list(problems_but_media(opened(tmp_path / "run")))
    assert any("older files of the ledger" in each for each in told)
    takedown(opened(tmp_path / "run"), [], "")
    assert not list(problems_but_media(opened(tmp_path / "run")))
    assert len(Tombstones.of(run.dir).stones) == 1


def test_whoever_opted_out_is_refused_at_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("opted_out.jsonl").write_text('{"uri": "https://example.com/*"}\n{"uri": "https://b.org/v.mp4?id=1"}\n')
    first = [
        person_source(uri, voices={}, faces=[]) for uri in ("https://example.com/a.mp4", "https://b.org/v.mp4?id=1")
    ]
    second = [person_source(uri, voices={}, faces=[]) for uri in ("https://b.org/v.mp4?id=2", "talk.mp4")]
    curate_people([*first, *second], tmp_path / "run", opt_out=["opted_out.jsonl"])
    run = opened(tmp_path / "run")
    assert {row["source.uri"] for row in run.ledger.rows("asset")} == {source.uri for source in second}
    Path("opted_out.jsonl").write_text('{"uri": "https://b.org/*"}\n')
    with pytest.raises(RecipeError, match=r"takedown .* --uri-list"):
        curate_people(second, tmp_path / "run", opt_out=["opted_out.jsonl"])
    found = chosen(run, TakedownRequest(lists=("opted_out.jsonl",)))
    assert [each.uri for each in found] == ["https://b.org/v.mp4?id=2"]
