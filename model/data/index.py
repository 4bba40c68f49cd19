"""The Arrow index of a run's shards, as the planner and the reader see it: one row per sample, addressed by row number.

What the planner asks of every row lies in arrays: three token counts, two modalities and the number of the shard, 18
bytes a row, and 4 more where a split leaves rows out. Everything else stays in the files (`model/data/index_files.py`).

Measured on 10^6 rows of curated shards, 2 % of them of another split, two shared cores (CPU seconds; memory of the process
itself, mapped files aside; 24 bytes a row are what is kept, the rest is what allocators hold back):

                              one file                7,143 files
    `ShardIndex.open`         0.3-0.4 s, 54 MB        2.0-2.3 s, 44-59 MB
    first `location`          0.6 ms                  0.5 ms
    `EpochPlan`               0.2-0.3 s               0.2-0.3 s
    first step                0.4 ms                  0.3 ms
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.data.index_files import BatchPlace, HeldFile, IndexFile, MappedRows, grouped, index_files, open_index_file
from schemas.arrow_file import facts_of, table_bytes
from schemas.errors import ShardError
from schemas.pool import CLIP_ID, OF_CLIP
from schemas.shard_file import SampleLocation, check_contract

TOKENS = ("video_tokens", "audio_tokens", "text_tokens")
REQUIRED = ("clip_id", "shard", "has_video", "has_audio", "source", *TOKENS, "sample_offset", "sample_bytes", "crc32")


class PlannedColumns(NamedTuple):
    """[num_rows] each: what the planner asks of every row. `shard` is the position of its shard among the names."""

    video_tokens: NDArray[np.int32]
    audio_tokens: NDArray[np.int32]
    text_tokens: NDArray[np.int32]
    has_video: NDArray[np.bool_]
    has_audio: NDArray[np.bool_]
    shard: NDArray[np.int32]


class ShardIndex:
    """Rows of one or more index files, in order. Build with `open` or `from_table`; immutable afterwards.

    Arrays of one number a row: `video_tokens`, `audio_tokens`, `text_tokens`, `has_video`, `has_audio`. `shards`: distinct
    shard names and, for each row, the position of its shard among them. `digest` identifies the plan.
    """

    def __init__(self, rows: MappedRows, columns: PlannedColumns, shard_names: list[str], digest: str) -> None:
        self._rows, self.digest = rows, digest
        self.video_tokens, self.audio_tokens, self.text_tokens = columns[:3]
        self.has_video, self.has_audio = columns.has_video, columns.has_audio
        self.shards = shard_names, columns.shard

    @classmethod
    def open(cls, path: str | Path | Sequence[str | Path], *, split: str | None = None) -> ShardIndex:
        """Index of every `*.arrow` file under `path` (a file, a folder, an fsspec URL, or several), in name order.

        Local files are mapped; remote ones are fetched many at a time and mapped from a temporary file. `split` keeps only
        rows of that split. The digest covers the bytes of every file and the split. Cost: one pass over the files. Raises
        ShardError when there is no index, the schemas differ or the planner's columns are not there.
        """
        digest = hashlib.sha256()

        def read() -> Iterator[tuple[IndexFile, pa.Buffer]]:
            for file in index_files([path] if isinstance(path, (str, Path)) else list(path)):
                content = file.buffer()
                digest.update(hashlib.sha256(content).digest())
                yield file, content

        found = _gathered(read(), split)
        if split is not None:
            digest.update(split.encode())
        return cls(*found, digest.hexdigest())

    @classmethod
    def from_table(cls, table: pa.Table) -> ShardIndex:
        """Index of a table in memory, which is copied; the digest covers its Arrow bytes."""
        whole, sink = table.combine_chunks(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole)
        content = pa.py_buffer(table_bytes(whole))
        found = _gathered([(HeldFile("the table", content), content)], None)
        return cls(*found, hashlib.sha256(sink.getvalue()).hexdigest())

    def planned_as(
        self, rows: NDArray[np.int64], video_tokens: NDArray[np.int32], audio_tokens: NDArray[np.int32]
    ) -> ShardIndex:
        """Some of these rows, in ascending order, with other token counts; the digest covers all of it."""
        digest = hashlib.sha256(self.digest.encode())
        for numbers in (rows, video_tokens, audio_tokens):
            digest.update(numbers.tobytes())
        columns = PlannedColumns(
            video_tokens,
            audio_tokens,
            self.text_tokens[rows],
            self.has_video[rows],
            self.has_audio[rows],
            self.shards[1][rows],
        )
        return ShardIndex(self._rows.picked(rows), columns, self.shards[0], digest.hexdigest())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def facts(self) -> dict[str, str]:
        """What the first file says of itself (`schemas.arrow_file.facts_of`)."""
        return facts_of(next(self._rows.tables(["clip_id"])).schema)

    @property
    def table(self) -> pa.Table:
        """Every column of every row, made anew: for tools that copy or print an index; the planner has no need of it."""
        table = pa.concat_tables(self._rows.tables())
        for name in TOKENS:
            field = table.schema.field(name)
            counts = pa.array(getattr(self, name)).cast(field.type)
            table = table.set_column(table.column_names.index(name), field, counts)
        return table

    def numbers(self, *names: str) -> dict[str, NDArray[Any]]:
        """[num_rows] of each named column, nulls as 0, copied out of the files. Cost: one pass over them."""
        parts = [
            [pc.fill_null(table[name], 0).to_numpy().copy() for name in names] for table in self._rows.tables(names)
        ]
        return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}

    def source_positions(self, names: Sequence[str]) -> NDArray[np.int32]:
        """[num_rows] position of each row's source among `names`, -1 for another source. Cost: one pass over the files."""
        wanted = pa.array(names, pa.string())
        found = (pc.index_in(table["source"], value_set=wanted) for table in self._rows.tables(["source"]))
        return np.concatenate([pc.fill_null(positions, -1).to_numpy() for positions in found])

    def are_of_clips(self, clip_ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """[num_rows] whether each row is one of these clips, or a window of one. Cost: one pass over the files."""
        name = OF_CLIP if OF_CLIP in next(self._rows.tables()).column_names else CLIP_ID
        found = (pc.is_in(table[name], value_set=clip_ids.combine_chunks()) for table in self._rows.tables([name]))
        return np.concatenate([each.to_numpy() for each in found])

    def source_names(self, most: int) -> list[str]:
        """The first distinct source names, at most so many. Cost: a pass over the files until they are found."""
        names: dict[str, None] = {}
        for table in self._rows.tables(["source"]):
            names |= dict.fromkeys(pc.fill_null(table["source"], "").unique().to_pylist())
            if len(names) >= most:
                break
        return list(names)[:most]

    def clip_id(self, row: int) -> str:
        """Sample key of one row."""
        batch, inside = self._rows.find(row)
        return batch.clip_id(inside)

    def values(self, row: int) -> dict[str, Any]:
        """Every column of one row, as Python values."""
        batch, inside = self._rows.find(row)
        return batch.values(inside) | {name: int(getattr(self, name)[row]) for name in TOKENS}

    def location(self, row: int) -> SampleLocation:
        """Byte ranges of one sample; members the sample does not have (null or empty) are left out.

        Cost: 3 us; 0.2 ms more when the row's file is not among the `index_files.KEPT_BATCHES` opened last. Raises ShardError
        when the file is no longer the one that was planned from.
        """
        batch, inside = self._rows.find(row)
        names, codes = self.shards
        return batch.location(inside, names[codes[row]])


def open_curated(path: str | Path, *, split: str | None = None) -> ShardIndex:
    """Index of curated shards, opened as `ShardIndex.open` does. Raises ShardError when they follow another contract."""
    index = ShardIndex.open(path, split=split)
    check_contract(index.facts, str(path))
    return index


def open_latents(path: str | Path, *, split: str | None = None) -> ShardIndex:
    """Index of latent shards, opened as `ShardIndex.open` does. Raises ShardError when they follow another contract."""
    index = ShardIndex.open(path, split=split)
    check_contract(index.facts, str(path), remedy="Encode again with this version: `nava-train encode`.")
    return index


def _gathered(
    files: Iterable[tuple[IndexFile, pa.Buffer]], split: str | None
) -> tuple[MappedRows, PlannedColumns, list[str]]:
    """What `ShardIndex` keeps of files and their contents: the rows of a split (None: all), their columns, shard names."""
    places: list[BatchPlace] = []
    parts: list[PlannedColumns] = []
    rows: list[NDArray[np.int64]] = []
    names: dict[str, int] = {}
    num_rows = 0
    for group in grouped(_planned_batches(files, split, places)):
        table = group
        if split is not None:
            is_wanted = pc.fill_null(pc.equal(group["split"], split), False)
            rows.append(num_rows + np.flatnonzero(is_wanted.to_numpy()))
            table = group.filter(is_wanted)
        num_rows += len(group)
        parts.append(_planned_columns(table, names))
    columns = PlannedColumns._make(np.concatenate(column) for column in zip(*parts, strict=True))
    pa.default_memory_pool().release_unused()
    is_whole = len(columns.shard) == num_rows
    return MappedRows(places, None if is_whole else np.concatenate(rows)), columns, list(names)


def _planned_batches(
    files: Iterable[tuple[IndexFile, pa.Buffer]], split: str | None, places: list[BatchPlace]
) -> Iterator[pa.RecordBatch]:
    """The columns that are planned from, batch by batch; `places` learns where each one is."""
    schema: pa.Schema | None = None
    wanted = ["shard", "has_video", "has_audio", *TOKENS, *([] if split is None else ["split"])]
    for file, content in files:
        reader = open_index_file(file, content)
        if schema is None:
            schema = reader.schema
            _refuse_missing(file, schema, {*REQUIRED, *wanted})
        elif not schema.equals(reader.schema):
            raise ShardError(
                f"the index files have different columns: those of {file.name} are not those of {places[0].file.name}.",
                remedy="Pack them alike.",
            )
        if not reader.num_record_batches:
            yield schema.empty_table().select(wanted).to_batches()[0]
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            places.append(BatchPlace(file, number, len(batch)))
            yield batch.select(wanted)


def _refuse_missing(file: IndexFile, schema: pa.Schema, needed: set[str]) -> None:
    if missing := sorted(needed - set(schema.names)):
        raise ShardError(
            f"{file.name} lacks the columns {', '.join(missing)}.",
            remedy="Pack the shards again with this version; the trainer needs byte offsets and token counts.",
        )


def _planned_columns(table: pa.Table, shard_names: dict[str, int]) -> PlannedColumns:
    """The columns in memory of their own; `shard_names` maps names to positions and learns new ones."""
    video_tokens, audio_tokens, text_tokens = (_counts(table, name) for name in TOKENS)
    has_video, has_audio = (pc.fill_null(table[name], False).to_numpy() for name in ("has_video", "has_audio"))
    shard = pc.fill_null(table["shard"], "").combine_chunks().dictionary_encode()
    positions = [shard_names.setdefault(name, len(shard_names)) for name in shard.dictionary.to_pylist()]
    codes = np.array(positions, np.int32)[shard.indices.to_numpy()]
    return PlannedColumns(video_tokens, audio_tokens, text_tokens, has_video, has_audio, codes)


def _counts(table: pa.Table, name: str) -> NDArray[np.int32]:
    column = table[name]
    if column.null_count:
        raise ShardError(f"the index column {name} has {column.null_count} nulls.", remedy="Pack the shards again.")
    return np.array(column.to_numpy(), np.int32)
