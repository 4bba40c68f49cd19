"""DNSMOS P.808: one opinion of speech as people give it by ITU-T P.808 (Reddy, Gopal, Cutler, ICASSP 2021).

The network is model_v8.onnx of the DNS challenge, and its front end a mel spectrogram in decibels under the loudest place:
how loud the sound is counts for nothing. Its lines are here, held to transformers' by a test, for a worker would wait two
seconds for librosa, which the original takes it from, to be imported.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ

F32 = NDArray[np.float32]
WINDOW = int(9.01 * SPEECH_RATE_HZ)
"""Samples that are rated at a time."""
BANDS, FFT_SIZE, HOP = 120, 321, 160
DYNAMICS_DB = 80.0
"""What is further below the loudest place counts as this far below."""
LINEAR_HZ, HZ_PER_MEL, LOG_STEP = 1000.0, 200 / 3, np.log(6.4) / 27
"""The mel scale of Slaney's Auditory Toolbox: even up to 1 kHz, above it 27 steps to 6.4 kHz."""


def opinion_of_window(samples: F32, session: Any) -> float:
    """1 bad to 5 excellent, of `WINDOW` samples at 16 kHz, by an `onnxruntime.InferenceSession` of the network."""
    return float(session.run(None, {"input_1": spectrogram(samples[:-HOP])[None]})[0][0, 0])


def spectrogram(samples: F32) -> F32:
    """[frames, `BANDS`] of mono `samples` [n] at 16 kHz, one frame every `HOP` around it: 1 at the loudest place, -1 80 dB under.

    ValueError for no samples.
    """
    padded = np.pad(samples, FFT_SIZE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2 @ _mel_filters().T
    level_db = 10 * np.log10(np.maximum(power, 1e-10))
    return np.asarray((np.maximum(level_db - level_db.max(), -DYNAMICS_DB) + 40) / 40, np.float32)


@cache
def _mel_filters() -> NDArray[np.float64]:
    """[`BANDS`, bins] triangles over frequencies of equal area, evenly spaced in mel from 0 to half the rate."""
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / SPEECH_RATE_HZ)
    top_mel = LINEAR_HZ / HZ_PER_MEL + np.log(SPEECH_RATE_HZ / 2 / LINEAR_HZ) / LOG_STEP
    mels = np.linspace(0, top_mel, BANDS + 2)
    above = np.maximum(mels - LINEAR_HZ / HZ_PER_MEL, 0)
    corners = np.where(above > 0, LINEAR_HZ * np.exp(LOG_STEP * above), mels * HZ_PER_MEL)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left))
