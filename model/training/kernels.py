"""Which attention kernels train: with `network.attention_backend: measured`, the fastest of those that this device has.

Kernels differ by half on the same GPU and none is best everywhere (FlashAttention-3 on Hopper where its package is
installed, cuDNN for one long segment, FlashAttention-2 for many short ones), so each is timed, forward and backward, on
a pack like those to come. The first rank decides for all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from model.network.attention import Segments, attend, resolve_backend
from model.network.config import NavaConfig
from model.ranks import World
from schemas.errors import ModelError

MEASURED = "measured"
NUM_SEGMENTS = 3
MOST_TOKENS = {"cpu": 96, "cuda": 32_768}
"""Of the pack that kernels are timed on."""
NUM_TIMED = 5
FAILURES = (RuntimeError, NotImplementedError, ModelError, ImportError)
"""What kernels raise that a device or build does not have."""


class Kernel(NamedTuple):
    """A backend, and the implementation that its FlashAttention is switched to."""

    backend: str
    flash: str | None = None

    def __str__(self) -> str:
        return self.backend if self.flash is None else f"{self.backend} with {self.flash}"


def choose_kernel(asked: str, network: NavaConfig, dtype: torch.dtype, num_tokens: int, world: World) -> str:
    """The backend to build the network with: `asked`, or the fastest where that is `measured`. Every rank calls it."""
    if asked != MEASURED:
        return asked
    chosen: list[Any] = [None]
    if world.is_first:
        num_tokens = min(num_tokens, MOST_TOKENS[world.device.type])
        times = time_kernels(kernels_here(world.device.type), network, dtype, num_tokens, world.device)
        chosen = [min(times, key=times.__getitem__)]
    dist.broadcast_object_list(chosen, 0, group=world.control)
    kernel = Kernel(*chosen[0])
    if kernel.flash is not None:
        torch.nn.attention.activate_flash_attention_impl(kernel.flash)
    return kernel.backend


def kernels_here(device_type: str) -> list[Kernel]:
    """What might run on this kind of device; trying tells."""
    kernels = [Kernel("sdpa")]
    if device_type == "cuda":
        registered = torch.nn.attention.list_flash_attention_impls()
        kernels += [Kernel("varlen"), *(Kernel("varlen", flash) for flash in registered), Kernel("flex")]
    return kernels


def time_kernels(
    kernels: Sequence[Kernel], network: NavaConfig, dtype: torch.dtype, num_tokens: int, device: torch.device
) -> dict[Kernel, float]:
    """Median seconds of forward and backward of each kernel that runs; a line about each. Raises ModelError if none does."""
    times: dict[Kernel, float] = {}
    for kernel in kernels:
        try:
            times[kernel] = _time(kernel, network, dtype, num_tokens, device)
        except FAILURES as error:
            print(
                f"attention: {kernel} does not run here: {str(error).strip().partition(chr(10))[0][:120]}", flush=True
            )
        else:
            print(f"attention: {kernel} takes {1e3 * times[kernel]:.2f} ms for {num_tokens:,} tokens", flush=True)
    if not times:
        raise ModelError("no attention kernel runs here.", remedy="Set network.attention_backend to sdpa.")
    return times


def _time(kernel: Kernel, network: NavaConfig, dtype: torch.dtype, num_tokens: int, device: torch.device) -> float:
    resolve_backend(kernel.backend, device.type, dtype, NUM_SEGMENTS)
    lengths = [num_tokens // NUM_SEGMENTS] * NUM_SEGMENTS
    segments = Segments.of(lengths, lengths).to(device).prepare(kernel.backend)
    shape = (sum(lengths), network.num_heads, network.dim // network.num_heads)
    inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    wait = torch.get_device_module(device).synchronize
    if kernel.flash is not None:
        torch.nn.attention.activate_flash_attention_impl(kernel.flash)
    seconds = []
    try:
        for _ in range(NUM_TIMED + 1):  # the first compiles, plans or allocates
            wait()
            began = time.perf_counter()
            attend(inputs[0], inputs[1], inputs[2], segments, kernel.backend).sum().backward()
            wait()
            seconds.append(time.perf_counter() - began)
    finally:
        if kernel.flash is not None:
            torch.nn.attention.restore_flash_attention_impl()
    return statistics.median(seconds[1:])
