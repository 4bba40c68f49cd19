"""Sources as a list: what went in, what of it was kept, and why the rest was not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.ask.clips import ClipLists
from schemas.errors import LedgerError
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl

ORDERS = {"name": "rank", "length": "-duration_us", "kept": "-kept_us", "lost": "-lost_us", "yield": "share"}
"""Name of an order -> the column, `-` for the largest first."""


@dataclass(frozen=True)
class SourceRow:
    """One source."""

    source_id: str
    uri: str
    licence: str | None
    status: str
    reason: str | None
    duration_us: int
    kept_us: int
    num_clips: int
    num_kept: int


@dataclass(frozen=True)
class SourcePage:
    """One page of sources."""

    rows: tuple[SourceRow, ...]
    num_found: int
    found_us: int
    kept_us: int
    num_all: int
    reasons: tuple[tuple[str, int], ...]
    """(reason, sources) of those that were not kept, and of those whose shots gave no clip."""
    next_after: int | None
    """How many come before the next page; None on the last one."""


@dataclass
class SourceLists:
    """Answers questions about the sources of one version of a run."""

    lists: ClipLists

    @cached_property
    def frame(self) -> pl.DataFrame:
        """A row per source, with what became of it."""
        import polars as pl

        run, spine = self.lists.run, self.lists.spine
        is_kept, us = pl.col("status") == "keep", pl.col("duration_us")
        sums = spine.group_by("asset_at").agg(
            kept_us=us.filter(is_kept).sum(), num_clips=pl.len().cast(pl.Int64), num_kept=is_kept.sum().cast(pl.Int64)
        )
        counted = run.facts.scan(Level.ASSET).select("source_id", pl.col("duration_us").fill_null(0)).collect()
        assets = self.lists.assets.with_row_index("asset_at")
        shots = run.facts.scan(Level.SHOT).filter(pl.col("verdict.status") != "keep")
        reasons = (
            shots.group_by("source_id").agg(shot_reasons=pl.col("verdict.reason").cast(pl.String).unique()).collect()
        )
        found = assets.join(counted, on="source_id").join(sums, on="asset_at", how="left")
        found = found.with_columns(pl.col("kept_us", "num_clips", "num_kept").fill_null(0))
        found = found.with_columns(
            lost_us=pl.col("duration_us") - pl.col("kept_us"), share=pl.col("kept_us") / pl.col("duration_us")
        )
        return found.join(reasons, on="source_id", how="left")

    def page(
        self, *, text: str = "", status: str = "", reason: str = "", sort: str = "name", after: int = 0, limit: int = 60
    ) -> SourcePage:
        """Sources whose name contains `text`, that ended so; a reason may be that of their shots. Raises LedgerError."""
        import polars as pl

        if sort not in ORDERS:
            raise LedgerError(f"sources cannot be sorted by '{sort}'.", remedy=f"Known: {', '.join(ORDERS)}.")
        column, found = ORDERS[sort], self.frame
        if text:
            found = found.filter(pl.col("source.uri").str.to_lowercase().str.contains(text.lower(), literal=True))
        if status:
            found = found.filter(pl.col("status").cast(pl.String) == status)
        if reason:
            is_of_shots = pl.col("shot_reasons").list.contains(reason).fill_null(False)
            found = found.filter((pl.col("reason").cast(pl.String) == reason).fill_null(False) | is_of_shots)
        by, is_down = column.removeprefix("-"), column.startswith("-")
        order = found.select(pl.arg_sort_by(by, "rank", descending=[is_down, False], nulls_last=True)).to_series()
        names = [*SourceRow.__dataclass_fields__]
        part = found[order.slice(after, limit)]
        part = part.rename({"source.uri": "uri", "source.licence": "licence"}).select(names)
        return SourcePage(
            rows=tuple(SourceRow(*row) for row in part.iter_rows()),
            num_found=len(found),
            found_us=int(found["duration_us"].sum()),
            kept_us=int(found["kept_us"].sum()),
            num_all=len(self.frame),
            reasons=self._reasons,
            next_after=after + limit if after + limit < len(found) else None,
        )

    @cached_property
    def _reasons(self) -> tuple[tuple[str, int], ...]:
        import polars as pl

        own = self.frame.select(pl.col("reason").cast(pl.String)).drop_nulls()
        below = self.frame.select(reason="shot_reasons").drop_nulls().explode("reason").drop_nulls()
        counts = pl.concat([own, below]).group_by("reason").len().sort(["len", "reason"], descending=[True, False])
        return tuple((str(name), int(count)) for name, count in counts.iter_rows())
