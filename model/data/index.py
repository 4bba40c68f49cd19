"""The Arrow index of a run's shards, as the planner and the reader see it: one row per sample, addressed by row number.

Numbers the planner touches for every row live in arrays, 12 to 26 bytes a row (2.6 GB for 1e8 clips at most, no copy
when the index is one uncompressed record batch); ids and byte offsets stay in the memory map, fetched row by row.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow_file import read_table
from schemas.errors import ShardError
from schemas.shard_file import SampleLocation

REQUIRED = (
    "clip_id",
    "shard",
    "has_video",
    "has_audio",
    "source",
    "video_tokens",
    "audio_tokens",
    "text_tokens",
    "sample_offset",
    "sample_bytes",
    "crc32",
)


class ShardIndex:
    """Rows of one or more index tables, in order. Build with `open` or `from_table`; immutable afterwards."""

    def __init__(self, table: pa.Table, digest: str) -> None:
        missing = [name for name in REQUIRED if name not in table.column_names]
        if missing:
            raise ShardError(
                f"the index lacks the columns {', '.join(missing)}.",
                remedy="Pack the shards again with this version; the trainer needs byte offsets and token counts.",
            )
        self.table = table
        self.digest = digest
        self.video_tokens = _int_column(table, "video_tokens")
        self.audio_tokens = _int_column(table, "audio_tokens")
        self.text_tokens = _int_column(table, "text_tokens")

    @classmethod
    def open(cls, path: str | Path | Sequence[str | Path], *, split: str | None = None) -> ShardIndex:
        """Index of every `*.arrow` file under `path` (a file, a folder, an fsspec URL, or several), in name order.

        Local files are memory-mapped, remote ones are held in memory. `split` keeps only rows of that split. The digest
        covers the bytes of every file and the split: it identifies the plan. Cost: one pass over the files. Raises
        ShardError when there is no index or the schemas differ.
        """
        digest, tables = hashlib.sha256(), []
        for name, source in _arrow_sources([path] if isinstance(path, (str, Path)) else list(path)):
            digest.update(hashlib.sha256(source).digest())
            try:
                tables.append(read_table(source))
            except pa.ArrowInvalid as error:
                raise ShardError(
                    f"{name} is not an Arrow IPC file: {error}", remedy="Pack the shards again."
                ) from error
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowInvalid as error:
            raise ShardError(f"the index files have different columns: {error}", remedy="Pack them alike.") from error
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
            digest.update(split.encode())
        return cls(table, digest.hexdigest())

    @classmethod
    def from_table(cls, table: pa.Table) -> ShardIndex:
        """Index of a table in memory; the digest covers its Arrow bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        return cls(table, hashlib.sha256(sink.getvalue()).hexdigest())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def has_video(self) -> NDArray[np.bool_]:
        """Whether each row has a picture."""
        return _bool_column(self.table, "has_video")

    @cached_property
    def has_audio(self) -> NDArray[np.bool_]:
        """Whether each row has sound."""
        return _bool_column(self.table, "has_audio")

    @cached_property
    def sources(self) -> tuple[list[str], NDArray[np.int32]]:
        """Distinct source names and, for each row, the position of its source among them."""
        return _encoded(self.table, "source")

    @cached_property
    def shards(self) -> tuple[list[str], NDArray[np.int32]]:
        """Distinct shard names and, for each row, the position of its shard among them."""
        return _encoded(self.table, "shard")

    def clip_id(self, row: int) -> str:
        """Sample key of one row."""
        batch, inside = self._find(row)
        return batch.clip_id(inside)

    def values(self, row: int) -> dict[str, Any]:
        """Every column of one row, as Python values."""
        return {name: self.table[name][row].as_py() for name in self.table.column_names}

    def location(self, row: int) -> SampleLocation:
        """Byte ranges of one sample; members the sample does not have (null or empty) are left out. Cost: 2 us."""
        batch, inside = self._find(row)
        return batch.location(inside)

    def _find(self, row: int) -> tuple[MappedBatch, int]:
        batch = bisect_right(self._starts, row) - 1
        return self._batches[batch], row - self._starts[batch]

    @cached_property
    def _batches(self) -> list[MappedBatch]:
        columns = [n for n in self.table.column_names if n in ("clip_id", "crc32") or n.endswith(("_offset", "_bytes"))]
        shards, codes = self.shards
        batches, start = [], 0
        for batch in self.table.select(columns).to_batches():
            batches.append(MappedBatch(batch, shards, codes[start : start + len(batch)].data))
            start += len(batch)
        return batches

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((len(batch) for batch in self._batches), initial=0))


class MappedBatch:
    """Where the samples of one record batch are, by row inside it; numbers are read from the memory map, not copied.

    `codes` are the positions of its rows' shards among `shards`.
    """

    def __init__(self, batch: pa.RecordBatch, shards: list[str], codes: memoryview) -> None:
        def ints(name: str) -> memoryview:
            column = batch.column(name)
            values: memoryview = (column.fill_null(0) if column.null_count else column).to_numpy().data
            return values

        self._clip_ids, self._shards, self._codes = batch.column("clip_id"), shards, codes
        self._sample = ints("sample_offset"), ints("sample_bytes"), ints("crc32")
        members = [n.removesuffix("_offset") for n in batch.schema.names if n.endswith("_offset")]
        self._members = [(n, ints(f"{n}_offset"), ints(f"{n}_bytes")) for n in members if n != "sample"]

    def __len__(self) -> int:
        return len(self._clip_ids)

    def clip_id(self, row: int) -> str:
        """See `ShardIndex.clip_id`."""
        return str(self._clip_ids[row].as_py())

    def location(self, row: int) -> SampleLocation:
        """See `ShardIndex.location`."""
        offset, num_bytes, crc32 = self._sample
        members = {name: (offsets[row], size) for name, offsets, sizes in self._members if (size := sizes[row])}
        shard = self._shards[self._codes[row]]
        return SampleLocation(self.clip_id(row), shard, offset[row], num_bytes[row], crc32[row], members)


def _arrow_sources(paths: list[str | Path]) -> Iterator[tuple[str, pa.Buffer]]:
    """Name and bytes of every index file, mapped where they are local."""
    for path in paths:
        if "://" in str(path):
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            files, root = url_to_fs(str(path))
            names = sorted(files.glob(f"{root}/*.arrow")) if files.isdir(root) else [root] if files.exists(root) else []
            sources = ((name, pa.py_buffer(files.cat_file(name))) for name in names)
        else:
            local = sorted(Path(path).glob("*.arrow")) if Path(path).is_dir() else [Path(path)]
            names = [str(file) for file in local if file.exists()]
            sources = ((name, pa.memory_map(name).read_buffer()) for name in names)
        if not names:
            raise ShardError(f"no index at {path}.", remedy="Give the run's index folder, which holds *.arrow files.")
        yield from sources


def _int_column(table: pa.Table, name: str) -> NDArray[np.int32]:
    column = table[name]
    if column.null_count:
        raise ShardError(f"the index column {name} has {column.null_count} nulls.", remedy="Pack the shards again.")
    values: NDArray[np.int32] = column.to_numpy().astype(np.int32, copy=False)
    return values


def _bool_column(table: pa.Table, name: str) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = pc.fill_null(table[name], False).to_numpy().astype(np.bool_, copy=False)
    return values


def _encoded(table: pa.Table, name: str) -> tuple[list[str], NDArray[np.int32]]:
    column = pc.fill_null(table[name], "").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
    coded = column.dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
