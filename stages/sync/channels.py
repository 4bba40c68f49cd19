"""Signals of mouth and sound on one grid, and their correlation at every offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

GRID_HZ = 100
"""Both signals live on one grid of 10 ms: finer than any frame rate, so that offsets between frames can be seen."""
TREND_S = 1.0
"""Half width of the Hann window whose local mean is taken off: posture and level change slower than speech."""
TAPS = (-10, -5, 0, 5, 10)
"""Neighbouring grid points, in steps of 10 ms, that each channel looks at: +-0.1 s, about one syllable."""
MIN_COMMON_S = 0.6
"""Least stretch that mouth and sound must share at an offset."""


@dataclass(frozen=True)
class Signal:
    """Channels or features on the grid: row i belongs to the instant (first + i) / GRID_HZ on the asset clock."""

    first: int
    values: Array
    """float64 [n, k]."""
    weights: Array
    """float64 [n]: 1 where the signal was observed, 0 where it was not."""

    @property
    def times_s(self) -> Array:
        """float64 [n]: the instant of each row on the asset clock."""
        return (self.first + np.arange(len(self.values))) / GRID_HZ

    def cut(self, start_s: float, end_s: float) -> Signal:
        """The part between two instants."""
        low, high = np.clip(np.ceil(np.array([start_s, end_s]) * GRID_HZ).astype(int) - self.first, 0, len(self.values))
        return Signal(self.first + int(low), self.values[low:high], self.weights[low:high])


def lags_s(max_offset_s: float) -> Array:
    """float64 [2m + 1]: the offsets scanned, in steps of the grid. Positive: sound late."""
    reach = round(max_offset_s * GRID_HZ)
    return np.arange(-reach, reach + 1) / GRID_HZ


def without_trend(values: Array) -> Array:
    """`values` [n, k] minus their mean over a Hann window of `TREND_S` to either side, edges mirrored."""
    from scipy.ndimage import convolve1d

    reach = round(TREND_S * GRID_HZ)
    window = np.hanning(2 * reach + 1)
    return np.asarray(values - convolve1d(values, window / window.sum(), axis=0, mode="reflect"))


def with_neighbours(values: Array) -> Array:
    """[n, k] -> [n, 5 k]: every row beside its neighbours at `TAPS`, edges repeated."""
    reach = max(TAPS)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[reach + tap : reach + tap + len(values)] for tap in TAPS], axis=1)


def project(signal: Signal, maps: Array) -> Signal:
    """The channels [n, K] of a signal's features."""
    return Signal(signal.first, with_neighbours(signal.values) @ maps, signal.weights)


def correlate(sound: Signal, mouth: Signal, weights: Array, max_offset_s: float) -> Array:
    """float64 [lags]: weighted mean correlation of the channels at every offset, 0 where too little is shared.

    Offset d pairs the mouth at t with the sound at t + d. A correlation over fewer points is worth less: each is
    scaled by the root of the share of the mouth signal that had sound to go with it. `weights` [K], or [K, m] for m
    means at once.
    """
    reach = round(max_offset_s * GRID_HZ)
    count = len(mouth.values)
    if not count:
        return np.zeros((2 * reach + 1, *weights.shape[1:]))
    padded = np.zeros((count + 2 * reach, sound.values.shape[1]))
    known = np.zeros((len(padded), 1))
    at = sound.first - (mouth.first - reach)
    low, high = max(at, 0), min(at + len(sound.values), len(padded))
    if high > low:
        padded[low:high] = sound.values[low - at : high - at]
        known[low:high, 0] = sound.weights[low - at : high - at]
    padded *= known
    w, v = mouth.weights[:, None], mouth.values
    total, sum_m, square_m = np.split(_slid(known, np.hstack([w, w * v, w * v**2])), [1, 1 + v.shape[1]], axis=1)
    sum_s, square_s = _slid(padded, w), _slid(padded**2, w)
    share = np.maximum(total, 1e-9)
    power_s, power_m = square_s - sum_s**2 / share, square_m - sum_m**2 / share
    common = _slid(padded, w * v) - sum_s * sum_m / share
    r = common / np.sqrt(np.maximum(power_s, 1e-9) * np.maximum(power_m, 1e-9))
    r *= np.sqrt(np.maximum(total, 0) / max(w.sum(), 1e-9))
    r[total[:, 0] < MIN_COMMON_S * GRID_HZ - 0.5] = 0.0
    return np.asarray(r @ weights)


def _slid(long: Array, short: Array) -> Array:
    """Sums of `short` [n, k or 1] times `long` [n + m, k or 1] at every place [m + 1] where it fits."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(len(long), real=True)
    product = rfft(long, size, axis=0) * rfft(short, size, axis=0).conj()
    return np.asarray(irfft(product, size, axis=0)[: len(long) - len(short) + 1])
