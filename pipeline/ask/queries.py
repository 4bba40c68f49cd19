"""Questions to a run's ledger, answered in hours. One function per question; text and pages only show the answers.

Durations are added up as integer microseconds and become hours at the very end, so the balance is exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Recipe, parse_recipe
from pipeline.ledger import Ledger
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.arrow_file import read_table
from schemas.errors import LedgerError
from schemas.fields import roles_of, unit_of, values_at
from schemas.records import Level, Struct
from schemas.verdict import Check, column, evaluate

US_PER_HOUR = 3_600_000_000
NUM_BINS = 20


@dataclass
class Balance:
    """Where the hours went, in microseconds: in == kept + cut_away + sum(rejected) + sum(errors)."""

    in_us: int = 0
    kept_us: int = 0
    cut_away_us: int = 0
    rejected_us: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    errors_us: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    assets: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shots: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    clips: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, verdict: Mapping[str, Any], duration_us: int) -> None:
        """Books a settled row that has no children."""
        if verdict["status"] == "keep":
            self.kept_us += duration_us
        else:
            book = self.rejected_us if verdict["status"] == "reject" else self.errors_us
            book[verdict["reason"]] += duration_us

    @property
    def difference_us(self) -> int:
        """What does not add up; 0 in every sound ledger."""
        return (
            self.in_us - self.kept_us - self.cut_away_us - sum(self.rejected_us.values()) - sum(self.errors_us.values())
        )


class Run:
    """A run directory opened for reading."""

    def __init__(self, uri: str) -> None:
        import yaml

        self.dir = RunDir(uri)
        self.raw_recipe: dict[str, Any] = yaml.safe_load(self.dir.read("recipe.yaml"))
        self.recipe: Recipe = parse_recipe(self.raw_recipe, self.dir.url("recipe.yaml"))
        self.plan = make_plan(self.recipe)
        self.ledger = Ledger(self.dir.url("ledger"))

    @property
    def num_sources(self) -> int:
        """Sources the run was given."""
        return int(read_table(self.dir.read("sources.arrow")).num_rows)


def balance(ledger: Ledger) -> Balance:
    """The balance sheet. Raises LedgerError if some asset's children are longer than the asset."""
    sheet = Balance()
    children: dict[str, int] = defaultdict(int)
    parents: set[str] = set()
    for row in _brief(ledger, Level.ASSET):
        sheet.assets[row["verdict"]["status"]] += 1
        duration = row["duration_us"] or 0
        sheet.in_us += duration
        if row["verdict"]["status"] == "keep":
            parents.add(row["source_id"])
            children[row["source_id"]] += duration
        else:
            sheet.add(row["verdict"], duration)
    for kind, counts in ((Level.SHOT, sheet.shots), (Level.CLIP, sheet.clips)):
        for row in _brief(ledger, kind):
            counts[row["verdict"]["status"]] += 1
            if row["source_id"] in parents and not (kind == Level.SHOT and row["verdict"]["status"] == "keep"):
                sheet.add(row["verdict"], row["duration_us"])
                children[row["source_id"]] -= row["duration_us"]
    too_long = [source for source, left in children.items() if left < 0]
    if too_long:
        raise LedgerError(f"clips and shots of source {too_long[0]} are longer than the source itself.")
    sheet.cut_away_us = sum(children.values())
    return sheet


