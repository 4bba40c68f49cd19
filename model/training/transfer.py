"""Packs on their way to the device: pinned, copied on a stream of their own, and waited for by the kernels that read them.

Copying from pinned memory on a second stream leaves the stream of training alone: the host runs ahead of the device, and a
step's data is there when its kernels are. The same code runs on a CPU, whose streams and events do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from model.network.flow import Noised

T = TypeVar("T")


class Arrival(Protocol):
    """A mark in the work of a device."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""
        ...


class DeviceCopies:
    """Copies to one device. `send` in the thread that prepares steps, `receive` in the one that trains."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._api: Any = torch.get_device_module(device)
        self._stream = self._api.Stream()

    def send(self, batch: T) -> tuple[T, Arrival | None]:
        """The batch on the device, and when it is there; the host waits for nothing."""
        with self._api.stream(self._stream):
            moved = each_tensor(batch, self._sent)
            return moved, self._stream.record_event()

    def receive(self, batch: T, arrived: Arrival | None) -> T:
        """The batch, for kernels queued from now on: they wait until it has arrived, and keep its memory while they run."""
        current = self._api.current_stream()
        current.wait_event(arrived)
        if self._device.type != "cpu":
            each_tensor(batch, lambda tensor: _kept_for(tensor, current))
        return batch

    def _sent(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _kept_for(tensor: Tensor, stream: Any) -> Tensor:
    if tensor.device.type != "cpu":
        tensor.record_stream(stream)
    return tensor


def each_tensor(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """`value` with `change` applied to every tensor in it: in dataclasses, lists and tuples; of `Noised` all but its samples,
    which are read on the host alone."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        changed = type(value)(each_tensor(item, change) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        left = {"samples"} if isinstance(value, Noised) else set()
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left}
        changed = replace(value, **{name: each_tensor(part, change) for name, part in parts.items()})
    return cast(T, changed)


class IdleTime:
    """How long a device waited between steps: from the end of one's kernels to the beginning of the next one's.

    None on a CPU, where the wait of the host is the wait of training.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_measured = device.type == "cuda"
        self._ended: Any = None
        self._gaps: list[tuple[Any, Any]] = []

    def begins(self) -> None:
        """Call it when the first kernel of a step is about to be queued, what it reads having been received."""
        if self._is_measured and self._ended is not None:
            self._gaps.append((self._ended, self._mark()))

    def ends(self) -> None:
        """Call it when the last kernel of a step has been queued."""
        if self._is_measured:
            self._ended = self._mark()

    def take_s(self) -> float | None:
        """Seconds since the last call. Waits for the device."""
        if not self._is_measured:
            return None
        torch.cuda.synchronize()
        gaps, self._gaps = self._gaps, []
        return float(sum(ended.elapsed_time(began) for ended, began in gaps)) / 1e3

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
