"""Clips as lists: which fulfil conditions, in which order, a page at a time, and how many there are of what kind.

A clip counts as its source does: below a source that was not kept it is rejected for the source's reason, so that the clips
with a reason and their hours are those of the balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ask.condition import TEXT, Condition
from pipeline.ask.queries import Run, counted_assets, status_below
from pipeline.plan import Plan
from schemas.errors import LedgerError
from schemas.recipe import nearest
from schemas.records import Level
from schemas.verdict import Check

if TYPE_CHECKING:
    import polars as pl

PAGE = 60
MARGIN = "margin"
IN_TIME = "time"
"""The order of sources by their names, and of clips in them by time."""
KEYS = ("row_id", "source", "status", "reason", "duration_us")
SPOKEN = f"{Level.CLIP}.spans"
SHOWN_FACETS = 12
"""Most values of a facet that are told."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ClipQuestion:
    """Which clips, and in which order."""

    status: str = ""
    reason: str = ""
    source: str = ""
    """Id of the source."""
    conditions: tuple[Condition, ...] = ()
    sort: str = IN_TIME
    """`time`; `margin:FIELD`, nearest to the field's gate first; `FIELD` or `-FIELD`. What was not measured comes last."""
    after: str = ""
    """Clip id behind which the page begins."""
    limit: int = PAGE


@dataclass(frozen=True)
class ClipRow:
    """One line of a list."""

    clip_id: str
    source_id: str
    source: str
    """Where the source lies."""
    status: str
    reason: str | None
    start_s: float
    """On the clock of the source."""
    duration_us: int
    is_audit: bool
    values: Mapping[str, Any]
    """Field -> value of what the question sorts by or asks about."""


@dataclass(frozen=True)
class ClipPage:
    """One page of an answer."""

    rows: tuple[ClipRow, ...]
    num_found: int
    found_us: int
    num_all: int
    facets: Mapping[str, Sequence[tuple[str, int]]]
    """Name -> (value, clips) of those found, most first."""
    next_after: str | None
    """What to ask for the next page; None on the last one."""


def margin(check: Check, values: Any) -> Any:
    """How far `values` lie within the gate, in the field's unit; negative beyond it. For numbers, arrays and columns."""
    if check.operator == "min":
        return values - check.bound
    if check.operator == "max":
        return check.bound - values
    if check.operator == "abs_max":
        return check.bound - abs(values)
    raise LedgerError(f"{check.name} compares no numbers, so that nothing is near it.", remedy="Sort by another field.")


