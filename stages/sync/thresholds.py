"""False keep against false drop for every threshold of the sync gate, from measured cases: pure arithmetic and its text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.sync.result import Figures, Finding, Kind, Status

Array = NDArray[Any]
CaseKind = Literal["untouched", "shifted", "swapped"]

OFFSETS_MS = (40.0, 80.0, 120.0, 160.0, 240.0)
"""Bounds on |offset| that are tried: one to six audio latents of 40 ms."""
CONFIDENCE_STEP = 0.5
FEWEST_CLIPS = 5
"""With fewer measured clips nothing is recommended: one clip would be more than a fifth of the rate."""
MOST_DROPPED = 0.5
"""A threshold that drops more of the clips in sync is no recommendation: the evidence does not tell them apart."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement of a clip under its own or another's sound."""

    clip: str
    kind: CaseKind
    shift_s: float = 0.0
    """How much later the sound was made."""
    audio_kind: str | None = None
    sync_kind: Kind | None = None
    """What sync rests on in the untouched clip; None where nothing was left of its picture."""
    status: Status | None = None
    finding: Finding | None = None
    offset_ms: float | None = None
    """None where it could not be measured."""
    offset_std_ms: float | None = None
    confidence: float | None = None

    @classmethod
    def of(cls, found: Figures | None, **case: Any) -> Case:
        """The case in which sync found this, nothing if no picture was left to look at."""
        if found is None:
            return cls(**case)
        return cls(
            **case,
            status=found.status,
            finding=found.finding,
            offset_ms=found.offset_ms,
            offset_std_ms=found.offset_std_ms,
            confidence=found.confidence,
        )

    @property
    def measured(self) -> tuple[float, float]:
        """(|offset| in ms, confidence) of a case that was measured."""
        assert self.offset_ms is not None
        assert self.confidence is not None
        return abs(self.offset_ms), self.confidence


def by_class(cases: Sequence[Case]) -> Iterator[tuple[str | None, str | None, list[Case]]]:
    """(kind of sound, what sync rests on, cases), largest first."""
    classes: dict[tuple[str | None, str | None], list[Case]] = defaultdict(list)
    for case in cases:
        classes[case.audio_kind, case.sync_kind].append(case)
    for (audio_kind, sync_kind), members in sorted(classes.items(), key=lambda item: -len(item[1])):
        yield audio_kind, sync_kind, members


def rates_of(
    audio_kind: str | None, sync_kind: str | None, cases: Sequence[Case], max_false_keep: float
) -> dict[str, Any]:
    """Counts, offset errors of untouched clips, the table of all thresholds and the recommended row of one class.

    Cases that could not be measured are counted and left out of the rates. Every clip weighs the same, and so do moved
    and exchanged sound.
    """
    measured = [case for case in cases if case.offset_ms is not None]
    untouched = [case for case in measured if case.kind == "untouched"]
    names = sorted({case.clip for case in untouched})
    result: dict[str, Any] = {
        "audio_kind": audio_kind,
        "sync_kind": sync_kind,
        "num_clips": len({case.clip for case in cases}),
        "num_measured": len(names),
        "num_shifted": sum(case.kind == "shifted" for case in measured),
        "num_swapped": sum(case.kind == "swapped" for case in measured),
        "offset_ms": None,
        "rows": [],
        "recommended": None,
        "cases": [asdict(case) for case in cases],
    }
    if not names:
        return result
    errors, confidences = np.array([case.measured for case in untouched]).T
    result["offset_ms"] = {"median_abs": float(np.median(errors)), "p90_abs": float(np.percentile(errors, 90))}
    top = np.percentile(confidences, 95)
    grid = np.arange(0, max(top, CONFIDENCE_STEP) + CONFIDENCE_STEP, CONFIDENCE_STEP)
    result["rows"] = [_rates(measured, names, float(least), most) for least in grid for most in OFFSETS_MS]
    if len(names) >= FEWEST_CLIPS:
        result["recommended"] = recommend(result["rows"], max_false_keep)
    return result


def _rates(
    cases: Sequence[Case], names: Sequence[str], confidence_min: float, offset_abs_max_ms: float
) -> dict[str, Any]:
    """One threshold: false keep (moved, exchanged and the mean of both) and false drop, with the cases behind them."""
    kept: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for case in cases:
        offset_ms, confidence = case.measured
        kept[case.kind, case.clip].append(confidence >= confidence_min and offset_ms <= offset_abs_max_ms)

    def shares(kind: str) -> Array:
        return np.array([np.mean(kept[kind, name]) if kept[kind, name] else np.nan for name in names])

    drop, shifted, swapped = 1 - shares("untouched"), shares("shifted"), shares("swapped")
    keep = np.where(np.isnan(shifted), swapped, np.where(np.isnan(swapped), shifted, (shifted + swapped) / 2))
    return {
        "confidence_min": confidence_min,
        "offset_abs_max_ms": offset_abs_max_ms,
        "false_keep": _mean(keep),
        "false_keep_interval": _interval(keep),
        "false_keep_shifted": _mean(shifted),
        "false_keep_swapped": _mean(swapped),
        "false_drop": _mean(drop),
        "false_drop_interval": _interval(drop),
        "num_clips": len(names),
    }


