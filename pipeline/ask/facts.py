"""Facts: the scalars of a ledger, flat and memory-mapped, in a cache folder between the ledger and questions.

One row per source, shot and clip: its keys, how it settled, and every number, flag and text that stages measured; null where
nothing was measured. Of lists there are the gates a row fails, and the first item of what is shown as a label; of private
fields nothing. What the columns are, plan and roles say. Values have the ledger's types and are equal to it to the last bit,
so that a bound decides as it does there: only whole numbers and texts that repeat themselves are kept in fewer bytes.

A file per level holds what lies in the ledger's data files. Those never change once they are written, so that a newer
version of the ledger costs reading the files it gained, whether rows came, were replaced, or were only joined into larger
files. A file of the cache is written whole, and believed only as it was left, for this ledger and these columns; where it
cannot be written the ledger answers. Deleting the cache changes nothing but time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from pipeline.ledger import Ledger, hash_column
from pipeline.plan import Plan
from schemas.fields import children_of, is_private, roles_of
from schemas.files import whole_path, write_whole
from schemas.ids import digest
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl

FORM = 1
"""Raised whenever the same ledger gives another file."""
LEAST_ROWS = 20_000
"""Of fewer rows the ledger answers as fast, and leaves nothing behind."""
SAMPLE_ROWS = 8192
"""Rows by which texts are found to repeat themselves: those of one row group of the ledger."""
PATIENCE_S = 1.0
"""What takes longer says so."""
OUTLIVED_S = 3600.0
"""A file that another one has replaced is removed after this time: a question may still be at it."""
IDS = ("row_id", "parent_id", "source_id", "asset_id")
SETTLED = ("failed_by", "verdict.status", "verdict.reason", "verdict.stage")
"""What has few values, as the hashes of stages have."""
MEASURED = ("duration_us", "verdict.is_audit")
OF_SOURCES = ("source.uri", "source.licence", "passed")
FAILED_GATES = "failed_gates"
"""Every gate the row fails, with spaces between."""
NONE = "none"
"""Label of rows where a list is empty."""


def reached(column: str) -> pl.Expr:
    """Whether the stage that adds `column` looked at a row; what a split adds is there wherever the row is."""
    import polars as pl

    return pl.lit(True) if column in set(Level) else pl.col(hash_column(column)).is_not_null()


def columns(plan: Plan, level: Level) -> dict[str, pl.Expr]:
    """Name -> what it is in terms of the ledger's columns, of all facts about the rows of a level."""
    import polars as pl

    of_sources = OF_SOURCES if level is Level.ASSET else ()
    found = {name: pl.col(name) for name in [*IDS, *MEASURED, *SETTLED, *of_sources, *_hashes(plan, level)]}
    found[FAILED_GATES] = pl.col("verdict.failed_gates").list.join(" ")
    private: tuple[str, ...] = ()
    for path, field in plan.fields(level):
        if is_private(field) or path.startswith(private):
            private += (f"{path}.",)
        elif "[]" in path and roles_of(field).get("show") == "label":
            found[path] = _first_item(path)
        elif "[]" not in path and not children_of(field.type):
            found[path] = pl.col(path)
    return found


def _hashes(plan: Plan, level: Level) -> list[str]:
    return [hash_column(spec.name) for spec in plan.stages if level in (spec.adds_to, spec.cls.level)]


def copies(level: Level) -> dict[str, str]:
    """Field of the base contract -> the key that the ledger makes of it."""
    if level is Level.ASSET:
        return {}
    return {f"{level}.{level}_id": "row_id", f"{level}.parent_id": "parent_id", f"{level}.duration_us": "duration_us"}


def _first_item(path: str) -> pl.Expr:
    """The value of the first item at a `path` into a list, or "none" where there is none. Null: nobody looked."""
    import polars as pl

    head, *inside = path.split("[]")
    items = pl.col(head)
    first = items.list.first()
    for name in "".join(inside).strip(".").split("."):
        first = first.struct.field(name)
    is_empty = reached(head.partition(".")[0]) & (items.list.len().fill_null(0) == 0)
    return pl.when(is_empty).then(pl.lit(NONE)).otherwise(first.cast(pl.String))


