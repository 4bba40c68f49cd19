"""False keep against false drop for every threshold of the sync gate, from measured cases: pure arithmetic and its text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    sound_kind: str | None = None
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


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one threshold gets wrong of one class; every clip weighs the same."""

    confidence_min: float
    offset_abs_max_ms: float
    false_keep: float | None
    """Mean of the two below; None where no wrong clip was measured."""
    false_keep_interval: tuple[float, float] | None
    false_keep_shifted: float | None
    false_keep_swapped: float | None
    false_drop: float
    false_drop_interval: tuple[float, float]
    num_clips: int


@dataclass(frozen=True, kw_only=True)
class Recommended(Rates):
    """The threshold to take."""

    is_within: bool
    """Whether it keeps as few wrong clips as was asked for."""


@dataclass(frozen=True, kw_only=True)
class OffsetErrors:
    """|offset| of untouched clips in ms."""

    median_abs: float
    p90_abs: float


@dataclass(frozen=True, kw_only=True)
class ClassRates:
    """All thresholds on the clips of one kind of sound that sync judges alike."""

    sound_kind: str | None
    sync_kind: Kind | None
    num_clips: int
    num_measured: int
    num_shifted: int
    num_swapped: int
    offset_ms: OffsetErrors | None = None
    """None where no untouched clip was measured."""
    rows: Sequence[Rates] = ()
    recommended: Recommended | None = None
    cases: Sequence[Case]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The answer of `nava-curate calibrate`; its fields are the keys of `--json`."""

    source: str
    engine: str
    num_clips: int
    seed: int
    passed_gates: Mapping[str, Mapping[str, Any]]
    """Gates of sync that the sampled clips had passed: field -> bounds."""
    skipped: Mapping[str, str]
    """Clips and files that could not be measured, and why."""
    classes: Sequence[ClassRates]


def by_class(cases: Sequence[Case]) -> Iterator[tuple[str | None, Kind | None, list[Case]]]:
    """(kind of sound, what sync rests on, cases), largest first."""
    classes: dict[tuple[str | None, Kind | None], list[Case]] = defaultdict(list)
    for case in cases:
        classes[case.sound_kind, case.sync_kind].append(case)
    for (sound_kind, sync_kind), members in sorted(classes.items(), key=lambda item: -len(item[1])):
        yield sound_kind, sync_kind, members


def rates_of(
    sound_kind: str | None, sync_kind: Kind | None, cases: Sequence[Case], max_false_keep: float
) -> ClassRates:
    """Counts, offset errors of untouched clips, the table of all thresholds and the recommended row of one class.

    Cases that could not be measured are counted and left out of the rates. Every clip weighs the same, and so do moved
    and exchanged sound.
    """
    measured = [case for case in cases if case.offset_ms is not None]
    untouched = [case for case in measured if case.kind == "untouched"]
    names = sorted({case.clip for case in untouched})
    result = ClassRates(
        sound_kind=sound_kind,
        sync_kind=sync_kind,
        num_clips=len({case.clip for case in cases}),
        num_measured=len(names),
        num_shifted=sum(case.kind == "shifted" for case in measured),
        num_swapped=sum(case.kind == "swapped" for case in measured),
        cases=cases,
    )
    if not names:
        return result
    errors, confidences = np.array([case.measured for case in untouched]).T
    top = np.percentile(confidences, 95)
    grid = np.arange(0, max(top, CONFIDENCE_STEP) + CONFIDENCE_STEP, CONFIDENCE_STEP)
    rows = [_rates(measured, names, float(least), most) for least in grid for most in OFFSETS_MS]
    return replace(
        result,
        offset_ms=OffsetErrors(median_abs=float(np.median(errors)), p90_abs=float(np.percentile(errors, 90))),
        rows=rows,
        recommended=recommend(rows, max_false_keep) if len(names) >= FEWEST_CLIPS else None,
    )


def _rates(cases: Sequence[Case], names: Sequence[str], confidence_min: float, offset_abs_max_ms: float) -> Rates:
    """One threshold: false keep (moved, exchanged and the mean of both) and false drop, with the cases behind them."""
    kept: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for case in cases:
        offset_ms, confidence = case.measured
        kept[case.kind, case.clip].append(confidence >= confidence_min and offset_ms <= offset_abs_max_ms)

    def shares(kind: str) -> Array:
        return np.array([np.mean(kept[kind, name]) if kept[kind, name] else np.nan for name in names])

    drop, shifted, swapped = 1 - shares("untouched"), shares("shifted"), shares("swapped")
    keep = np.where(np.isnan(shifted), swapped, np.where(np.isnan(swapped), shifted, (shifted + swapped) / 2))
    wrong, wrong_shifted, wrong_swapped = (part[~np.isnan(part)] for part in (keep, shifted, swapped))
    return Rates(
        confidence_min=confidence_min,
        offset_abs_max_ms=offset_abs_max_ms,
        false_keep=_mean(wrong) if len(wrong) else None,
        false_keep_interval=_interval(wrong) if len(wrong) else None,
        false_keep_shifted=_mean(wrong_shifted) if len(wrong_shifted) else None,
        false_keep_swapped=_mean(wrong_swapped) if len(wrong_swapped) else None,
        false_drop=_mean(drop),
        false_drop_interval=_interval(drop),
        num_clips=len(names),
    )


def _mean(shares: Array) -> float:
    return float(shares.mean())


def _interval(shares: Array) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean share, each clip counted as one throw; too wide rather than too narrow.

    A mean between two whole numbers of clips has the lower end of the one below and the upper end of the one above.
    """
    num = len(shares)
    clips = round(float(shares.sum()), 9)
    return _wilson(math.floor(clips), num)[0], _wilson(math.ceil(clips), num)[1]


