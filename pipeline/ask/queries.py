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
from pipeline.plan import make_plan
from pipeline.store import RunDir
from schemas.errors import LedgerError
from schemas.fields import resolve, unit_of
from schemas.ids import fraction_of
from schemas.recipe import apply_overrides
from schemas.verdict import Check, Outcome, column, evaluate, settle

US_PER_HOUR = 3_600_000_000
HISTOGRAMS = (
    "clip.duration_us",
    "sync.offset_ms",
    "sync.confidence",
    "audio.loudness_lufs",
    "audio.snr_db",
    "picture.sharpness",
    "picture.motion",
    "picture.brightness",
)
"""Measures shown by `stats`, where the run has them."""
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
        self.ledger = Ledger(self.dir.url("ledger"))

    @property
    def num_sources(self) -> int:
        """Sources the run was given."""
        return int(pa.ipc.open_file(pa.BufferReader(self.dir.read("sources.arrow"))).read_all().num_rows)


def balance(ledger: Ledger) -> Balance:
    """The balance sheet. Raises LedgerError if some asset's children are longer than the asset."""
    sheet = Balance()
    children: dict[str, int] = defaultdict(int)
    parents: set[str] = set()
    for row in _brief(ledger, "asset"):
        sheet.assets[row["verdict"]["status"]] += 1
        duration = row["duration_us"] or 0
        sheet.in_us += duration
        if row["verdict"]["status"] == "keep":
            parents.add(row["source_id"])
            children[row["source_id"]] += duration
        else:
            sheet.add(row["verdict"], duration)
    for kind, counts in (("shot", sheet.shots), ("clip", sheet.clips)):
        for row in _brief(ledger, kind):
            counts[row["verdict"]["status"]] += 1
            if row["source_id"] in parents and not (kind == "shot" and row["verdict"]["status"] == "keep"):
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
    clips = run.ledger.settled("clip")
    kept = np.array([verdict["status"] == "keep" for verdict in clips["verdict"].to_pylist()], bool)
    hours = np.asarray(clips["duration_us"].to_numpy(), float) / US_PER_HOUR if clips.num_rows else np.zeros(0)
    spans = [own["spans"] or [] for own in clips["clip"].to_pylist()] if clips.num_rows else []
    return {
        "run": run.dir.uri,
        "recipe": run.recipe.name,
        "measure_hash": run.recipe.measure_hash(),
        "hours": hours_of(sheet),
        "assets": {"total": run.num_sources, "settled": sum(sheet.assets.values()), **_counts(sheet.assets)},
        "shots": {"total": sum(sheet.shots.values()), **_counts(sheet.shots)},
        "clips": {"total": sum(sheet.clips.values()), **_counts(sheet.clips)},
        "gates": gate_table(run, clips),
        "languages": _hours_by([row[0]["language"] if row else "none" for row in spans], hours, kept),
        "speakers": _hours_by([len({span["speaker"] for span in row}) for row in spans], hours, kept),
        "sync_status": _hours_by(_values(clips, "sync.status"), hours, kept),
        "audio_kind": _hours_by(_values(clips, "audio.kind"), hours, kept),
        "histograms": {path: shown for path in HISTOGRAMS if (shown := histogram(clips, path, hours, kept))},
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


def _values(clips: pa.Table, path: str) -> list[Any]:
    try:
        return list(column(clips, path).to_pylist())
    except KeyError:
        return []


def _hours_by(labels: Sequence[Any], hours: Any, kept: Any) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for label, amount, is_kept in zip(labels, hours, kept, strict=False):
        entry = out.setdefault("not measured" if label is None else str(label), {"kept": 0.0, "other": 0.0})
        entry["kept" if is_kept else "other"] += float(amount)
    return dict(sorted(out.items(), key=lambda item: -sum(item[1].values())))


def histogram(clips: pa.Table, path: str, hours: Any, kept: Any) -> dict[str, Any] | None:
    """Hours per bin of one measure, kept and not kept apart, or None where nothing was measured."""
    values = _values(clips, path)
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
        "unit": unit_of(resolve(clips.schema, path)),
        "edges": edges.tolist(),
        "kept": np.histogram(clipped[known & kept], edges, weights=hours[known & kept])[0].tolist(),
        "other": np.histogram(clipped[known & ~kept], edges, weights=hours[known & ~kept])[0].tolist(),
        "not_measured": float(hours[~known].sum()),
    }


def gate_table(run: Run, clips: pa.Table) -> list[dict[str, Any]]:
    """Per clip gate: hours it fails (gross) and hours that only it removes (marginal)."""
    checks = _clip_checks(run.recipe)
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
    assets = ledger.table("asset", ["duration_us", "cost"])
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


