"""Who it sounds like: a 256-number embedding of a voice.

The network is Resemblyzer's (Apache-2.0), a GE2E speaker encoder whose weights lie in the package. Its own mel front end
goes through librosa; the same mels are made here with one matrix product, which starts at once and needs no compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
EMBEDDING_SIZE = 256
_WINDOW = 400
_HOP = 160
_NUM_MELS = 40
_PARTIAL = 160
"""Frames per partial, 1.6 s: what the network was trained on (resemblyzer/hparams.py)."""

_PARTIAL_STEP = 40
"""Frames between partials, 0.4 s."""

TARGET_DBFS = -30.0
"""Loudness the network expects (resemblyzer/hparams.py, audio_norm_target_dBFS)."""

MIN_SPEECH_S = 0.4
"""Less speech than this gives no embedding: below it two halves of one utterance agree no better than two people."""


@dataclass
class SpeakerEncoder:
    """Resemblyzer on one thread: about 100 times real time on one core, 17 MB of weights from the wheel."""

    network: Any
    filters: NDArray[np.float32]

    @classmethod
    def load(cls) -> SpeakerEncoder:
        """The network, ready."""
        from librosa.filters import mel
        from resemblyzer import VoiceEncoder

        network = VoiceEncoder("cpu", verbose=False).eval()
        filters = mel(sr=RATE_HZ, n_fft=_WINDOW, n_mels=_NUM_MELS)
        return cls(network, filters.astype(np.float32))

    def embed(self, samples: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Unit-length embedding [256] of mono speech at 16 kHz, or None with less than `MIN_SPEECH_S` of sound."""
        return self.embed_all([samples])[0]

    def embed_all(self, pieces: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32] | None]:
        """One embedding per piece, all partials of all pieces in batches."""
        import torch

        partials: list[NDArray[np.float32]] = []
        owner: list[int] = []
        for index, piece in enumerate(pieces):
            if len(piece) < MIN_SPEECH_S * RATE_HZ or not np.any(piece):
                continue
            for partial in self._partials(piece):
                partials.append(partial)
                owner.append(index)
        found: list[NDArray[np.float32] | None] = [None] * len(pieces)
        if not partials:
            return found
        with torch.inference_mode():
            batches = [
                self.network(torch.from_numpy(np.stack(partials[first : first + 64]))).numpy()
                for first in range(0, len(partials), 64)
            ]
        vectors = np.concatenate(batches)
        owners = np.array(owner)
        for index in sorted(set(owner)):
            found[index] = unit(vectors[owners == index].mean(axis=0))
        return found

    def _partials(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Mel power [160, 40] of each 1.6 s of `samples`; shorter sound is repeated to fill one."""
        wanted = _PARTIAL * _HOP
        if len(samples) < wanted:
            samples = np.tile(samples, -(-wanted // len(samples)))[:wanted]
        gain = 10.0 ** (TARGET_DBFS / 20.0) / (float(np.sqrt(np.mean(np.square(samples)))) + 1e-9)
        padded = np.pad(samples * np.float32(min(gain, 1e3)), _WINDOW // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
        spectrum = np.abs(np.fft.rfft(frames * _hann(), axis=1)) ** 2
        mels = (spectrum.astype(np.float32) @ self.filters.T)[: len(samples) // _HOP]
        last = len(mels) - _PARTIAL
        starts = sorted({*range(0, last + 1, _PARTIAL_STEP), last})
        return [mels[start : start + _PARTIAL] for start in starts]


def _hann() -> NDArray[np.float32]:
    return np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """`vector` scaled to unit length."""
    return np.asarray(vector / (np.linalg.norm(vector) + 1e-9), np.float32)


def similarity(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Cosine of two unit-length embeddings."""
    return float(np.dot(one, other))
