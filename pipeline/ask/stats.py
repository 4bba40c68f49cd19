"""What a run holds: its balance, and how hours are spread over gates, labels, measures and stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from pipeline.execute.spent import Invocation, invocations
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from schemas.fields import Show, roles_of, unit_of
from schemas.records import NUM_FRAMES, Level
from schemas.verdict import Check, expressions

if TYPE_CHECKING:
    import polars as pl

US_PER_MINUTE = 60_000_000
FRAMES = "frames_decoded"
NUM_BINS = 20
OUTERMOST = (1, 99)
"""Percentiles at which the first and the last bin of a histogram gather what lies beyond."""
PIECE = 262_144
"""Clips whose gates are looked at together: memory is that of so many, whatever their number."""
AT_ONCE = 6
"""Measures whose numbers are in memory together."""
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
class Overhead:
    """CPU seconds that no row of the ledger stands for, of all recorded invocations together."""

    packing: float
    workers: float
    """Beside their stages: start of the processes, models, passing on."""
    driver: float
    ray: float | None
    """Ray's own processes, the monitor and idle workers; None where no invocation could tell."""
    again: float
    """In stages, on what was lost before it was committed, or measured again since."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.packing + self.workers + self.driver + (self.ray or 0.0) + self.again


@dataclass(frozen=True)
class Decodes:
    """How often a frame was decoded, over all sources whose frames are known; None where it was not counted."""

    before_cutting: float | None
    with_cutting: float | None
    """Verification of the written clips included."""


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
    minutes: float
    """Of video that went in."""
    cost: dict[str, StageCost]
    decodes: Decodes
    invocations: list[Invocation]
    """Those that were recorded, in the order in which they began."""
    overhead: Overhead

    @property
    def cpu_s(self) -> float:
        """CPU seconds of stages and overhead."""
        return sum(each.cpu_s for each in self.cost.values()) + self.overhead.total


def stats(run: Run) -> Stats:
    """The answer, from four looks at the facts that it needs."""
    facts = run.facts
    sources = kept_sources(facts).collect(engine="streaming")
    gates, labels = spread(facts, run.plan, sources)
    costs, sheet, recorded = cost(run.ledger, run.plan), balance(facts), invocations(run.dir)
    return Stats(
        run=run.dir.uri,
        recipe=run.recipe.name,
        measure_hash=run.recipe.measure_hash(),
        sheet=sheet,
        num_sources=run.num_sources,
        num_provisional=num_provisional(run),
        gates=gates,
        labels=labels,
        histograms=_histograms(facts, run.plan, sources),
        minutes=sheet.in_us / US_PER_MINUTE,
        cost=costs,
        decodes=decodes(run.ledger, run.plan),
        invocations=recorded,
        overhead=overhead(costs, recorded),
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


def shown(rows: Scannable, plan: Plan, how: Show) -> dict[str, Any]:
    """Path -> field of everything on clips that is shown in this way, and that these rows have: a stage may have gained it."""
    known = rows.scan(Level.CLIP).collect_schema()
    fields = plan.fields(Level.CLIP)
    return {path: field for path, field in fields if roles_of(field).get("show") == how and path in known}


def spread(rows: Scannable, plan: Plan, sources: pl.DataFrame) -> tuple[list[GateHours], dict[str, dict[str, Hours]]]:
    """Gates and labels over the clips of kept sources: one group-by over all of them, `PIECE` clips at a time."""
    import polars as pl

    checks, paths = clip_checks(plan), list(shown(rows, plan, "label"))
    said = expressions(checks, reached)
    leaves = [*leaves_of(checks), *paths]
    columns = {f"fails {at}": each.rejects for at, each in enumerate(said)}
    columns |= {f"label {at}": pl.col(path) for at, path in enumerate(paths)}
    us, parts = pl.col("duration_us").sum(), []
    for piece in _pieces(rows):
        clips = seen(piece, plan, Level.CLIP, leaves)
        keys = clips.select("source_id", "duration_us", is_kept=pl.col(STATUS) == "keep", **columns)
        keys = keys.join(sources.lazy(), on="source_id", how="semi")
        parts.append(keys.group_by("is_kept", *columns).agg(us).collect(engine="streaming"))
    found = pl.concat(parts).group_by("is_kept", *columns).agg(us)
    if not len(found):
        return [], {}
    return _gate_hours(found, checks), {path: _by_label(found, f"label {at}") for at, path in enumerate(paths)}


@dataclass(frozen=True)
class _Piece:
    """Rows of which there are only so many clips."""

    rows: Scannable
    first: int

    def scan(self, kind: str) -> pl.LazyFrame:
        """Like that of all rows."""
        found = self.rows.scan(kind)
        return found.slice(self.first, PIECE) if kind == Level.CLIP else found


def _pieces(rows: Scannable) -> Iterator[_Piece]:
    import polars as pl

    num_clips = int(rows.scan(Level.CLIP).select(pl.len()).collect(engine="streaming").item())
    return (_Piece(rows, first) for first in range(0, max(num_clips, 1), PIECE))


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

    Reads `AT_ONCE` numbers at a time, and holds 8 bytes of each for each clip.
    """
    import polars as pl

    fields = {path: field for path, field in shown(rows, plan, "histogram").items() if "[]" not in path}
    clips = rows.scan(Level.CLIP)
    counts = pl.col("source_id").is_in(sources["source_id"].implode())
    base = clips.select(counts=counts, us="duration_us", kept=pl.col(STATUS) == "keep").collect()
    where = base["counts"].to_numpy()
    us, kept = base["us"].to_numpy()[where], base["kept"].to_numpy()[where]
    drawn = dict[str, Histogram | None]()
    for at in range(0, len(fields), AT_ONCE):
        paths = list(fields)[at : at + AT_ONCE]
        found = clips.select(pl.col(path).cast(pl.Float64) for path in paths).collect()
        drawn |= {path: _histogram(found[path].to_numpy()[where], us, kept, unit_of(fields[path])) for path in paths}
    return {path: each for path, each in drawn.items() if each is not None}


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
    minutes = int(assets.select(pl.col("duration_us").sum()).collect().item()) / US_PER_MINUTE
    sums = _entries(assets).group_by("stage").agg(pl.col("rows", "wall_s", "cpu_s").sum()).sort("stage")
    by_stage = {stage: (rows, wall_s, cpu_s) for stage, rows, wall_s, cpu_s in _collected(sums).iter_rows()}
    order = {spec.name: None for spec in plan.stages if spec.name in by_stage} | dict.fromkeys(by_stage)
    return {stage: _stage_cost(by_stage[stage], minutes) for stage in order}


