"""What is heard, on the grid that mouths are seen on: its spectrum, and which speech sounds it holds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.phones import PHONES, PHONES_HZ, PhoneRecogniser
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, Signal, without_trend

Array = NDArray[Any]

NUM_BANDS = 26
SOUND_WINDOW = 400
"""Samples per spectrum: 25 ms, as is usual for speech."""
DYNAMIC_RANGE = 5.0
"""Natural-log power below each band's 95th percentile at which sound counts as silence, so that room noise is flat."""

PHONE_SPREAD_S = 0.05
"""Half width of the Hann window over phones: the recogniser tells each in one row or two, a mouth takes 0.1 s for it."""
PHONE_SCALE = 5.0
"""Makes phones vary four times as much as bands, so that the fit's penalties, chosen on bands, hardly hold them."""


def sound_features(sound: Waveform, start_s: float, end_s: float) -> Signal:
    """Log mel spectrum [n, 26] of 16 kHz sound between two instants, level and slow changes taken out.

    Where the file has no sound the weight is 0: nothing known is not silence.
    """
    first, last = _rows(start_s, end_s)
    half = Fraction(SOUND_WINDOW // 2, SPEECH_RATE_HZ)
    begin, end = Fraction(first, GRID_HZ) - half, Fraction(last - 1, GRID_HZ) + half
    mel = log_mel(sound.cut(begin, end), last - first)
    known = _known(sound, first, last)
    level = mel[known] if known.any() else mel
    top = np.percentile(level, 95, axis=0)
    mel = np.maximum(mel, top - DYNAMIC_RANGE)
    return Signal(first, without_trend(mel), known.astype(np.float64))


def phone_features(sound: Waveform, start_s: float, end_s: float, phones: PhoneRecogniser) -> Signal:
    """Log posteriors [n, 42] of phones in 16 kHz sound between two instants, slow changes taken out.

    Weights are those of `sound_features`.
    """
    from scipy.ndimage import convolve1d

    first, last = _rows(start_s, end_s)
    begin, end = max(Fraction(first, GRID_HZ), sound.start), min(Fraction(last, GRID_HZ), sound.end)
    found = phones.log_posteriors(sound.cut(begin, end)) if end > begin else np.zeros((0, len(PHONES)))
    if not len(found):
        return Signal(first, np.zeros((last - first, len(PHONES))), np.zeros(last - first))
    times = float(begin) + np.arange(len(found)) / PHONES_HZ
    grid = np.arange(first, last) / GRID_HZ
    values = PHONE_SCALE * np.stack([np.interp(grid, times, column) for column in found.T], axis=1)
    window = np.hanning(2 * round(PHONE_SPREAD_S * GRID_HZ) + 1)
    values = convolve1d(values, window / window.sum(), axis=0, mode="nearest")
    return Signal(first, without_trend(values), _known(sound, first, last).astype(np.float64))


def _rows(start_s: float, end_s: float) -> tuple[int, int]:
    """First row of the grid in a stretch, and the one behind its last."""
    return int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))


def _known(sound: Waveform, first: int, last: int) -> Array:
    """bool [last - first]: where the file has sound."""
    grid = np.arange(first, last) / GRID_HZ
    return np.asarray((grid >= float(sound.start)) & (grid < float(sound.end)))


def log_mel(samples: Array, num_rows: int) -> Array:
    """float64 [num_rows, 26]: natural log of mel band power, one row per 10 ms, 60 to 7600 Hz, pre-emphasis 0.97."""
    hop = SPEECH_RATE_HZ // GRID_HZ
    samples = np.pad(samples.astype(np.float64), (0, max(0, (num_rows - 1) * hop + SOUND_WINDOW - len(samples))))
    samples = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(samples, SOUND_WINDOW)[::hop][:num_rows]
    power = np.abs(np.fft.rfft(frames * np.hanning(SOUND_WINDOW), 512)) ** 2
    return np.asarray(np.log(power @ _mel_bands().T + 1e-8))


def _mel_bands() -> Array:
    """Triangular filters [26, 257]."""
    low, high = 1127 * np.log(1 + 60 / 700), 1127 * np.log(1 + 7600 / 700)
    edges = 700 * (np.exp(np.linspace(low, high, NUM_BANDS + 2) / 1127) - 1)
    hz = np.arange(257) * SPEECH_RATE_HZ / 512
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