@cache
def _wilson(hits: int, num: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(hits, num).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def recommend(rows: Sequence[Rates], max_false_keep: float) -> Recommended | None:
    """The row that drops least among those within `max_false_keep`, else the one with the fewest errors of both kinds.

    Of equals the loosest: a bound just below what these clips happen to have would drop the next ones.
    None where no wrong clip could be measured or that row drops more than half. `is_within` says which of the two it is.
    """
    known = [(row, row.false_keep) for row in rows if row.false_keep is not None]
    within = [row for row, false_keep in known if false_keep <= max_false_keep]
    if within:
        best = min(within, key=lambda row: (row.false_drop, row.confidence_min, -row.offset_abs_max_ms))
    elif known:
        best = min(known, key=lambda item: (item[1] + item[0].false_drop, item[1]))[0]
    else:
        return None
    return None if best.false_drop > MOST_DROPPED else Recommended(**asdict(best), is_within=bool(within))


def text_of(answer: Calibration) -> str:
    """The screen of `nava-curate calibrate`."""
    lines = [
        f"sync engine {answer.engine} on {answer.num_clips} clips of {answer.source}, seed {answer.seed}; "
        f"{len(answer.skipped)} could not be opened",
        "untouched clips are taken to be in sync; sound moved by 0.2 to 1 s, or of another clip, is wrong",
    ]
    if answer.passed_gates:
        bounds = ", ".join(
            f"{name} {key} {value:g}"
            for name, gate in answer.passed_gates.items()
            for key, value in gate.items()
            if isinstance(value, int | float)
        )
        lines.append(f"these clips passed {bounds}: what that dropped is not seen here (--include-rejected shows it)")
    for part in answer.classes:
        lines += ["", *_class_lines(part)]
    return "\n".join(lines)


def _class_lines(part: ClassRates) -> Iterator[str]:
    rests_on = {"speech": "lips", "event": "motion and onsets"}.get(part.sync_kind or "", "nothing")
    yield (
        f"{part.sound_kind or 'any sound'}, judged by {rests_on}: {part.num_measured} of {part.num_clips} clips "
        f"measured, {part.num_shifted} times with moved and {part.num_swapped} times with foreign sound"
    )
    errors = part.offset_ms
    if errors is None:
        return
    yield f"  untouched: |offset| median {errors.median_abs:.0f} ms, nine in ten within {errors.p90_abs:.0f} ms"
    yield "  false keep / false drop in %, by least confidence (down) and largest |offset| in ms (across)"
    yield "        " + "".join(f"{offset:>14.0f}" for offset in OFFSETS_MS)
    before = None
    for at in range(0, len(part.rows), len(OFFSETS_MS)):
        row = part.rows[at : at + len(OFFSETS_MS)]
        cells = [f"{_per_cent(cell.false_keep)} /{_per_cent(cell.false_drop)}" for cell in row]
        if cells != before:
            yield f"  {row[0].confidence_min:>6.1f}" + "".join(f"{cell:>14}" for cell in cells)
        before = cells
    yield "  " + _advice(part)


def _per_cent(share: float | None) -> str:
    return "    -" if share is None else f"{100 * share:5.1f}"


def _with_interval(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None or interval is None:
        return "-"
    return f"{100 * share:.1f} % [{100 * interval[0]:.0f}-{100 * interval[1]:.0f}]"


def _advice(part: ClassRates) -> str:
    best = part.recommended
    if best is None and part.num_measured < FEWEST_CLIPS:
        return f"no recommendation from fewer than {FEWEST_CLIPS} measured clips"
    if best is None:
        return "no recommendation: no threshold tells clips in sync from the others; do not gate these by sync"
    keep = _with_interval(best.false_keep, best.false_keep_interval)
    drop = _with_interval(best.false_drop, best.false_drop_interval)
    head = "recommended" if best.is_within else "least errors, though more false keeps than asked for"
    advice = (
        f"{head}: confidence >= {best.confidence_min:g}, |offset| <= {best.offset_abs_max_ms:g} ms: "
        f"false keep {keep}, false drop {drop}, from {best.num_clips} clips"
    )
    if part.sync_kind != "speech":
        return advice
    bounds = {"confidence.min": best.confidence_min, "offset_ms.abs_max": best.offset_abs_max_ms}
    return advice + "\n   " + "".join(f" --set gates.sync.{key}={value:g}" for key, value in bounds.items())