def _brief(ledger: Ledger, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ledger.settled(kind, ["duration_us"]).to_pylist()
    return rows


def stats(run: Run) -> dict[str, Any]:
    """Everything `stats --json` prints; documented in docs/stats.md, keys are stable."""
    sheet = balance(run.ledger)
    clips = run.ledger.settled(Level.CLIP)
    kept = np.array([verdict["status"] == "keep" for verdict in clips["verdict"].to_pylist()], bool)
    hours = np.asarray(clips["duration_us"].to_numpy(), float) / US_PER_HOUR if clips.num_rows else np.zeros(0)
    return {
        "run": run.dir.uri,
        "recipe": run.recipe.name,
        "measure_hash": run.recipe.measure_hash(),
        "hours": hours_of(sheet),
        "assets": {"total": run.num_sources, "settled": sum(sheet.assets.values()), **_counts(sheet.assets)},
        "shots": {"total": sum(sheet.shots.values()), **_counts(sheet.shots)},
        "clips": {"total": sum(sheet.clips.values()), **_counts(sheet.clips)},
        "gates": gate_table(run, clips),
        "labels": labels(run.plan, clips, hours, kept),
        "histograms": histograms(run.plan, clips, hours, kept),
        "cost": cost(run.ledger),
    }


def hours_of(sheet: Balance) -> dict[str, Any]:
    """The balance in hours, with the same figures in exact microseconds beside it."""
    return {
        "in": sheet.in_us / US_PER_HOUR,
        "kept": sheet.kept_us / US_PER_HOUR,
        "cut_away": sheet.cut_away_us / US_PER_HOUR,
        "rejected": {name: us / US_PER_HOUR for name, us in sorted(sheet.rejected_us.items())},
        "errors": {name: us / US_PER_HOUR for name, us in sorted(sheet.errors_us.items())},
        "exact_us": {
            "in": sheet.in_us,
            "kept": sheet.kept_us,
            "cut_away": sheet.cut_away_us,
            "rejected": dict(sorted(sheet.rejected_us.items())),
            "errors": dict(sorted(sheet.errors_us.items())),
            "difference": sheet.difference_us,
        },
    }


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {"kept": counts.get("keep", 0), "rejected": counts.get("reject", 0), "error": counts.get("error", 0)}


def labels(plan: Plan, clips: pa.Table, hours: Any, kept: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Hours by value of every field of clips that is shown as a label; of one inside a list, by its first item."""
    out = {}
    for path, shown in plan.fields(Level.CLIP):
        if roles_of(shown).get("show") != "label" or not clips.num_rows:
            continue
        head, _, rest = path.partition(".")
        structs = clips[head.removesuffix("[]")].to_pylist()
        out[path] = _hours_by([_label(struct, rest) for struct in structs], hours, kept)
    return out


def _label(struct: Struct | None, path: str) -> Any:
    """The value at `path` of a clip's struct; "none" where the list it lies in is empty, None where nobody looked."""
    if struct is None:
        return None
    return next(iter(values_at(struct, path)), "none")


def _hours_by(labels: Sequence[Any], hours: Any, kept: Any) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for label, amount, is_kept in zip(labels, hours, kept, strict=False):
        entry = out.setdefault("not measured" if label is None else str(label), {"kept": 0.0, "other": 0.0})
        entry["kept" if is_kept else "other"] += float(amount)
    return dict(sorted(out.items(), key=lambda item: -sum(item[1].values())))


def histograms(plan: Plan, clips: pa.Table, hours: Any, kept: Any) -> dict[str, dict[str, Any]]:
    """The histogram of every number of clips that is shown as one, where anything was measured."""
    fields = {path: each for path, each in plan.fields(Level.CLIP) if roles_of(each).get("show") == "histogram"}
    drawn = {path: histogram(clips, path, hours, kept) for path in fields if clips.num_rows}
    return {path: {"unit": unit_of(fields[path]), **shown} for path, shown in drawn.items() if shown is not None}


def histogram(clips: pa.Table, path: str, hours: Any, kept: Any) -> dict[str, Any] | None:
    """Hours per bin of one measure, kept and not kept apart, or None where nothing was measured."""
    values = column(clips, path).to_pylist()
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    known = np.isfinite(numbers)
    if not known.any():
        return None
    low, high = np.percentile(numbers[known], [1, 99])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, NUM_BINS + 1)
    clipped = np.clip(numbers, low, high)
    return {
        "edges": edges.tolist(),
        "kept": np.histogram(clipped[known & kept], edges, weights=hours[known & kept])[0].tolist(),
        "other": np.histogram(clipped[known & ~kept], edges, weights=hours[known & ~kept])[0].tolist(),
        "not_measured": float(hours[~known].sum()),
    }


def gate_table(run: Run, clips: pa.Table) -> list[dict[str, Any]]:
    """Per clip gate: hours it fails (gross) and hours that only it removes (marginal)."""
    checks = clip_checks(run.plan)
    if not clips.num_rows or not checks:
        return []
    rejects = evaluate(clips, checks).rejects
    hours = np.asarray(clips["duration_us"].to_numpy(), float) / US_PER_HOUR
    alone = rejects & (rejects.sum(axis=0) == 1)
    return [
        {"gate": check.name, "bound": check.bound, "gross_hours": float(hours[rejects[at]].sum()),
         "marginal_hours": float(hours[alone[at]].sum())}
        for at, check in enumerate(checks)
    ]  # fmt: skip


def cost(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Per stage: rows, wall and CPU seconds, and both per minute of video that went in."""
    assets = ledger.table(Level.ASSET, ["duration_us", "cost"])
    minutes = sum(duration or 0 for duration in assets["duration_us"].to_pylist()) / 60e6
    out: dict[str, dict[str, float]] = {}
    for entries in assets["cost"].to_pylist():
        for entry in entries or []:
            total = out.setdefault(entry["stage"], {"rows": 0, "wall_s": 0.0, "cpu_s": 0.0})
            for key in total:
                total[key] += entry[key]
    for total in out.values():
        total["wall_s_per_minute"] = total["wall_s"] / minutes if minutes else 0.0
        total["cpu_s_per_minute"] = total["cpu_s"] / minutes if minutes else 0.0
    return out


def clip_checks(plan: Plan) -> list[Check]:
    """The checks that look at clips."""
    of_clips = {spec.name for spec in plan.at_level(Level.CLIP)}
    return [check for check in plan.checks if check.stage in of_clips]
