"""Building blocks of the network. L tokens, D = dim, H heads, E = D/H, F = ffn_dim, B samples, C audio channels.

Precision is carried by the residual stream: it enters the first block as float32 (bfloat16 under `reference_numerics`)
and norms, modulation, rotary positions and gates work in its dtype. `Linear` computes in the dtype of its weights, so
bfloat16 weights give bfloat16 matrix products on a float32 stream. There is no autocast.
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.config import NavaConfig
from model.network.rows import TableRows


class Linear(nn.Linear):
    """A matrix product in the dtype of the weights (of the bias, where they are held in eight bits: float8.py), with what an
    adapter adds to it, if there is one (lora.py)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        self.register_parameter("weight_scale", None)
        self.lora_scale = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.bias.dtype)
        if self.weight_scale is None:
            y = F.linear(x, self.weight, self.bias)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype) + self.bias
        if self.lora_a is None:
            return y
        return y + self.lora_scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class PreciseLinear(nn.Linear):
    """A matrix product in the dtype of its input, for few rows or few outputs where rounding would cost quality."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """Affine layer norm in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RMSNorm(nn.Module):
    """x / rms(x) * gain over all heads together, in the dtype of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.to(x.dtype)


class Modulation(nn.Module):
    """`num` learned offsets to a timestep table: table_BnD -> num tables_BD."""

    def __init__(self, dim: int, num: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, num, dim))

    def forward(self, table_BnD: Tensor) -> tuple[Tensor, ...]:
        return tuple((table_BnD + self.modulation.to(table_BnD.dtype)).unbind(1))


def modulate(x_LD: Tensor, shift_BD: Tensor, scale_BD: Tensor, rows: TableRows, eps: float) -> Tensor:
    """LN(x)(1 + scale) + shift, with every token's shift and scale looked up in its row of the table."""
    normed = F.layer_norm(x_LD, x_LD.shape[-1:], eps=eps)
    return normed * (1 + rows.look_up(scale_BD)) + rows.look_up(shift_BD)


def gated(x_LD: Tensor, y_LD: Tensor, gate_BD: Tensor, rows: TableRows) -> Tensor:
    """x + gate y in the dtype of x."""
    return x_LD + rows.look_up(gate_BD) * y_LD.to(x_LD.dtype)


class Projections(nn.Module):
    """q, k, v, o and the q/k norms of one attention, once per stream ("" for video or shared, "_audio")."""

    def __init__(self, config: NavaConfig, streams: tuple[str, ...]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        for stream in streams:
            for name in "qkvo":
                self.add_module(name + stream, Linear(config.dim, config.dim))
            for name in ("norm_q", "norm_k"):
                self.add_module(name + stream, RMSNorm(config.dim, config.norm_eps))

    def query(self, x_LD: Tensor, stream: str = "") -> Tensor:
        """q_LHE, normalised, in the dtype of x."""
        return self._normed("q", x_LD, stream)

    def key(self, x_LD: Tensor, stream: str = "") -> Tensor:
        """k_LHE, normalised, in the dtype of x."""
        return self._normed("k", x_LD, stream)

    def value(self, x_LD: Tensor, stream: str = "") -> Tensor:
        """v_LHE in the dtype of the weights."""
        return self.get_submodule("v" + stream)(x_LD).unflatten(-1, (self.num_heads, -1))

    def output(self, y_LHE: Tensor, stream: str = "") -> Tensor:
        """o_LD in the dtype of the weights."""
        return self.get_submodule("o" + stream)(y_LHE.flatten(-2))

    def _normed(self, name: str, x_LD: Tensor, stream: str) -> Tensor:
        projected = self.get_submodule(name + stream)(x_LD).to(x_LD.dtype)
        return self.get_submodule(f"norm_{name}{stream}")(projected).unflatten(-1, (self.num_heads, -1))


def feed_forward(config: NavaConfig) -> nn.Sequential:
    """Linear D -> F, GELU (tanh form), Linear F -> D."""
    return nn.Sequential(Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), Linear(config.ffn_dim, config.dim))


class VideoPatchEmbedding(nn.Conv3d):
    """patches_NP -> tokens_ND. The kernel equals the stride, so the convolution is one matrix product over patches."""

    def __init__(self, config: NavaConfig) -> None:
        super().__init__(config.video_channels, config.dim, config.patch_size, config.patch_size)

    def forward(self, patches_NP: Tensor) -> Tensor:
        return F.linear(patches_NP.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class GatedConv(nn.Module):
    """w2(silu(w1 x) * w3 x) with 7-tap convolutions over [1, D, slots]; `is_token` keeps the gaps between samples zero."""

    def __init__(self, config: NavaConfig) -> None:
        super().__init__()
        self.w1 = nn.Conv1d(config.dim, config.audio_ffn_dim, 7, padding=3, bias=False)
        self.w2 = nn.Conv1d(config.audio_ffn_dim, config.dim, 7, padding=3, bias=False)
        self.w3 = nn.Conv1d(config.dim, config.audio_ffn_dim, 7, padding=3, bias=False)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x) * is_token)


class AudioEmbedding(nn.Sequential):
    """latents_MC -> tokens_MD: Conv1d, SiLU, gated conv MLP.

    All samples pass through one convolution: they lie in a buffer with three empty rows between them, which is as far as
    a 7-tap kernel reaches, and the gaps are zeroed before every convolution, so each sample sees zeros at its ends as if
    it were alone. Without audio the buffer is one empty row, so that the weights get a gradient of zero.
    """

    def __init__(self, config: NavaConfig) -> None:
        super().__init__(nn.Conv1d(config.audio_channels, config.dim, 7, padding=3), nn.SiLU(), GatedConv(config))

    def forward(self, latents_MC: Tensor, slots_M: Tensor, num_slots: int) -> Tensor:
        conv, silu, gated_conv = self
        latents_MC = latents_MC.to(conv.weight.dtype)
        buffer = latents_MC.new_zeros(num_slots, latents_MC.shape[1]).index_copy(0, slots_M, latents_MC)
        is_token = buffer.new_zeros(num_slots).index_fill(0, slots_M, 1.0)
        x = gated_conv(silu(conv(buffer.T[None])) * is_token, is_token)
        return x[0].T.index_select(0, slots_M)


def timestep_embedding(t_B: Tensor, num_channels: int) -> Tensor:
    """[cos | sin] of t * 10000^(-k/half) in float64, [B, num_channels]; t runs from 0 to 1000 and is not rounded."""
    half = num_channels // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=t_B.device) / half)
    angle = torch.outer(t_B.to(torch.float64), frequency)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
