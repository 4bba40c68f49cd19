"""Picture quality by MANIQA: a vision transformer, attention over channels, windows of patches (Yang et al., arXiv 2204.08958).

The network as the PyTorch file ckpt_koniq10k.pt has it, as a function of its tensors. Trained on KonIQ-10k it says an opinion
of about 0 to 1.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.evaluate.media import read_pictures
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, EVERY, guarded
from model.evaluate.records import Protocol
from model.evaluate.vision_blocks import vision_block
from schemas.errors import MediaError
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

PATCH_PX = 8
NUM_HEADS = 12
TAKEN = (6, 7, 8, 9)
"""Blocks of the transformer whose patches are looked at; what lies behind them is not."""
WINDOW, WINDOW_HEADS = 4, 4
SCALE = 0.8
"""Of what the windows add, in the network that was trained on KonIQ-10k; that of PIPAL has another."""
NUM_CROPS = 20
AT_ONCE = 4
"""Crops: attention over channels takes 38 MB of each."""
APART = -100.0
"""Added to the attention of patches that meet in a window only because it was shifted."""
ANY_SIDE_PX = 10_000
"""No picture is scaled."""


class Maniqa:
    """Opinions of pictures, computed on `device`: a crop takes seconds of a CPU."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.weights = TensorFile(path, device=device)

    @property
    def crop_px(self) -> int:
        """Side of the crops that it looks at: 224 as published."""
        return PATCH_PX * self._side

    @property
    def _side(self) -> int:
        """Patches along a side of a crop."""
        return isqrt(self.weights["vit.pos_embed"].shape[1] - 1)

    def of_film(self, path: Path) -> float:
        """The mean opinion of every 5th frame. Raises MediaError."""
        import torch

        frames, _ = read_pictures(path, ANY_SIDE_PX, "rgb24", every=EVERY)
        smallest_px = min((min(each.shape[:2]) for each in frames), default=0)
        if smallest_px < self.crop_px:
            raise MediaError(f"{path.name} is {smallest_px} px high or wide, less than a crop of {self.crop_px}.")
        random = np.random.default_rng(0)
        with torch.inference_mode():
            return float(
                np.mean([self.opinion(torch.from_numpy(each).permute(2, 0, 1) / 255.0, random) for each in frames])
            )

    def opinion(self, picture: Tensor, random: np.random.Generator) -> float:
        """What is thought of a picture [3, h, w] of 0 to 1: the mean over 20 crops that `random` places."""
        import torch

        height, width = picture.shape[1:]
        side = self.crop_px
        corners = random.integers((height - side + 1, width - side + 1), size=(NUM_CROPS, 2)).tolist()
        crops = torch.stack([picture[:, top : top + side, left : left + side] for top, left in corners])
        crops = crops.to(self.weights.device)
        return float(torch.cat([self.scores(each) for each in (crops * 2 - 1).split(AT_ONCE)]).mean())

    def scores(self, crops: Tensor) -> Tensor:
        """[n] of crops [n, 3, s, s] of -1 to 1: the mean over their patches, each as much as it is said to count."""
        grid = (self._side, self._side)
        seen = self._across_channels(self._patches(crops), 1).unflatten(2, grid)
        seen = self._in_windows(self._convolved(seen, "conv1"), "swintransformer1")
        seen = self._across_channels(seen.flatten(2), 2).unflatten(2, grid)
        seen = self._in_windows(self._convolved(seen, "conv2"), "swintransformer2").flatten(2).mT
        scores = self._told(seen, "fc_score").relu()
        counts = self._told(seen, "fc_weight").sigmoid()
        return (scores * counts).sum((1, 2)) / counts.sum((1, 2))

    def _patches(self, crops: Tensor) -> Tensor:
        """[n, 4 c, patches] of crops, from four blocks of the transformer."""
        import torch

        tokens = self._convolved(crops, "vit.patch_embed.proj", stride=PATCH_PX).flatten(2).mT
        first = self.weights["vit.cls_token"].expand(len(crops), -1, -1)
        tokens = torch.cat([first, tokens], 1) + self.weights["vit.pos_embed"]
        taken = []
        for number in range(TAKEN[-1] + 1):
            tokens = vision_block(self.weights, f"vit.blocks.{number}", tokens, NUM_HEADS)
            taken += [tokens[:, 1:]] if number in TAKEN else []
        return torch.cat(taken, 2).mT

    def _across_channels(self, seen: Tensor, stage: int) -> Tensor:
        """[n, c, patches] -> the same: every channel attends to all others, twice.

        What comes of it is laid out patch by patch and read channel by channel, as the network was trained.
        """
        for number in range(self.weights.num_blocks(f"tablock{stage}.")):
            query, key, value = (self.weights.linear(seen, f"tablock{stage}.{number}.c_{part}") for part in "qkv")
            told = (query @ key.mT * seen.shape[2] ** -0.5).softmax(2) @ value
            seen = seen + told.mT.reshape(seen.shape)
        return seen

    def _in_windows(self, seen: Tensor, name: str) -> Tensor:
        """[n, c, h, w] -> the same: layers of two blocks, the second with shifted windows, and a convolution."""
        for number in range(self.weights.num_blocks(f"{name}.layers.")):
            layer, tokens = f"{name}.layers.{number}", seen.permute(0, 2, 3, 1)
            for block in range(self.weights.num_blocks(f"{layer}.blocks.")):
                tokens = self._block(tokens, f"{layer}.blocks.{block}", shift=WINDOW // 2 * (block % 2))
            told = self._convolved(tokens.permute(0, 3, 1, 2), f"{layer}.conv", padding=1).relu()
            seen = SCALE * told + seen
        return seen

    def _block(self, tokens: Tensor, name: str, shift: int) -> Tensor:
        """[n, h, w, c] -> the same: attention within windows that lie `shift` patches right and below, and two layers."""
        from torch.nn.functional import scaled_dot_product_attention

        normed = self.weights.layer_norm(tokens, f"{name}.norm1", eps=1e-5).roll((-shift, -shift), (1, 2))
        packed = self.weights.linear(windows(normed), f"{name}.attn.qkv").unflatten(3, (3, WINDOW_HEADS, -1))
        query, key, value = packed.permute(3, 0, 1, 4, 2, 5)
        bias = self.weights[f"{name}.attn.relative_position_bias_table"][places_apart()].permute(2, 0, 1)
        apart = strangers(tokens.shape[1], shift)[:, None].to(bias.device)
        told = scaled_dot_product_attention(query, key, value, bias + apart)
        told = self.weights.linear(told.transpose(2, 3).flatten(3), f"{name}.attn.proj")
        tokens = tokens + from_windows(told, tokens.shape[1]).roll((shift, shift), (1, 2))
        return tokens + self.weights.mlp(self.weights.layer_norm(tokens, f"{name}.norm2", eps=1e-5), f"{name}.mlp")

    def _told(self, seen: Tensor, name: str) -> Tensor:
        """[n, patches, c] -> [n, patches, 1] through two layers."""
        return self.weights.linear(self.weights.linear(seen, f"{name}.0").relu(), f"{name}.3")

    def _convolved(self, given: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        from torch.nn.functional import conv2d

        return conv2d(given, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)


def windows(tokens: Tensor) -> Tensor:
    """[n, h, w, c] -> [n, windows, places, c]."""
    rows, columns = (side // WINDOW for side in tokens.shape[1:3])
    cut = tokens.unflatten(2, (columns, WINDOW)).unflatten(1, (rows, WINDOW))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(cut: Tensor, height: int) -> Tensor:
    """[n, windows, places, c] -> [n, h, w, c]: the other way round."""
    laid = cut.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (height // WINDOW, -1))
    return laid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def places_apart() -> Tensor:
    """[places, places]: where the bias of two places of a window lies in its table, by how far they are apart."""
    import torch

    at = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    row, column = (at[:, None] - at + WINDOW - 1).unbind(2)
    return row * (2 * WINDOW - 1) + column


def strangers(side: int, shift: int) -> Tensor:
    """[windows, places, places]: 0 for places that are neighbours in the picture, `APART` for those a shift brings together."""
    import torch

    part = torch.zeros(side)
    part[side - WINDOW :] = 1
    part[side - shift :] = 2 if shift else 1
    labels = windows((part[:, None] * 3 + part)[None, :, :, None])[0, :, :, 0]
    return torch.where(labels[:, :, None] == labels[:, None], 0.0, APART) * bool(shift)


def maniqa_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The opinion of a film's pictures, by the network in a file, on a CUDA device where there is one."""
    import torch

    network = Maniqa(path, "cuda" if torch.cuda.is_available() else "cpu")
    return (
        Metric(
            name="maniqa", doc="opinion of the pictures, about 0 to 1", better="higher",
            read=guarded(lambda _, sample: network.of_film(sample)), model=f"MANIQA in {path.name}",
            sha256=network.weights.sha256, decoder=DECODER,
            crop=f"every {EVERY}th frame, mean over {NUM_CROPS} crops of 224 px, the same in every run",
        ),
    )  # fmt: skip
