"""What the ranks of multi-process tests do; top-level functions, because each rank is a fresh process.

Ranks are forked off a process that has imported this: what every rank would import in its first step is imported here.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import pandas  # noqa: F401
import torch
import torch._dynamo
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.data import retry
from model.ranks import open_world
from model.sampling.batch import generate_all
from model.sampling.config import SampleConfig
from model.training.config import OptimConfig, ParallelConfig, TrainConfig
from model.training.optim import build_optimizer
from model.training.parallel import make_mesh
from model.training.state import complete, load_tensors, state_tensors
from model.training.train import Training
from schemas.errors import NavaError


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def in_turn(rank: int, jobs: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """Several of the functions here, one after the other: starting ranks costs seconds."""
    for job, arguments in jobs:
        job(rank, *arguments)


class MuonMatrix(torch.nn.Module):
    """Matrices under the names of a block, tall and wide, of odd sizes, and something for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.single_blocks = torch.nn.ModuleList(torch.nn.Linear(*size, bias=True) for size in ((33, 64), (64, 33)))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def steps(self, optimizer: Any) -> None:
        """Three, along random gradients, the same at any number of ranks."""
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for parameter in self.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = (
                    distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
                    if isinstance(parameter, DTensor)
                    else gradient
                )
            optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        """Whole ones, by name."""
        return {name: whole(parameter) for name, parameter in self.named_parameters()}


def muon_steps(rank: int, target: Path) -> None:
    """Weights that Muon moved, sharded as training shards them, in `target`."""
    with open_world() as world:
        model = MuonMatrix()
        fully_shard(model, mesh=make_mesh(world, ParallelConfig()))
        model.steps(build_optimizer(model, OptimConfig(kind="muon")))
        weights = model.weights()
    if rank == 0:
        torch.save(weights, target)


def gradients_and_weights(rank: int, jobs: list[tuple[TrainConfig, Path, int]]) -> None:
    """For each (recipe, folder, steps): gradients of the first step, then weights and averages, in folder.pt.

    What training reports is in the folder.
    """
    for config, folder, num_steps in jobs:
        with open_world() as world, Training(config, folder, world) as training:
            step = training.next_step()
            training.accumulate(step)
            gradients = {name: whole(p.grad) for name, p in training.model.named_parameters()}
            training.optimizer.zero_grad()
            training.report(step, training.learn(step))
            for _ in range(num_steps - 1):
                step = training.next_step()
                training.report(step, training.learn(step))
            training.metrics.write_samples()
            weights = {name: whole(p) for name, p in training.model.named_parameters()}
            averages = {
                name: whole(average) for name, average in (training.ema.averages if training.ema else {}).items()
            }
        if rank == 0:
            torch.save({"gradients": gradients, "weights": weights, "averages": averages}, folder.with_suffix(".pt"))


def write_error(rank: int, configs: list[TrainConfig], out: Path) -> None:
    """Every rank trains on what its own recipe names; writes what stops it."""
    with open_world() as world, Training(configs[rank], out, world) as training:
        try:
            while training.has_more:
                training.learn(training.next_step())
        except NavaError as error:
            out.with_name(f"{out.name}-{rank}").write_text(f"{type(error).__name__}: {error}")


def save_states(rank: int, config: TrainConfig, folder: Path, out: Path) -> None:
    """Two steps, an asynchronous save, then at once a third step that must not show in what is saved."""
    with open_world() as world, Training(config, folder, world) as training:
        for _ in range(2):
            step = training.next_step()
            training.learn(step)
        expected = {
            name: whole(value)
            for name, value in state_tensors(training.model, training.optimizer, training.ema).items()
        }
        training.save(step)
        training.learn(training.next_step())
    if rank == 0:
        torch.save(expected, out)


def load_states(rank: int, config: TrainConfig, folder: Path, out: Path) -> None:
    """Loads the checkpoint in `folder` at this number of ranks and saves it whole."""
    with open_world() as world, Training(config, out.parent / f"{out.stem}-run", world) as training:
        tensors = state_tensors(training.model, training.optimizer, training.ema)
        (newest,) = complete(folder / "checkpoints")
        load_tensors(newest, tensors, world)
        loaded = {name: whole(value) for name, value in tensors.items()}
    if rank == 0:
        torch.save(loaded, out)


