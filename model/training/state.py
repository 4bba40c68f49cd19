"""Training states on disk: written in the background, published whole, found again, read at any number of ranks.

    checkpoints/step-00000500/        appears by one rename when every rank's bytes are on disk
        .metadata  *.distcp           DCP: model.*, ema.*, optimizer.exp_avg.*, optimizer.exp_avg_sq.*, or momentum_buffer.*
        state.json                    step, plan position, damaged samples, schedule, recipe, sum of every file
    checkpoints/.partial-00001000/    being written; left behind by a kill, removed by the next start
    checkpoints/good                  a link to the newest one after which training went on soundly; never rotated away
    checkpoints/damaged-step-...      found to be other bytes than were written; set aside, never read again

There is no state of random numbers: noise, modes and order follow from (seed, step, clip) and the plan position.
The folder must be one file system that all ranks see, or an fsspec URL (checkpoint_store.py).
"""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import AdamW

from model.data.position import PlanPosition
from model.ranks import World
from model.training.checkpoint_folders import complete, step_of
from model.training.checkpoint_store import as_path, open_folder
from model.training.optim import Ema, moments
from model.training.parallel import damage_seen_by_all
from model.weights.dcp_files import NOTES, open_reader, read_metadata
from schemas.errors import MachineError, ModelError
from schemas.machine import GOES_ON

if TYPE_CHECKING:
    from upath import UPath

__all__ = [
    "Checkpoints", "Notes", "complete", "load_tensors", "read_notes", "set_optimizer_step", "state_tensors", "step_of"
]  # fmt: skip
MAX_FAILURES = 10
"""Checkpoints in a row that could not be written before training ends: what it learns would be lost."""
WRITE_ERRORS = (CheckpointException, OSError, RuntimeError)
"""What writing raises: on all ranks what any rank met, the system's refusal, and torch's archive writer on top of it."""


class Notes(TypedDict):
    """What a checkpoint knows besides its tensors."""

    step: int
    schedule: dict[str, Any]
    """State of the learning rate's schedule."""
    num_updates: int
    """Steps that changed the weights: without those whose gradients were not finite."""
    num_fake_updates: NotRequired[int]
    """Of the fake network, where a student is distilled."""
    num_ema_updates: int
    recipe: dict[str, Any]
    """The resolved recipe, of which `network` describes the weights."""
    world_size: int
    position: PlanPosition
    damaged: dict[str, str]
    """Samples that could not be read, with their reasons."""


