"""Clips as tables: for a terminal, as CSV and as JSON; and what differs between two runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.ask.clips import ClipLists, ClipPage, ClipQuestion, ClipRow
from pipeline.show.screen import hms, plural, table, value, wrapped
from schemas.errors import LedgerError
from schemas.recipe import nearest
from schemas.records import Level

if TYPE_CHECKING:
    from pipeline.ask.compare import FallStep, RunComparison
    from pipeline.plan import Plan

SHORT_ID = 13
"""Characters of an id that are shown: `why` takes them."""
MOST_CHANGES = 8
STATUSES = {"keep": "keep", "kept": "keep", "reject": "reject", "rejected": "reject", "error": "error", "": ""}


def sort_field(sort: str, plan: Plan) -> str:
    """What to sort by, where a gate may be called as `stats` calls it: `sync.confidence.min` is its field."""
    head, colon, name = sort.rpartition(":")
    fields = {check.name: check.path for check in plan.checks}
    return f"{head}{colon}{fields.get(name, name)}"


def checked(asked: ClipQuestion, lists: ClipLists) -> ClipQuestion:
    """The question with the source's id in it. Raises LedgerError for a status or reason that no clip of the run has."""
    from pipeline.ask.find import locate

    if asked.status not in STATUSES:
        raise LedgerError(f"'{asked.status}' is no status.", remedy="Known: keep, reject, error.")
    if asked.reason:
        known = lists.spine["reason"].drop_nulls().unique().sort().cast(str).to_list()
        if asked.reason not in known:
            raise LedgerError(f"no clip was settled by '{asked.reason}'.", remedy=nearest(asked.reason, known))
    source = locate(lists.run, asked.source).source_id if asked.source else ""
    return replace(asked, status=STATUSES[asked.status], source=source)


def clips_text(page: ClipPage, uri: str) -> str:
    """A table, and how many more there are."""
    total = f"{plural(page.num_found, Level.CLIP)} of {page.num_all:,}, {hms(page.found_us)}"
    if not page.rows:
        return f"{total}\nno clip fits: `nava-curate stats {uri}` has the reasons, `--where FIELD!=` what was measured"
    fields = list(page.rows[0].values)
    reasons = {row.reason or row.status for row in page.rows}
    told = ["verdict"] if len(reasons) > 1 else []
    head = (Level.CLIP, *told, "length", "at", *fields, "source")
    rows = [
        (
            row.clip_id[:SHORT_ID],
            *((row.reason or row.status) for _ in told),
            f"{row.duration_us / 1e6:.2f} s",
            hms(row.start_s * 1e6),
            *(value(row.values[name]) for name in fields),
            PurePosixPath(row.source).name or row.source,
        )
        for row in page.rows
    ]
    right = range(1 + len(told), 3 + len(told) + len(fields))
    all_alike = "" if told else f", all {reasons.pop()}"
    shown = "" if len(rows) == page.num_found else f"; the first {len(rows)} are shown, --limit shows more"
    return "\n".join(
        [
            *table(head, rows, right, uncut={0}),
            *wrapped(total + all_alike + shown + f"; next: nava-curate why CLIP --run {uri}"),
        ]
    )


def _row_plain(row: ClipRow) -> dict[str, Any]:
    return {
        "clip_id": row.clip_id,
        "source_id": row.source_id,
        "source": row.source,
        "status": row.status,
        "reason": row.reason,
        "start_s": row.start_s,
        "duration_us": row.duration_us,
        "is_audit": row.is_audit,
        **row.values,
    }


def clips_plain(page: ClipPage) -> dict[str, Any]:
    """What `clips --json` prints."""
    return {
        "num_found": page.num_found,
        "found_us": page.found_us,
        "num_all": page.num_all,
        "clips": [_row_plain(row) for row in page.rows],
    }


def clips_csv(rows: Sequence[ClipRow]) -> str:
    """Rows with a head, as other programs read them."""
    out = io.StringIO()
    told = [_row_plain(row) for row in rows]
    names = list(told[0]) if told else ["clip_id"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    return out.getvalue().rstrip("\n")


def comparison_text(found: RunComparison) -> str:
    """The way from the hours that one run keeps to those of the other."""
    change = found.after_us - found.before_us
    lines = [
        f"kept before {hms(found.before_us, millis=True)}",
        f"kept after  {hms(found.after_us, millis=True)}  ({hms(change, millis=True, is_signed=True)})",
        f"{plural(found.num_both, Level.CLIP)} in both runs, {plural(found.num_flips, 'changed verdict')}",
    ]
    lines += _step_lines("kept no more, by what turns them away now", found.lost)
    lines += _step_lines("kept now, by what turned them away before", found.gained)
    if found.flips:
        rows = [
            (
                flip.clip_id[:SHORT_ID],
                flip.before_reason or flip.before,
                flip.after_reason or flip.after,
                hms(flip.duration_us),
            )
            for flip in found.flips[:MOST_CHANGES]
        ]
        lines += ["", *table((Level.CLIP, "before", "after", "h:mm:ss"), rows, {3})]
    if found.recipe:
        changes = [(key, value(was), value(now)) for key, was, now in found.recipe]
        lines += ["", *table(("recipe", "before", "after"), changes)]
    else:
        lines += ["", "their recipes are the same"]
    return "\n".join(lines)


def _step_lines(title: str, steps: Sequence[FallStep]) -> list[str]:
    if not steps:
        return []
    rows = [(step.reason, plural(step.num_clips, Level.CLIP), hms(step.us, is_signed=True)) for step in steps]
    return ["", *table((title, "clips", "h:mm:ss"), rows, {1, 2})]
