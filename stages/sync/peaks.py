"""Where a curve over offsets stands out and how far, and the slope along which the curves of windows add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.sync.channels import GRID_HZ

Array = NDArray[Any]

PEAK_HALF_WIDTH_S = 0.2
"""Half width of the peak: the correlation length of speech. What lies further off is what a peak is held against."""
IN_SYNC_S = 0.08
"""Offsets this small pass for in sync: the detectability threshold of ITU-R BT.1359 lies at 45 ms early, 125 ms late."""
SURE = 4.0
"""Confidence from which an offset is called real: 95 in 100 such are right within 80 ms. Users' gates rest on it."""
SOFTNESS = 0.3
"""Standard deviations of the curve by which an offset becomes e times less likely. Chosen on clips left out of the fit so that
two thirds of the errors lie within the stated spread."""
LEAST_STD_S = 0.02
"""Half a frame: the lips of two people in perfect sync differ by as much."""


@dataclass(frozen=True)
class Peak:
    """Where a curve over offsets stands out, and how far."""

    offset_s: float
    """Between grid points, by a parabola."""
    height: float
    """Of the peak above the mean of the remaining offsets, in their standard deviations; from an engine, its confidence."""
    at_zero: float
    """The same for the highest point within 80 ms of no offset."""
    std_s: float
    """Spread of what the curve leaves possible."""


def find_peak(curve: Array, lags: Array) -> Peak:
    """The peak of a curve [lags]; a flat curve has height 0."""
    top = int(np.argmax(curve))
    rest = curve[np.abs(lags - lags[top]) > PEAK_HALF_WIDTH_S]
    spread = float(rest.std()) if len(rest) else 0.0
    if spread < 1e-9:
        return Peak(float(lags[top]), 0.0, 0.0, float(np.ptp(lags) / np.sqrt(12)))
    offset = float(lags[top])
    if 0 < top < len(curve) - 1:
        before, here, after = curve[top - 1 : top + 2]
        bend = before - 2 * here + after
        offset += float(0.5 * (before - after) / bend / GRID_HZ) if bend < 0 else 0.0
    near = np.abs(lags) <= IN_SYNC_S + 0.5 / GRID_HZ
    others = curve[np.abs(lags) > IN_SYNC_S + PEAK_HALF_WIDTH_S]
    at_zero = (curve[near].max() - others.mean()) / max(float(others.std()), 1e-9)
    chance = np.exp((curve - curve[top]) / spread / SOFTNESS)
    std = float(np.sqrt((chance * (lags - offset) ** 2).sum() / chance.sum()))
    return Peak(offset, float((curve[top] - rest.mean()) / spread), float(at_zero), max(std, LEAST_STD_S))


def find_drift(curves: Array, centres_s: Array, lags: Array, offset_s: float) -> tuple[float, float]:
    """Drift in seconds per second and its standard deviation: the slope along which the windows' curves add up best.

    `curves` [windows, lags] belong to windows around `centres_s`. Slopes of -15 to +15 ms/s are tried about the middle of
    the clip; real clocks drift by less than 10. The spread comes from the same softness as that of an offset.
    """
    middle = centres_s.mean()
    slopes = np.arange(-30, 31) / 2000
    near = np.abs(lags - offset_s) <= 0.15
    rest = curves.mean(0)[np.abs(lags - offset_s) > PEAK_HALF_WIDTH_S]
    heights = []
    for slope in slopes:
        moved = [
            np.interp(lags + slope * (centre - middle), lags, curve)
            for curve, centre in zip(curves, centres_s, strict=True)
        ]
        heights.append(np.mean(moved, axis=0)[near].max())
    chance = np.exp((np.array(heights) - max(heights)) / max(float(rest.std()), 1e-9) / SOFTNESS)
    chance /= chance.sum()
    mean = float((chance * slopes).sum())
    return mean, float(np.sqrt((chance * (slopes - mean) ** 2).sum()))
