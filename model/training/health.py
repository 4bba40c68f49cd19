"""What training watches itself for: steps that are not finite, spikes, gradients by part of the network, slow ranks."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from model.ranks import World
from model.training.config import HealthConfig

MIN_SEEN = 20
"""Steps before a spike can be told: until then there is nothing to compare with."""
DEVIATION_OF_MEDIAN = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


NOTABLE_WAIT = 0.05
"""Share of the time above which waiting is worth a name."""
Bottleneck = Literal["read", "encode", "compute", "sync"]


def bottleneck(stall: float, causes_s: Mapping[str, float], sync: float, *, is_encoding: bool) -> Bottleneck:
    """What holds training up: getting samples (`read`, `encode`), waiting for other ranks (`sync`), else `compute`.

    stall, sync: shares of the time that ranks wait for their own next step and for each other. Of what samples were waited
    for the longer is named; turning bytes into samples counts as reading unless clips are encoded on the way.
    """
    if max(stall, sync) < NOTABLE_WAIT:
        return "compute"
    if sync > stall:
        return "sync"
    return "encode" if is_encoding and causes_s["decode"] + causes_s["queue"] >= causes_s["read"] else "read"


class SlowestRank(TypedDict):
    """The rank that the others waited for."""

    rank: int
    host: str
    busy_s: float
    """Seconds a step in which it did not wait for other ranks."""
    over_median: float
    """The same over that of the median rank."""


def leave_out_unless_finite(optimizer: AdamW, norm: Tensor) -> None:
    """Let the next `optimizer.step` change nothing, weights and moments, if the norm of all gradients is not finite.

    Decided on the device, by the number that all ranks have alike, so nobody waits. Fused AdamW reads `found_inf`, which
    is how gradient scaling skips steps.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = (~norm.isfinite()).float()


def num_updates(optimizer: AdamW) -> int:
    """Steps that changed the weights: those left out are not counted. Waits for the device."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Norm of the gradients of each part of the network, over all ranks, which all call it; scalars on the device."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(part_of(name), []).append(parameter.grad)
    norms = {group: torch.nn.utils.get_total_norm(gradients, foreach=True) for group, gradients in groups.items()}
    return {group: n.full_tensor() if isinstance(n, DTensor) else n for group, n in norms.items()}


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to: align_video, align_audio, fusion, or its module."""
    first = name.partition(".")[0]
    if first == "double_blocks":
        return "align_audio" if "_audio." in name else "align_video"
    return "fusion" if first == "single_blocks" else first


class Spikes:
    """Tells losses and norms that stand out from those of the last steps: by median and median deviation, not by mean.

    A number enters the window whether it stood out or not, so that a new level becomes the normal one.
    """

    def __init__(self, config: HealthConfig) -> None:
        self._bound = config.spike_deviations
        self._seen: dict[str, deque[float]] = {}
        self._size = config.spike_window_steps

    def look(self, kind: str, value: float) -> str:
        """What stands out about one step's number, in a few words; empty if nothing does. Skip what is not finite."""
        if not np.isfinite(value):
            return ""
        seen = self._seen.setdefault(kind, deque(maxlen=self._size))
        found = ""
        if len(seen) >= MIN_SEEN:
            past = np.fromiter(seen, float)
            median = float(np.median(past))
            deviation = DEVIATION_OF_MEDIAN * float(np.median(np.abs(past - median)))
            score = (value - median) / max(deviation, 1e-3 * abs(median), 1e-12)
            if score > self._bound:
                found = f"{kind} {value:.4g} is {score:.0f} robust deviations above the last {len(past)} steps' {median:.4g}"
        seen.append(value)
        return found


class Ranks:
    """Which rank the others wait for. Every rank makes one, and asks it at the same steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: list[Any] = [""] * world.size
        dist.all_gather_object(self._hosts, socket.gethostname(), group=world.control)

    def slowest(self, busy_s: float) -> SlowestRank | None:
        """The rank that was busy longest a step, by what each says of itself; None where there is one rank."""
        if self._world.size == 1:
            return None
        mine = torch.zeros(self._world.size, dtype=torch.float64)
        mine[self._world.rank] = busy_s
        dist.all_reduce(mine, group=self._world.control)
        everyone: NDArray[np.float64] = mine.numpy()
        rank = int(everyone.argmax())
        over = float(everyone[rank] / max(float(np.median(everyone)), 1e-9))
        return {"rank": rank, "host": self._hosts[rank], "busy_s": float(everyone[rank]), "over_median": over}


def longest_run(is_bad: NDArray[np.bool_], before: int) -> tuple[int, int]:
    """(longest run of True with `before` of them ahead of the first, run at the end)."""
    longest = run = before
    for bad in is_bad.tolist():
        run = run + 1 if bad else 0
        longest = max(longest, run)
    return longest, run
