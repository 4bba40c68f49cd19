"""From a plan to samples in memory: byte ranges of tar shards, fetched ahead in threads, checked, replaced when damaged.

    SampleReader   row -> the sample's members as slices of one read, without a tar library
    PackLoader     packs of a `PlanStream` in order, a bounded number of them ahead; says what a stall was spent on

A damaged sample is named, counted and replaced by another (`model/data/substitutes.py`), so that every rank that meets it
trains on the same one; nothing is ever filled with zeros. Reads that fail for a while are tried again. A shard that is
missing altogether is an error, not damage.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from isal.isal_zlib import crc32  # ten times zlib's speed, which would cost more than the reading

from model.data.batching import PlanStream, SampleRef
from model.data.index import ShardIndex
from model.data.packing import Item, Pack
from model.data.position import PlanPosition
from model.data.retry import patiently
from model.data.substitutes import substitute
from schemas.errors import DamagedSampleError, MachineError, ShardError
from schemas.shard import LATENT_MEMBER
from schemas.shard_file import SampleLocation, members_of

T = TypeVar("T")
MAX_OPEN_SHARDS = 64
MAX_REPLACEMENTS = 16
"""Damaged substitutes in a row before giving up: then the data set is broken, not a sample."""
MAX_SAID = 20
"""Damaged samples that are told of one by one; the rest are counted in metrics.jsonl and named in checkpoints."""
DISK_WAITS_S, SHORT_WAITS_S = (0.5, 1.0, 2.0), (0.5, 1.0)
"""Between tries of a range that the disk refuses, or that a store gives in part: what stays so is damaged."""


class Shards(Protocol):
    """Random access to the bytes of shards; safe to call from several threads."""

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes | memoryview:
        """Bytes [offset, offset + num_bytes) of a shard; fewer at its end. Raises ShardError when it is missing."""
        ...

    def expect(self, shard: str, offset: int, num_bytes: int) -> None:
        """A hint that these bytes will be read next. Raises ShardError when the shard is missing."""
        ...


class LocalShards:
    """Shards in a folder, read by `pread` on a bounded number of kept-open files."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._open = lru_cache(MAX_OPEN_SHARDS)(self._open_file)

    def read(self, shard: str, offset: int, num_bytes: int) -> memoryview:
        """See `Shards.read`.

        Into memory that begins at a multiple of 64 bytes, as torch's does: elsewhere the kernel of some hosts copies up to
        five times slower (2.4 instead of 12 GB/s into odd addresses, 5 at 16 above a multiple of 32; measured on an
        EPYC; the same code on another day's host showed no difference).
        """
        buffer: memoryview = torch.empty(num_bytes, dtype=torch.uint8).numpy().data
        try:
            return self._filled(shard, offset, buffer)
        except OSError as refused:
            if refused.errno != errno.EIO:
                return patiently(lambda: self._read_anew(shard, offset, buffer), f"shard {self._folder / shard}")
        try:
            return patiently(
                lambda: self._read_anew(shard, offset, buffer), f"shard {self._folder / shard}", DISK_WAITS_S
            )
        except MachineError as error:
            raise DamagedSampleError(f"{shard} at {offset:,}: {error.message}") from error

    def _read_anew(self, shard: str, offset: int, buffer: memoryview) -> memoryview:
        self._open.cache_clear()  # of a mount that was away, open files are stale
        return self._filled(shard, offset, buffer)

    def _filled(self, shard: str, offset: int, buffer: memoryview) -> memoryview:
        file = self._open(shard)  # held: closed as soon as neither the cache nor a reader has it
        return buffer[: os.preadv(file.descriptor, [buffer], offset)]

    def expect(self, shard: str, offset: int, num_bytes: int) -> None:
        """See `Shards.expect`: the disk starts on several ranges at once, a third faster than one after the other."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        with suppress(OSError):  # reading will meet it again
            file = self._open(shard)  # held: closed as soon as neither the cache nor a reader has it
            os.posix_fadvise(file.descriptor, offset, num_bytes, os.POSIX_FADV_WILLNEED)

    def _open_file(self, shard: str) -> OpenFile:
        try:
            return OpenFile(self._folder / shard)
        except FileNotFoundError as error:
            raise ShardError(
                f"shard {shard} is not in {self._folder}.",
                remedy="Point `shards` to the folder the index was packed with, or pack again.",
            ) from error

    def close(self) -> None:
        """Close every file that no read is using."""
        self._open.cache_clear()


class OpenFile:
    """A file opened for reading, closed when nobody holds it any more: dropping it from a cache cannot break a read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        # samples span many pages and runs read neighbours: a doubled read-ahead made cold reads a third faster
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


