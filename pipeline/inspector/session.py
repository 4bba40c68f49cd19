"""A run as pages look at it: opened once for each version of its ledger, with the answers that many pages need."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.ask.clips import ClipLists
from pipeline.ask.find import Chain, find
from pipeline.ask.marks import MarkFile, marks_file_of, pictures_of
from pipeline.ask.measures import Measures
from pipeline.ask.one_clip import chain_of_clip
from pipeline.ask.queries import Run
from pipeline.ask.read_measures import measures
from pipeline.ask.stats import Stats, stats
from pipeline.ask.status import RunStatus, status
from pipeline.pack.index import MANIFEST, read_manifest
from pipeline.pack.where import PackedClips
from schemas.errors import LedgerError
from schemas.plain_arrow import without_pandas
from schemas.records import Clip, Level

T = TypeVar("T")

ID = re.compile(r"[a-z][0-9a-f]{20}")
"""What an id of a source, asset, shot or clip looks like."""
KEPT_LATELY = 128
POLARS_MALLOC = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
"""What Polars' allocator reads when Polars is loaded."""
LIBC_MALLOC = {-3: 1 << 20, -1: 32 << 20, -8: 2}
"""glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX (malloc.h): a column of NumPy's is mapped for itself, what is less
is taken from a heap that is not given back each time, and there are few heaps."""
NEAR_IDS = 5


@dataclass
class RunView:
    """One version of a run's ledger. What is asked once is kept; threads that ask for the same wait for each other."""

    run: Run
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _kept: dict[str, Any] = field(default_factory=dict)
    _lately: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returned when it was first asked for under this name."""
        with self._lock:
            if name not in self._kept:
                self._kept[name] = make()
            found: T = self._kept[name]
            return found

    def lately(self, name: str, make: Callable[[], T]) -> T:
        """The same for what there are many of: the `KEPT_LATELY` asked for last are kept."""
        with self._lock:
            found: T = self._lately.pop(name) if name in self._lately else make()
            self._lately[name] = found
            if len(self._lately) > KEPT_LATELY:
                self._lately.popitem(last=False)
            return found

    @property
    def version(self) -> int:
        """Of the ledger."""
        return int(self.run.ledger.table.version())

    @property
    def stats(self) -> Stats:
        """What `nava-curate stats` says."""
        return self.once("stats", lambda: stats(self.run))

    @property
    def status(self) -> RunStatus:
        """What `nava-curate status` says."""
        return self.once("status", lambda: status(self.run))

    @property
    def lists(self) -> ClipLists:
        """Clips as lists."""

        def made() -> ClipLists:
            lists = ClipLists(self.run)
            _ = lists.spine
            return lists

        return self.once("lists", made)

    @property
    def measures(self) -> Measures:
        """Clips as arrays."""

        def made() -> Measures:
            found = measures(self.run)
            found.answer({})
            return found

        return self.once("measures", made)

    @property
    def packed(self) -> PackedClips | None:
        """The shards; None before the run is packed."""

        def made() -> PackedClips | None:
            is_there = self.run.dir.exists(MANIFEST)
            return PackedClips(self.run.dir, read_manifest(self.run.dir)) if is_there else None

        return self.once("packed", made)

    def chain(self, row_id: str) -> Chain:
        """The rows from a source down to this one, or down to all below it. Raises UnknownIdError."""
        if not ID.fullmatch(row_id):
            raise UnknownIdError(row_id, self.near(row_id))

        def made() -> Chain:
            try:
                return chain_of_clip(self.lists, row_id) or find(self.run, row_id)
            except LedgerError:
                raise UnknownIdError(row_id, self.near(row_id)) from None

        return self.lately(f"chain {row_id}", made)

    def clip(self, clip_id: str) -> Clip:
        """One clip. Raises UnknownIdError."""
        row = self.chain(clip_id).rows[-1]
        if not isinstance(row, Clip) or row.clip_id != clip_id:
            raise UnknownIdError(clip_id, self.near(clip_id))
        return row

    def near(self, row_id: str) -> list[str]:
        """Up to `NEAR_IDS` ids of clips and sources that begin as this one does."""
        import polars as pl

        beginning = row_id[: min(len(row_id), 8)]
        if not re.fullmatch(r"[a-z][0-9a-f]*", beginning):
            return []
        found: list[str] = []
        for level in (Level.CLIP, Level.ASSET):
            ids = self.run.facts.scan(level).filter(pl.col("row_id").str.starts_with(beginning)).select("row_id")
            found += ids.unique().sort("row_id").head(NEAR_IDS).collect()["row_id"].to_list()
        return found[:NEAR_IDS]


def spare_memory() -> None:
    """Has allocators return at once what an answered question took, and pyarrow do without pandas.

    A server that is asked now and then would else stay as large as its largest question. To be called before Polars is loaded.
    """
    os.environ.setdefault(*POLARS_MALLOC)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in LIBC_MALLOC.items():
            mallopt(option, value)
    without_pandas()


class UnknownIdError(LedgerError):
    """A page was asked about a row that the run does not have."""

    def __init__(self, row_id: str, near: list[str]) -> None:
        remedy = (
            f"Ids that begin so: {', '.join(near)}." if near else "Ids are listed on the pages of clips and sources."
        )
        super().__init__(f"there is no '{row_id[:40]}' in this run.", remedy=remedy)
        self.near = near


class Session:
    """Runs that pages show: the one that was named, and those to compare it with."""

    def __init__(
        self,
        uri: str,
        others: tuple[str, ...] = (),
        cache: Path | None = None,
        marks: Path | None = None,
        training: Path | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        spare_memory()
        self._open: Callable[[], Run] = lambda: Run(uri, cache, report)
        run = self._open()
        self.cache = run.cache
        self.folder = pictures_of(run.dir.uri, run.cache)
        """Where cut media and posters are kept."""
        self.marks = MarkFile(marks or marks_file_of(run.dir.uri, run.cache))
        self.training = training
        """Folder of a training on this run's shards; None where none was named."""
        self.others = {other: RunView(Run(other, cache, report)) for other in others}
        self._view = RunView(run)
        self._lock = threading.Lock()
        run.ledger.table  # noqa: B018 - a run that is not there is said at once

    @property
    def view(self) -> RunView:
        """The run as it was last looked at."""
        return self._view

    def refresh(self) -> RunView:
        """The run as it is now: the same view if nothing was committed since."""
        with self._lock:
            now = self._open()
            if int(now.ledger.table.version()) != self._view.version or (
                self._view.packed is None and now.dir.exists(MANIFEST)
            ):
                self._view = RunView(now)
            return self._view
