"""What `pipeline.ask` says, said again by loops over plain rows: slow, and easy to believe.

Verdicts under other gates come from the Arrow form of the gates, which `pipeline.execute` uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.ask.queries import Balance, Run
from pipeline.config import parse_recipe
from pipeline.ledger import hash_column, structs_of
from pipeline.plan import Plan, make_plan
from schemas.recipe import apply_overrides
from schemas.records import NO_CHILD, Level, span_of
from schemas.timing import microseconds
from schemas.verdict import Outcome, evaluate, settle

Row = dict[str, Any]
ALIVE = ("keep", "open")


class PlainRows:
    """All rows of a ledger, and which sources count."""

    def __init__(self, run: Run) -> None:
        self.plan = run.plan
        self.assets = {row["source_id"]: row for row in run.ledger.rows(Level.ASSET)}
        self.shots = run.ledger.rows(Level.SHOT)
        self.clips = run.ledger.rows(Level.CLIP)
        own = {source: row["verdict.status"] for source, row in self.assets.items()}
        self.status = self.counted(own)

    def counted(self, statuses: Mapping[str, str], kept: Sequence[str] = ("keep",)) -> dict[str, str]:
        """Statuses where of the same bytes kept twice only those of the smallest source id are."""
        found = dict(statuses)
        first: dict[str, str] = {}
        for source in sorted(self.assets):
            asset_id = self.assets[source]["asset_id"]
            if statuses[source] in kept and first.setdefault(asset_id, source) != source:
                found[source] = "reject"
        return found

    def below(self, row: Row) -> str:
        """The status of a shot or clip as it counts."""
        own = str(row["verdict.status"])
        return "reject" if own == "keep" and self.status[row["source_id"]] != "keep" else own


def plain_balance(run: Run) -> Balance:
    """See `balance`; what is cut away is counted microsecond by microsecond in a set of covered stretches."""
    rows = PlainRows(run)
    rejected: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    sheet = Balance(rejected_us=rejected, errors_us=errors)

    def book(status: str, reason: str, duration_us: int) -> None:
        if status == "keep":
            sheet.kept_us += duration_us
        else:
            (rejected if status == "reject" else errors)[reason] += duration_us

    for source, row in rows.assets.items():
        duration_us = row["duration_us"] or 0
        sheet.in_us += duration_us
        is_again = row["verdict.status"] == "keep" and rows.status[source] != "keep"
        if rows.status[source] != "keep":
            book(rows.status[source], "duplicate" if is_again else row["verdict.reason"], duration_us)
        else:
            sheet.cut_away_us += duration_us - _covered([each for each in rows.shots if each["source_id"] == source])
    for level, found in ((Level.SHOT, rows.shots), (Level.CLIP, rows.clips)):
        for row in found:
            if rows.status[row["source_id"]] != "keep":
                continue
            if level is Level.SHOT and row["verdict.status"] == "keep":
                key = (row["source_id"], row["row_id"])
                inside = [each for each in rows.clips if (each["source_id"], each["parent_id"]) == key]
                sheet.cut_away_us += _length(row) - _covered(inside)
            else:
                book(row["verdict.status"], row["verdict.reason"], row["duration_us"])
    sheet.assets = _count(rows.status.values())
    sheet.shots, sheet.clips = (_count(map(rows.below, found)) for found in (rows.shots, rows.clips))
    return sheet


def _count(statuses: Any) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for status in statuses:
        found[status] += 1
    return found


def _ends(row: Row) -> tuple[int, int]:
    names = ("start_pts", "end_pts", "tb_num", "tb_den")
    span = span_of({name: row[f"{row['kind']}.{name}"] for name in names})
    return microseconds(span.start), microseconds(span.end)


def _length(row: Row) -> int:
    start, end = _ends(row)
    return end - start


def _covered(rows: Sequence[Row]) -> int:
    """Microseconds that lie in at least one of the spans."""
    total, reach = 0, None
    for start, end in sorted(map(_ends, rows)):
        total += max(0, end - (start if reach is None else max(start, reach)))
        reach = end if reach is None else max(reach, end)
    return total


def outcome_of(plan: Plan, level: Level, rows: Sequence[Row]) -> Outcome:
    """What the gates of `plan` on stages of this level say of rows, by the Arrow form."""
    specs = plan.at_level(level)
    checks = [check for check in plan.checks if check.stage in {spec.name for spec in specs}]
    structs = [structs_of(plan, level, row) for row in rows]
    table = pa.table({spec.column: pa.array([each[spec.column] for each in structs], spec.cls.adds) for spec in specs})
    return evaluate(table, checks)


def plain_gates(run: Run) -> dict[str, tuple[int, int]]:
    """Gate -> (microseconds that fail it, microseconds that fail nothing else), of clips of sources that count."""
    rows = PlainRows(run)
    clips = [row for row in rows.clips if rows.status[row["source_id"]] == "keep"]
    if not clips:
        return {}
    outcome = outcome_of(run.plan, Level.CLIP, clips)
    found = {}
    for number, check in enumerate(outcome.checks):
        fails = [(row["duration_us"], at) for at, row in enumerate(clips) if outcome.rejects[number, at]]
        alone = [us for us, at in fails if outcome.rejects[:, at].sum() == 1]
        found[check.name] = (sum(us for us, _ in fails), sum(alone))
    return found


def plain_what_if(run: Run, overrides: Sequence[str]) -> dict[str, int | None]:
    """Fields of `WhatIf`: time and clips kept."""
    rows = PlainRows(run)
    plan = make_plan(parse_recipe(apply_overrides(run.raw_recipe, overrides)))
    assets = list(rows.assets.values())
    after_assets = dict(zip(rows.assets, _after(plan, Level.ASSET, assets), strict=True))
    above = rows.counted(after_assets, ALIVE)
    unmeasured = sum(
        row["duration_us"] or 0
        for source, row in rows.assets.items()
        if above[source] in ALIVE and row[hash_column("shot_split")] is None
    )
    for row, after in zip(rows.shots, _after(plan, Level.SHOT, rows.shots), strict=True):
        if above[row["source_id"]] in ALIVE and after in ALIVE and row[hash_column("clip")] is None:
            unmeasured += row["duration_us"]
    now = low = undecided = audited = passed = 0
    now_clips = low_clips = undecided_clips = 0
    outcome = outcome_of(plan, Level.CLIP, rows.clips)
    order = [spec.name for spec in plan.stages]
    for at, (row, after) in enumerate(zip(rows.clips, _after(plan, Level.CLIP, rows.clips), strict=True)):
        us, status = row["duration_us"], row["verdict.status"]
        is_now = status == "keep" and rows.status[row["source_id"]] == "keep"
        now += us if is_now else 0
        now_clips += is_now
        if above[row["source_id"]] not in ALIVE:
            continue
        is_kept = after == "keep" and above[row["source_id"]] == "keep"
        low += us if is_kept else 0
        undecided += us if after in ALIVE and not is_kept else 0
        low_clips += is_kept
        undecided_clips += after in ALIVE and not is_kept
        if row["verdict.is_audit"] and status == "reject":
            last = order.index(row["verdict.stage"])
            earlier = [n for n, check in enumerate(outcome.checks) if order.index(check.stage) <= last]
            if not any(outcome.rejects[n, at] for n in earlier):
                audited += us
                passed += us if is_kept else 0
    high = low + undecided + unmeasured
    estimate = low if low == high else None
    if low != high and audited and not unmeasured:
        estimate = low + round(undecided * passed / audited)
    return {
        "now_us": now,
        "low_us": low,
        "high_us": high,
        "estimate_us": estimate,
        "now_clips": now_clips,
        "low_clips": low_clips,
        "high_clips": low_clips + undecided_clips,
    }


def _after(plan: Plan, level: Level, rows: Sequence[Row]) -> list[str]:
    new = settle(outcome_of(plan, level, rows))[0]
    return [row["verdict.status"] if _stays(row) else status for row, status in zip(rows, new, strict=True)]


def _stays(row: Row) -> bool:
    is_of_stage = row["failed_by"] is not None or row["verdict.stage"] is None
    is_error = row["verdict.status"] == "error" and is_of_stage
    return is_error or row["verdict.reason"] in {verdict.reason for verdict in NO_CHILD.values()}
