"""A Swin transformer over a film in windows of time and place (Liu et al. 2021, arXiv 2106.13230), as DOVER and FAST-VQA have it.

As a function of its published tensors. Their films are pieced together of fragments that lie apart in the picture; in blocks
that learned it, how far two places are apart counts otherwise within a fragment than between fragments (arXiv 2207.02595).
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

Sizes = tuple[int, int, int]
"""Time, height, width."""
WINDOW: Sizes = (8, 7, 7)
NUM_HEADS = (3, 6, 12, 24)
FRAGMENTS = 7
"""Along each side of the picture."""
EPS = 1e-5
APART = -100.0
"""Added to the attention of places that meet in a window only because it was shifted."""


class SwinVideo:
    """Features of films, of the tensors whose names begin with `prefix`."""

    def __init__(self, weights: TensorFile, prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    @cached_property
    def _depths(self) -> list[int]:
        """Blocks of each stage."""
        layers = f"{self.prefix}layers."
        return [
            self.weights.num_blocks(f"{layers}{number}.blocks.") for number in range(self.weights.num_blocks(layers))
        ]

    def features(self, films: Tensor) -> Tensor:
        """Films [n, 3, t, h, w] -> [n, t / 2, h', w', c]; sides in each stage are whole windows, or one that is not full."""
        from torch.nn.functional import conv3d

        name = f"{self.prefix}patch_embed"
        kernel = self.weights[f"{name}.proj.weight"]
        tokens = conv3d(films, kernel, self.weights[f"{name}.proj.bias"], stride=kernel.shape[2:])
        tokens = self.weights.layer_norm(tokens.permute(0, 2, 3, 4, 1), f"{name}.norm", EPS)
        for stage, depth in enumerate(self._depths):
            for number in range(depth):
                tokens = self._block(
                    tokens, f"{self.prefix}layers.{stage}.blocks.{number}", NUM_HEADS[stage], number % 2 == 1
                )
            if stage + 1 < len(self._depths):
                tokens = self._merged(tokens, f"{self.prefix}layers.{stage}.downsample")
        return self.weights.layer_norm(tokens, f"{self.prefix}norm", EPS)

    def _block(self, tokens: Tensor, name: str, num_heads: int, is_shifted: bool) -> Tensor:
        """[n, t, h, w, c] -> the same: attention within windows, every other time shifted by half of one, then two layers."""
        sides: Sizes = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        size, shift = window_of(sides, is_shifted)
        given = self.weights.layer_norm(tokens, f"{name}.norm1", EPS).roll([-each for each in shift], (1, 2, 3))
        found = self._attend(windows(given, size), f"{name}.attn", num_heads, sides, is_shifted)
        tokens = tokens + from_windows(found, size, sides).roll(shift, (1, 2, 3))
        return tokens + self.weights.mlp(self.weights.layer_norm(tokens, f"{name}.norm2", EPS), f"{name}.mlp")

    def _attend(self, cut: Tensor, name: str, num_heads: int, sides: Sizes, is_shifted: bool) -> Tensor:
        """[n, windows, places, c] -> the same."""
        from torch.nn.functional import scaled_dot_product_attention

        query, key, value = (
            part.unflatten(-1, (num_heads, -1)).transpose(2, 3)
            for part in self.weights.linear(cut, f"{name}.qkv").chunk(3, -1)
        )
        bias = self._bias(name, sides, is_shifted).to(cut.device)
        found = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.weights.linear(found.transpose(2, 3).flatten(3), f"{name}.proj")

    def _bias(self, name: str, sides: Sizes, is_shifted: bool) -> Tensor:
        """[windows, heads, places, places], or one window for all: what is added to the attention of each pair."""
        size, shift = window_of(sides, is_shifted)
        at = places_apart(size)
        bias = self.weights[f"{name}.relative_position_bias_table"][at].permute(2, 0, 1)[None]
        if (learned := f"{name}.fragment_position_bias_table") in self.weights:
            within = self.weights[learned][at].permute(2, 0, 1)[None]
            steps = fragments_apart(sides, size, shift)[:, None].to(bias.device)
            bias = within + steps * (bias - within)
        return bias + strangers(sides, size, shift)[:, None].to(bias.device) if any(shift) else bias

    def _merged(self, tokens: Tensor, name: str) -> Tensor:
        """[n, t, h, w, c] -> [n, t, h / 2, w / 2, 2 c]: four neighbours as one."""
        import torch

        parts = [tokens[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.weights.linear(
            self.weights.layer_norm(torch.cat(parts, -1), f"{name}.norm", EPS), f"{name}.reduction"
        )


def window_of(sides: Sizes, is_shifted: bool) -> tuple[Sizes, Sizes]:
    """(sides of windows, by how much they are shifted): where one window is the whole side, it is not."""
    size = tuple(min(side, full) for side, full in zip(sides, WINDOW, strict=True))
    shift = tuple(full // 2 if is_shifted and side > full else 0 for side, full in zip(sides, WINDOW, strict=True))
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


def windows(tokens: Tensor, size: Sizes) -> Tensor:
    """[n, t, h, w, c] -> [n, windows, places, c]."""
    for axis in (3, 2, 1):
        tokens = tokens.unflatten(axis, (-1, size[axis - 1]))
    return tokens.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def from_windows(cut: Tensor, size: Sizes, sides: Sizes) -> Tensor:
    """[n, windows, places, c] -> [n, t, h, w, c]: the other way round."""
    counts = [side // each for side, each in zip(sides, size, strict=True)]
    laid = cut.unflatten(2, size).unflatten(1, counts)
    return laid.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(cut), *sides, -1)


@lru_cache
def places_apart(size: Sizes) -> Tensor:
    """[places, places]: where the bias of two places of a window lies in its table, which is one of full windows."""
    import torch

    at = torch.cartesian_prod(*(torch.arange(each) for each in size))
    steps = at[:, None] - at + torch.tensor(WINDOW) - 1
    return steps @ torch.tensor([(2 * WINDOW[1] - 1) * (2 * WINDOW[2] - 1), 2 * WINDOW[2] - 1, 1])


@lru_cache
def fragments_apart(sides: Sizes, size: Sizes, shift: Sizes) -> Tensor:
    """[windows, places, places]: how many fragments two places of a film with `sides` are apart, down plus across."""
    import torch

    row, column = (torch.arange(side) * FRAGMENTS // side for side in sides[1:])
    at = torch.stack(torch.meshgrid(row, column, indexing="ij"), -1).expand(1, sides[0], -1, -1, -1)
    cut = windows(at.roll([-each for each in shift], (1, 2, 3)), size)[0]
    return (cut[:, None] - cut[:, :, None]).abs().sum(-1).float()


@lru_cache
def strangers(sides: Sizes, size: Sizes, shift: Sizes) -> Tensor:
    """[windows, places, places]: 0 for places that are neighbours in the film, `APART` for those a shift brings together."""
    import torch

    part = [torch.zeros(side) for side in sides]
    for each, full, by in zip(part, size, shift, strict=True):
        if by:
            each[-full:-by], each[-by:] = 1, 2
    at = torch.stack(torch.meshgrid(*part, indexing="ij"), -1)[None]
    cut = windows(at, size)[0]
    return torch.where((cut[:, None] == cut[:, :, None]).all(-1), 0.0, APART)
