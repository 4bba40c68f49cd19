"""Answers as plain data for `--json`; the keys are stable (docs/stats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.ask.queries import US_PER_HOUR, Balance
from pipeline.execute.spent import Invocation
from pipeline.plan import Plan
from schemas.fields import is_private, pruned
from schemas.records import Asset, Clip, Level, Shot, Struct

if TYPE_CHECKING:
    from pipeline.ask.find import Chain
    from pipeline.ask.grouped import Grouped
    from pipeline.ask.stats import Stats
    from pipeline.ask.what_if import WhatIf


def stats_plain(answer: Stats) -> dict[str, Any]:
    """What `stats --json` prints."""
    sheet = answer.sheet
    settled = {
        "total": answer.num_sources,
        "settled": sum(sheet.assets.values()),
        "provisional": answer.num_provisional,
    }
    return {
        "run": answer.run,
        "recipe": answer.recipe,
        "measure_hash": answer.measure_hash,
        "hours": hours_plain(sheet),
        "assets": settled | _counts(sheet.assets),
        "shots": {"total": sum(sheet.shots.values()), **_counts(sheet.shots)},
        "clips": {"total": sum(sheet.clips.values()), **_counts(sheet.clips)},
        "gates": [asdict(gate) for gate in answer.gates],
        "labels": {path: {name: asdict(hours) for name, hours in by.items()} for path, by in answer.labels.items()},
        "histograms": {path: asdict(shown) for path, shown in answer.histograms.items()},
        "cost": {stage: asdict(total) for stage, total in answer.cost.items()},
        "overhead": asdict(answer.overhead),
        "cpu_s": answer.cpu_s,
        "decodes_per_frame": asdict(answer.decodes),
        "invocations": [_invocation_plain(each) for each in answer.invocations],
    }


def _invocation_plain(done: Invocation) -> dict[str, Any]:
    return {
        "began": done.began,
        "is_whole": done.is_whole,
        "wall_s": done.wall_s,
        "cores": done.cores,
        "cpu_s": done.cpu.total,
        "utilisation": done.utilisation,
        "utilisation_started": done.utilisation_started,
    }


def hours_plain(sheet: Balance) -> dict[str, Any]:
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


def what_if_plain(answer: WhatIf) -> dict[str, Any]:
    """What `stats --set ... --json` prints."""
    low, high, now = answer.low_us, answer.high_us, answer.now_us
    return {
        "set": list(answer.overrides),
        "kept_now": now / US_PER_HOUR,
        "kept": {"low": low / US_PER_HOUR, "high": high / US_PER_HOUR},
        "is_exact": answer.is_exact,
        "estimate": None if answer.estimate_us is None else answer.estimate_us / US_PER_HOUR,
        "delta": {"low": (low - now) / US_PER_HOUR, "high": (high - now) / US_PER_HOUR},
        "clips": {"now": answer.now_clips, "low": answer.low_clips, "high": answer.high_clips},
        "gates": [asdict(gate) for gate in answer.gates],
        "labels": {
            path: {name: {"now": was / US_PER_HOUR, "then": then / US_PER_HOUR} for name, (was, then) in by.items()}
            for path, by in answer.labels.items()
        },
        "lost": list(answer.lost),
        "gained": list(answer.gained),
    }


def grouped_plain(found: Grouped) -> dict[str, Any]:
    """What `stats --by FIELD --json` prints."""
    groups = [
        {
            "value": group.value,
            "clips": {"total": group.num_clips, "kept": group.num_kept},
            "hours": {"total": group.us / US_PER_HOUR, "kept": group.kept_us / US_PER_HOUR},
        }
        for group in found.groups
    ]
    return {"by": found.path, "groups": groups}


def chain_plain(chain: Chain, plan: Plan) -> list[dict[str, Any]]:
    """What `why --json` prints: a mapping per row, with all that was measured on it but what never leaves the ledger."""
    return [_row_plain(row, plan) for row in chain.rows]


def _row_plain(row: Asset | Shot | Clip, plan: Plan) -> dict[str, Any]:
    kind, row_id = name_of(row)
    asset = row if isinstance(row, Asset) else row.asset if isinstance(row, Clip) else None
    own = row.structs.get(kind) or {}
    source = (
        {each: value for each, value in row.source.row().items() if each != "fetch_uri"}
        if isinstance(row, Asset)
        else None
    )
    return {
        "kind": kind,
        "row_id": row_id,
        "parent_id": own.get("parent_id"),
        "source_id": row.asset.source_id if isinstance(row, Clip) else row.source_id,
        "asset_id": own.get("parent_id") if asset is None else asset.asset_id,
        "duration_us": row.duration_us,
        "verdict": row.verdict.row(),
        "source": source,
        **told_of(row, plan),
    }


def name_of(row: Asset | Shot | Clip) -> tuple[Level, str]:
    """Level and id of a row."""
    if isinstance(row, Asset):
        return Level.ASSET, row.source_id
    return (Level.SHOT, row.shot_id) if isinstance(row, Shot) else (Level.CLIP, row.clip_id)


def told_of(row: Asset | Shot | Clip, plan: Plan) -> dict[str, Struct]:
    """Column -> what was measured on a row, in running order, without what never leaves the ledger."""
    own = {spec.column: spec.cls.adds for spec in plan.at_level(name_of(row)[0])}
    return {
        name: pruned(row.structs[name], kind, lambda field: not is_private(field))
        for name, kind in own.items()
        if row.structs.get(name) is not None
    }
