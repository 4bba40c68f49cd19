"""DOVER: how good a film is technically and how it pleases, by two networks (Wu et al. 2023, arXiv 2211.04894).

The technical one is a Swin transformer on three stretches of 32 frames, of which it sees 7 by 7 fragments as they are; the
aesthetic one a ConvNeXt with time on 32 frames of the whole film, scaled down. As functions of the tensors of DOVER.pth. The
authors place stretches, frames and fragments at random, here they lie in the same places in every run. Pictures too small for
the fragments are enlarged first; the authors then still cut as if they were small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import tanh
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import read_chosen
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, guarded
from model.evaluate.pictures.swin_video import FRAGMENTS, SwinVideo
from model.evaluate.records import EvalCase, Protocol
from schemas.errors import MediaError
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

NUM_STRETCHES, FRAMES, EVERY = 3, 32, 2
"""Stretches of the technical network; frames of one, and of the aesthetic network; frames from one to the next (dover.yml)."""
FRAGMENT_PX = 32
SIDE_PX = FRAGMENTS * FRAGMENT_PX
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCALES: Mapping[str, tuple[float, float, float]] = {
    "technical": (0.1107, 0.07355, 0.6104),
    "aesthetic": (-0.08285, 0.03774, 0.3896),
}
"""Network -> (mean, deviation, share in the whole), of the authors' evaluate_a_set_of_videos.py."""


