"""The clips of a run as arrays, read from the facts: what `measures.Measures` answers from."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ask.facts import reached
from pipeline.ask.measures import KEPT_VALUES, ORDERED, Axis, GateOnClips, Mask, Measures
from pipeline.ask.queries import STATUS, Run, kept_sources, leaves_of, seen
from pipeline.ask.stats import NOT_MEASURED, NUM_BINS, OUTERMOST, clip_checks, shown
from schemas.fields import unit_of
from schemas.records import Level
from schemas.verdict import Check, expressions

if TYPE_CHECKING:
    import polars as pl

MOST_LABELS = 8
"""Values of a label that are told apart; the rest are `others`."""
OTHERS = "others"


def measures(run: Run) -> Measures:
    """The clips of a run as arrays. Holds a byte for each clip and measure, and what `KEPT_VALUES` and `KEPT_CURVES` say."""
    import polars as pl

    facts, plan = run.facts, run.plan
    checks = clip_checks(plan)
    labels = list(shown(facts, plan, "label"))
    counted = [path for path in shown(facts, plan, "histogram") if "[]" not in path]
    gated = {check.path for check in checks if check.operator in ORDERED}
    drawn = {path: unit_of(kept) for path, kept in plan.fields(Level.CLIP) if path in gated or path in counted}
    order = {spec.name: number for number, spec in enumerate(plan.stages)}
    clips = seen(facts, plan, Level.CLIP, [*leaves_of(checks), *drawn, *labels])
    counts = pl.col("source_id").is_in(kept_sources(facts).collect().to_series().implode())
    is_counted = clips.select(counts).collect().to_series()
    clips = clips if is_counted.all() else clips.filter(is_counted)
    of_stage = pl.col("failed_by").is_not_null() | pl.col("verdict.stage").is_null()
    base = clips.select(
        us=pl.col("duration_us").fill_null(0),
        is_kept=pl.col(STATUS) == "keep",
        is_stuck=(pl.col(STATUS) == "error") & of_stage,
        is_audit=pl.col("verdict.is_audit").fill_null(False) & (pl.col(STATUS) == "reject"),
        decided=pl.col("verdict.stage").cast(pl.String).replace_strict(order, default=-1, return_dtype=pl.Int64),
    ).collect()
    audits = np.flatnonzero(base["is_audit"].to_numpy())
    stage_of = np.array([order[check.stage] for check in checks], np.int64)
    values_of = lru_cache(KEPT_VALUES)(lambda at: clips.select(_looked_at(checks[at])).collect().to_series().to_numpy())
    gates = tuple(GateOnClips(check, partial(values_of, at), **_said(clips, check)) for at, check in enumerate(checks))
    axes, codes = list[Axis](), dict[str, NDArray[np.uint8]]()
    for path, unit in drawn.items():
        values = clips.select(pl.col(path).cast(pl.Float64)).collect().to_series().to_numpy()
        axis = _axis(path, unit, values)
        if axis is not None:
            axes.append(axis)
            codes[path] = _coded(values, axis)
    return Measures(
        us=base["us"].to_numpy(),
        is_kept=base["is_kept"].to_numpy(),
        is_stuck=base["is_stuck"].to_numpy(),
        audits=audits,
        decided=np.searchsorted(stage_of, base["decided"].to_numpy()[audits], "right"),
        gates=gates,
        axes=tuple(axes),
        codes=codes,
        labels={path: _labelled(clips.select(pl.col(path).cast(pl.String)).collect().to_series()) for path in labels},
    )


def _looked_at(check: Check) -> pl.Expr:
    """What one check looks at as a number, null where it does not look."""
    import polars as pl

    (said,) = expressions([replace(check, operator="min", bound=math.inf)], reached)
    return pl.when(said.failed).then(pl.col(check.path).cast(pl.Float64))


def _said(clips: pl.LazyFrame, check: Check) -> dict[str, Mask]:
    """The masks of `GateOnClips` for one check."""
    import polars as pl

    (said,) = expressions([check], reached)
    missing = said.missing if check.gate.missing == "reject" else pl.lit(False)
    told = clips.select(
        fixed=missing if check.operator in ORDERED else said.rejects,
        errors=said.errors,
        unreached=said.unreached,
        rows=pl.col("duration_us"),
    ).collect()
    return {name: _spared(told[name].to_numpy()) for name in ("fixed", "errors", "unreached")}


def _spared(values: NDArray[Any]) -> NDArray[Any]:
    """The same without memory where all of it says no."""
    is_empty = values.dtype == bool and not values.any()
    return np.broadcast_to(np.False_, values.shape) if is_empty else values


def _axis(path: str, unit: str, values: NDArray[np.float64]) -> Axis | None:
    """The bins that `stats` draws; None where nothing was measured."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, OUTERMOST)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Axis(path, unit, np.linspace(low, high, NUM_BINS + 1))


def _coded(values: NDArray[np.float64], axis: Axis) -> NDArray[np.uint8]:
    low, high = axis.edges[0], axis.edges[-1]
    known = np.isfinite(values)
    place = np.clip((np.where(known, values, low) - low) * (NUM_BINS / (high - low)), 0, NUM_BINS - 1)
    return np.where(known, place, NUM_BINS).astype(np.uint8)


def _labelled(values: Any) -> tuple[list[str], NDArray[np.uint8]]:
    """The most frequent labels and `others`, and which one each clip has."""
    import polars as pl

    values = values.fill_null(NOT_MEASURED)
    counts = values.value_counts(sort=True)
    names = counts.to_series(0).to_list()
    kept = [*names[:MOST_LABELS], *([OTHERS] if len(names) > MOST_LABELS else [])]
    place = {name: min(at, MOST_LABELS) for at, name in enumerate(names)}
    return kept, values.replace_strict(place, return_dtype=pl.UInt8).to_numpy()
