"""Which speech sounds are heard when: a small recogniser of phones, not of words.

The network (Conformer with CTC, 1.2 million weights, Apache-2.0) lies in the wheel of `hama`. It was made for English and
Korean; what it takes other languages' sounds for is no text, but lips that close are told from lips that do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

F32 = NDArray[np.float32]

PHONES = (
    *("p", "b", "m", "f", "v", "w", "u", "ʊ", "o", "oʊ", "ɔ", "a", "ɑ", "aɪ", "aʊ", "æ", "ʌ", "e", "eɪ", "ɛ", "ə", "ɝ"),
    *("i", "ɪ", "j", "ɹ", "l", "t", "d", "n", "s", "z", "θ", "ð", "ʃ", "t͡ʃ", "d͡ʒ", "k", "g", "ŋ", "h", "between words"),
)
"""What is looked at, in IPA. The network's other tokens are hardly ever heard, but for the blank of CTC."""
_PLACES = (
    *(35, 10, 31, 17, 49, 50, 48, 123, 33, 34, 83, 7, 80, 8, 9, 66, 125, 14, 16, 91, 89, 93),
    *(20, 101, 21, 113, 30, 41, 12, 32, 39, 57, 173, 69, 120, 47, 13, 27, 18, 75, 19, 189),
)
"""Where they stand among its 191 (`assets/g2p_vocab.json` beside it, then the end of a word, then the blank)."""
PHONES_HZ = 50
"""Rows per second; row i belongs to the instant i / 50 s."""
LEAST_LOG = -12.0
"""Posteriors below e^-12 say no more than that."""
PIECE_S, CONTEXT_S = 20, 1
"""Longer sound is heard in pieces with as much around each: the network looks at all of a piece from everywhere in it."""

_STEP = SPEECH_RATE_HZ // PHONES_HZ
_LEAST_SAMPLES = 1600
"""The network mirrors the edges of its sound and needs some to mirror."""


class PhoneRecogniser:
    """5 MB of weights; 0.004 s of one core per second of sound. Raises RecipeError where weights are missing or others."""

    def __init__(self) -> None:
        self._session = one_thread_session(packaged("phones"))

    def log_posteriors(self, samples: NDArray[Any]) -> F32:
        """[n, 42] natural logarithms for mono sound at 16 kHz, n = samples / 320 rounded up; none for no samples."""
        count = -(-len(samples) // _STEP)
        found = np.full((count, len(PHONES)), LEAST_LOG, np.float32)
        for first in range(0, count, PIECE_S * PHONES_HZ):
            low = max(first - CONTEXT_S * PHONES_HZ, 0)
            end = min(first + PIECE_S * PHONES_HZ, count)
            rows = self._heard(samples[low * _STEP : (end + CONTEXT_S * PHONES_HZ) * _STEP])[first - low : end - low]
            found[first : first + len(rows)] = rows
        return found

    def _heard(self, samples: NDArray[Any]) -> F32:
        wave = np.pad(samples.astype(np.float32), (0, max(0, _LEAST_SAMPLES - len(samples))))[None]
        sizes = np.array([wave.shape[1]], np.int64)
        scores, (num_rows,) = self._session.run(
            ["log_probs", "out_lengths"], {"waveform": wave, "waveform_lengths": sizes}
        )
        return np.asarray(np.maximum(scores[0, :num_rows][:, _PLACES], np.float32(LEAST_LOG)))
