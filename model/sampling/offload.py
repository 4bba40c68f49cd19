"""A network larger than the device: its blocks lie in host memory, and each is on the device while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from model.network.nava import Nava


def fetch_blocks(model: Nava, device: torch.device) -> None:
    """Have every block of `model`, which is in host memory, fetched for its forward and let go after it; the rest is moved.

    On CUDA host memory is pinned, so that fetching runs at the full rate of the bus (12.6 GB a network call in bfloat16).
    """
    blocks = [*model.double_blocks, *model.single_blocks]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.to(device)
    for block in blocks:
        block.register_forward_pre_hook(Fetch(block, device))
        block.register_forward_hook(let_go)


class Fetch:
    """Puts the weights of one block on the device before it computes."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._device = device
        self._held = []
        for parameter in block.parameters():
            data = parameter.data.pin_memory() if device.type == "cuda" else parameter.data
            parameter.data = data
            self._held.append((parameter, data))
        block.held = self._held

    def __call__(self, block: nn.Module, given: Any) -> None:
        for parameter, data in self._held:
            parameter.data = data.to(self._device, non_blocking=True)


def let_go(block: Any, given: Any, out: Any) -> None:
    """Leave the weights of a block in host memory alone."""
    for parameter, data in block.held:
        parameter.data = data
