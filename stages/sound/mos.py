"""How good speech sounds, as people would rate it: DNSMOS P.835, whose network lies in the wheel of `speechmos`.

Reddy, Gopal, Cutler, ICASSP 2022. Nothing of that package is imported. Scores of noise, music and silence mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

F32 = NDArray[np.float32]
WINDOW = int(9.01 * SPEECH_RATE_HZ)
"""Samples that the network takes."""
STEP = 9 * SPEECH_RATE_HZ
CURVES = (
    Polynomial([0.0052439, 1.22083953, -0.08397278]),
    Polynomial([-0.39604546, 1.60915514, -0.13166888]),
    Polynomial([0.04602535, 1.11546468, -0.06766283]),
)
"""What the network says -> rating, of speech, background and all: the authors' own fit."""


class Rating(NamedTuple):
    """Opinions from 1 (bad) to 5 (excellent)."""

    speech: float
    background: float
    overall: float


@dataclass(frozen=True)
class SpeechRater:
    """About 0.3 CPU s for each 9 s."""

    session: Any

    @classmethod
    def load(cls) -> SpeechRater:
        """The network, ready. Raises RecipeError where its weights are missing or others."""
        return cls(one_thread_session(packaged("dnsmos")))

    def rate(self, samples: F32) -> Rating | None:
        """The mean over windows of 9 s of mono `samples` at 16 kHz, the last reaching to their end; shorter ones are repeated.

        None for no samples.
        """
        if not len(samples):
            return None
        if len(samples) < WINDOW:
            samples = np.tile(samples, -(-WINDOW // len(samples)))[:WINDOW]
        starts = sorted({*range(0, len(samples) - WINDOW + 1, STEP), len(samples) - WINDOW})
        windows = np.stack([samples[start : start + WINDOW] for start in starts]).clip(-1, 1)
        told = np.concatenate([self.session.run(None, {"input_1": window[None]})[0] for window in windows]).mean(0)
        return Rating(*(float(curve(value)) for curve, value in zip(CURVES, told, strict=True)))
