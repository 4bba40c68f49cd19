"""What other gates would keep, answered from the ledger: tightening exactly, loosening as an interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.ask.facts import reached
from pipeline.ask.queries import REASON, STATUS, Run, Scannable, counted_assets, kept_sources, leaves_of, seen
from pipeline.ask.stats import NOT_MEASURED, GateHours, shown, spread
from pipeline.config import parse_recipe
from pipeline.ledger import hash_column
from pipeline.plan import Plan, make_plan
from schemas.errors import LedgerError
from schemas.recipe import apply_overrides, nearest
from schemas.records import NO_CHILD, Level
from schemas.verdict import OPERATORS, Check, expressions, status_of

if TYPE_CHECKING:
    import polars as pl

NO_CHILDREN = [verdict.reason for verdict in NO_CHILD.values()]
ALIVE = ["keep", "open"]
"""Statuses of rows whose children may be kept."""
MOST_CHANGED = 5
"""Clips that change sides and are named."""


@dataclass(frozen=True)
class WhatIf:
    """Time kept under other gates, in microseconds."""

    overrides: tuple[str, ...]
    now_us: int
    low_us: int
    high_us: int
    estimate_us: int | None
    """What the audit lane makes of the undecided part; None where it holds nothing that tells."""
    now_clips: int
    low_clips: int
    high_clips: int
    gates: tuple[GateHours, ...]
    """What each gate on clips turns away then, of the sources kept now."""
    labels: Mapping[str, Mapping[str, tuple[int, int]]]
    """Path -> label -> (kept now, certainly kept then), where these differ."""
    lost: tuple[str, ...]
    """Ids of clips that are kept now and not then; the longest, at most `MOST_CHANGED`."""
    gained: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every clip concerned was measured."""
        return self.low_us == self.high_us


def what_if(run: Run, overrides: Sequence[str], drops: Sequence[str] = ()) -> WhatIf:
    """Kept time under other gates, from the ledger alone; `drops` are gates to leave away.

    Tightening is exact. Loosening brings back rows that later stages never measured: what is kept is then an interval,
    and the estimate uses the audit lane, clips measured to the end at random. A source or shot that comes back and has
    no clips yet may be kept whole; nothing tells how much of it, so there is no estimate then.
    Raises LedgerError if an override touches anything but gates, or a dropped gate is none, and RecipeError if it is none.
    """
    raw = without_gates(apply_overrides(run.raw_recipe, overrides), run.plan.checks, drops)
    changed = {key for key in raw if raw[key] != run.raw_recipe.get(key)} - {"gates"}
    if changed:
        msg = f"--set changes {', '.join(sorted(changed))}, but only gates can be asked about afterwards."
        raise LedgerError(msg, remedy="Run the recipe again into a new --out for anything else.")
    plan = make_plan(parse_recipe(raw, "what-if"))
    found = _hours(run.facts, plan)
    sums = found.sums
    low, undecided, unmeasured = sums["low"], sums["undecided"], sums["unmeasured"]
    high = low + undecided + unmeasured
    estimate = None
    if low == high:
        estimate = low
    elif sums["audited"] and not unmeasured:
        estimate = low + round(undecided * sums["passed"] / sums["audited"])
    gates, _ = spread(run.facts, plan, kept_sources(run.facts).collect(engine="streaming"))
    return WhatIf(
        overrides=(*overrides, *(f"without {gate}" for gate in drops)),
        now_us=sums["now"],
        low_us=low,
        high_us=high,
        estimate_us=estimate,
        now_clips=sums["now_clips"],
        low_clips=sums["low_clips"],
        high_clips=sums["low_clips"] + sums["undecided_clips"],
        gates=tuple(gates),
        labels=found.labels,
        lost=found.lost,
        gained=found.gained,
    )


def without_gates(raw: dict[str, Any], checks: Iterable[Check], drops: Iterable[str]) -> dict[str, Any]:
    """A recipe without these gates, each called by its field or its name, and without those that are null.

    Raises LedgerError for a gate that the recipe has not.
    """
    known = list(checks)
    gates = {stage: dict(fields) for stage, fields in (raw.get("gates") or {}).items() if fields}
    for text in drops:
        wanted = text.removeprefix("gates.")
        found = [check for check in known if wanted in (check.name, check.path)]
        if not found:
            raise LedgerError(f"no gate is called '{text}'.", remedy=nearest(wanted, [each.name for each in known]))
        for check in found:
            bounds = gates.get(check.stage, {}).get(check.field)
            if isinstance(bounds, dict):
                gates[check.stage][check.field] = bounds | {check.operator: None}
    left = {
        stage: {name: gate for name, gate in fields.items() if not _is_empty(gate)} for stage, fields in gates.items()
    }
    return {**raw, "gates": {stage: fields for stage, fields in left.items() if fields}}


def _is_empty(gate: Any) -> bool:
    return gate is None or (isinstance(gate, dict) and all(gate.get(operator) is None for operator in OPERATORS))


@dataclass(frozen=True)
class _Sums:
    """What `_hours` adds up."""

    sums: Mapping[str, int]
    labels: Mapping[str, Mapping[str, tuple[int, int]]]
    lost: tuple[str, ...]
    gained: tuple[str, ...]


