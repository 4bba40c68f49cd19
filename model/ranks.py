"""This process among those that work together: its rank, its device, groups to talk in, and teams that share samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from model.network.context_parallel import Team


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: ranks, its device, and two groups for numbers in host memory beside those of training."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup
    """For the few numbers that ranks agree on in every step; they never wait for the device."""
    background: dist.ProcessGroup
    """For writing checkpoints in a thread, which may not interleave with anything else."""

    @property
    def is_first(self) -> bool:
        """The one rank that writes what there is one of."""
        return self.rank == 0


COLLECTIVE_TIMEOUT = timedelta(minutes=20)
"""How long a rank waits for the others: beyond the four minutes for which reads are tried again, and a slow checkpoint."""
CUDA_ENVIRONMENT = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""Packs are of ever new lengths, which fixed segments of memory fragment; and what NCCL did last is written when it hangs.
Only where the environment does not say otherwise."""


@contextmanager
def open_world() -> Iterator[World]:
    """This process's place: as `torchrun` or Ray Train set it up, or alone. Leaves no process group behind that it made."""
    has_gpu = torch.cuda.is_available()
    is_ours = not dist.is_initialized()
    if has_gpu:
        for name, value in CUDA_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if is_ours:
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        if "RANK" in os.environ:
            # with its device known, NCCL connects at once, and an error names the rank that has it
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=device if has_gpu else None)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        control, background = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
        yield World(dist.get_rank(), dist.get_world_size(), device, control, background)
    finally:
        if is_ours:
            dist.destroy_process_group()


def make_team(world: World, num_members: int) -> Team | None:
    """This rank's team of neighbours that share long samples; None where ranks share none. Every rank calls it."""
    if num_members == 1:
        return None
    sizes = (world.size // num_members, num_members)
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=("team", "member"))
    return Team(world.rank % num_members, num_members, mesh.get_group("member"))