class Dover:
    """Opinions of films, computed on `device`."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.weights = TensorFile(path, device=device)
        self._swin = SwinVideo(self.weights, "technical_backbone.")

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metrics, which are as long as the command
    def of_file(self, path: Path) -> Mapping[str, float]:
        """0 to 1 each: technical, aesthetic, and both as "overall". Raises MediaError."""
        import torch

        random = np.random.default_rng(0)
        frames = read_chosen(path, lambda num_frames, _: chosen_frames(num_frames, random))
        stretches, whole = frames[: NUM_STRETCHES * FRAMES], frames[NUM_STRETCHES * FRAMES :]
        with torch.inference_mode():
            technical = [
                self.technical(pieced(stretches[at : at + FRAMES], random)) for at in range(0, len(stretches), FRAMES)
            ]
            raw = {"technical": float(np.mean(technical)), "aesthetic": self.aesthetic(scaled(whole))}
        return opinions(raw)

    def technical(self, film: Tensor) -> float:
        """What is thought of a film [3, t, 224, 224], normalised, that is pieced together of fragments."""
        return self._judged(self._swin.features(film[None].to(self.weights.device)), "technical_head")

    def aesthetic(self, film: Tensor) -> float:
        """What is thought of a whole film [3, t, 224, 224], normalised."""
        return self._judged(self._convnext(film[None].to(self.weights.device)), "aesthetic_head")

    def _judged(self, features: Tensor, name: str) -> float:
        """The mean over all places of features [1, t, h, w, c] of what two layers say of each."""
        from torch.nn.functional import gelu, linear

        hidden, last = (self.weights[f"{name}.{layer}.weight"].flatten(1) for layer in ("fc_hid", "fc_last"))
        told = gelu(linear(features, hidden, self.weights[f"{name}.fc_hid.bias"]))
        return float(linear(told, last, self.weights[f"{name}.fc_last.bias"]).mean())

    def _convnext(self, film: Tensor) -> Tensor:
        """[1, 3, t, h, w] -> [1, t / 2, h / 32, w / 32, c] by ConvNeXt with kernels in time (conv_backbone.py)."""
        prefix = "aesthetic_backbone"
        for stage in range(self.weights.num_blocks(f"{prefix}.stages.")):
            scale = f"{prefix}.downsample_layers.{stage}"
            film = self._scaled(film, f"{scale}.0") if stage == 0 else self._normed(film, f"{scale}.0")
            film = self._normed(film, f"{scale}.1") if stage == 0 else self._scaled(film, f"{scale}.1")
            for number in range(self.weights.num_blocks(f"{prefix}.stages.{stage}.")):
                film = film + self._mixed(film, f"{prefix}.stages.{stage}.{number}")
        return self.weights.layer_norm(film.permute(0, 2, 3, 4, 1), f"{prefix}.norm")

    def _scaled(self, film: Tensor, name: str) -> Tensor:
        """[1, c, t, h, w] through a convolution of patches that do not overlap."""
        from torch.nn.functional import conv3d

        kernel = self.weights[f"{name}.weight"]
        return conv3d(film, kernel, self.weights[f"{name}.bias"], stride=kernel.shape[2:])

    def _normed(self, film: Tensor, name: str) -> Tensor:
        return self.weights.layer_norm(film.permute(0, 2, 3, 4, 1), name).permute(0, 4, 1, 2, 3)

    def _mixed(self, film: Tensor, name: str) -> Tensor:
        """What a block adds: each channel by its surroundings, then two layers over channels."""
        from torch.nn.functional import conv3d, gelu

        kernel = self.weights[f"{name}.dwconv.weight"]
        around = [side // 2 for side in kernel.shape[2:]]
        found = conv3d(film, kernel, self.weights[f"{name}.dwconv.bias"], padding=around, groups=len(kernel))
        told = self.weights.layer_norm(found.permute(0, 2, 3, 4, 1), f"{name}.norm")
        told = self.weights.linear(gelu(self.weights.linear(told, f"{name}.pwconv1")), f"{name}.pwconv2")
        return (told * self.weights[f"{name}.gamma"]).permute(0, 4, 1, 2, 3)


def opinions(raw: Mapping[str, float]) -> Mapping[str, float]:
    """What the networks say, each as a share of the films that its authors know, and both together."""
    held = {name: (raw[name] - mean) / deviation for name, (mean, deviation, _) in SCALES.items()}
    held["overall"] = sum(held[name] * share for name, (*_, share) in SCALES.items())
    return {name: 0.5 + 0.5 * tanh(each / 2) for name, each in held.items()}


def chosen_frames(num_frames: int, random: np.random.Generator) -> list[int]:
    """First those of three stretches, one in each third of a film, then one of each 32nd; a short film starts over.

    Raises MediaError for less than two frames.
    """
    if num_frames < 2:
        raise MediaError(f"{num_frames} frames are no film.", reason="too_short")
    found: list[int] = []
    for count, length in ((NUM_STRETCHES, FRAMES), (FRAMES, 1)):
        part = num_frames // count
        room = part - length * EVERY
        starts = random.integers(0, room, count) if room > 0 else np.zeros(count, np.int64)
        found += [
            (part * at + int(starts[at]) + EVERY * step) % num_frames for at in range(count) for step in range(length)
        ]
    return found


def pieced(frames: Sequence[NDArray[np.uint8]], random: np.random.Generator) -> Tensor:
    """RGB [h, w, 3] -> [3, t, 224, 224], normalised: 7 by 7 fragments of 32 px, in each frame from the same places."""
    import torch

    film = _film(frames)
    if (scale := SIDE_PX / min(film.shape[2:])) > 1:
        film = _interpolated(film, [max(SIDE_PX, round(side * scale)) for side in film.shape[2:]]).floor()
    corners = []
    for at, side in enumerate(film.shape[2:]):
        part = side // FRAGMENTS
        moved = random.integers(0, part - FRAGMENT_PX, (FRAGMENTS, FRAGMENTS)) if part > FRAGMENT_PX else 0
        corners.append(np.indices((FRAGMENTS, FRAGMENTS))[at] * part + moved)
    rows = [
        torch.cat(
            [film[:, :, top : top + FRAGMENT_PX, left : left + FRAGMENT_PX] for top, left in zip(*of_row, strict=True)],
            3,
        )
        for of_row in zip(*(each.tolist() for each in corners), strict=True)
    ]
    return _normalised(torch.cat(rows, 2))


def scaled(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """RGB [h, w, 3] -> [3, t, 224, 224], normalised: whole pictures, without smoothing, as torchvision scaled before 0.17."""
    return _normalised(_interpolated(_film(frames), [SIDE_PX, SIDE_PX]).round())


def _film(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """[3, t, h, w] of 0 to 255."""
    import torch

    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float()


def _interpolated(film: Tensor, size: list[int]) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(film, size, mode="bilinear")


def _normalised(film: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(each)[:, None, None, None] for each in (PIXEL_MEAN, PIXEL_STD))
    return (film - mean) / std


def dover_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """Opinions of a film by the networks in a file, on a CUDA device where there is one; under `own` alone."""
    import torch

    if protocol != "own":
        return ()
    network = Dover(path, "cuda" if torch.cuda.is_available() else "cpu")
    about = {"technical": "how good it is technically", "aesthetic": "how it pleases", "overall": "both together"}

    def one_of(name: str, _: EvalCase, sample: Path) -> float:
        return network.of_file(sample)[name]

    return tuple(
        Metric(
            name=f"dover_{name}", doc=f"{how}, 0 to 1", better="higher", read=guarded(partial(one_of, name)),
            model=f"DOVER in {path.name}", sha256=network.weights.sha256, decoder=DECODER,
            crop=f"{NUM_STRETCHES} stretches of {FRAMES} frames in fragments, {FRAMES} frames whole, the same in every run",
        )
        for name, how in about.items()
    )  # fmt: skip