class RemoteShards:
    """Shards under an fsspec URL (s3://bucket/run/shards and the like), read by byte range."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self._files, self._root = url_to_fs(url)

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """See `Shards.read`."""
        path = f"{self._root}/{shard}"

        def read() -> bytes:
            data: bytes = self._files.cat_file(path, start=offset, end=offset + num_bytes)
            return data

        try:
            data = patiently(read, f"shard {shard}")
            for wait_s in SHORT_WAITS_S:
                if len(data) == num_bytes:
                    break
                time.sleep(wait_s)
                data = patiently(read, f"shard {shard}")
        except (FileNotFoundError, PermissionError) as error:
            what = "does not exist" if isinstance(error, FileNotFoundError) else "may not be read"
            raise ShardError(f"shard {path} {what}.", remedy="Check the shard URL of the recipe.") from error
        return data

    def expect(self, shard: str, offset: int, num_bytes: int) -> None:
        """See `Shards.expect`: nothing, the loader's workers keep several requests in flight."""


def open_shards(where: str | Path) -> Shards:
    """Shards in a local folder or under an fsspec URL."""
    text = str(where)
    return (
        RemoteShards(text)
        if "://" in text and not text.startswith("file://")
        else LocalShards(text.removeprefix("file://"))
    )


class RawSample(NamedTuple):
    """One sample's members by extension, as slices of a single read."""

    clip_id: str
    row: int
    members: dict[str, memoryview]


class SampleReader:
    """Samples by row number: one read each, members sliced without a copy, checksum verified unless switched off."""

    def __init__(self, index: ShardIndex, shards: Shards, *, verify: bool = True) -> None:
        self.index, self._shards, self._checksum = index, shards, crc32 if verify else None

    def expect(self, row: int) -> None:
        """A hint that this sample will be read next."""
        place = self.index.location(row)
        self._shards.expect(place.shard, place.offset, place.num_bytes)

    def fetch(self, row: int) -> tuple[SampleLocation, bytes | memoryview]:
        """Where a sample is, and its bytes."""
        place = self.index.location(row)
        return place, self._shards.read(place.shard, place.offset, place.num_bytes)

    def check(self, row: int, place: SampleLocation, data: bytes | memoryview) -> RawSample:
        """The sample of these bytes. Raises DamagedSampleError when they are too short or fail the checksum."""
        return RawSample(place.clip_id, row, members_of(place, data, self._checksum))

    def read(self, row: int) -> RawSample:
        """One sample. Raises DamagedSampleError when its bytes are wrong, ShardError when its shard is missing."""
        return self.check(row, *self.fetch(row))


def decode_latents(raw: RawSample) -> dict[str, Any]:
    """Tensors of a latent sample by name. Raises DamagedSampleError when the member is absent or not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if LATENT_MEMBER not in raw.members:
        raise DamagedSampleError(
            f"{raw.clip_id} has no .{LATENT_MEMBER} member, only {', '.join(raw.members) or 'nothing'}."
        )
    try:
        return dict(load(bytes(raw.members[LATENT_MEMBER])))
    except SafetensorError as error:
        raise DamagedSampleError(f"{raw.clip_id}: the .{LATENT_MEMBER} member cannot be read: {error}.") from error


@dataclass(slots=True)
class Stalls:
    """Seconds the consumer had to wait, by what the awaited pack was doing. `queue_s`: no worker had taken it up yet."""

    queue_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    num_packs: int = 0

    @property
    def total_s(self) -> float:
        """All waiting."""
        return self.queue_s + self.read_s + self.decode_s


@dataclass(slots=True)
class LoadedPack(Generic[T]):
    """One micro-step's samples, with what was asked for and what was really read."""

    step: int
    micro_step: int
    is_last: bool
    samples: list[T]
    refs: list[SampleRef]
    clip_ids: list[str]
    position: PlanPosition | None
    """Plan position after this step, on the last pack of a step."""
    timeline: list[tuple[str, float, float]] = field(default_factory=list)


class _Loaded(NamedTuple, Generic[T]):
    """A sample, the item that it is of, and its name."""

    sample: T
    item: Item
    clip_id: str