@dataclass
class ClipLists:
    """Answers questions about the clips of one version of a run; what all of them need is read once."""

    run: Run
    _texts: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @cached_property
    def spine(self) -> pl.DataFrame:
        """A row per clip, in the order of the facts: its keys, how it counts, and its place `at` in the order of time."""
        import polars as pl

        place_of = self.assets.select("source_id", pl.int_range(pl.len(), dtype=pl.UInt32).alias("asset_at")).lazy()
        found = self.rows.select("source_id").join(place_of, on="source_id", how="left", maintain_order="left")
        at = found.select("asset_at").collect(engine="streaming").to_series()
        start = pl.col(f"{Level.CLIP}.asset_start_s").alias("start_s")
        texts = (pl.col(f"verdict.{name}").cast(pl.String).alias(name) for name in ("status", "reason"))
        spine = self.rows.select("row_id", "duration_us", start, "verdict.is_audit", *texts).collect()
        above = self.assets.select(above="status", above_reason="reason")[at]
        is_lost = (pl.col("status") != "error") & (pl.col("above") != "keep")
        spine = spine.hstack(above).with_columns(
            status=status_below("above").cast(pl.Categorical),
            reason=pl.when(is_lost).then("above_reason").otherwise("reason").cast(pl.Categorical),
        )
        order = np.lexsort((spine["start_s"].to_numpy(), self.assets["rank"].to_numpy()[at.to_numpy()]))
        place = np.empty(len(order), np.uint32)
        place[order] = np.arange(len(order), dtype=np.uint32)
        kept = ("row_id", "asset_at", "status", "reason", "duration_us", "start_s", "verdict.is_audit", "at")
        return spine.with_columns(at, pl.Series("at", place)).select(kept)

    @cached_property
    def assets(self) -> pl.DataFrame:
        """A row per source, in the order of the facts: keys, how it counts, and its `rank` by its name."""
        import polars as pl

        own = self.asset_rows.select("source_id", "source.uri", "source.licence")
        counted = counted_assets(self.run.facts).select("source_id", "status", "reason")
        found = own.join(counted, on="source_id", how="left", maintain_order="left").collect()
        rank = pl.struct("source.uri", "source_id").rank("ordinal").cast(pl.UInt32).alias("rank")
        return found.with_columns(pl.col("status", "reason").cast(pl.String)).with_columns(rank)

    @cached_property
    def asset_rows(self) -> pl.LazyFrame:
        """The facts of sources, always in one order."""
        facts = self.run.facts
        rows = facts.scan(Level.ASSET)
        return rows if facts.path(Level.ASSET) is not None else rows.collect().lazy()

    @cached_property
    def rows(self) -> pl.LazyFrame:
        """The facts of clips, always in one order."""
        facts = self.run.facts
        rows = facts.scan(Level.CLIP)
        return rows if facts.path(Level.CLIP) is not None else rows.collect().lazy()

    @cached_property
    def known(self) -> dict[str, pl.DataType]:
        """Field -> type, of all that can be asked about: of clips, of their sources, how a clip counts, and what is said."""
        import polars as pl

        own = {name: kind for name, kind in self.rows.collect_schema().items() if "." in name}
        above = {
            name: kind for name, kind in self.asset_rows.collect_schema().items() if "." in name and name not in own
        }
        counted = {"status": pl.String(), "reason": pl.String(), "duration_us": pl.Int64(), TEXT: pl.String()}
        return {**own, **above, **counted, "failed_gates": pl.String(), "source": pl.String()}

    def page(self, question: ClipQuestion) -> ClipPage:
        """One page. Raises LedgerError for a field that no clip has, with the nearest name, and for an unknown `after`."""
        is_found = self.matching(question)
        keys = self._keys(question)
        at = self.spine["at"].to_numpy()
        wanted = is_found
        if question.after:
            wanted = is_found & _is_behind(keys, at, self._row_of(question.after))
        first = _first(keys, at, wanted, question.limit + 1)
        rows, is_last = first[: question.limit], len(first) <= question.limit
        fields = dict.fromkeys([*(c.field for c in question.conditions), *self._sort_field(question)])
        told = self.told(rows, [name for name in fields if name not in {*KEYS, TEXT}])
        us = self.spine["duration_us"].to_numpy()
        return ClipPage(
            rows=told,
            num_found=int(is_found.sum()),
            found_us=int(us[is_found].sum()),
            num_all=len(self.spine),
            facets=self._facets(is_found),
            next_after=None if is_last else told[-1].clip_id,
        )

    def told(self, rows: NDArray[np.int64], fields: Sequence[str] = ()) -> tuple[ClipRow, ...]:
        """The clips at these places of the spine, in this order, with values of `fields`."""
        spine = self.spine[rows]
        uris, names = (self.assets[name].gather(spine["asset_at"]) for name in ("source.uri", "source_id"))
        values = [self.column(name)[rows].to_list() for name in fields]
        return tuple(
            ClipRow(
                clip_id=row["row_id"],
                source_id=name,
                source=uri,
                status=row["status"],
                reason=row["reason"],
                start_s=row["start_s"],
                duration_us=row["duration_us"],
                is_audit=row["verdict.is_audit"],
                values={field: each[number] for field, each in zip(fields, values, strict=True)},
            )
            for number, (row, uri, name) in enumerate(zip(spine.iter_rows(named=True), uris, names, strict=True))
        )

    def matching(self, question: ClipQuestion) -> NDArray[np.bool_]:
        """Bool [num_clips], in the order of the spine: what the question is about, all pages of it."""
        import polars as pl

        spine = self.spine
        is_found = np.ones(len(spine), bool)
        for name in ("status", "reason"):
            if wanted := getattr(question, name):
                is_found &= (spine[name] == wanted).fill_null(False).to_numpy()
        if question.source:
            place = self.assets["source_id"].index_of(question.source)
            is_found &= spine["asset_at"].to_numpy() == (-1 if place is None else place)
        for condition in question.conditions:
            says = condition.expression(self.known)
            if condition.field == TEXT:
                is_found &= self._said(condition)
            else:
                frame = self.column(condition.field).alias(condition.field).to_frame()
                is_found &= frame.select(says.fill_null(False).cast(pl.Boolean)).to_series().to_numpy()
        return is_found

    def neighbours(self, question: ClipQuestion, clip_id: str) -> tuple[str | None, str | None]:
        """The clips before and behind one in the order of a question; None at its ends, or where it is not in it."""
        is_found, keys, at = self.matching(question), self._keys(question), self.spine["at"].to_numpy()
        row = self._row_of(clip_id)
        behind = _first(keys, at, is_found & _is_behind(keys, at, row), 1)
        turned = -keys
        before = _first(turned, -at.astype(np.int64), is_found & ~_is_behind(keys, at, row) & (at != at[row]), 1)
        ids = self.spine["row_id"]
        return (ids[int(before[0])] if len(before) else None, ids[int(behind[0])] if len(behind) else None)

    def _row_of(self, clip_id: str) -> int:
        row = self.spine["row_id"].index_of(clip_id)
        if row is None:
            raise LedgerError(f"no clip '{clip_id}' in this run.", remedy="Begin again with the first page.")
        return row

    def _sort_field(self, question: ClipQuestion) -> list[str]:
        name = question.sort.removeprefix(f"{MARGIN}:").removeprefix("-")
        return [] if name == IN_TIME else [name]

    def _keys(self, question: ClipQuestion) -> Numbers:
        """Float64 [num_clips] in whose order the clips come, infinite where nothing was measured."""
        import polars as pl

        for name in self._sort_field(question):
            kind = self.known.get(name)
            if kind is None or not kind.is_numeric():
                remedy = nearest(name, [each for each, kind in self.known.items() if kind.is_numeric()])
                raise LedgerError(f"clips cannot be sorted by '{name}': it is no number of theirs.", remedy=remedy)
            keys: Numbers = self.column(name).cast(pl.Float64).to_numpy(writable=True)
            if question.sort.startswith(MARGIN):
                keys = margin(check_on(self.run.plan, name), keys)
                np.abs(keys, out=keys)
            elif question.sort.startswith("-"):
                np.negative(keys, out=keys)
            keys[np.isnan(keys)] = np.inf
            return keys
        return np.broadcast_to(np.float64(0), len(self.spine))

    def column(self, name: str) -> pl.Series:
        """One field of every clip, in the order of the spine."""
        import polars as pl

        if name in ("status", "reason"):
            return self.spine[name].cast(pl.String)
        if name in self.rows.collect_schema():
            return self.rows.select(name).collect().to_series()
        name = "source.uri" if name == "source" else name
        return self.asset_rows.select(name).collect().to_series().gather(self.spine["asset_at"])

    def _said(self, condition: Condition) -> NDArray[np.bool_]:
        """Which clips have a condition on what is said in them hold: a look at the ledger."""
        import polars as pl

        if str(condition) not in self._texts:
            said = pl.col(SPOKEN).list.eval(pl.element().struct.field("text")).list.join(" ").alias(TEXT)
            spoken = self.run.ledger.scan(Level.CLIP).select("row_id", said)
            found = spoken.filter(condition.expression(self.known).fill_null(False)).select("row_id").collect()
            self._texts[str(condition)] = self.spine["row_id"].is_in(found["row_id"].implode()).to_numpy()
        return self._texts[str(condition)]

    def _facets(self, is_found: NDArray[np.bool_]) -> dict[str, list[tuple[str, int]]]:
        facets = {}
        for name, (codes, values) in self._coded.items():
            counts = np.bincount(codes[is_found], minlength=len(values))
            told = [(value, int(count)) for value, count in zip(values, counts, strict=True) if value and count]
            facets[name] = sorted(told, key=lambda each: (-each[1], each[0]))[:SHOWN_FACETS]
        return facets

    @cached_property
    def _coded(self) -> dict[str, tuple[NDArray[Any], list[str]]]:
        """Facet -> per clip the number of its value, and the values; nothing is the empty one."""
        import polars as pl

        found = {}
        for name in ("status", "reason"):
            values = self.spine[name].cast(pl.String).fill_null("")
            names = values.unique().sort().to_list()
            found[name] = values.cast(pl.Enum(names)).to_physical().to_numpy(), names
        return found