def _hours(rows: Scannable, plan: Plan) -> _Sums:
    """Microseconds of clips that are kept `now`, of those that the gates of `plan` keep (`low`) or leave `undecided`, of
    sources and shots that come back and were never split (`unmeasured`), and of clips of the audit lane that get as far as
    they did before (`audited`), with those of them that are kept (`passed`). Clips that change sides are told by labels,
    and by id."""
    import polars as pl

    us, after, above = pl.col("duration_us"), pl.col("after"), pl.col("above")
    assets = _assets_after(rows, plan).collect(engine="streaming").lazy()
    of_asset = assets.select("source_id", "before", "above")
    shots = _after(rows, plan, Level.SHOT).join(of_asset, on="source_id")
    shots = shots.with_columns(above=pl.when(above == "keep").then(after).otherwise(above))
    labels = list(shown(rows, plan, "label"))
    clips = _after(rows, plan, Level.CLIP, labels)
    if _checks(plan, Level.SHOT):
        of_shot = shots.select("source_id", "before", "above", parent_id="row_id")
        clips = clips.join(of_shot, on=["source_id", "parent_id"])
    else:
        clips = clips.join(of_asset, on="source_id")
    is_now, is_kept = (pl.col(STATUS) == "keep") & (pl.col("before") == "keep"), (after == "keep") & (above == "keep")
    is_alive = above.is_in(ALIVE)
    is_undecided = is_alive & after.is_in(ALIVE) & ~is_kept
    is_audited = is_alive & pl.col("verdict.is_audit") & (pl.col(STATUS) == "reject") & pl.col("gets_as_far")
    clips = clips.with_columns(is_now=is_now, is_kept=is_kept)
    sums = clips.select(
        now=us.filter("is_now").sum(),
        low=us.filter("is_kept").sum(),
        undecided=us.filter(is_undecided).sum(),
        now_clips=pl.col("is_now").sum(),
        low_clips=pl.col("is_kept").sum(),
        undecided_clips=is_undecided.sum(),
        audited=us.filter(is_audited).sum(),
        passed=us.filter(is_audited & is_kept).sum(),
    )
    whole = [
        rows.filter(above.is_in(ALIVE) & after.is_in(ALIVE) & ~pl.col("is_split")).select(us.sum())
        for rows in (assets, shots)
    ]
    moved = clips.filter(pl.col("is_now") != pl.col("is_kept")).select("row_id", "is_now", "duration_us", *labels)
    found, changed, *unsplit = pl.collect_all([sums, moved, *whole], engine="streaming")
    told = found.row(0, named=True) | {"unmeasured": sum(int(each.item()) for each in unsplit)}
    return _Sums(told, *_changes(clips, changed, labels))


def _changes(
    clips: pl.LazyFrame, changed: pl.DataFrame, labels: Sequence[str]
) -> tuple[dict[str, dict[str, tuple[int, int]]], tuple[str, ...], tuple[str, ...]]:
    """(time kept now and then by labels of which any clip changed sides, ids that go, ids that come)."""
    import polars as pl

    us, by_label = pl.col("duration_us"), {}
    for path in labels if len(changed) else ():
        sums = clips.group_by(path).agg(now=us.filter("is_now").sum(), then=us.filter("is_kept").sum())
        rows = sums.filter(pl.col("now") != pl.col("then")).sort("now", descending=True).collect(engine="streaming")
        by_label[path] = {
            NOT_MEASURED if name is None else str(name): (now, then) for name, now, then in rows.iter_rows()
        }
    ordered = changed.sort("duration_us", "row_id", descending=[True, False])
    lost, gained = (ordered.filter(each)["row_id"].to_list() for each in (pl.col("is_now"), ~pl.col("is_now")))
    return by_label, tuple(lost[:MOST_CHANGED]), tuple(gained[:MOST_CHANGED])


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


def _after(rows: Scannable, plan: Plan, level: Level, labels: Sequence[str] = ()) -> pl.LazyFrame:
    """The rows of a level with their `labels` and the status `after` other gates, where errors of stages and rows without
    children stay what they are; whether a row was split (`is_split`), and whether it passes all gates up to the one that
    decided on it (`gets_as_far`)."""
    import polars as pl

    said = expressions(_checks(plan, level), reached)
    order = {spec.name: number for number, spec in enumerate(plan.stages)}
    decided = pl.col("verdict.stage").replace_strict(order, default=-1, return_dtype=pl.Int64)
    fails = [each.rejects & (pl.lit(order[each.check.stage]) <= decided) for each in said]
    of_stage = pl.col("failed_by").is_not_null() | pl.col("verdict.stage").is_null()
    stays = ((pl.col(STATUS) == "error") & of_stage) | pl.col(REASON).is_in(NO_CHILDREN).fill_null(False)
    splits = [hash_column(spec.name) for spec in plan.stages if spec.is_split and spec.cls.level == level]
    return seen(rows, plan, level, [*leaves_of(each.check for each in said), *labels], own=splits).select(
        "row_id",
        "source_id",
        "parent_id",
        *labels,
        STATUS,
        "verdict.is_audit",
        pl.col("duration_us").fill_null(0),
        after=pl.when(stays).then(STATUS).otherwise(status_of(said)),
        is_split=pl.any_horizontal(pl.col(name).is_not_null() for name in splits) if splits else pl.lit(True),
        gets_as_far=~pl.any_horizontal(fails) if fails else pl.lit(True),
    )