@dataclass(frozen=True)
class CacheNote:
    """What stands beside a file of the cache."""

    maker: str
    """Digest of the ledger's id and of what the columns are."""
    files: Mapping[str, int]
    """Data file of the ledger -> its rows, in the order in which they lie here."""
    name: str
    num_bytes: int
    written_ns: int


class Facts:
    """The facts of a run: what its ledger says, through `scan`, from the cache where that is faster.

    `folder` is where the caches of all runs lie. `report` is told in a sentence what takes long, and what cannot be kept.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        folder: Path,
        *,
        least_rows: int = LEAST_ROWS,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.ledger, self.plan = ledger, plan
        self.folder = folder / digest("facts", ledger.uri)
        self.least_rows, self.report = least_rows, report
        self._paths: dict[Level, Path | None] = {}
        self._known: dict[Level, dict[str, pl.Expr]] = {}

    def scan(self, kind: str) -> pl.LazyFrame:
        """The `columns` of all rows of a level, lazily. Raises LedgerError.

        The first question about a version of the ledger reads what no earlier one has.
        """
        import polars as pl

        level = Level(kind)
        rows = self.ledger.scan(level).select(each.alias(name) for name, each in self._told(level).items())
        path = self.path(level)
        if path is None:
            return rows
        of = copies(level)
        return pl.scan_ipc(path, glob=False).select(
            pl.col(of.get(name, name)).cast(kind).alias(name) for name, kind in rows.collect_schema().items()
        )

    def place(self, level: Level, at: int) -> tuple[str, int] | None:
        """The data file of the ledger, and the row in it, of what `scan` has at this place; None where nothing is cached."""
        note = self._note(level) if self.path(level) is not None else None
        for name, num_rows in note.files.items() if note is not None else ():
            if at < num_rows:
                return name, at
            at -= num_rows
        return None

    def path(self, level: Level) -> Path | None:
        """The cache's file about a level, made or brought up to date if need be; None where the ledger is asked instead."""
        if level not in self._paths:
            self._paths[level] = self._current(level)
        return self._paths[level]

    def _current(self, level: Level) -> Path | None:
        import polars as pl

        files = self._files[level]
        num_rows = sum(files.values())
        if not files or num_rows < self.least_rows:
            return None
        try:
            note = self._note(level)
            if note is None or note.files != files:
                with _patient(self.report, f"reading {num_rows} {level}s of the ledger, once"):
                    note = self._write(level, files, note)
            return self.folder / note.name
        except (OSError, pl.exceptions.PolarsError) as error:
            self.report(f"nothing can be kept in {self.folder} ({error}): every question reads the ledger")
            self._paths.update(dict.fromkeys(Level))
            return None

    @cached_property
    def _files(self) -> dict[Level, dict[str, int]]:
        """Level -> data file of the ledger -> its rows."""
        import polars as pl

        actions = pl.DataFrame(self.ledger.table.get_add_actions(flatten=True))
        found: dict[Level, dict[str, int]] = {level: {} for level in Level}
        for path, num_rows, kind in actions.select("path", "num_records", "partition.kind").iter_rows():
            found[Level(kind)][path] = num_rows
        return found

    def _told(self, level: Level) -> dict[str, pl.Expr]:
        """The `columns` that the ledger can fill: what a stage has gained since the ledger was written is not among them."""
        if level not in self._known:
            known = set(self.ledger.table.schema().to_arrow().names)
            told = columns(self.plan, level).items()
            self._known[level] = {name: each for name, each in told if known.issuperset(each.meta.root_names())}
        return self._known[level]

    def _maker(self, level: Level) -> str:
        told = [(name, str(each)) for name, each in self._told(level).items()]
        return digest(FORM, self.ledger.table.metadata().id, told)

    def _note(self, level: Level) -> CacheNote | None:
        """What the cache holds about a level; None where that is not of this ledger, or not as it was left."""
        try:
            note = CacheNote(**json.loads((self.folder / f"{level}.json").read_bytes()))
            there = (self.folder / note.name).stat()
        except (OSError, ValueError, TypeError):
            return None
        is_as_left = (there.st_size, there.st_mtime_ns) == (note.num_bytes, note.written_ns)
        return note if is_as_left and note.maker == self._maker(level) else None

    def _write(self, level: Level, files: Mapping[str, int], before: CacheNote | None) -> CacheNote:
        """Writes a level anew, from what `before` has of the ledger's files, and from those that it lacks."""
        import polars as pl

        kept = [name for name in before.files if name in files] if before else []
        new = [name for name in files if name not in kept]
        parts = list(self._still_true(before, files)) if before else []
        if new:
            parts.append(_smaller(self._read(new, level), parts[0] if parts else None))
        maker = self._maker(level)
        name = f"facts-{self.ledger.table.version()}-{level}-{digest(maker, *kept, *new)[:8]}.arrow"
        with whole_path(self.folder / name) as partial:
            pl.concat(parts, how="vertical_relaxed").sink_ipc(partial)
        there = (self.folder / name).stat()
        note = CacheNote(maker, {each: files[each] for each in [*kept, *new]}, name, there.st_size, there.st_mtime_ns)
        write_whole(self.folder / f"{level}.json", json.dumps(asdict(note)).encode())
        self._remove_older(level, name)
        return note

    def _still_true(self, before: CacheNote, files: Mapping[str, int]) -> Iterator[pl.LazyFrame]:
        """The rows of an earlier file that the ledger still has, a part for each stretch of them."""
        import polars as pl

        rows, at = pl.scan_ipc(self.folder / before.name, glob=False), 0
        for is_there, stretch in groupby(before.files.items(), key=lambda item: item[0] in files):
            num_rows = sum(number for _, number in stretch)
            if is_there:
                yield rows.slice(at, num_rows)
            at += num_rows

    def _read(self, names: Sequence[str], level: Level) -> pl.LazyFrame:
        """The facts in some data files of the ledger, copies aside; what a file lacks, as its recipe had it not, is null."""
        import polars as pl

        told = {name: each for name, each in self._told(level).items() if name not in copies(level)}
        needed = {root for each in told.values() for root in each.meta.root_names()}
        types = pl.Schema(self.ledger.table.schema())
        rows = pl.scan_parquet(
            [f"{self.ledger.uri}/{name}" for name in names],
            schema={name: kind for name, kind in types.items() if name in needed},
            glob=False,
            hive_partitioning=False,
            missing_columns="insert",
            extra_columns="ignore",
            cast_options=pl.ScanCastOptions(missing_struct_fields="insert", extra_struct_fields="ignore"),
        )
        known = told.keys() & {*SETTLED, *_hashes(self.plan, level)}
        return rows.select(each.alias(name) for name, each in told.items()).cast(dict.fromkeys(known, pl.Categorical))

    def _remove_older(self, level: Level, newest: str) -> None:
        for path in self.folder.glob(f"facts-*-{level}-*.arrow"):
            if path.name != newest and time.time() - path.stat().st_mtime > OUTLIVED_S:
                path.unlink(missing_ok=True)


