"""What a run does, as counters of Ray's own metrics: Prometheus reads them off every node (docs/cluster.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.execute.monitor import StageTally
from pipeline.plan import Plan
from pipeline.unit import Unit
from schemas.records import Level, identity_of

US_PER_HOUR = 3_600_000_000
IN, CLIPS, ERRORS, SECONDS, ROWS = (
    "nava_in_hours",
    "nava_clip_hours",
    "nava_errors",
    "nava_stage_seconds",
    "nava_stage_rows",
)
DOCS = {
    IN: ("hours of the sources that were measured", ()),
    CLIPS: ("hours of clips that settled, by verdict and reason", ("verdict", "reason")),
    ERRORS: ("rows of any level that settled as errors", ("level", "reason")),
    SECONDS: ("wall seconds in each stage, all workers together", ("stage",)),
    ROWS: ("rows each stage measured", ("stage",)),
}
"""Counter -> what it counts and by what; each worker counts its own from when it started."""

Count = tuple[str, float, dict[str, str]]


def counts_of(plan: Plan, number: int, unit: Unit) -> Iterator[Count]:
    """(counter, amount, tags) of a unit or part that went through pass `number`: what settled there, so that passes add up."""
    is_last = number == len(plan.passes) - 1
    here = {spec.name for spec in plan.passes[number].stages}
    if number == 0:
        num_parts = 1 if unit.part is None else unit.part.count
        yield IN, float(identity_of(unit.asset.structs)[1] or 0) / US_PER_HOUR / num_parts, {}
    for node in unit.nodes if unit.part is None else unit.clips:
        verdict = node.verdict
        if verdict is None or not (verdict.stage in here or (verdict.stage is None and is_last)):
            continue
        reason = verdict.reason or ""
        if verdict.status == "error":
            yield ERRORS, 1.0, {"level": str(node.level), "reason": reason}
        if node.level is Level.CLIP:
            hours = node.media_s / 3600
            yield CLIPS, hours, {"verdict": verdict.status, "reason": reason}


class Counters:
    """A worker's counters."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._counters = {name: Counter(name, doc, tags) for name, (doc, tags) in DOCS.items()}

    def unit(self, plan: Plan, number: int, unit: Unit) -> None:
        """Counts a finished unit."""
        for name, amount, tags in counts_of(plan, number, unit):
            self._add(name, amount, tags)

    def stages(self, tallies: Mapping[str, StageTally]) -> None:
        """Counts what stages did."""
        for stage, tally in tallies.items():
            self._add(SECONDS, tally.wall_s, {"stage": stage})
            self._add(ROWS, tally.rows, {"stage": stage})

    def _add(self, name: str, amount: float, tags: dict[str, str]) -> None:
        if amount > 0:
            self._counters[name].inc(amount, tags)
