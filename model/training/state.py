"""Training states on disk: written in the background, published whole, found again, read at any number of ranks.

    checkpoints/step-00000500/        appears by one rename when every rank's bytes are on disk
        .metadata  *.distcp           DCP: model.*, ema.*, optimizer.exp_avg.*, optimizer.exp_avg_sq.*
        state.json                    step, plan position, damaged samples, schedule, recipe
    checkpoints/.partial-00001000/    being written; left behind by a kill, removed by the next start

There is no state of random numbers: noise, modes and order follow from (seed, step, clip) and the plan position.
The folder must be one file system that all ranks see.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import AdamW

from model.data.position import PlanPosition
from model.training.optim import Ema
from model.training.parallel import World
from schemas.errors import ModelError
from schemas.files import publish_dir, write_whole

NAME = "step-{:08d}"
PARTIAL = ".partial-{:08d}"
NOTES = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Notes(TypedDict):
    """What a checkpoint knows besides its tensors."""

    step: int
    schedule: dict[str, Any]
    """State of the learning rate's schedule."""
    num_ema_updates: int
    recipe: str
    """Digest of the recipe."""
    world_size: int
    position: PlanPosition
    damaged: dict[str, str]
    """Samples that could not be read, with their reasons."""


class Checkpoints:
    """The checkpoints of one training folder. All ranks make the same calls in the same order."""

    def __init__(self, folder: Path, world: World, *, num_kept: int = 3, is_asynchronous: bool = True) -> None:
        self._folder, self._world = folder, world
        self._num_kept, self._is_asynchronous = num_kept, is_asynchronous
        self._writing: tuple[int, Future[Any]] | None = None
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".partial-*"):
                shutil.rmtree(leftover)
        dist.barrier(group=world.background)

    def newest(self) -> Path | None:
        """The latest complete checkpoint, the same on all ranks; None without one."""
        found = [str(max(complete(self._folder), default=""))] if self._world.is_first else [""]
        dist.broadcast_object_list(found, src=0, group=self._world.background)
        return Path(found[0]) if found[0] else None

    def save(self, step: int, tensors: dict[str, Tensor], notes: Notes | None) -> None:
        """Write a checkpoint; waits for the one before it. `notes` of rank 0 are kept, as JSON; other ranks give None.

        Asynchronous: returns once the states are copied to host memory, so training may go on changing them.
        """
        self.finish()
        partial = self._folder / PARTIAL.format(step)
        if self._world.is_first:
            partial.mkdir()
            write_whole(partial / NOTES, json.dumps(notes).encode())
        dist.barrier(group=self._world.background)
        if self._is_asynchronous:
            written = dcp.async_save(tensors, checkpoint_id=partial, process_group=self._world.background)
            self._writing = step, written
        else:
            dcp.save(tensors, checkpoint_id=partial, process_group=self._world.background)
            self._publish(step)

    def poll(self) -> None:
        """Publish the checkpoint being written if it is whole by now. Cost: nothing."""
        if self._writing is not None and self._writing[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint being written, if any, is published. Raises what went wrong in writing it."""
        if self._writing is None:
            return
        (step, written), self._writing = self._writing, None
        written.result()
        self._publish(step)

    def _publish(self, step: int) -> None:
        """Only rank 0 moves anything, and its save returns last, after it wrote the metadata of all ranks."""
        if not self._world.is_first:
            return
        publish_dir(self._folder / PARTIAL.format(step), self._folder / NAME.format(step))
        for old in sorted(complete(self._folder))[: -self._num_kept]:
            shutil.rmtree(old)


def complete(folder: Path) -> list[Path]:
    """The published checkpoints of a folder."""
    return [path for path in folder.glob("step-*") if (path / ".metadata").is_file() and (path / NOTES).is_file()]


def read_notes(checkpoint: Path) -> Notes:
    """What `save` was given as notes."""
    notes: Notes = json.loads((checkpoint / NOTES).read_text())
    return notes


def state_tensors(model: nn.Module, optimizer: AdamW, ema: Ema | None) -> dict[str, Tensor]:
    """Every tensor of the training state by name, the live ones: saving reads them, loading fills them.

    An optimiser that has made no step yet gets its moments here, as zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        tensors |= {f"optimizer.{moment}.{name}": state[moment] for moment in MOMENTS}
    if ema is not None:
        tensors |= {f"ema.{name}": average for name, average in ema.averages.items()}
    return tensors


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fill the tensors in place from a checkpoint that any number of ranks wrote. Raises ModelError on a misfit."""
    stored = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    wrong = [
        name
        for name, tensor in tensors.items()
        if name not in stored or tuple(stored[name].size) != tuple(tensor.shape)
    ]
    if wrong:
        raise ModelError(
            f"{checkpoint} does not fit this training: {len(wrong)} of {len(tensors)} tensors are missing or of another "
            f"shape, the first is {wrong[0]}.",
            remedy="Resume with the recipe that wrote it, or start a new stage from its weights (network.weights).",
        )
    dcp.load(tensors, checkpoint_id=checkpoint, process_group=world.background)


def set_optimizer_step(optimizer: AdamW, step: int) -> None:
    """Tell the optimiser how many steps its moments have seen."""
    for state in optimizer.state.values():
        state["step"].fill_(float(step))
