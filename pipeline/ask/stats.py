"""What a run holds: its balance, and how hours are spread over gates, labels, measures and stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ask.facts import reached
from pipeline.ask.queries import (
    STATUS,
    US_PER_HOUR,
    Balance,
    Run,
    Scannable,
    balance,
    kept_sources,
    leaves_of,
    seen,
)
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from schemas.fields import Show, roles_of, unit_of
from schemas.records import Level
from schemas.verdict import Check, expressions

if TYPE_CHECKING:
    import polars as pl

NUM_BINS = 20
OUTERMOST = (1, 99)
"""Percentiles at which the first and the last bin of a histogram gather what lies beyond."""
NOT_MEASURED = "not measured"
"""Label of clips that nobody looked at."""


@dataclass(frozen=True)
class Hours:
    """Hours of clips that were kept, and of all others."""

    kept: float
    other: float


@dataclass(frozen=True)
class GateHours:
    """What one comparison turns away."""

    gate: str
    bound: Any
    gross_hours: float
    """Hours of clips that fail it."""
    marginal_hours: float
    """Hours of clips that fail nothing else: what dropping it would win."""


@dataclass(frozen=True)
class Histogram:
    """Hours per bin of one measure."""

    unit: str
    edges: list[float]
    """One more than bins."""
    kept: list[float]
    other: list[float]
    not_measured: float


@dataclass(frozen=True)
class StageCost:
    """Time spent in one stage, and per minute of video that went in."""

    rows: int
    wall_s: float
    cpu_s: float
    wall_s_per_minute: float
    cpu_s_per_minute: float


@dataclass(frozen=True)
class Stats:
    """Everything `stats` shows; as JSON documented in docs/stats.md."""

    run: str
    recipe: str
    measure_hash: str
    sheet: Balance
    num_sources: int
    num_provisional: int
    """Settled sources that the recipe has not been through to the end with; a later stage may overturn them."""
    gates: list[GateHours]
    labels: dict[str, dict[str, Hours]]
    """Path -> label -> hours."""
    histograms: dict[str, Histogram]
    cost: dict[str, StageCost]


def stats(run: Run) -> Stats:
    """The answer, from four looks at the facts that it needs."""
    facts = run.facts
    sources = kept_sources(facts).collect(engine="streaming")
    gates, labels = _spread(facts, run.plan, sources)
    return Stats(
        run=run.dir.uri,
        recipe=run.recipe.name,
        measure_hash=run.recipe.measure_hash(),
        sheet=balance(facts),
        num_sources=run.num_sources,
        num_provisional=num_provisional(run),
        gates=gates,
        labels=labels,
        histograms=_histograms(facts, run.plan, sources),
        cost=cost(run.ledger, run.plan),
    )


def num_provisional(run: Run) -> int:
    """Sources in the ledger that have not been through the last pass of this very recipe: an interrupted or grown run."""
    import polars as pl

    through = run.plan.identity(len(run.plan.passes) - 1)
    is_through = (pl.col("passed") == through).fill_null(False)
    return int(run.facts.scan(Level.ASSET).select((~is_through).sum()).collect().item())


def clip_checks(plan: Plan) -> list[Check]:
    """The checks that look at clips."""
    of_clips = {spec.name for spec in plan.at_level(Level.CLIP)}
    return [check for check in plan.checks if check.stage in of_clips]


def _shown(plan: Plan, how: Show) -> dict[str, Any]:
    """Path -> field of everything on clips that is shown in this way."""
    return {path: field for path, field in plan.fields(Level.CLIP) if roles_of(field).get("show") == how}


def _spread(rows: Scannable, plan: Plan, sources: pl.DataFrame) -> tuple[list[GateHours], dict[str, dict[str, Hours]]]:
    """Gates and labels over the clips of kept sources, from one group-by over all of them together."""
    import polars as pl

    checks, paths = clip_checks(plan), list(_shown(plan, "label"))
    said = expressions(checks, reached)
    leaves = [*leaves_of(checks), *paths]
    clips = seen(rows, plan, Level.CLIP, leaves)
    columns = {f"fails {at}": each.rejects for at, each in enumerate(said)}
    columns |= {f"label {at}": pl.col(path) for at, path in enumerate(paths)}
    keys = clips.select("source_id", "duration_us", is_kept=pl.col(STATUS) == "keep", **columns)
    keys = keys.join(sources.lazy(), on="source_id", how="semi")
    found = keys.group_by("is_kept", *columns).agg(pl.col("duration_us").sum()).collect(engine="streaming")
    if not len(found):
        return [], {}
    return _gate_hours(found, checks), {path: _by_label(found, f"label {at}") for at, path in enumerate(paths)}


def _by_label(found: pl.DataFrame, column: str) -> dict[str, Hours]:
    """Label -> hours, most first."""
    import polars as pl

    is_kept, us = pl.col("is_kept"), pl.col("duration_us")
    sums = found.group_by(column).agg(kept=us.filter(is_kept).sum(), other=us.filter(~is_kept).sum())
    rows = [(NOT_MEASURED if label is None else str(label), kept, other) for label, kept, other in sums.iter_rows()]
    rows.sort(key=lambda row: (-row[1] - row[2], row[0]))
    return {label: Hours(kept / US_PER_HOUR, other / US_PER_HOUR) for label, kept, other in rows}


def _gate_hours(found: pl.DataFrame, checks: Sequence[Check]) -> list[GateHours]:
    import polars as pl

    if not checks:
        return []
    names = [f"fails {at}" for at in range(len(checks))]
    is_alone, us = pl.sum_horizontal(names) == 1, pl.col("duration_us")
    gross = found.select(us.filter(name).sum().alias(name) for name in names).row(0)
    alone = found.select(us.filter(pl.col(name) & is_alone).sum().alias(name) for name in names).row(0)
    return [
        GateHours(check.name, check.bound, all_us / US_PER_HOUR, only_us / US_PER_HOUR)
        for check, all_us, only_us in zip(checks, gross, alone, strict=True)
    ]


def _histograms(rows: Scannable, plan: Plan, sources: pl.DataFrame) -> dict[str, Histogram]:
    """The histogram of every number of clips of kept sources that is shown as one, where anything was measured.

    Holds those numbers of all clips at once: 8 bytes each.
    """
    import polars as pl

    fields = {path: field for path, field in _shown(plan, "histogram").items() if "[]" not in path}
    is_kept = (pl.col(STATUS) == "keep").alias("is kept")
    numbers = [pl.col(path).cast(pl.Float64) for path in fields]
    clips = seen(rows, plan, Level.CLIP, fields).select("source_id", "duration_us", is_kept, *numbers)
    counted = clips.join(sources.lazy(), on="source_id", how="semi").drop("source_id")
    found = counted.collect(engine="streaming")
    us, kept = found["duration_us"].to_numpy(), found["is kept"].to_numpy()
    drawn = {path: _histogram(found[path].to_numpy(), us, kept, unit_of(field)) for path, field in fields.items()}
    return {path: shown for path, shown in drawn.items() if shown is not None}


def _histogram(
    values: NDArray[np.float64], us: NDArray[np.int64], kept: NDArray[np.bool_], unit: str
) -> Histogram | None:
    """Hours per bin of `values` [n], NaN where not measured, of clips of `us` [n] microseconds; None if none was."""
    known = np.isfinite(values)
    if not known.any():
        return None
    low, high = np.percentile(values[known], OUTERMOST)
    if low == high:
        low, high = low - 0.5, high + 0.5
    place = np.clip((values[known] - low) * (NUM_BINS / (high - low)), 0, NUM_BINS - 1).astype(np.int64)
    sums = np.bincount(place + NUM_BINS * kept[known], us[known], 2 * NUM_BINS) / US_PER_HOUR
    return Histogram(
        unit=unit,
        edges=np.linspace(low, high, NUM_BINS + 1).tolist(),
        kept=sums[NUM_BINS:].tolist(),
        other=sums[:NUM_BINS].tolist(),
        not_measured=int(us[~known].sum()) / US_PER_HOUR,
    )


def cost(ledger: Ledger, plan: Plan) -> dict[str, StageCost]:
    """Per stage, in running order, those last that the recipe no longer has."""
    import polars as pl

    assets = ledger.scan(Level.ASSET)
    minutes = int(assets.select(pl.col("duration_us").sum()).collect().item()) / 60e6
    entries = assets.select("cost").explode("cost").drop_nulls().unnest("cost")
    sums = entries.group_by("stage").agg(pl.col("rows", "wall_s", "cpu_s").sum()).collect(engine="streaming")
    by_stage = {stage: (rows, wall_s, cpu_s) for stage, rows, wall_s, cpu_s in sums.sort("stage").iter_rows()}
    order = {spec.name: None for spec in plan.stages if spec.name in by_stage} | dict.fromkeys(by_stage)
    return {stage: _stage_cost(by_stage[stage], minutes) for stage in order}


def _stage_cost(total: tuple[int, float, float], minutes: float) -> StageCost:
    rows, wall_s, cpu_s = total
    per_minute = (wall_s / minutes, cpu_s / minutes) if minutes else (0.0, 0.0)
    return StageCost(rows, wall_s, cpu_s, *per_minute)
