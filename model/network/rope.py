"""Rotary position tables for video (three axes) and audio (one axis). L tokens, H heads, D head channels, P = D/2 pairs.

Channels (2i, 2i+1) form a pair. A video head is split over time, height and width as D - 4(D//6), 2(D//6), 2(D//6)
channels (44/42/42 of 128), each axis with its own frequencies. Audio turns only the temporal channels, by the temporal
angles times the ratio of the two latent rates; its other channels pass through. Tables are real: row 0 cos, row 1 sin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.config import NavaConfig
from schemas.errors import ModelError


def video_table(config: NavaConfig, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """table_2LP in float64 for a (T, H, W) grid of patches, T-major and W fastest."""
    T, H, W = grid
    time, height, width = (_cos_sin(axis_angles(config, axis, n, device)) for axis, n in enumerate(grid))
    axes = [
        time[:, :, None, None].expand(2, T, H, W, -1),
        height[:, None, :, None].expand(2, T, H, W, -1),
        width[:, None, None, :].expand(2, T, H, W, -1),
    ]
    return torch.cat(axes, dim=-1).reshape(2, T * H * W, -1)


def audio_table(config: NavaConfig, num_tokens: int, device: torch.device | None = None) -> Tensor:
    """table_2LP in float64 for `num_tokens` audio latents; pairs beyond the temporal ones do not turn."""
    temporal = axis_angles(config, 0, num_tokens, device) * config.rope_ratio
    return _cos_sin(F.pad(temporal, (0, config.head_dim // 2 - temporal.shape[1])))


def axis_angles(config: NavaConfig, axis: int, num_positions: int, device: torch.device | None = None) -> Tensor:
    """Angles [positions, pairs of this axis] in float64 radians; axis 0 is time, 1 height, 2 width.

    Raises ModelError beyond `max_positions`, the length of the release's tables.
    """
    if num_positions > config.max_positions:
        name = ("time", "height", "width")[axis]
        raise ModelError(
            f"RoPE: {num_positions} positions along {name}, at most {config.max_positions} are defined.",
            remedy="Use a shorter sample or raise max_positions in the model config.",
        )
    side = 2 * (config.head_dim // 6)
    num_channels = config.head_dim - 2 * side if axis == 0 else side
    exponent = torch.arange(0, num_channels, 2, dtype=torch.float64, device=device) / num_channels
    return torch.outer(torch.arange(num_positions, dtype=torch.float64, device=device), config.rope_theta**-exponent)


def rotate(x_LHD: Tensor, table_2LP: Tensor) -> Tensor:
    """x_LHD with every channel pair turned by its token's angle, in the wider of the two dtypes."""
    even, odd = x_LHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table_2LP[:, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _cos_sin(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()])
