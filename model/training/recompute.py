"""What a block keeps for the backward pass and what it computes again: time against memory.

    none            keeps everything
    attention_qkv   keeps block inputs, attention outputs and the projections q, k, v of self-attention
    attention       keeps block inputs and attention outputs
    full            keeps block inputs alone

`model/training/memory.py` counts what each takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, get_args

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.network.nava import Nava
from schemas.budget import Recompute
from schemas.errors import ModelError

POLICIES: tuple[Recompute, ...] = get_args(Recompute)
NUM_KEPT_PRODUCTS = {"none": 0, "FusionBlock": 3, "AlignBlock": 6}
"""q, k and v of self-attention (of both streams) are the first matrix products of a block. Looked up by name, because the
compiler would turn a bound integer into a symbol."""
ATTENTION_OPERATORS = (
    "nava::segment_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "torch_attn::_varlen_attn",
)
"""Attention as the dispatcher sees it. FlexAttention is compiled by itself and is not seen: it is always computed again."""


def set_recompute(model: Nava, policy: Recompute) -> None:
    """Make every block of `model` follow `policy`; may be called again. Parameter names do not change.

    Call it before compiling or sharding the blocks. Raises ModelError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ModelError(f"unknown recompute policy {policy!r}.", remedy=f"Use one of {', '.join(POLICIES)}.")
    for block in [*model.double_blocks, *model.single_blocks]:
        block.__dict__.pop("forward", None)
        if policy == "none":
            continue
        kept_products = type(block).__name__ if policy == "attention_qkv" else "none"
        keep = {} if policy == "full" else {"context_fn": partial(_selective_contexts, kept_products)}
        block.forward = MethodType(_checkpointed(type(block).forward, keep), block)


def _checkpointed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """`forward` of a block class under checkpointing; a plain function, because the compiler skips other callables."""

    def checkpointed(block: Any, *args: Any) -> Any:
        return checkpoint(forward, block, *args, use_reentrant=False, **options)

    return checkpointed


def _selective_contexts(kept_products: str) -> Any:
    """Contexts of one block call that keep attention outputs and the first matrix products."""
    num_products: Counter[bool] = Counter()

    def choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator.name().partition(".")[0] in ATTENTION_OPERATORS:
            return CheckpointPolicy.MUST_SAVE
        if operator in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            num_products[context.is_recompute] += 1
            if num_products[context.is_recompute] <= NUM_KEPT_PRODUCTS[kept_products]:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(choose)