def check_on(plan: Plan, path: str) -> Check:
    """The check with an order that looks at `path`. Raises LedgerError where no gate does."""
    by_path = {check.path: check for check in plan.checks if check.operator in ("min", "max", "abs_max")}
    if path not in by_path:
        raise LedgerError(f"no gate bounds '{path}'.", remedy=nearest(path, by_path))
    return by_path[path]


def _is_behind(keys: Numbers, at: NDArray[np.uint32], row: int) -> NDArray[np.bool_]:
    """Which clips come after the one at `row`."""
    found: NDArray[np.bool_] = (keys > keys[row]) | ((keys == keys[row]) & (at > at[row]))
    return found


def _first(keys: Numbers, at: NDArray[Any], wanted: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """The places of the first `most` of the wanted clips in the order of (keys, at)."""
    if int(wanted.sum()) > most:
        found = keys[wanted]
        found.partition(most - 1)
        last = found[most - 1]
        del found
        is_tie = wanted & (keys == last)
        if int(is_tie.sum()) > most:
            found = at[is_tie]
            found.partition(most - 1)
            is_tie &= at <= found[most - 1]
        wanted = (wanted & (keys < last)) | is_tie
    rows = np.flatnonzero(wanted)
    ordered: NDArray[np.int64] = rows[np.lexsort((at[rows], keys[rows]))][:most]
    return ordered
