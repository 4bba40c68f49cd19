"""Picture quality by MUSIQ, a transformer over patches at three scales (Ke et al. 2021, arXiv 2108.05997).

The network as the PyTorch files musiq_*.pth have it, as a function of its tensors: those trained on KonIQ-10k, SPAQ and
PaQ-2-PiQ say an opinion of 0 to 100, that on AVA one of 1 to 10.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.evaluate.media import read_pictures
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, EVERY, guarded
from model.evaluate.records import Protocol
from schemas.networks.tensors import TensorFile, attention

if TYPE_CHECKING:
    from torch import Tensor

PATCH_PX = 32
LONGER_SIDES_PX = (224, 384)
"""Beside the original size, whatever it is."""
NUM_HEADS = 6
GRID = 10
"""Places on each side that patches of any picture are mapped to."""
GROUPS = 32
ANY_SIDE_PX = 10_000
"""No picture is scaled before MUSIQ scales it."""
ENCODER = "transformer_encoder"


class Musiq:
    """Opinions of pictures."""

    def __init__(self, path: Path) -> None:
        self.weights = TensorFile(path)

    def of_film(self, path: Path) -> float:
        """The mean opinion of every 5th frame. Raises MediaError."""
        import torch

        frames, _ = read_pictures(path, ANY_SIDE_PX, "rgb24", every=EVERY)
        with torch.inference_mode():
            return float(np.mean([self.opinion(torch.from_numpy(each).permute(2, 0, 1) / 255.0) for each in frames]))

    def opinion(self, picture: Tensor) -> float:
        """What is thought of a picture [3, h, w] of 0 to 1."""
        import torch
        from torch.nn.functional import interpolate

        given = picture[None] * 2 - 1
        longest = max(given.shape[2:])
        sizes = [[round(side * longer / longest) for side in given.shape[2:]] for longer in LONGER_SIDES_PX]
        scaled = [interpolate(given, size, mode="bicubic") for size in sizes] + [given]
        tokens = torch.cat([self._tokens(each, scale) for scale, each in enumerate(scaled)])
        told = self._encode(torch.cat([self.weights[f"{ENCODER}.cls"][0], tokens])[None])[0, 0]
        if "head.0.weight" not in self.weights:
            return float(self.weights.linear(told, "head"))
        chances = self.weights.linear(told, "head.0").softmax(0)
        return float((chances * torch.arange(1, len(chances) + 1)).sum())

    def _tokens(self, picture: Tensor, scale: int) -> Tensor:
        """[patches, c] of a picture [1, 3, h, w] of -1 to 1: what they show, where they are and at which scale."""
        import torch
        from torch.nn.functional import pad, unfold

        rows, columns = (-(-side // PATCH_PX) for side in picture.shape[2:])
        height, width = (
            count * PATCH_PX - side for count, side in zip((rows, columns), picture.shape[2:], strict=True)
        )
        padded = pad(picture, (width // 2, width - width // 2, height // 2, height - height // 2))
        patches = unfold(padded, PATCH_PX, stride=PATCH_PX)[0].T.reshape(-1, 3, PATCH_PX, PATCH_PX)
        seen = self.weights.linear(self._seen(patches), "embedding")
        places = [torch.arange(count) * GRID // count for count in (rows, columns)]
        at = (places[0][:, None] * GRID + places[1]).flatten()
        own = self.weights[f"{ENCODER}.scaleembed_input.scale_emb"][scale]
        return seen + self.weights[f"{ENCODER}.posembed_input.position_emb"][0][at] + own

    def _seen(self, patches: Tensor) -> Tensor:
        """Patches [n, 3, 32, 32] -> [n, 64 c]: a stem and one residual block, places before channels."""
        from torch.nn.functional import max_pool2d, relu

        stem = relu(self._normed(self._convolved(patches, "conv_root", stride=2), "gn_root", eps=1e-6))
        pooled = max_pool2d(_padded(stem, 3, 2), 3, 2)
        found = pooled
        for number in (1, 2, 3):
            found = self._normed(self._convolved(found, f"block1.conv{number}"), f"block1.gn{number}")
            found = relu(found) if number < 3 else found
        beside = self._normed(self._convolved(pooled, "block1.conv_proj"), "block1.gn_proj")
        return relu(found + beside).permute(0, 2, 3, 1).flatten(1)

    def _convolved(self, given: Tensor, name: str, stride: int = 1) -> Tensor:
        """A convolution whose kernels have mean 0 and deviation 1 each."""
        from torch.nn.functional import conv2d

        kernel = self.weights[f"{name}.weight"]
        kernel = kernel - kernel.mean((1, 2, 3), keepdim=True)
        kernel = kernel / (kernel.std((1, 2, 3), keepdim=True) + 1e-5)
        return conv2d(_padded(given, kernel.shape[-1], stride), kernel, stride=stride)

    def _normed(self, given: Tensor, name: str, eps: float = 1e-4) -> Tensor:
        from torch.nn.functional import group_norm

        return group_norm(given, GROUPS, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def _encode(self, tokens: Tensor) -> Tensor:
        """[1, t, c] through all blocks."""
        for number in range(self.weights.num_blocks(f"{ENCODER}.transformer.encoderblock_")):
            block = f"{ENCODER}.transformer.encoderblock_{number}"
            tokens = tokens + self._attend(self.weights.layer_norm(tokens, f"{block}.norm1"), f"{block}.attention")
            tokens = tokens + self.weights.mlp(self.weights.layer_norm(tokens, f"{block}.norm2"), f"{block}.mlp")
        return self.weights.layer_norm(tokens, f"{ENCODER}.encoder_norm")

    def _attend(self, tokens: Tensor, name: str) -> Tensor:
        query, key, value = (self.weights.linear(tokens, f"{name}.{part}") for part in ("query", "key", "value"))
        return self.weights.linear(attention(query, key, value, NUM_HEADS), f"{name}.out")


def musiq_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The opinion of a film's pictures, by the network in a file."""
    network = Musiq(path)
    return (
        Metric(
            name="musiq", doc="opinion of the pictures, on the scale of what the network was trained on", better="higher",
            read=guarded(lambda _, sample: network.of_film(sample)), model=f"MUSIQ in {path.name}",
            sha256=network.weights.sha256, decoder=DECODER, crop=f"every {EVERY}th frame, whole, at 224, 384 px and its own size",
        ),
    )  # fmt: skip


def _padded(given: Tensor, kernel: int, stride: int) -> Tensor:
    """[n, c, h, w] with zeros around it, so that every `stride`th place is one of the answer; the odd one right and below."""
    from torch.nn.functional import pad

    missing = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in given.shape[2:]]
    (top, bottom), (left, right) = ((each // 2, each - each // 2) for each in missing)
    return pad(given, (left, right, top, bottom))
