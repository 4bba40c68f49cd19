"""What other gates would keep, answered from the ledger: tightening exactly, loosening as an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.ask.queries import US_PER_HOUR, Run, balance, clip_checks
from pipeline.config import parse_recipe
from pipeline.plan import Plan, make_plan
from schemas.errors import LedgerError
from schemas.ids import fraction_of
from schemas.recipe import apply_overrides
from schemas.records import NO_CHILD, Level
from schemas.verdict import Check, Outcome, evaluate, settle


def what_if(run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """Kept hours under other gates, from the ledger alone.

    Tightening is exact. Loosening brings back rows that later stages never measured: `kept` is then an interval
    [low, high], and `estimate` uses the audit lane, clips measured to the end at random; null where it is empty.
    Raises LedgerError if an override touches anything but gates, and RecipeError if it is none.
    """
    raw = apply_overrides(run.raw_recipe, overrides)
    changed = {key for key in raw if raw[key] != run.raw_recipe.get(key)} - {"gates"}
    if changed:
        msg = f"--set changes {', '.join(sorted(changed))}, but only gates can be asked about afterwards."
        raise LedgerError(msg, remedy="Run the recipe again into a new --out for anything else.")
    plan = make_plan(parse_recipe(raw, "what-if"))
    assets = run.ledger.settled(Level.ASSET)
    now = balance(run.ledger)
    of_clips = clip_checks(plan)
    status = _new_status(assets, [check for check in plan.checks if check not in of_clips])
    old = [verdict["status"] for verdict in assets["verdict"].to_pylist()]
    sources = assets["source_id"].to_pylist()
    unmeasured = sum(
        duration or 0
        for before, after, duration in zip(old, status, assets["duration_us"].to_pylist(), strict=True)
        if before == "reject" and after in ("keep", "open")
    )
    alive = {source for source, after in zip(sources, status, strict=True) if after in ("keep", "open")}
    clips = run.ledger.settled(Level.CLIP)
    low, open_us, share = _clip_hours(clips, alive, plan)
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


def _clip_hours(clips: pa.Table, alive: set[str], plan: Plan) -> tuple[int, int, float | None]:
    """(kept us, undecided us, share of undecided time that the audit lane keeps) under the recipe's gates."""
    if not clips.num_rows:
        return 0, 0, None
    checks = clip_checks(plan)
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
        is_audited = fraction_of(ids[at]) < plan.recipe.audit_fraction and verdicts[at]["status"] == "reject"
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
    """New statuses, where errors of stages and assets without clips stay what they are."""
    return [
        old["status"] if (old["status"] == "error" or old["reason"] == NO_CHILD[Level.ASSET].reason) else new
        for old, new in zip(table["verdict"].to_pylist(), statuses, strict=True)
    ]
