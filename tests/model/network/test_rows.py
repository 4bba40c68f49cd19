"""Rows of a table looked up per token: what plain indexing gives, and gradients summed in one order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.network.nava import Nava, Sample, pack
from model.network.rows import BLOCK, TableRows

LENGTHS = {
    "long ones": [700, 3, 500],
    "many in a block": [7] * 60,
    "full blocks": [BLOCK, BLOCK],
    "less than a block": [5, 6],
    "one": [BLOCK + 1],
    "none": [0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients_are_those_of_indexing(lengths: list[int], dtype: torch.dtype) -> None:
    """Rows without a token among them, and tokens of a row that are not in one run, as in packs with clean frames."""
    generator = torch.Generator().manual_seed(0)
    of_tokens = torch.repeat_interleave(torch.tensor(lengths))
    of_tokens[::3] = len(lengths)
    table = torch.randn(len(lengths) + 2, 5, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(len(of_tokens), 5, dtype=dtype, generator=generator)
    found = TableRows.of(of_tokens).look_up(table)
    assert torch.equal(found, table[of_tokens])
    (gradient,) = torch.autograd.grad((found * weight).sum(), table)
    exact = torch.zeros(table.shape, dtype=torch.float64).index_add(0, of_tokens, weight.double())
    torch.testing.assert_close(gradient.double(), exact, atol=1e-5 if dtype == torch.float32 else 1e-13, rtol=0)


def test_some_tokens_keep_their_rows() -> None:
    rows = TableRows.of(torch.repeat_interleave(torch.tensor([200, 300, 100])))
    kept = torch.arange(150, 450)
    taken = rows.take(kept)
    assert torch.equal(taken.of_tokens, rows.of_tokens[kept])
    assert taken.of_blocks.tolist() == [[1, 0], [1, -1]]


class Adding(TorchDispatchMode):
    """Lists the operators that add several tensors' rows into one place: on a GPU they do so in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_added = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if "index_add" in name:
            self.num_added += 1
            index: Tensor = args[2]
            if len(index.unique()) < len(index):
                self.found.append(f"{name} of {len(index)} into {len(index.unique())}")
        elif any(word in name for word in ("scatter", "index_put", "embedding", "index_reduce")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_no_gradient_of_the_network_adds_up_rows_by_index(tiny_nava: Nava, mixed_samples: list[Sample]) -> None:
    """Indexing whose numbers differ, such as another order of tokens, adds one row to each place."""
    packed = pack(mixed_samples, tiny_nava.config)
    velocity = tiny_nava(packed, torch.linspace(10.0, 990.0, packed.num_samples))
    loss = sum(v.square().sum() for v in [*velocity.video, *velocity.audio] if v is not None)
    assert isinstance(loss, Tensor)
    with Adding() as adding:
        torch.autograd.grad(loss, list(tiny_nava.parameters()))
    assert adding.num_added > 10, "the network does take rows by index, and this test sees it"
    assert not adding.found
