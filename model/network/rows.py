"""Rows of a small table looked up per token, with gradients summed in one order. L tokens, R rows, D channels, N blocks.

A token's shift, scale and gate are its sample's. Looking them up is a copy; its gradient is a sum over tens of thousands
of tokens into a few rows, which torch does by atomics on a GPU: slow where so few rows are hit, and in another order each
time. Here the sum is two matrix products with zeros and ones, which are computed alike each time: within blocks of
`BLOCK` tokens to the few rows that occur in each, then over blocks to the rows of the table. Cost: the gradient is read once.
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Tokens that are summed up first: long enough that few sums are left, short enough that few samples meet in one."""


@dataclass(frozen=True)
class TableRows:
    """Which row of a table each token takes."""

    of_tokens: Tensor  # int64 [L]
    of_blocks: Tensor  # int64 [N, >= 2]: the different rows of every full block of tokens, then -1

    @classmethod
    def of(cls, of_tokens: Tensor) -> TableRows:
        """Row numbers with what their gradient needs. Reads them on the host: make it where packs are made."""
        ordered = of_tokens[: len(of_tokens) // BLOCK * BLOCK].view(-1, BLOCK).sort(dim=1).values
        is_first = F.pad(ordered.diff(dim=1) != 0, (1, 0), value=True)
        width = (
            max(2, int(is_first.sum(1).max())) if len(ordered) else 2
        )  # not 1, for which a graph of its own is compiled
        firsts = torch.where(is_first, ordered, -1).sort(dim=1, descending=True).values
        return cls(of_tokens, firsts[:, :width].contiguous())

    def take(self, tokens: Tensor) -> TableRows:
        """Those of these tokens, given by number."""
        return TableRows.of(self.of_tokens[tokens])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TableRows:
        """The same on `device`."""
        of_tokens, of_blocks = (x.to(device, non_blocking=non_blocking) for x in (self.of_tokens, self.of_blocks))
        return TableRows(of_tokens, of_blocks)

    def look_up(self, table_RD: Tensor) -> Tensor:
        """x_LD: every token's row. The gradient of the table has the same bits each time, on every device."""
        found: Tensor = _LookUp.apply(table_RD, self.of_tokens, self.of_blocks)
        return found


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, of_tokens: Tensor, of_blocks: Tensor) -> Tensor:
        ctx.save_for_backward(of_tokens, of_blocks)
        ctx.num_rows = table_RD.shape[0]
        return table_RD.index_select(0, of_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_LD,), (of_tokens, of_blocks) = grads, ctx.saved_tensors
        num_blocked = of_blocks.shape[0] * BLOCK
        rows = torch.arange(ctx.num_rows, device=grad_LD.device)
        within = _ones(of_blocks, of_tokens[:num_blocked].view(-1, BLOCK), grad_LD)
        sums = within @ grad_LD[:num_blocked].unflatten(0, (-1, BLOCK))
        table = _ones(rows, of_blocks.flatten(), grad_LD) @ sums.flatten(0, 1)
        return table + _ones(rows, of_tokens[num_blocked:], grad_LD) @ grad_LD[num_blocked:], None, None


def _ones(rows: Tensor, of_columns: Tensor, like: Tensor) -> Tensor:
    """[..., rows, columns]: one where a column is of the row."""
    return (rows[..., :, None] == of_columns[..., None, :]).to(like.dtype)
