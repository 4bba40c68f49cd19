"""What the ranks of multi-process tests do; top-level functions, because each rank is a fresh process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.training.config import TrainConfig
from model.training.parallel import open_world
from model.training.state import Checkpoints, complete, load_tensors, state_tensors
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


def newest_of(rank: int, folder: Path, out: Path) -> None:
    """Writes the name of the checkpoint that this rank would go on from."""
    with open_world() as world:
        found = Checkpoints(folder, world).newest()
    out.with_name(f"{out.name}-{rank}").write_text(json.dumps(found and found.name))
