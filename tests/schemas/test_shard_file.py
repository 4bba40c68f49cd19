"""Shards written and read: the same to every reader of tars, every damage seen, never a whole shard in memory."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow_file import facts_of, read_facts, read_table, table_bytes, with_facts, write_table
from schemas.errors import DamagedSampleError, ShardError
from schemas.shard import CONTRACT_VERSION, CUT_MEASURES, INDEX, MEMBERS, IndexRow, cut_column
from schemas.shard_file import (
    CHUNK_BYTES,
    Manifest,
    SampleLocation,
    ShardEntry,
    ShardFacts,
    ShardReader,
    ShardWriter,
    locations,
    parse_index,
    payloads_at,
    samples_in,
)
from tests.strategies import Samples, shard_samples


def write(members: list[str], content: Samples) -> tuple[bytes, list[SampleLocation], ShardWriter]:
    file = io.BytesIO()
    with ShardWriter(file, "00000.tar", members) as shard:
        places = [shard.add(key, content[key]) for key in content]
    return file.getvalue(), places, shard


@settings(max_examples=60)
@given(shard_samples())
def test_every_reader_finds_what_was_written(given_samples: tuple[list[str], Samples]) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    members, content = given_samples
    data, places, shard = write(members, content)
    sizes = {key: {name: len(content[key][name]) for name in members} for key in content}
    assert list(samples_in(io.BytesIO(data))) == [
        (place.clip_id, place.offset, sizes[place.clip_id]) for place in places
    ]
    for place in places:
        payloads = payloads_at(io.BytesIO(data), place.offset, sizes[place.clip_id])
        assert payloads == b"".join(content[place.clip_id].values())
    assert (shard.sha256, shard.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    with ShardReader(io.BytesIO(data)) as reader:
        assert {place.clip_id: reader.sample(place) for place in places} == content
        scan = reader.scan(places)
    assert (scan.sha256, scan.num_bytes, scan.damaged) == (shard.sha256, len(data), ())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {entry.name: tar.extractfile(entry).read() for entry in tar.getmembers()}
    assert list(found) == [f"{key}.{name}" for key in content for name in members], "members lie in the given order"
    assert found == {f"{key}.{name}": content[key][name] for key in content for name in members}
    stream = {"url": "shard", "stream": io.BytesIO(data)}
    opened = {s.pop("__key__"): s for s in group_by_keys(tar_file_expander([stream]))}
    assert {key: {name: s[name] for name in members} for key, s in opened.items()} == content


@settings(max_examples=60)
@given(shard_samples(), st.data())
def test_a_flipped_byte_anywhere_in_a_sample_is_found(given_samples: tuple[list[str], Samples], data: Any) -> None:
    tar, places, _ = write(*given_samples)
    hit = data.draw(st.sampled_from(places))
    broken = bytearray(tar)
    broken[hit.offset + data.draw(st.integers(0, hit.num_bytes - 1))] ^= data.draw(st.integers(1, 255))
    with ShardReader(io.BytesIO(bytes(broken))) as reader:
        assert reader.scan(places).damaged == (hit,)
        for place in places:
            if place is not hit:
                reader.sample(place)
        with pytest.raises(DamagedSampleError, match=rf"{hit.clip_id} in 00000\.tar at byte {hit.offset}.*CRC-32"):
            reader.sample(hit)


def test_the_bytes_are_those_of_a_tar_library() -> None:
    content = {"a-1": {"json": b"{}", "npy": b"n" * 700}, "b": {"json": b"", "npy": b"x" * 512}}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, payloads in content.items():
            for name, payload in payloads.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mode = len(payload), 0o644
                tar.addfile(info, io.BytesIO(payload))
    assert write(["json", "npy"], content)[0] == file.getvalue()
    assert write(["json"], {})[0] == bytes(tarfile.RECORDSIZE)


def test_what_is_cut_off_is_damaged() -> None:
    tar, places, _ = write(["npy"], {key: {"npy": b"x" * 2000} for key in "abc"})
    with ShardReader(io.BytesIO(tar[: places[1].offset + 700])) as reader:
        assert reader.scan(places).damaged == (places[1], places[2])
        with pytest.raises(DamagedSampleError, match="expected 2560 bytes, got 700"):
            reader.sample(places[1])
        outside = places[0]._replace(members={"npy": (512, 5000)})
        with pytest.raises(DamagedSampleError, match="npy lies outside"):
            reader.sample(outside)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "__meta__", "x" * 81, "ü"])
def test_a_key_that_readers_would_not_find_is_refused(key: str) -> None:
    with pytest.raises(ShardError, match="at most 80 letters"):
        write(["npy"], {key: {"npy": b""}})
    with pytest.raises(ShardError, match="has the members json"):
        write(["npy"], {"a": {"json": b""}})


def test_neither_writing_nor_scanning_holds_the_shard(tmp_path: Path) -> None:
    payload = {"npy": bytes(CHUNK_BYTES)}
    tracemalloc.start()
    try:
        with open(tmp_path / "00000.tar", "wb") as file, ShardWriter(file, "00000.tar", ["npy"]) as shard:
            places = [shard.add(f"{number:03d}", payload) for number in range(40)]
        with ShardReader(tmp_path / "00000.tar") as reader:
            scan = reader.scan(places)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (scan.sha256, scan.damaged) == (shard.sha256, ()), "samples that no chunk holds whole are sound as well"
    assert peak < 4 * CHUNK_BYTES < shard.num_bytes / 8


def test_index_rows_and_places_are_the_contracts_columns() -> None:
    places = [end for member in (*MEMBERS, "sample") for end in (f"{member}_offset", f"{member}_bytes")]
    assert [field.name for field in fields(IndexRow)] == [
        name
        for name in INDEX.names
        if name not in {*places, "crc32", "cut_hash", "cut_sha256", *(cut_column(field.name) for field in CUT_MEASURES)}
    ]
    tar, written, shard = write(list(MEMBERS), {"a": dict.fromkeys(MEMBERS, b"1"), "b": dict.fromkeys(MEMBERS, b"")})
    rows = [{"clip_id": place.clip_id, "shard": place.shard, **place.columns()} for place in written]
    facts = ShardFacts(shard.sha256, len(tar), "train", "unit", "some net", 448)
    index = pa.Table.from_pylist(rows, schema=with_facts(INDEX, facts.to_metadata()))
    again = parse_index(table_bytes(index), "index/00000.arrow")
    assert locations(again, MEMBERS) == written
    assert ShardFacts.of(again, "index/00000.arrow") == facts
    with pytest.raises(ShardError, match=r"index/00000\.arrow is not an Arrow IPC file"):
        parse_index(table_bytes(index)[:-100], "index/00000.arrow")
    with pytest.raises(ShardError, match=r"x\.arrow does not say which tar"):
        ShardFacts.of(
            again.replace_schema_metadata({"sha256": "1", "contract_version": str(CONTRACT_VERSION)}), "x.arrow"
        )
    with pytest.raises(ShardError, match=r"x\.arrow follows contract 1; this program reads contract 2\."):
        ShardFacts.of(again.replace_schema_metadata({"contract_version": "1"}), "x.arrow")


def test_an_arrow_file_is_the_same_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]}).replace_schema_metadata({"first": "1"})
    table = table.cast(with_facts(table.schema, {"second": "ä"}))
    path = tmp_path / "a.arrow"
    with open(path, "wb") as file:
        write_table(file, table)
    assert path.read_bytes() == table_bytes(table)
    assert read_table(path) == read_table(path.read_bytes()) == table
    assert read_facts(path) == facts_of(table.schema) == {"first": "1", "second": "ä"}


def test_a_manifest_survives_json() -> None:
    entry = ShardEntry("00000.tar", "00000.arrow", "ab", 10, "train", 3, 1.5, "unit")
    shards = (entry, replace(entry, name="00001.tar"))
    manifest = Manifest(CONTRACT_VERSION, "quickstart", "cd", 3, 1, 512.0, "some net", 448, shards)
    data = manifest.to_json()
    assert Manifest.from_json(data) == manifest
    content = json.loads(data)
    assert list(content) == [
        *("contract_version", "recipe", "measure_hash", "num_samples", "bits", "target_shard_mb"),
        *("embedder", "embedding_dim", "shards"),
    ]
    assert list(content["shards"][0]) == [
        *("name", "index", "sha256", "bytes", "split", "num_samples", "duration_s", "unit"),
    ]
    assert Manifest.from_json(json.dumps(content | {"later": 1}).encode()) == manifest
    for broken in (data[:-2], b"[]", json.dumps({k: v for k, v in content.items() if k != "shards"}).encode()):
        with pytest.raises(ShardError, match="manifest"):
            Manifest.from_json(broken)
    with pytest.raises(
        ShardError, match="the manifest of the shards follows contract 1; this program reads contract 2"
    ):
        Manifest.from_json(json.dumps(content | {"contract_version": 1}).encode())


def blocks(path: Path) -> Iterator[str]:
    yield from (part.partition("```")[0] for part in path.read_text().split("```python\n")[1:])


def test_the_documented_pipeline_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.model.curated_shards import KnownClip, write_run

    spans = (("good day", 0.1, 0.3),)
    write_run(tmp_path / "run", [[KnownClip(f"clip{number}", 0.5, spans=spans[: number % 2])] for number in range(4)])
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(Path(__file__).parents[2] / "docs" / "shards.md")
    exec(compile(example, "docs/shards.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "clip0 12 0.5 0 (1, 0)",
        "clip1 12 0.5 1 (1, 192)",
        "clip2 12 0.5 0 (1, 0)",
        "clip3 12 0.5 1 (1, 192)",
    ]
