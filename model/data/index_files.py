"""Index files where they lie: opened when one of their rows is asked for, so that their content costs a rank no memory.

LocalFile      a path, mapped anew whenever it is opened; refused once its content is no longer what it was
HeldFile       bytes that are there already: a part of a mapped copy of remote files, or a table in memory
MappedRows     the wanted rows of many files, counted through; a bounded number of batches is open at a time
"""

from __future__ import annotations

import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.data.retry import patiently
from schemas.errors import ShardError
from schemas.shard_file import SampleLocation

KEPT_BATCHES = 256
"""Batches open at a time, about 11 kB each; one pack stream reads from 32 places, and opening a batch again takes 0.2 ms."""
FETCHED_FILES, FETCHED_BYTES = 1024, 64 << 20
"""Most remote files asked for together, and the bytes of them that are enough; fsspec chooses how many go at once."""
GROUPED_BATCHES, GROUPED_ROWS = 1024, 1 << 16
"""Most batches, and about as many rows, that are looked at together."""
ALIGNMENT_BYTES = 64
"""Where an Arrow file may begin so that its numbers are read in place."""


class IndexFile(Protocol):
    """An Arrow IPC file. `name` is what an error calls it."""

    @property
    def name(self) -> str: ...

    def buffer(self) -> pa.Buffer:
        """Its bytes, not copied. Raises ShardError when they are not there any more."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on a disk, as it was when it was found."""

    name: str
    inode: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def at(cls, path: str) -> LocalFile:
        """The file that is there now. Raises FileNotFoundError."""
        facts = os.stat(path)
        return cls(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)

    def buffer(self) -> pa.Buffer:
        """See `IndexFile.buffer`."""
        try:
            mapped = pa.memory_map(self.name).read_buffer()
            is_same = LocalFile.at(self.name) == self
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise ShardError(
                f"{self.name} changed or was removed since the index was opened.",
                remedy="Start again; leave the shards as they are while something reads them.",
            )
        return mapped


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file whose bytes are in memory or in a map."""

    name: str
    held: pa.Buffer

    def buffer(self) -> pa.Buffer:
        """See `IndexFile.buffer`."""
        return self.held


def index_files(paths: Sequence[str | Path]) -> Iterator[IndexFile]:
    """Every `*.arrow` file under `paths` (files, folders, fsspec URLs), each path's in name order.

    Remote files are copied to an unnamed file in the folder for temporary files, many requests at a time. Raises
    ShardError for a path without any.
    """
    for path in paths:
        text = str(path).removeprefix("file://")
        files: Sequence[IndexFile]
        if "://" in text:
            files = _fetched(text)
        else:
            local = sorted(Path(text).glob("*.arrow")) if Path(text).is_dir() else [Path(text)]
            files = [LocalFile.at(str(file)) for file in local if file.exists()]
        if not files:
            raise ShardError(f"no index at {path}.", remedy="Give the run's index folder, which holds *.arrow files.")
        yield from files


def _fetched(url: str) -> list[HeldFile]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    files, root = url_to_fs(url)

    def sizes_there() -> dict[str, int]:
        if files.isdir(root):
            return {name: facts["size"] or 0 for name, facts in files.glob(f"{root}/*.arrow", detail=True).items()}
        return {root: files.info(root)["size"] or 0} if files.exists(root) else {}

    sizes = patiently(sizes_there, "the index")
    places: list[tuple[str, int, int]] = []
    with tempfile.TemporaryFile() as copy:
        for names in _groups(sizes):
            contents = patiently(partial(files.cat, names), "the index")
            for name in names:
                places.append((name, copy.tell(), copy.write(contents[name])))
                copy.write(bytes(-copy.tell() % ALIGNMENT_BYTES))
        if not copy.tell():
            return [HeldFile(name, pa.py_buffer(b"")) for name, _, _ in places]
        copy.flush()
        mapped = pa.py_buffer(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ))
    return [HeldFile(name, mapped.slice(offset, num_bytes)) for name, offset, num_bytes in places]


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in order, as many together as one fetch may bring."""
    names: list[str] = []
    num_bytes = 0
    for name in sorted(sizes):
        names.append(name)
        num_bytes += sizes[name]
        if len(names) == FETCHED_FILES or num_bytes >= FETCHED_BYTES:
            yield names
            names, num_bytes = [], 0
    if names:
        yield names