def _entries(assets: pl.LazyFrame) -> pl.LazyFrame:
    return assets.select("cost").explode("cost").drop_nulls().unnest("cost")


def _collected(frame: pl.LazyFrame) -> pl.DataFrame:
    return frame.collect(engine="streaming")


def _stage_cost(total: tuple[int, float, float], minutes: float) -> StageCost:
    rows, wall_s, cpu_s = total
    per_minute = (wall_s / minutes, cpu_s / minutes) if minutes else (0.0, 0.0)
    return StageCost(rows, wall_s, cpu_s, *per_minute)


def decodes(ledger: Scannable, plan: Plan) -> Decodes:
    """Pictures decoded over frames shown."""
    import polars as pl

    assets = ledger.scan(Level.ASSET)
    if NUM_FRAMES not in assets.collect_schema():
        return Decodes(None, None)
    assets = assets.filter(pl.col(NUM_FRAMES) > 0)
    entries = _entries(assets)
    shown = _collected(assets.select(pl.col(NUM_FRAMES).sum())).item()
    if FRAMES not in entries.collect_schema() or not shown:
        return Decodes(None, None)
    is_counted, name = pl.col(FRAMES).is_not_null().all(), pl.col("stage")
    sums = _collected(entries.group_by(name).agg(pl.when(is_counted).then(pl.col(FRAMES).sum())))
    counts = {spec.name: sums.filter(name == spec.name)[FRAMES].to_list() for spec in plan.stages}

    def per_frame(stages: Iterable[str]) -> float | None:
        told = [count for stage in stages for count in counts[stage]]
        return None if None in told else sum(told) / shown

    cutter = None if plan.cutter is None else plan.cutter.name
    before = per_frame(stage for stage in counts if stage != cutter)
    return Decodes(before, per_frame(counts) if cutter is not None and counts[cutter] else None)


def overhead(costs: Mapping[str, StageCost], recorded: Sequence[Invocation]) -> Overhead:
    """What the recorded invocations spent beside the measurements that the ledger holds."""
    spent = [each.cpu for each in recorded]
    in_stages = sum(sum(each.stages.values()) for each in spent)
    told = [each.ray for each in spent if each.ray is not None]
    return Overhead(
        packing=sum(each.packing for each in spent),
        workers=sum(each.workers for each in spent),
        driver=sum(each.driver for each in spent),
        ray=sum(told) if told else None,
        again=max(0.0, in_stages - sum(each.cpu_s for each in costs.values())),
    )
