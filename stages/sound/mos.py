"""How good speech sounds, as people would rate it: three networks that lie in the wheel of `speechmos`.

DNSMOS P.835 (Reddy, Gopal, Cutler, ICASSP 2022) has an opinion of the speech, of what is behind it and of both; DNSMOS P.808
(the same authors, ICASSP 2021) one of the whole; PLCMOS v2 (Diener et al., Interspeech 2023) says how well lost packets are
concealed. Nothing of that package is imported. Scores of noise, music and silence mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from schemas.networks.p808 import WINDOW, opinion_of_window
from schemas.spans import SPEECH_RATE_HZ
from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

F32 = NDArray[np.float32]
STEP = 9 * SPEECH_RATE_HZ
LEAST_S = 0.5
"""Shorter sounds are not rated: PLCMOS has no frame left of a tenth of a second."""
CURVES = (
    Polynomial([0.0052439, 1.22083953, -0.08397278]),
    Polynomial([-0.39604546, 1.60915514, -0.13166888]),
    Polynomial([0.04602535, 1.11546468, -0.06766283]),
)
"""What the network of P.835 says -> rating, of speech, background and all: the authors' own fit."""
PLC_FFT, PLC_HOP = 512, 256
"""Samples of a spectrum of PLCMOS, and from one to the next."""
PLC_FLOOR = -12 * np.log(10)
"""Natural logarithm of the power that stands for none, over the least in the sound: 120 dB."""
PLC_SILENCE = -8 * np.log(10)
"""The same where there is none at all."""
NUM_TASTES = 64
"""Numbers that make a rater of PLCMOS, drawn from a normal distribution. The authors' own code draws 15 raters anew for each
sound; here they are one and its opposite, always the same, so that the same sound has the same rating. Over draws such a pair
was seen to differ by 0.03 to 0.07 (standard deviation), as a part of 0.04 to 0.09 of one rater."""


class Rating(NamedTuple):
    """Opinions from 1 (bad) to 5 (excellent)."""

    speech: float
    background: float
    overall: float
    """These three by P.835."""
    p808: float
    plc: float

    @property
    def mean(self) -> float:
        """The mean of the two networks that rate the whole. P.835 does not mind missing treble, P.808 hardly minds lost pieces.

        Of the ratings, their least ones and their means it alone fell with every step of every ladder of
        `benchmarks.quality_sound_ladders` for each of the voices it was chosen on; nothing in it is fitted.
        """
        return (self.overall + self.p808) / 2


@dataclass(frozen=True)
class SpeechRater:
    """About 0.45 CPU s for each 9 s: 0.3 of P.835, 0.05 of P.808, 0.07 of PLCMOS."""

    p835: Any
    p808: Any
    plc: Any

    @classmethod
    def load(cls) -> SpeechRater:
        """The networks, ready. Raises RecipeError where their weights are missing or others."""
        weights = packaged("dnsmos"), packaged("dnsmos_p808"), packaged("plcmos")
        return cls(*(one_thread_session(path) for path in weights))

    def rate(self, samples: F32) -> Rating | None:
        """The mean over windows of 9 s of mono `samples` at 16 kHz, the last reaching to their end.

        DNSMOS hears shorter sounds again and again, PLCMOS as they are, for a seam is what it listens for.
        None for less than `LEAST_S`.
        """
        if len(samples) < LEAST_S * SPEECH_RATE_HZ:
            return None
        samples = samples.clip(-1, 1)
        windows = windows_of(np.resize(samples, max(WINDOW, len(samples))))
        told = np.concatenate([self.p835.run(None, {"input_1": window[None]})[0] for window in windows]).mean(0)
        speech, background, overall = (float(curve(value)) for curve, value in zip(CURVES, told, strict=True))
        return Rating(
            speech,
            background,
            overall,
            p808=float(np.mean([opinion_of_window(window, self.p808) for window in windows])),
            plc=float(np.mean([self.concealment(window) for window in windows_of(samples)])),
        )

    def concealment(self, samples: F32) -> float:
        """What PLCMOS says of mono `samples` at 16 kHz, at least `LEAST_S` of them, as one window."""
        taste = np.random.default_rng(0).normal(size=(1, NUM_TASTES)).astype(np.float32)
        spectrum = plc_spectrum(samples)[None, None]
        told = [self.plc.run(None, {"degraded_audio": spectrum, "rater_embed": sign * taste})[0] for sign in (1, -1)]
        return float(np.mean(told))


def windows_of(samples: F32) -> Sequence[F32]:
    """Pieces of `WINDOW` samples, the last reaching to the end; one that is shorter of shorter samples."""
    last = max(0, len(samples) - WINDOW)
    return [samples[start : start + WINDOW] for start in sorted({*range(0, last + 1, STEP), last})]


def plc_spectrum(samples: F32) -> F32:
    """[frames, 257] of mono `samples` [n] at 16 kHz as PLCMOS takes them: a twentieth of the logarithm of the power."""
    num_frames = -(-(len(samples) + PLC_HOP) // PLC_HOP)
    padded = np.zeros((num_frames + 1) * PLC_HOP)
    padded[PLC_HOP : PLC_HOP + len(samples)] = samples
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(PLC_FFT) / PLC_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, PLC_FFT)[::PLC_HOP]
    power = np.abs(np.fft.rfft(frames * hamming, axis=1)) ** 2
    is_sound = power > 0
    silence = np.log(power[is_sound].min()) + PLC_FLOOR if is_sound.any() else PLC_SILENCE
    return np.asarray(np.where(is_sound, np.log(np.where(is_sound, power, 1)), silence) / 20, np.float32)