def _mean(shares: Array) -> float | None:
    known = shares[~np.isnan(shares)]
    return float(known.mean()) if len(known) else None


def _interval(shares: Array) -> list[float] | None:
    """Wilson's 95 % interval of the mean share, each clip counted as one throw; too wide rather than too narrow.

    A mean between two whole numbers of clips has the lower end of the one below and the upper end of the one above.
    """
    share, num = _mean(shares), int((~np.isnan(shares)).sum())
    if share is None:
        return None
    clips = round(share * num, 9)
    return [_wilson(math.floor(clips), num)[0], _wilson(math.ceil(clips), num)[1]]


@cache
def _wilson(hits: int, num: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(hits, num).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def recommend(rows: Sequence[dict[str, Any]], max_false_keep: float) -> dict[str, Any] | None:
    """The row that drops least among those within `max_false_keep`, else the one with the fewest errors of both kinds.

    Of equals the loosest: a bound just below what these clips happen to have would drop the next ones.
    None where no wrong clip could be measured or that row drops more than half. `is_within` says which of the two it is.
    """
    known = [row for row in rows if row["false_keep"] is not None]
    within = [row for row in known if row["false_keep"] <= max_false_keep]
    if within:
        best = min(within, key=lambda row: (row["false_drop"], row["confidence_min"], -row["offset_abs_max_ms"]))
    elif known:
        best = min(known, key=lambda row: (row["false_keep"] + row["false_drop"], row["false_keep"]))
    else:
        return None
    return best | {"is_within": bool(within)} if best["false_drop"] <= MOST_DROPPED else None


def text_of(answer: dict[str, Any]) -> str:
    """The screen of `nava-curate calibrate`."""
    lines = [
        f"sync engine {answer['engine']} on {answer['num_clips']} clips of {answer['source']}, seed {answer['seed']}; "
        f"{len(answer['skipped'])} could not be opened",
        "untouched clips are taken to be in sync; sound moved by 0.2 to 1 s, or of another clip, is wrong",
    ]
    if answer["passed_gates"]:
        bounds = ", ".join(
            f"{name} {key} {value:g}"
            for name, gate in answer["passed_gates"].items()
            for key, value in gate.items()
            if isinstance(value, int | float)
        )
        lines.append(f"these clips passed {bounds}: what that dropped is not seen here (--include-rejected shows it)")
    for part in answer["classes"]:
        lines += ["", *_class_lines(part)]
    return "\n".join(lines)


def _class_lines(part: dict[str, Any]) -> Iterator[str]:
    rests_on = {"speech": "lips", "event": "motion and onsets"}.get(part["sync_kind"], "nothing")
    yield (
        f"{part['audio_kind'] or 'any sound'}, judged by {rests_on}: {part['num_measured']} of {part['num_clips']} clips "
        f"measured, {part['num_shifted']} times with moved and {part['num_swapped']} times with foreign sound"
    )
    if not part["rows"]:
        return
    errors = part["offset_ms"]
    yield f"  untouched: |offset| median {errors['median_abs']:.0f} ms, nine in ten within {errors['p90_abs']:.0f} ms"
    yield "  false keep / false drop in %, by least confidence (down) and largest |offset| in ms (across)"
    yield "        " + "".join(f"{offset:>14.0f}" for offset in OFFSETS_MS)
    before = None
    for at in range(0, len(part["rows"]), len(OFFSETS_MS)):
        row = part["rows"][at : at + len(OFFSETS_MS)]
        cells = [f"{_per_cent(cell['false_keep'])} /{_per_cent(cell['false_drop'])}" for cell in row]
        if cells != before:
            yield f"  {row[0]['confidence_min']:>6.1f}" + "".join(f"{cell:>14}" for cell in cells)
        before = cells
    yield "  " + _advice(part)


def _per_cent(share: float | None) -> str:
    return "    -" if share is None else f"{100 * share:5.1f}"


def _advice(part: dict[str, Any]) -> str:
    best = part["recommended"]
    if best is None and part["num_measured"] < FEWEST_CLIPS:
        return f"no recommendation from fewer than {FEWEST_CLIPS} measured clips"
    if best is None:
        return "no recommendation: no threshold tells clips in sync from the others; do not gate these by sync"
    keep, drop = (
        f"{100 * best[key]:.1f} % [{100 * best[f'{key}_interval'][0]:.0f}-{100 * best[f'{key}_interval'][1]:.0f}]"
        for key in ("false_keep", "false_drop")
    )
    head = "recommended" if best["is_within"] else "least errors, though more false keeps than asked for"
    advice = (
        f"{head}: confidence >= {best['confidence_min']:g}, |offset| <= {best['offset_abs_max_ms']:g} ms: "
        f"false keep {keep}, false drop {drop}, from {best['num_clips']} clips"
    )
    if part["sync_kind"] != "speech":
        return advice
    bounds = {"confidence.min": best["confidence_min"], "offset_ms.abs_max": best["offset_abs_max_ms"]}
    return advice + "\n   " + "".join(f" --set gates.sync.{key}={value:g}" for key, value in bounds.items())
