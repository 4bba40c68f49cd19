"""Offset of clips without speech: where the picture moves against where the sound sets in.

A bark, a blow or a strum starts a sound at the moment something changes its motion. The change of motion in each part
of the picture is correlated with the onsets of the sound over all offsets. This is weak evidence: music does not move
much, cameras do, and what is seen need not be what is heard. The confidence says so; treat it as a hint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.media import Waveform
from stages.sync_mouth import (
    GRID_HZ,
    Signal,
    correlate,
    log_mel,
    without_trend,
)

Array = NDArray[Any]

SMOOTHING_S = 0.04
"""Width of the Hann window over onsets: one frame, the picture's own uncertainty."""
LOUD_RANGE = 6.0
"""Natural-log power below the clip's loudest band level at which sound is treated as silence."""


def onset_curve(change: Array, times_s: Array, end_s: float, sound: Waveform, max_offset_s: float) -> Array:
    """float64 [lags]: agreement of picture change [n, rows, columns] (grey levels per frame) with sound onsets.

    Parts of the picture count by how much their motion varies, so a still background says nothing.
    """
    start_s = float(times_s[0])
    moved = motion(change, times_s, start_s, end_s)
    margin = max_offset_s + 1.0
    heard = onsets(sound, start_s - margin, end_s + margin)
    num_parts = moved.values.shape[1] // 2
    spread = moved.values.std(0)
    weights = np.concatenate([spread[:num_parts] / max(spread[:num_parts].sum(), 1e-9)] * 2) / 2
    both = np.repeat(heard.values, num_parts, axis=1)
    return correlate(Signal(heard.first, both, heard.weights), moved, weights, max_offset_s)


def motion(change: Array, times_s: Array, start_s: float, end_s: float) -> Signal:
    """[n, 2 x parts]: how much each part moves, and how suddenly that changes, on the grid."""
    step = np.diff(times_s, prepend=times_s[0] - np.median(np.diff(times_s)) if len(times_s) > 1 else -1.0)
    speed = np.log1p(change.reshape(len(change), -1) / np.maximum(step, 1e-3)[:, None] / 25.0)
    speed[0] = speed[min(1, len(speed) - 1)]
    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    grid = np.arange(first, last) / GRID_HZ
    middle = times_s - step / 2  # a difference belongs between its two frames
    speed = np.stack([np.interp(grid, middle, part) for part in speed.T], axis=1)
    jerk = _smooth(np.abs(np.gradient(speed, axis=0)))
    values = np.concatenate([speed, jerk], axis=1)
    return Signal(first, without_trend(values), np.ones(len(grid)))


def onsets(sound: Waveform, start_s: float, end_s: float) -> Signal:
    """[n, 2]: loudness, and summed rise over all mel bands, on the grid."""
    from fractions import Fraction

    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    samples = sound.cut(Fraction(first, GRID_HZ) - Fraction(1, 80), Fraction(last, GRID_HZ) + Fraction(1, 80))
    mel = log_mel(samples, last - first)
    mel = np.maximum(mel, mel.max() - LOUD_RANGE - 4.0)
    rise = np.maximum(mel - np.roll(mel, 2, axis=0), 0).mean(1)
    rise[:2] = 0
    grid = np.arange(first, last) / GRID_HZ
    known = (grid >= float(sound.start)) & (grid < float(sound.end))
    values = np.stack([mel.mean(1), _smooth(rise[:, None])[:, 0]], axis=1)
    return Signal(first, without_trend(values), known.astype(np.float64))


def _smooth(values: Array) -> Array:
    from scipy.ndimage import convolve1d

    window = np.hanning(round(2 * SMOOTHING_S * GRID_HZ) + 1)
    return np.asarray(convolve1d(values, window / window.sum(), axis=0, mode="nearest"))
