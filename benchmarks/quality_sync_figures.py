"""Figures over measurements of sync whose truth is known: errors, what a confidence is worth, who is told from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import bootstrap_interval
from stages.sync.film import Film
from stages.sync.peaks import SURE
from stages.sync.result import Figures

Array = NDArray[Any]
Item = dict[str, Any]


def row_of(result: Figures, made: Film, kind: str, shift_s: float) -> Item:
    """One measurement beside its truth; what was not measured is infinitely off and unsure."""
    offset = result.offset_ms
    return {
        "clip": made.name,
        "kind": kind,
        "shift_s": shift_s,
        "length_s": made.duration_s,
        "offset_ms": offset,
        "std_ms": result.offset_std_ms,
        "error_ms": np.inf if offset is None else abs(offset - 1000 * shift_s),
        "confidence": -np.inf if result.confidence is None else result.confidence,
        "agreement": -np.inf if result.agreement is None else result.agreement,
    }


def shown(row: Item, columns: Sequence[str]) -> Item:
    """Some columns of a measurement, as JSON can hold them."""
    return {name: known(row[name]) if isinstance(row[name], float) else row[name] for name in columns}


def known(value: float) -> float | None:
    """None for what is not finite, such as a median of errors most of which could not be measured: JSON has no such number."""
    return float(value) if np.isfinite(value) else None


def mean(values: Sequence[bool]) -> float | None:
    """The share that is true; None of none."""
    return float(np.mean(values)) if values else None


def errors(rows: Sequence[Item], with_intervals: bool = True) -> Item:
    """Median and shares of the absolute error, with bootstrap intervals over clips; what was not measured is infinitely off."""
    if not rows:
        return {"num": 0}
    names = sorted({row["clip"] for row in rows})
    by_clip = {name: np.array([row["error_ms"] for row in rows if row["clip"] == name]) for name in names}
    every = np.concatenate(list(by_clip.values()))
    out: Item = {
        "num": len(every),
        "num_clips": len(names),
        "median_ms": known(np.median(every)),
        "within_40_ms": float(np.mean(every <= 40)),
        "within_80_ms": float(np.mean(every <= 80)),
    }
    if with_intervals:

        def drawn(picked: Array) -> Array:
            return np.concatenate([by_clip[names[at]] for at in picked])

        ends = bootstrap_interval(lambda picked: float(np.median(drawn(picked))), len(names))
        out["median_ms_interval"] = ends and [known(end) for end in ends]
        out["within_80_ms_interval"] = bootstrap_interval(
            lambda picked: float(np.mean(drawn(picked) <= 80)), len(names)
        )
    return out


def sure(rows: Sequence[Item]) -> Item:
    """How many cases have a confidence of 4 and more, and how many of these are right, with bootstrap intervals over clips."""
    names = sorted({row["clip"] for row in rows})
    by_clip = [
        [(row["confidence"] >= SURE, row["error_ms"] <= 80) for row in rows if row["clip"] == name] for name in names
    ]

    def share(picked: Array) -> float:
        return float(np.mean([sure for at in picked for sure, _ in by_clip[at]]))

    def right(picked: Array) -> float:
        found = [is_right for at in picked for sure, is_right in by_clip[at] if sure]
        return float(np.mean(found)) if found else np.nan

    if not rows:
        return {"num": 0}
    every = np.arange(len(names))
    return {
        "num": len(rows),
        "share": share(every),
        "share_interval": bootstrap_interval(share, len(names)),
        "within_80_ms": known(right(every)),
        "within_80_ms_interval": bootstrap_interval(right, len(names)),
    }


def auc(positives: Sequence[Item], negatives: Sequence[Item], key: str = "agreement") -> float | None:
    """Chance that a clip in sync scores above one that is not, each clip weighing the same."""
    if not positives or not negatives:
        return None
    low = np.array([row[key] for row in negatives])
    wins = [np.mean(row[key] > low) + 0.5 * np.mean(row[key] == low) for row in positives]
    return float(np.mean(wins))


def roc(positives: Sequence[Item], negatives: Sequence[Item]) -> list[Item]:
    """Kept in-sync and kept out-of-sync shares at thresholds on `agreement`; none without both."""
    if not positives or not negatives:
        return []
    high, low = (np.array([row["agreement"] for row in rows]) for rows in (positives, negatives))
    return [
        {"agreement_min": float(x), "kept_in_sync": float((high >= x).mean()), "kept_wrong": float((low >= x).mean())}
        for x in np.arange(1.0, 6.1, 0.5)
    ]