def open_index_file(file: IndexFile, content: pa.Buffer) -> pa.ipc.RecordBatchFileReader:
    """The batches of a file's content. Raises ShardError when it is no Arrow IPC file."""
    try:
        return pa.ipc.open_file(content)
    except pa.ArrowInvalid as error:
        raise ShardError(f"{file.name} is not an Arrow IPC file: {error}", remedy="Pack the shards again.") from error


class BatchPlace(NamedTuple):
    """One record batch: its file, its number there and its rows."""

    file: IndexFile
    number: int
    num_rows: int


class MappedRows:
    """Rows of many batches, numbered through. `rows` picks some of them, in ascending order; None takes all.

    Memory: 4 bytes for each picked row, about half a kilobyte for each file, and the batches that are open.
    """

    def __init__(self, places: Sequence[BatchPlace], rows: NDArray[np.integer[Any]] | None = None) -> None:
        self._places = places
        self._starts = np.cumsum([0, *(place.num_rows for place in places)]).data
        num_rows: int = self._starts[-1]
        self._rows = None if rows is None else rows.astype(np.int32 if num_rows < 2**31 else np.int64)
        self._opened = lru_cache(KEPT_BATCHES)(self._open)
        self._num_rows = num_rows if rows is None else len(rows)

    def __len__(self) -> int:
        return self._num_rows

    def picked(self, rows: NDArray[np.integer[Any]]) -> MappedRows:
        """Some of these rows, by their numbers here in ascending order."""
        return MappedRows(self._places, rows if self._rows is None else self._rows[rows])

    def find(self, row: int) -> tuple[MappedBatch, int]:
        """The batch that holds a row, and where in it."""
        place = row if self._rows is None else int(self._rows[row])
        number = bisect_right(self._starts, place) - 1
        return self._opened(number), place - self._starts[number]

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in order, with these columns or all, a group of batches at a time; at least one table, maybe empty.

        Copied only where rows are picked.
        """
        start = 0
        for group in grouped(self._batch(number, names) for number in range(len(self._places))):
            end = start + len(group)
            if self._rows is None:
                yield group
            else:
                first, last = np.searchsorted(self._rows, [start, end])
                yield group.take(pa.array(self._rows[first:last] - start))
            start = end

    def _batch(self, number: int, names: Sequence[str] | None = None) -> pa.RecordBatch:
        place = self._places[number]
        batch = open_index_file(place.file, place.file.buffer()).get_batch(place.number)
        return batch if names is None else batch.select(list(names))

    def _open(self, number: int) -> MappedBatch:
        return MappedBatch(self._batch(number))


def grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches of one schema as tables of about `GROUPED_ROWS`: what is done to a table neither costs by file nor by index."""
    group: list[pa.RecordBatch] = []
    num_rows = 0
    for batch in batches:
        for start in range(0, max(len(batch), 1), GROUPED_ROWS):
            group.append(batch.slice(start, GROUPED_ROWS))
            num_rows += len(group[-1])
            if num_rows >= GROUPED_ROWS or len(group) == GROUPED_BATCHES:
                yield pa.Table.from_batches(group)
                group, num_rows = [], 0
    if group:
        yield pa.Table.from_batches(group)


class MappedBatch:
    """Where the samples of one record batch are, by row inside it; numbers are read in place.

    Only a column with nulls is copied: packed shards have none where a sample's bytes are said.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        def ints(name: str) -> memoryview:
            column = batch.column(name)
            values: memoryview = (column.fill_null(0) if column.null_count else column).to_numpy().data
            return values

        self._batch, self._clip_ids = batch, batch.column("clip_id")
        self._sample = ints("sample_offset"), ints("sample_bytes"), ints("crc32")
        members = [n.removesuffix("_offset") for n in batch.schema.names if n.endswith("_offset")]
        self._members = [(n, ints(f"{n}_offset"), ints(f"{n}_bytes")) for n in members if n != "sample"]

    def clip_id(self, row: int) -> str:
        """See `ShardIndex.clip_id`."""
        return str(self._clip_ids[row].as_py())

    def values(self, row: int) -> dict[str, Any]:
        """Every column of a row, as Python values."""
        return {name: self._batch.column(name)[row].as_py() for name in self._batch.schema.names}

    def location(self, row: int, shard: str) -> SampleLocation:
        """See `ShardIndex.location`; `shard` is the name of the row's shard."""
        offset, num_bytes, crc32 = self._sample
        members = {name: (offsets[row], size) for name, offsets, sizes in self._members if (size := sizes[row])}
        return SampleLocation(self.clip_id(row), shard, offset[row], num_bytes[row], crc32[row], members)