def _smaller(rows: pl.LazyFrame, kept: pl.LazyFrame | None) -> pl.LazyFrame:
    """`rows` in fewer bytes: whole numbers as short as they allow, texts that repeat themselves as categories.

    Texts are what they are in `kept`, where rows are added to those; else the first rows tell.
    """
    import polars as pl
    from polars import selectors as cs

    least, most = (rows.select(each).collect(engine="streaming") for each in (cs.integer().min(), cs.integer().max()))
    short = {name: _shortest(least[name].item(), most[name].item()) for name in least.columns}
    if kept is not None:
        texts = cs.expand_selector(kept, cs.categorical())
    else:
        first = rows.select(cs.string().exclude(IDS)).head(SAMPLE_ROWS).collect()
        texts = tuple(each.name for each in first if 0 < 2 * each.drop_nulls().n_unique() <= each.count())
    kinds = short | dict.fromkeys(texts, pl.Categorical)
    return rows.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items())


def _shortest(least: int | None, most: int | None) -> type[pl.DataType]:
    """The shortest signed type that holds a range of whole numbers; None: there are none."""
    import polars as pl

    num_bits = max((least or 0).bit_length(), (most or 0).bit_length())
    return next(
        kind for bits, kind in ((8, pl.Int8), (16, pl.Int16), (32, pl.Int32), (65, pl.Int64)) if num_bits < bits
    )


@contextmanager
def _patient(report: Callable[[str], None], sentence: str) -> Iterator[None]:
    """Says what is being waited for if it takes long."""
    timer = Timer(PATIENCE_S, report, [sentence])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
