"""The block of a vision transformer under the names that timm gives its tensors, which several published networks have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.networks.tensors import TensorFile, attention

if TYPE_CHECKING:
    from torch import Tensor


def vision_block(weights: TensorFile, name: str, tokens: Tensor, num_heads: int) -> Tensor:
    """Tokens [n, t, c] -> the same, through the block of that name: attention of `num_heads` heads, then two layers."""
    packed = weights.linear(weights.layer_norm(tokens, f"{name}.norm1"), f"{name}.attn.qkv")
    query, key, value = packed.chunk(3, -1)
    tokens = tokens + weights.linear(attention(query, key, value, num_heads), f"{name}.attn.proj")
    return tokens + weights.mlp(weights.layer_norm(tokens, f"{name}.norm2"), f"{name}.mlp")