def what_if(run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """Kept hours under other gates, from the ledger alone.

    Tightening is exact. Loosening brings back rows that later stages never measured: `kept` is then an interval
    [low, high], and `estimate` uses the audit lane, clips measured to the end at random; null where it is empty.
    Raises RecipeError if an override touches anything but gates.
    """
    raw = apply_overrides(run.raw_recipe, overrides)
    changed = {key for key in raw if raw[key] != run.raw_recipe.get(key)} - {"gates"}
    if changed:
        msg = f"--set changes {', '.join(sorted(changed))}, but only gates can be asked about afterwards."
        raise LedgerError(msg, remedy="Run the recipe again into a new --out for anything else.")
    recipe = parse_recipe(raw, "what-if")
    make_plan(recipe)
    assets = run.ledger.settled("asset")
    now = balance(run.ledger)
    status = _new_status(assets, [check for check in _checks(recipe) if not _is_clip(check, run.recipe)])
    old = [verdict["status"] for verdict in assets["verdict"].to_pylist()]
    sources = assets["source_id"].to_pylist()
    unmeasured = sum(
        duration or 0
        for before, after, duration in zip(old, status, assets["duration_us"].to_pylist(), strict=True)
        if before == "reject" and after in ("keep", "open")
    )
    alive = {source for source, after in zip(sources, status, strict=True) if after in ("keep", "open")}
    clips = run.ledger.settled("clip")
    low, open_us, share = _clip_hours(clips, alive, recipe)
    high = low + open_us + unmeasured
    estimate = None if (open_us and share is None) or unmeasured else (low + open_us * (share or 0.0)) / US_PER_HOUR
    return {
        "set": list(overrides),
        "kept_now": now.kept_us / US_PER_HOUR,
        "kept": {"low": low / US_PER_HOUR, "high": high / US_PER_HOUR},
        "is_exact": low == high,
        "estimate": low / US_PER_HOUR if low == high else estimate,
        "delta": {"low": (low - now.kept_us) / US_PER_HOUR, "high": (high - now.kept_us) / US_PER_HOUR},
    }


def _clip_hours(clips: pa.Table, alive: set[str], recipe: Recipe) -> tuple[int, int, float | None]:
    """(kept us, undecided us, share of undecided time that the audit lane keeps) under the recipe's gates."""
    if not clips.num_rows:
        return 0, 0, None
    checks = _clip_checks(recipe)
    outcome = evaluate(clips, checks)
    statuses = _final(clips, settle(outcome)[0])
    durations = clips["duration_us"].to_pylist()
    kept = undecided = audited = passed = 0
    ids, verdicts = clips["row_id"].to_pylist(), clips["verdict"].to_pylist()
    for at, (source, status) in enumerate(zip(clips["source_id"].to_pylist(), statuses, strict=True)):
        if source not in alive:
            continue
        kept += durations[at] if status == "keep" else 0
        undecided += durations[at] if status == "open" else 0
        is_audited = fraction_of(ids[at]) < recipe.audit_fraction and verdicts[at]["status"] == "reject"
        if is_audited and _passes_up_to(outcome, at, verdicts[at]["stage"]):
            audited += durations[at]
            passed += durations[at] if status == "keep" else 0
    return kept, undecided, passed / audited if audited else None


def _passes_up_to(outcome: Outcome, row: int, stage: str) -> bool:
    """Whether a row passes every check up to and including those of `stage`."""
    stages = [check.stage for check in outcome.checks]
    last = max((at for at, name in enumerate(stages) if name == stage), default=-1)
    return not outcome.rejects[: last + 1, row].any()


def _new_status(table: pa.Table, checks: Sequence[Check]) -> list[str]:
    return _final(table, list(settle(evaluate(table, checks))[0]))


def _final(table: pa.Table, statuses: Sequence[str]) -> list[str]:
    """New statuses, where errors of stages and duplicates stay what they are."""
    return [
        old["status"] if (old["status"] == "error" or old["reason"] in ("duplicate", "asset.no_clip")) else new
        for old, new in zip(table["verdict"].to_pylist(), statuses, strict=True)
    ]


def _checks(recipe: Recipe) -> tuple[Check, ...]:
    return make_plan(recipe).checks


def _is_clip(check: Check, recipe: Recipe) -> bool:
    return any(spec.name == check.stage and spec.adds_to == "clip" for spec in make_plan(recipe).stages)


def _clip_checks(recipe: Recipe) -> list[Check]:
    return [check for check in _checks(recipe) if _is_clip(check, recipe)]


def find(run: Run, key: str) -> list[dict[str, Any]]:
    """The chain of ledger rows from source down to the row whose id, id prefix or file name is `key`, then its packing.

    A source or asset returns its asset row and all below it. Raises LedgerError with near misses.
    """
    rows = {kind: run.ledger.settled(kind).to_pylist() for kind in ("asset", "shot", "clip")}
    for kind in ("clip", "shot"):
        hits = [row for row in rows[kind] if row["row_id"].startswith(key)]
        if len(hits) == 1:
            chain = [row for row in run.ledger.table("pack").to_pylist() if row["row_id"] == hits[0]["row_id"]]
            chain.append(hits[0])
            if kind == "clip":
                chain += [row for row in rows["shot"] if row["row_id"] == hits[0]["parent_id"]]
            chain += [row for row in rows["asset"] if row["source_id"] == hits[0]["source_id"]]
            return chain[::-1]
        if len(hits) > 1:
            raise LedgerError(f"'{key}' is the beginning of {len(hits)} {kind} ids.", remedy="Give more of it.")
    assets = [
        row for row in rows["asset"]
        if row["row_id"].startswith(key) or (row["asset_id"] or "").startswith(key) or key in row["source"]["uri"]
    ]  # fmt: skip
    if len(assets) != 1:
        what = "matches nothing" if not assets else f"matches {len(assets)} sources"
        raise LedgerError(f"'{key}' {what} in {run.dir.uri}.", remedy="Give a clip, shot or asset id, or a file name.")
    below = [row for kind in ("shot", "clip") for row in rows[kind] if row["source_id"] == assets[0]["source_id"]]
    return [assets[0], *below]