class PackLoader(Generic[T]):
    """Loaded packs of a stream in order; at most `prefetch` packs are read, decoding or waiting to be taken.

    `decode` runs in worker threads and raises DamagedSampleError for content it cannot use. Iterate, then `close`.
    `damaged` maps clip ids to what was wrong with them; hand it back on resume to skip them without reading.
    """

    def __init__(
        self,
        stream: PlanStream,
        reader: SampleReader,
        decode: Callable[[RawSample], T],
        *,
        num_workers: int = 4,
        prefetch: int = 4,
        damaged: dict[str, str] | None = None,
    ) -> None:
        self._stream, self._reader, self._decode = stream, reader, decode
        self._prefetch = max(1, prefetch)
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="pack-loader")
        self._pending: deque[Future[LoadedPack[T]]] = deque()
        self._planned = self._packs()
        self._lock = threading.Lock()
        self.damaged: dict[str, str] = dict(damaged or {})
        self.num_replaced = 0
        self._said: set[str] = set()
        self.stalls = Stalls()

    def __iter__(self) -> Iterator[LoadedPack[T]]:
        return self

    def __next__(self) -> LoadedPack[T]:
        while len(self._pending) < self._prefetch:
            self._pending.append(self._workers.submit(self._load, time.perf_counter(), *next(self._planned)))
        began = time.perf_counter()
        pack = self._pending.popleft().result()
        self._attribute(pack, began, time.perf_counter())
        return pack

    def close(self) -> None:
        """Stop the workers; packs ahead are dropped. The position of the last pack taken stays valid."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _packs(self) -> Iterator[tuple[int, int, Pack, PlanPosition | None]]:
        for packs in self._stream:
            step, position = self._stream.step, self._stream.state()
            for i, pack in enumerate(packs):
                yield step, i, pack, position if i == len(packs) - 1 else None

    def _load(
        self, submitted: float, step: int, micro_step: int, pack: Pack, position: PlanPosition | None
    ) -> LoadedPack[T]:
        loaded: LoadedPack[T] = LoadedPack(step, micro_step, position is not None, [], [], [], position)
        began = time.perf_counter()
        loaded.timeline.append(("queue", submitted, began))
        for item in pack.items:
            self._reader.expect(item.row)
        loaded.timeline.append(("read", began, time.perf_counter()))
        spare_tokens = self._stream.plan.config.token_budget - math.ceil(pack.tokens)
        for i, item in enumerate(pack.items):
            # What a team shares must not hang on the rest of a rank's pack: the other ranks have another.
            is_shared = i < len(pack.shared)
            found = self._load_item(item, 0 if is_shared else spare_tokens, loaded.timeline)
            if found is not None:
                spare_tokens -= max(0, found.item.tokens - item.tokens)
                loaded.samples.append(found.sample)
                loaded.refs.append(self._stream.plan.sample(found.item, is_shared=is_shared))
                loaded.clip_ids.append(found.clip_id)
        if pack.items and not loaded.samples:
            raise ShardError(
                f"a whole pack of step {step} is damaged, and every substitute for it ({len(self.damaged)} samples so far).",
                remedy="Run `nava-curate verify` on the shards and copy or pack the bad ones again.",
            )
        return loaded

    def _load_item(
        self, wanted: Item, spare_tokens: int, timeline: list[tuple[str, float, float]]
    ) -> _Loaded[T] | None:
        """The wanted sample, or the first substitute that is sound; None when none of those that have room is."""
        tried: list[int] = []
        item: Item | None = wanted
        while item is not None and len(tried) < MAX_REPLACEMENTS:
            tried.append(item.row)
            clip_id = self._reader.index.clip_id(item.row)
            sample = None if clip_id in self.damaged else self._sound(item.row, clip_id, timeline)
            if sample is not None:
                self._tell(wanted, item, clip_id)
                return _Loaded(sample, item, clip_id)
            with self._lock:
                self.num_replaced += 1
            item = substitute(self._stream.plan, wanted, tried, spare_tokens)
        if item is None:
            self._tell(wanted, None, "")
            return None
        raise ShardError(
            f"{self._reader.index.clip_id(wanted.row)} and {MAX_REPLACEMENTS - 1} substitutes are damaged "
            f"({len(self.damaged)} samples so far); the last one: {next(reversed(self.damaged.values()))}",
            remedy="Run `nava-curate verify` on the shards and copy or pack the bad ones again.",
        )

    def _sound(self, row: int, clip_id: str, timeline: list[tuple[str, float, float]]) -> T | None:
        """One sample; None, and noted, when it is damaged."""
        began = time.perf_counter()
        try:
            place, data = self._reader.fetch(row)
            middle = time.perf_counter()
            timeline.append(("read", began, middle))
            sample = self._decode(self._reader.check(row, place, data))
        except DamagedSampleError as error:
            with self._lock:
                self.damaged[clip_id] = str(error)
            return None
        timeline.append(("decode", middle, time.perf_counter()))
        return sample

    def _tell(self, wanted: Item, item: Item | None, clip_id: str) -> None:
        """Say what a damaged sample was replaced by, the first time."""
        if item is wanted:
            return
        name = self._reader.index.clip_id(wanted.row)
        with self._lock:
            if name in self._said or len(self._said) >= MAX_SAID:
                return
            self._said.add(name)
        instead = "nothing in its place: no other fits the pack"
        if item is not None:
            instead = f"{clip_id} in its place ({item.tokens:,} tokens for {wanted.tokens:,})"
        print(f"{name} is damaged, trained on {instead}. {self.damaged[name]}", flush=True)

    def _attribute(self, pack: LoadedPack[T], began: float, ended: float) -> None:
        self.stalls.num_packs += 1
        for kind, start, end in pack.timeline:
            waited = max(0.0, min(end, ended) - max(start, began))
            if kind == "queue":
                self.stalls.queue_s += waited
            elif kind == "read":
                self.stalls.read_s += waited
            else:
                self.stalls.decode_s += waited
