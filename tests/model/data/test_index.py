"""The index leaves its rows in their files: what a rank keeps, what it refuses, and that files are fetched together."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.asyn import AsyncFileSystem
from numpy.typing import NDArray

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.index_files import KEPT_BATCHES
from model.data.plan_config import MixPart, PlanConfig
from schemas.arrow_file import table_bytes, with_facts
from schemas.budget import NAVA_6B
from schemas.errors import ShardError
from schemas.shard import INDEX

PER_SHARD = 140


def index_table(num_rows: int, seed: int = 0) -> pa.Table:
    """Rows as packing writes them: every column of the contract, ids of 32 letters, one shard in five for validation."""
    rng = np.random.default_rng(seed)
    rows = np.arange(num_rows)
    shard = rows // PER_SHARD
    known: dict[str, Any] = {
        "clip_id": [f"{number:032x}" for number in rng.permutation(num_rows)],
        "shard": [f"{number:05d}.tar" for number in shard],
        "source": [f"source-{number // 10:025d}" for number in rows],
        "split": np.where(shard % 5 == 3, "validation", "train"),
        "has_video": rng.random(num_rows) < 0.7,
        "duration_s": rng.uniform(0.5, 9, num_rows),
    }
    columns = []
    for field in INDEX:
        if field.name in known:
            column = pa.array(known[field.name], field.type)
        elif pa.types.is_string(field.type):
            column = pa.array(["en"] * num_rows)
        else:
            column = pa.array(rng.integers(0, 2 if pa.types.is_boolean(field.type) else 900, num_rows)).cast(field.type)
        columns.append(column)
    return pa.table(columns, schema=INDEX)


def write_files(folder: Path, table: pa.Table, rows_per_file: int) -> Path:
    """The table in files, each with facts of its own as packed shards have."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(table), rows_per_file)):
        part = table.slice(start, rows_per_file)
        part = part.replace_schema_metadata(with_facts(INDEX, {"bytes": str(number)}).metadata)
        (folder / f"{number:05d}.arrow").write_bytes(table_bytes(part))
    return folder