class Checkpoints:
    """The checkpoints of one training folder. All ranks make the same calls in the same order.

    One that cannot be written is said, cleaned up and counted; `has_failed` then asks, on rank 0, for another `save`.
    """

    def __init__(
        self,
        folder: Path | str,
        world: World,
        *,
        num_kept: int = 3,
        keep_every_steps: int | None = None,
        is_asynchronous: bool = True,
    ) -> None:
        self._folder: Any = open_folder(folder)
        self._world = world
        self._num_kept, self._keep_every = num_kept, keep_every_steps
        self._is_asynchronous = is_asynchronous
        self._writing: tuple[int, Future[Any]] | None = None
        self._failure, self._num_failures = "", 0
        if world.is_first:
            self._folder.prepare()
        dist.barrier(group=world.background)

    def __str__(self) -> str:
        """Where they are."""
        return str(self._folder)

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint could not be written; told on rank 0."""
        return bool(self._failure)

    def newest(self) -> Path | UPath | None:
        """The latest checkpoint whose files are what was written, the same on all ranks; None where there is none at all.

        Ranks sum up the files together. A damaged one is set aside with a line, and the one before it is looked at. Raises
        ModelError when all are damaged: to begin anew would throw away what they know.
        """
        damage = ""
        while (found := self._latest()) is not None:
            if not (damage := damage_seen_by_all(found, self._world)):
                return found
            if self._world.is_first:
                aside = self._folder.set_aside(found)
                print(
                    f"{found} is damaged: {damage}. It is set aside as {aside}; the one before it is taken.", flush=True
                )
        if damage:
            raise ModelError(
                f"no checkpoint in {self._folder} is whole; the last one tried: {damage}.",
                remedy="Copy one there again, or start in another folder (network.weights takes weights alone).",
            )
        return None

    def prove(self, step: int) -> None:
        """Call when training was sound up to `step`: the newest checkpoint before it is `good`, and stays until another is."""
        if not self._world.is_first:
            return
        proven = [path for path in self._folder.complete() if step_of(path) < step]
        if proven and proven[-1].name != self._folder.good():
            self._folder.mark_good(proven[-1])

    def _latest(self) -> Path | UPath | None:
        found = [str(path) for path in self._folder.complete()[-1:]] if self._world.is_first else []
        found = found or [""]
        dist.broadcast_object_list(found, src=0, group=self._world.background)
        return as_path(found[0]) if found[0] else None

    def save(self, step: int, tensors: dict[str, Tensor], notes: Notes | None, trouble: str = "") -> None:
        """Write a checkpoint; waits for the one before it. `notes` of rank 0 are kept, as JSON; other ranks give None.

        Asynchronous: returns once the states are copied to host memory, so training may go on changing them. `trouble`, told
        on rank 0, is a reason not to write. Raises MachineError when `MAX_FAILURES` in a row could not be written.
        """
        self._end()
        if self._world.is_first and not trouble:
            try:
                self._folder.begin(step)
            except OSError as error:
                trouble = _cause(error)
        agreed: list[Any] = [trouble, self._failure, self._num_failures]
        dist.broadcast_object_list(agreed, src=0, group=self._world.background)
        trouble, failure, num_failures = agreed
        if num_failures >= MAX_FAILURES:
            raise MachineError(
                f"{num_failures} checkpoints in a row could not be written to {self._folder}: {failure}.",
                remedy=f"Make room there, or make it writable; {GOES_ON}",
            )
        if trouble:
            self._fail(step, trouble)
            return
        writer = self._folder.writer(step, cast("dict[str, Any]", notes))
        write = dcp.async_save if self._is_asynchronous else _save_at_once
        self._writing = step, write(tensors, storage_writer=writer, process_group=self._world.background)
        if not self._is_asynchronous:
            self._end()

    def poll(self) -> None:
        """Publish the checkpoint being written if it is whole by now. Cost: nothing."""
        if self._writing is not None and self._writing[1].done():
            self._end()

    def finish(self) -> str:
        """Wait until the checkpoint being written, if any, is published; why the last one could not be, on all ranks."""
        self._end()
        agreed = [self._failure]
        dist.broadcast_object_list(agreed, src=0, group=self._world.background)
        return agreed[0]

    def _end(self) -> None:
        if self._writing is None:
            return
        (step, written), self._writing = self._writing, None
        try:
            written.result()
            self._publish(step)
        except WRITE_ERRORS as error:
            self._fail(step, _cause(error))

    def _publish(self, step: int) -> None:
        """Only rank 0 moves anything, and its save returns last, after it wrote the metadata of all ranks."""
        if not self._world.is_first:
            return
        self._folder.publish(step)
        self._failure, self._num_failures = "", 0
        for old in self._folder.complete()[: -self._num_kept]:
            is_kept = self._keep_every and step_of(old) % self._keep_every == 0
            if old.name != self._folder.good() and not is_kept:
                self._folder.remove(old)

    def _fail(self, step: int, cause: str) -> None:
        """Say that a checkpoint was not written, and remove what there is of it. Ranks beside the first know by asking it."""
        if not self._world.is_first:
            return
        self._folder.discard(step)
        self._failure, self._num_failures = cause, self._num_failures + 1
        print(
            f"the checkpoint of step {step} could not be written to {self._folder}: {cause}{self._folder.room()}. "
            "What there was of it is removed, training goes on and tries again soon.",
            flush=True,
        )


def _save_at_once(tensors: dict[str, Tensor], **options: Any) -> Future[Any]:
    """What `dcp.async_save` gives, done when it returns."""
    written: Future[Any] = Future()
    try:
        written.set_result(dcp.save(tensors, **options))
    except WRITE_ERRORS as error:
        written.set_exception(error)
    return written


def read_notes(checkpoint: Path | UPath) -> Notes:
    """What `save` was given as notes."""
    notes: Notes = json.loads((checkpoint / NOTES).read_text())
    return notes


def _cause(error: BaseException) -> str:
    """Why writing failed, in one line: the first rank's reason where several have one."""
    if isinstance(error, CheckpointException):
        rank, (error, _) = min(error.failures.items())
        return f"{_cause(error)} (rank {rank})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error).strip().partition("\n")[0] or type(error).__name__


def state_tensors(model: nn.Module, optimizer: AdamW, ema: Ema | None) -> dict[str, Tensor]:
    """Every tensor of the training state by name, the live ones: saving reads them, loading fills them. Frozen weights

    are none: they are where they came from.

    An optimiser that has made no step yet gets its moments here, as zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.detach()
        tensors |= {f"optimizer.{moment}.{name}": value for moment, value in moments(optimizer, parameter).items()}
    if ema is not None:
        tensors |= {f"ema.{name}": average for name, average in ema.averages.items()}
    return tensors


def load_tensors(checkpoint: Path | UPath, tensors: dict[str, Tensor], world: World) -> None:
    """Fill the tensors in place from a checkpoint that any number of ranks wrote. Raises ModelError on a misfit."""
    stored = read_metadata(checkpoint).state_dict_metadata
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
    try:
        dcp.load(tensors, storage_reader=open_reader(checkpoint), process_group=world.background)
    except CheckpointException as error:
        raise ModelError(
            f"{checkpoint} cannot be read: {_cause(error)}.", remedy="Move it away to go on from the one before it."
        ) from error


def set_optimizer_step(optimizer: AdamW, step: int) -> None:
    """Tell the optimiser how many steps its moments have seen."""
    for state in optimizer.state.values():
        state["step"].fill_(float(step))
