"""Marks as text for a terminal: exported, held against a run, against its gates, or turned into bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.ask.marks import LEAST, Mark, Proportion, broken, exported, gate_marks, suggested
from pipeline.ask.queries import Run
from schemas.errors import RecipeError
from schemas.recipe import nearest

ACTIONS = ("export", "check", "gates", "suggest")
MOST_SUGGESTED = 8


def marks_text(action: str, run: Run, marks: Mapping[str, Mark]) -> tuple[str, bool]:
    """What to print, and whether the run agrees with the marks. Raises RecipeError for an unknown action, or without marks."""
    if action not in ACTIONS:
        raise RecipeError(f"marks {action} is not known.", remedy=nearest(action, ACTIONS))
    if not marks:
        raise RecipeError(
            f"no clip of {run.dir.uri} is marked.", remedy="Mark some with g, b and u in `nava-curate inspect`."
        )
    if action == "export":
        return "\n".join(json.dumps(each, ensure_ascii=False) for each in exported(run, marks.values())), True
    if action == "check":
        wrong = broken(run, list(marks.values()))
        told = [f"{each.clip_id} {each.what}" for each in wrong]
        agreed = sum(mark.opinion != "unsure" for mark in marks.values()) - len(wrong)
        return "\n".join([*told, f"{agreed} marks hold, {len(wrong)} do not"]), not wrong
    return (_gates(run, marks) if action == "gates" else _suggestions(run, marks)), True


def _gates(run: Run, marks: Mapping[str, Mark]) -> str:
    found = gate_marks(run, marks)
    if not found:
        told = sum(mark.opinion != "unsure" for mark in marks.values())
        return f"{told} clips are marked good or bad; from {LEAST} on, figures say something"
    lines = [f"{'gate':<36}{'precision':>20}{'recall':>20}   (share, 95 % interval, of clips)"]
    return "\n".join(
        [*lines, *(f"{each.gate:<36}{_share(each.precision):>20}{_share(each.recall):>20}" for each in found)]
    )


def _share(share: Proportion | None) -> str:
    return "-" if share is None else f"{share.share:.0%} {share.low:.0%}-{share.high:.0%} of {share.num}"


def _suggestions(run: Run, marks: Mapping[str, Mark]) -> str:
    found = suggested(run, marks)
    if not found:
        return "nothing to tell apart: mark at least one clip good and one bad"
    return "\n".join(
        f"gates.{each.path}.{each.operator}={each.bound:.4g}  turns away {each.bad_away} of {each.num_bad} bad clips "
        f"and {each.good_away} of {each.num_good} good ones"
        for each in found[:MOST_SUGGESTED]
    )
