"""What other gates would keep, answered from the ledger: tightening exactly, loosening as an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.ask.facts import reached
from pipeline.ask.queries import REASON, STATUS, Run, Scannable, counted_assets, leaves_of, seen
from pipeline.config import parse_recipe
from pipeline.ledger import hash_column
from pipeline.plan import Plan, make_plan
from schemas.errors import LedgerError
from schemas.recipe import apply_overrides
from schemas.records import NO_CHILD, Level
from schemas.verdict import Check, expressions, status_of

if TYPE_CHECKING:
    import polars as pl

NO_CHILDREN = [verdict.reason for verdict in NO_CHILD.values()]
ALIVE = ["keep", "open"]
"""Statuses of rows whose children may be kept."""


@dataclass(frozen=True)
class WhatIf:
    """Time kept under other gates, in microseconds."""

    overrides: tuple[str, ...]
    now_us: int
    low_us: int
    high_us: int
    estimate_us: int | None
    """What the audit lane makes of the undecided part; None where it holds nothing that tells."""

    @property
    def is_exact(self) -> bool:
        """Whether every clip concerned was measured."""
        return self.low_us == self.high_us


def what_if(run: Run, overrides: Sequence[str]) -> WhatIf:
    """Kept time under other gates, from the ledger alone.

    Tightening is exact. Loosening brings back rows that later stages never measured: what is kept is then an interval,
    and the estimate uses the audit lane, clips measured to the end at random. A source or shot that comes back and has
    no clips yet may be kept whole; nothing tells how much of it, so there is no estimate then.
    Raises LedgerError if an override touches anything but gates, and RecipeError if it is none.
    """
    raw = apply_overrides(run.raw_recipe, overrides)
    changed = {key for key in raw if raw[key] != run.raw_recipe.get(key)} - {"gates"}
    if changed:
        msg = f"--set changes {', '.join(sorted(changed))}, but only gates can be asked about afterwards."
        raise LedgerError(msg, remedy="Run the recipe again into a new --out for anything else.")
    plan = make_plan(parse_recipe(raw, "what-if"))
    found = _hours(run.facts, plan)
    low, undecided, unmeasured = found["low"], found["undecided"], found["unmeasured"]
    high = low + undecided + unmeasured
    estimate = None
    if low == high:
        estimate = low
    elif found["audited"] and not unmeasured:
        estimate = low + round(undecided * found["passed"] / found["audited"])
    return WhatIf(tuple(overrides), found["now"], low, high, estimate)


def _hours(rows: Scannable, plan: Plan) -> dict[str, int]:
    """Microseconds of clips that are kept `now`, of those that the gates of `plan` keep (`low`) or leave `undecided`, of
    sources and shots that come back and were never split (`unmeasured`), and of clips of the audit lane that get as far as
    they did before (`audited`), with those of them that are kept (`passed`)."""
    import polars as pl

    us, after, above = pl.col("duration_us"), pl.col("after"), pl.col("above")
    assets = _assets_after(rows, plan).collect(engine="streaming").lazy()
    of_asset = assets.select("source_id", "before", "above")
    shots = _after(rows, plan, Level.SHOT).join(of_asset, on="source_id")
    shots = shots.with_columns(above=pl.when(above == "keep").then(after).otherwise(above))
    clips = _after(rows, plan, Level.CLIP)
    if _checks(plan, Level.SHOT):
        of_shot = shots.select("source_id", "before", "above", parent_id="row_id")
        clips = clips.join(of_shot, on=["source_id", "parent_id"])
    else:
        clips = clips.join(of_asset, on="source_id")
    is_alive, is_kept = above.is_in(ALIVE), (after == "keep") & (above == "keep")
    is_audited = is_alive & pl.col("verdict.is_audit") & (pl.col(STATUS) == "reject") & pl.col("gets_as_far")
    sums = clips.select(
        now=us.filter((pl.col(STATUS) == "keep") & (pl.col("before") == "keep")).sum(),
        low=us.filter(is_kept).sum(),
        undecided=us.filter(is_alive & after.is_in(ALIVE) & ~is_kept).sum(),
        audited=us.filter(is_audited).sum(),
        passed=us.filter(is_audited & is_kept).sum(),
    )
    whole = [
        rows.filter(above.is_in(ALIVE) & after.is_in(ALIVE) & ~pl.col("is_split")).select(us.sum())
        for rows in (assets, shots)
    ]
    found, *unsplit = pl.collect_all([sums, *whole], engine="streaming")
    return found.row(0, named=True) | {"unmeasured": sum(int(each.item()) for each in unsplit)}


def _assets_after(rows: Scannable, plan: Plan) -> pl.LazyFrame:
    """Sources with their status `before` and `above`, as both count: bytes that are kept twice count once."""
    import polars as pl

    before = counted_assets(rows).select("source_id", "asset_id", before="status")
    assets = _after(rows, plan, Level.ASSET).join(before, on="source_id")
    is_alive = pl.col("after").is_in(ALIVE)
    first = pl.col("source_id").filter(is_alive).min().over("asset_id")
    is_again = is_alive & pl.col("asset_id").is_not_null() & (pl.col("source_id") != first)
    return assets.with_columns(above=pl.when(is_again).then(pl.lit("reject")).otherwise("after"))


def _checks(plan: Plan, level: Level) -> list[Check]:
    names = {spec.name for spec in plan.at_level(level)}
    return [check for check in plan.checks if check.stage in names]


def _after(rows: Scannable, plan: Plan, level: Level) -> pl.LazyFrame:
    """The rows of a level with the status `after` other gates, where errors of stages and rows without children stay what
    they are; whether a row was split (`is_split`), and whether it passes all gates up to the one that decided on it
    (`gets_as_far`)."""
    import polars as pl

    said = expressions(_checks(plan, level), reached)
    order = {spec.name: number for number, spec in enumerate(plan.stages)}
    decided = pl.col("verdict.stage").replace_strict(order, default=-1, return_dtype=pl.Int64)
    fails = [each.rejects & (pl.lit(order[each.check.stage]) <= decided) for each in said]
    of_stage = pl.col("failed_by").is_not_null() | pl.col("verdict.stage").is_null()
    stays = ((pl.col(STATUS) == "error") & of_stage) | pl.col(REASON).is_in(NO_CHILDREN).fill_null(False)
    splits = [hash_column(spec.name) for spec in plan.stages if spec.is_split and spec.cls.level == level]
    return seen(rows, plan, level, leaves_of(each.check for each in said), own=splits).select(
        "row_id",
        "source_id",
        "parent_id",
        STATUS,
        "verdict.is_audit",
        pl.col("duration_us").fill_null(0),
        after=pl.when(stays).then(STATUS).otherwise(status_of(said)),
        is_split=pl.any_horizontal(pl.col(name).is_not_null() for name in splits) if splits else pl.lit(True),
        gets_as_far=~pl.any_horizontal(fails) if fails else pl.lit(True),
    )
