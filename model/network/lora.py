"""Low-rank adapters (LoRA, arXiv 2106.09685): what a few weights learn beside frozen ones, and weights with it added in.

    y = W x + (alpha / rank) B A x        A [rank, inputs] random, B [outputs, rank] zero at first

Adapters are parameters `lora_a` and `lora_b` of the `Linear` that they belong to, so names of other weights stay those of
the release.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from model.network.layers import Linear
from schemas.errors import ModelError

ADAPTERS = ("lora_a", "lora_b")


def add_adapters(model: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> int:
    """Give every matrix whose name matches a pattern of `targets` an adapter; how many got one. Call it before sharding.

    Raises ModelError when none does.
    """
    found = 0
    for name, module in model.named_modules():
        if isinstance(module, Linear) and any(fnmatchcase(name, pattern) for pattern in targets):
            like = {"device": module.weight.device, "dtype": module.weight.dtype}
            module.lora_a = nn.Parameter(torch.empty(rank, module.in_features, **like))
            module.lora_b = nn.Parameter(torch.empty(module.out_features, rank, **like))
            module.lora_scale = alpha / rank
            found += 1
    if not found:
        raise ModelError(
            f"no matrix of the network matches {', '.join(targets)}.", remedy="Name some, such as *.ffn.0."
        )
    return found


def initial_adapter(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The adapter of this name before training, float32: A uniform as torch's linear layers begin, B zero."""
    if name.endswith("lora_b"):
        return torch.zeros(tuple(shape))
    bound = 1 / math.sqrt(shape[1])
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.rpartition(".")[2] in ADAPTERS


def train_only(model: nn.Module, patterns: Sequence[str]) -> int:
    """Freeze every parameter but those that match a pattern, and adapters; how many are trained.

    Raises ModelError when none is.
    """
    num_trained = 0
    for name, parameter in model.named_parameters():
        is_trained = is_adapter(name) or any(fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(is_trained)
        num_trained += is_trained
    if not num_trained:
        raise ModelError(
            f"no parameter of the network matches {', '.join(patterns)}.", remedy="Name some, such as head.*."
        )
    return num_trained


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """W + scale B A, in the dtype of W, computed in float32 or wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + scale * (lora_b.to(wide) @ lora_a.to(wide))).to(weight.dtype)
