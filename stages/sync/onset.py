"""Offset of clips without speech: where the picture moves against where the sound sets in.

A bark, a blow or a strum starts a sound at the moment something changes its motion. The motion of the picture is
correlated with the onsets of the sound over all offsets. This is weak evidence: music does not move much, cameras do,
and what is seen need not be what is heard. The confidence says so; treat it as a hint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, Signal, correlate, without_trend
from stages.sync.heard import SOUND_WINDOW, log_mel

Array = NDArray[Any]

SMOOTHING_S = 0.04
"""Width of the Hann window over onsets: one frame, the picture's own uncertainty."""
LOUD_RANGE = 10.0
"""Natural-log power below the clip's loudest band level at which sound is treated as silence."""


def onset_curve(change: Array, times_s: Array, end_s: float, sound: Waveform, max_offset_s: float) -> Array:
    """float64 [lags]: mean correlation of motion and its suddenness with loudness and onsets of the sound.

    `change` [n] are grey levels per frame over the whole picture: parts of it apart were tried and mislead more often.
    """
    start_s = float(times_s[0])
    moved = motion(change, times_s, start_s, end_s)
    margin = max_offset_s + 1.0
    heard = onsets(sound, start_s - margin, end_s + margin)
    seen = Signal(moved.first, moved.values[:, (0, 0, 1, 1)], moved.weights)
    return correlate(
        Signal(heard.first, heard.values[:, (0, 1, 0, 1)], heard.weights), seen, np.full(4, 0.25), max_offset_s
    )


def motion(change: Array, times_s: Array, start_s: float, end_s: float) -> Signal:
    """[n, 2]: how much the picture moves, and how suddenly that changes, on the grid."""
    step = np.diff(times_s, prepend=2 * times_s[0] - times_s[1])
    speed = np.log1p(change / np.maximum(step, 1e-3) / 25.0)
    speed[0] = speed[1]
    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    middle = times_s - step / 2  # a difference belongs between its two frames
    speed = np.interp(np.arange(first, last) / GRID_HZ, middle, speed)[:, None]
    values = np.concatenate([speed, smooth(np.abs(np.gradient(speed, axis=0)))], axis=1)
    return Signal(first, without_trend(values), np.ones(last - first))


def onsets(sound: Waveform, start_s: float, end_s: float) -> Signal:
    """[n, 2]: loudness, and summed rise over all mel bands, on the grid."""
    from fractions import Fraction

    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    half = Fraction(SOUND_WINDOW // 2, SPEECH_RATE_HZ)
    samples = sound.cut(Fraction(first, GRID_HZ) - half, Fraction(last, GRID_HZ) + half)
    mel = log_mel(samples, last - first)
    mel = np.maximum(mel, mel.max() - LOUD_RANGE)
    rise = np.maximum(mel - np.roll(mel, 2, axis=0), 0).mean(1)
    rise[:2] = 0
    grid = np.arange(first, last) / GRID_HZ
    known = (grid >= float(sound.start)) & (grid < float(sound.end))
    values = np.stack([mel.mean(1), smooth(rise[:, None])[:, 0]], axis=1)
    return Signal(first, without_trend(values), known.astype(np.float64))


def smooth(values: Array) -> Array:
    """[n, k] under a Hann window of `SMOOTHING_S` to either side."""
    from scipy.ndimage import convolve1d

    window = np.hanning(round(2 * SMOOTHING_S * GRID_HZ) + 1)
    return np.asarray(convolve1d(values, window / window.sum(), axis=0, mode="nearest"))
