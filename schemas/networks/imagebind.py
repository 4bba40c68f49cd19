"""ImageBind: pictures and sound in one space of vectors (Girdhar et al. 2023, arXiv 2305.05665).

The network as published in imagebind_huge.pth, pictures and sound of it, as functions of its tensors. Its weights are
CC-BY-NC 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError
from schemas.networks.folders import Vector, spectrograms_by_numpy
from schemas.networks.tensors import TensorFile
from schemas.spans import SPEECH_RATE_HZ

if TYPE_CHECKING:
    from torch import Tensor

NUM_HEADS = {"vision": 16, "audio": 12}
SIDE_PX, CLIP_S = 224, 2.0
NUM_VIDEO_CLIPS, NUM_SOUND_CLIPS = 5, 3
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BANDS, ROWS = 128, 204
BAND_MEAN, BAND_STD = -4.268, 9.138
LEAST_SAMPLES = 400
"""25 ms, of which a row of bands is made."""
STRIDE = 10
"""Of the patches of a spectrogram, which are 16 wide and overlap."""


class ImageBind:
    """Pictures and sound in one space of vectors."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        parts = ("preprocessors", "trunks", "heads")
        self.weights = TensorFile(path, [f"modality_{part}.{kind}." for part in parts for kind in NUM_HEADS], device)

    def ready(self) -> None:
        """Reads the weights. Raises ModelError for a file that has none of this network's."""
        for kind in NUM_HEADS:
            _ = self.weights[f"modality_heads.{kind}.2.weight"]

    def of_pictures(self, frames: Sequence[NDArray[np.uint8]], times_s: Vector) -> Vector:
        """The vector of a film: mean over five clips of two frames by three crops of each.

        `frames` are RGB [h, w, 3], with a shorter side of `SIDE_PX` or less, `times_s` [n] when each is shown.
        """
        import torch

        seen = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            clips = [
                _crops(seen[_frames_of(times_s, start_s)]) for start_s in _starts(_length_s(times_s), NUM_VIDEO_CLIPS)
            ]
            return _mean(self.vectors("vision", torch.cat(clips)))

    def of_sound(self, sound: NDArray[np.float32]) -> Vector:
        """The vector of mono sound at 16 kHz: mean over three clips of 2 s. Raises MediaError for less than a row of bands."""
        import torch

        if len(sound) < LEAST_SAMPLES:
            raise MediaError(
                f"{len(sound)} samples of sound are fewer than one row of bands ({LEAST_SAMPLES}).", reason="too_short"
            )
        starts = [round(at * SPEECH_RATE_HZ) for at in _starts(len(sound) / SPEECH_RATE_HZ, NUM_SOUND_CLIPS)]
        cut = [sound[at : at + round(CLIP_S * SPEECH_RATE_HZ)] for at in starts]
        with torch.inference_mode():
            rows = self._front_end(cut, sampling_rate=SPEECH_RATE_HZ, return_tensors="pt").input_values
            return _mean(self.vectors("audio", rows.transpose(1, 2)[:, None]))

    def vectors(self, kind: str, given: Tensor) -> Tensor:
        """Unit vectors [n, d]: of "vision" [n, 3, 2, 224, 224] normalised pictures, of "audio" [n, 1, 128, 204] bands."""
        from torch.nn.functional import normalize

        tokens = self._tokens(kind, given.to(self.weights.device))
        for number in range(self.weights.num_blocks(f"modality_trunks.{kind}.blocks.")):
            block = f"modality_trunks.{kind}.blocks.{number}"
            tokens = tokens + self._attend(self.weights.layer_norm(tokens, f"{block}.norm_1"), f"{block}.attn", kind)
            tokens = tokens + self.weights.mlp(self.weights.layer_norm(tokens, f"{block}.norm_2"), f"{block}.mlp")
        told = self.weights.layer_norm(tokens[:, 0], f"modality_heads.{kind}.0")
        return normalize(self.weights.linear(told, f"modality_heads.{kind}.2"), dim=-1)

    def _tokens(self, kind: str, given: Tensor) -> Tensor:
        """[n, 1 + patches, c]."""
        import torch
        from torch.nn.functional import conv2d, conv3d

        own = f"modality_preprocessors.{kind}"
        if kind == "vision":
            kernel = self.weights[f"{own}.rgbt_stem.proj.1.weight"]
            patches = conv3d(given, kernel, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
        else:
            patches = (
                conv2d(given, self.weights[f"{own}.rgbt_stem.proj.weight"], stride=STRIDE).flatten(2).transpose(1, 2)
            )
            patches = self.weights.layer_norm(patches, f"{own}.rgbt_stem.norm_layer", eps=1e-5)
        first = self.weights[f"{own}.cls_token"].expand(len(given), -1, -1)
        tokens = torch.cat([first, patches], 1) + self.weights[f"{own}.pos_embedding_helper.pos_embed"]
        before = f"modality_trunks.{kind}.pre_transformer_layer.0"
        return self.weights.layer_norm(tokens, before) if f"{before}.weight" in self.weights else tokens

    def _attend(self, tokens: Tensor, name: str, kind: str) -> Tensor:
        """Attention of all tokens [n, t, c]; the one of sound has one more key and value that it learned."""
        from torch.nn.functional import multi_head_attention_forward

        key, value = (self.weights[own] if (own := f"{name}.bias_{each}") in self.weights else None for each in "kv")
        along = tokens.transpose(0, 1)
        found, _ = multi_head_attention_forward(
            along, along, along, tokens.shape[2], NUM_HEADS[kind],
            self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"], key, value, False, 0.0,
            self.weights[f"{name}.out_proj.weight"], self.weights[f"{name}.out_proj.bias"], training=False, need_weights=False,
        )  # fmt: skip
        return found.transpose(0, 1)

    @cached_property
    def _front_end(self) -> Any:
        """Kaldi's bands as the network was trained on; transformers divides by two deviations, ImageBind by one."""
        spectrograms_by_numpy()
        from transformers import ASTFeatureExtractor

        return ASTFeatureExtractor(num_mel_bins=BANDS, max_length=ROWS, mean=BAND_MEAN, std=BAND_STD / 2)


def _starts(length_s: float, num: int) -> list[float]:
    """Where clips of 2 s begin that lie evenly from beginning to end."""
    return [float(at) for at in np.linspace(0.0, max(0.0, length_s - CLIP_S), num)]


def _length_s(times_s: Vector) -> float:
    return float(times_s[-1] - times_s[0] + np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0


def _frames_of(times_s: Vector, start_s: float) -> list[int]:
    """The first and the last frame of a clip."""
    inside = np.flatnonzero((times_s - times_s[0] >= start_s - 1e-6) & (times_s - times_s[0] < start_s + CLIP_S - 1e-6))
    return [int(inside[0]), int(inside[-1])] if len(inside) else [0, 0]


def _crops(frames: Tensor) -> Tensor:
    """uint8 [2, 3, h, w] -> [3, 3, 2, 224, 224]: the ends and the middle of the longer side, normalised."""
    import torch
    from torch.nn.functional import interpolate

    height, width = frames.shape[2:]
    scale = SIDE_PX / min(height, width)
    size = (max(SIDE_PX, int(height * scale)), max(SIDE_PX, int(width * scale)))
    scaled = interpolate(frames / 255.0, size, mode="bilinear")
    scaled = (scaled - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
    room = [side - SIDE_PX for side in size]
    places = [(round(part * room[0]), round(part * room[1])) for part in (0.0, 0.5, 1.0)]
    return torch.stack([scaled[..., top:, left:][..., :SIDE_PX, :SIDE_PX].transpose(0, 1) for top, left in places])


def _mean(vectors: Tensor) -> Vector:
    return np.asarray(vectors.mean(0).double().cpu().numpy())