@pytest.mark.parametrize("rows_per_file", [PER_SHARD, 1 << 20])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_rank_keeps_few_bytes_of_a_row(tmp_path: Path, rows_per_file: int, split: str | None) -> None:
    num_rows = 400 * PER_SHARD
    folder = write_files(tmp_path / "index", index_table(num_rows), rows_per_file)
    ShardIndex.open(folder / "00000.arrow")
    arrow_bytes = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        index = ShardIndex.open(folder, split=split)
        kept = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_bytes
        for row in range(0, len(index), PER_SHARD // 2):
            index.location(row)
        opened = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_bytes - kept
    finally:
        tracemalloc.stop()
    assert len(index) == (num_rows if split is None else num_rows * 4 // 5)
    assert kept <= 30 * len(index), "what is planned from, and where the rest is"
    assert opened <= 16_000 * KEPT_BATCHES, "a bounded number of files is open"


@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_rows_are_those_of_the_files_whatever_their_number(tmp_path: Path, split: str | None) -> None:
    table = index_table(9 * PER_SHARD + 7)
    expected = table if split is None else table.filter(pa.compute.equal(table["split"], split))
    many, one = (write_files(tmp_path / str(n), table, n) for n in (PER_SHARD, 1 << 20))
    for folder in (many, one):
        index = ShardIndex.open(folder, split=split)
        assert index.table.equals(expected)
        assert [index.values(row) for row in range(0, len(index), 11)] == expected.take(
            np.arange(0, len(index), 11)
        ).to_pylist()
        names, codes = index.shards
        assert [names[code] for code in codes] == expected["shard"].to_pylist()
        for name, numbers in index.numbers("duration_s", "height_px").items():
            assert numbers.tolist() == expected[name].to_pylist()
        for row in (0, len(index) // 2, len(index) - 1):
            facts, place = expected.slice(row, 1).to_pylist()[0], index.location(row)
            assert place.columns().items() <= facts.items()
            assert (place.clip_id, place.shard) == (facts["clip_id"], facts["shard"])


def test_nothing_of_a_split_is_an_index_without_rows(tmp_path: Path) -> None:
    index = ShardIndex.open(write_files(tmp_path / "index", index_table(300), PER_SHARD), split="test")
    assert len(index) == 0
    assert index.table.schema.names == INDEX.names
    assert index.numbers("duration_s")["duration_s"].shape == (0,)


def test_the_digest_is_that_of_the_files_and_the_split(tmp_path: Path) -> None:
    """Plans of earlier versions go on: the value is theirs."""
    table = pa.table({field.name: pa.nulls(1, field.type) for field in INDEX}, schema=INDEX)
    for name in ("video_tokens", "audio_tokens", "text_tokens"):
        table = table.set_column(table.column_names.index(name), INDEX.field(name), pa.array([1], pa.int32()))
    folder = write_files(tmp_path / "index", table, 1)
    file = hashlib.sha256((folder / "00000.arrow").read_bytes()).digest()
    assert ShardIndex.open(folder).digest == hashlib.sha256(file).hexdigest()
    assert ShardIndex.open(folder, split="train").digest == hashlib.sha256(file + b"train").hexdigest()


def test_parts_select_by_source_without_names_in_memory(tmp_path: Path) -> None:
    table = index_table(6 * PER_SHARD)
    index = ShardIndex.open(write_files(tmp_path / "index", table, PER_SHARD))
    sources = table["source"].to_pylist()
    wanted = [sources[500], sources[0]]
    expected = [wanted.index(source) if source in wanted else -1 for source in sources]
    assert index.source_positions(wanted).tolist() == expected
    assert index.source_names(20) == list(dict.fromkeys(sources))[:20]
    parts = (MixPart(name="a", weight=1, sources=(wanted[0],)), MixPart(name="b", weight=1, sources=tuple(wanted)))
    plan = EpochPlan(index, PlanConfig(num_packs=1, token_budget=10**6, mixture=parts), NAVA_6B)
    chosen: list[NDArray[np.int64]] = [part.rows_at(np.arange(part.num_rows)) for part in plan.parts]
    assert chosen[0].tolist() == np.flatnonzero(np.array(expected) == 0).tolist()
    assert chosen[1].tolist() == np.flatnonzero(np.array(expected) >= 0).tolist()


def test_a_file_that_changed_is_refused_not_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "index", index_table(2 * PER_SHARD), PER_SHARD)
    index = ShardIndex.open(folder)
    write_files(tmp_path / "other", index_table(2 * PER_SHARD, seed=1), PER_SHARD)
    os.replace(tmp_path / "other" / "00001.arrow", folder / "00001.arrow")
    index.location(0)
    with pytest.raises(ShardError, match=r"00001.arrow changed or was removed"):
        index.location(PER_SHARD)
    (folder / "00001.arrow").unlink()
    with pytest.raises(ShardError, match=r"00001.arrow changed or was removed"):
        index.values(PER_SHARD)


def test_files_of_other_columns_and_a_missing_split_are_named(tmp_path: Path) -> None:
    table = index_table(PER_SHARD)
    folder = write_files(tmp_path / "index", table, PER_SHARD)
    (folder / "00001.arrow").write_bytes(table_bytes(table.drop_columns(["fps"])))
    with pytest.raises(ShardError, match=r"those of .*00001.arrow are not those of .*00000.arrow"):
        ShardIndex.open(folder)
    (folder / "00000.arrow").write_bytes(table_bytes(table.drop_columns(["split"])))
    with pytest.raises(ShardError, match=r"00000.arrow lacks the columns split"):
        ShardIndex.open(folder / "00000.arrow", split="train")


class SlowStore(AsyncFileSystem):  # type: ignore[misc]
    """An object store in memory whose answers take their time."""

    protocol = "slow"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    under_way = most_under_way = 0

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        if any(name.startswith(path.rstrip("/") + "/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        names = [name for name in self.objects if name.startswith(path.rstrip("/") + "/")]
        return [await self._info(name) for name in names] if detail else names

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        SlowStore.under_way += 1
        SlowStore.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.01)
        SlowStore.under_way -= 1
        return self.objects[path][start:end]


def test_remote_files_are_fetched_together_and_mapped(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "index", index_table(60 * PER_SHARD), PER_SHARD)
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    SlowStore.objects = {f"run/index/{path.name}": path.read_bytes() for path in folder.iterdir()}
    arrow_bytes = pa.total_allocated_bytes()
    remote, local = ShardIndex.open("slow://run/index", split="train"), ShardIndex.open(folder, split="train")
    assert SlowStore.most_under_way > 20, "one after the other would take a round trip each"
    assert pa.total_allocated_bytes() - arrow_bytes < 100_000, "the bytes lie in a file, not in memory"
    assert remote.digest == local.digest
    assert remote.table.equals(local.table)
    assert [remote.location(row) for row in (0, 5000)] == [local.location(row) for row in (0, 5000)]
    assert ShardIndex.open(f"file://{folder}").digest == ShardIndex.open(folder).digest
