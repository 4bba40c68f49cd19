"""Frozen matrices held in eight bits: float8 (E4M3) values with one scale per output row, multiplied in wider numbers.

    W ~ scale_O w8_OI          y = (x w8^T) scale + b, so no second copy of the weights is made

Half the memory of bfloat16, for weights that are not trained: the network beside adapters, or one that only generates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from model.network.layers import Linear

FLOAT8 = torch.float8_e4m3fn
SCALE = "weight_scale"


def float8_matrices(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Matrices of the blocks whose weights are frozen: nearly all of the network, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and "_blocks." in name and not module.weight.requires_grad:
            yield name, module


def hold_in_float8(model: nn.Module) -> int:
    """Make room for float8 weights and scales in the frozen matrices of the blocks, whose content is lost; how many.

    Call it after other numbers are chosen and before sharding; fill it with `quantised` weights.
    """
    found = 0
    for _, module in float8_matrices(model):
        weight = module.weight
        module.weight = nn.Parameter(torch.empty_like(weight, dtype=FLOAT8), requires_grad=False)
        like = {"device": weight.device, "dtype": module.bias.dtype}
        module.weight_scale = nn.Parameter(torch.empty(weight.shape[0], **like), requires_grad=False)
        found += 1
    return found


def quantised(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(w8_OI, scale_O float32): every row scaled so that its largest value is float8's largest. Relative error at most 1/16
    of a value, for those above a 28,000th of the row's largest."""
    wide = weight_OI.float()
    scale_O = (wide.abs().amax(1) / torch.finfo(FLOAT8).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (wide / scale_O[:, None]).to(FLOAT8), scale_O


def with_scales(weights: Iterable[tuple[str, Tensor]], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Weights as they are read, those that `names` holds in float8 (which names their scales too) as values and scales."""
    known = set(names)
    for name, value in weights:
        scale_name = f"{name.removesuffix('weight')}{SCALE}"
        if not name.endswith(".weight") or scale_name not in known:
            yield name, value
            continue
        w8_OI, scale_O = quantised(value)
        yield name, w8_OI
        yield scale_name, scale_O