def train_until(rank: int, config: TrainConfig, folder: Path, num_steps: int, out: Path) -> None:
    """Trains from where `folder` is up to `num_steps`, saves there; writes weights, ids seen and time to resume."""
    began = time.perf_counter()
    seen: list[tuple[int, str]] = []
    with open_world() as world, Training(config, folder, world) as training:
        started_s = time.perf_counter() - began
        while training.step < num_steps:
            step = training.next_step()
            training.report(step, training.learn(step))
            seen += [(step.number, s.clip_id) for micro in step.micro_steps for s in micro.noised.samples]
        training.save(step)
        tensors = state_tensors(training.model, training.optimizer, training.ema)
        states = {name: whole(value) for name, value in tensors.items()}
    result: dict[str, Any] = {"seen": seen, "started_s": started_s}
    if rank == 0:
        result["states"] = states
    torch.save(result, out.with_name(f"{out.name}-{rank}"))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 300 kB, which is what a checkpoint meets on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_to_end(rank: int, config: TrainConfig, folder: Path, full_at_step: int = 0) -> None:
    """Trains to the end, with a full disk while one step's checkpoint is written; weights in folder.pt, words in folder.0.txt.

    Reads that fail are tried again at once.
    """
    retry.WAITS_S = (0.0,) * 4
    said = io.StringIO()
    with redirect_stdout(said), open_world() as world, Training(config, folder, world) as training:
        while training.has_more:
            step = training.next_step()
            training.report(step, training.learn(step))
            if training.is_save_due:
                with full_disk() if step.number == full_at_step else nullcontext():
                    training.save(step)
                    training.checkpoints.finish()
        training.settle()
        weights = {name: whole(p) for name, p in training.model.named_parameters()}
    if rank == 0:
        torch.save(weights, folder.with_suffix(".pt"))
    folder.with_suffix(f".{rank}.txt").write_text(said.getvalue())


def die_while_saving(rank: int, config: TrainConfig, folder: Path, at_step: int) -> None:
    """Every rank kills itself while the checkpoint of a step is being written."""
    with open_world() as world, Training(config, folder, world) as training:
        while training.has_more:
            step = training.next_step()
            training.report(step, training.learn(step))
            if training.is_save_due:
                training.save(step)
            if step.number == at_step:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def poison(training: Training, is_on: bool) -> Iterator[None]:
    """While open, the loss of this rank is not a number."""
    objective = training.feed.objective
    total = objective.total
    if is_on:
        objective.total = lambda *given: total(*given) * float("nan")  # type: ignore[method-assign]
    try:
        yield
    finally:
        objective.total = total  # type: ignore[method-assign]


def train_with_nan(rank: int, config: TrainConfig, folder: Path, bad_step: int, bad_rank: int) -> None:
    """Trains to the end; at one step the loss of one rank is not a number. Writes weights and moments, in folder.pt."""
    with open_world() as world, Training(config, folder, world) as training:
        while training.has_more:
            step = training.next_step()
            with poison(training, step.number == bad_step and rank == bad_rank):
                training.report(step, training.learn(step))
        tensors = state_tensors(training.model, training.optimizer, None)
        found = {name: whole(value) for name, value in tensors.items()}
    if rank == 0:
        torch.save(found, folder.with_suffix(".pt"))


def generate_together(rank: int, weights: Path, config: SampleConfig, prompts: Path, out: Path) -> None:
    """All ranks share the clips of a file; writes the names of what this rank wrote."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(torch.distributed.get_world_size()))
    written = generate_all(weights, config, prompts, out, str)
    out.with_name(f"{out.name}-{rank}.json").write_text(json.dumps([path.name for path in written]))


def validate(rank: int, config: TrainConfig, out: Path) -> None:
    """Writes the held-out losses of the initial weights, one file a rank."""
    with open_world() as world, Training(config, out, world) as training:
        assert training.validator is not None
        line = training.validator.measure(training.model, 0)
    out.with_name(f"{out.name}-{rank}.json").write_text(json.dumps(line))
