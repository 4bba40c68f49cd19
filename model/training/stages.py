"""Several stages as one run: each begins from the weights of the one before, once that one has reached what it must.

    OUT/1-stage1_audio/  OUT/2-stage2_joint/  ...        a training folder each

The same command goes on where it was: finished stages are passed over, by the checkpoint of their last step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from model.ranks import World, open_world
from model.training.config import Bound, LoadedStage, TrainConfig
from model.training.start import open_training
from model.training.state import complete
from schemas.errors import ModelError


def run_stages(stages: Sequence[LoadedStage], out: Path, *, allow_changes: bool = False) -> bool:
    """Train all stages under `out`; whether they came to their end, and were not asked to stop. Every rank calls this.

    Raises ModelError when a stage did not reach what its gates ask for.
    """
    with open_world() as world:
        start: Path | None = None
        for number, stage in enumerate(stages, start=1):
            folder = stage_folder(out, number, stage)
            config = from_weights(stage.train, start)
            if is_finished(folder, config):
                tell(world, f"{folder.name}: finished at step {config.num_steps}")
            else:
                tell(world, f"{folder.name}: from {config.network.weights or 'initial weights'}")
                with open_training(config, folder, world, allow_changes=allow_changes) as training:
                    if not training.run():
                        return False
            dist.barrier(group=world.control)
            refuse_unless_reached(stage.gates, folder)
            start = complete(folder / "checkpoints")[-1]
    return True


def stage_folder(out: Path, number: int, stage: LoadedStage) -> Path:
    """Where a stage trains."""
    return out / f"{number}-{stage.train.name}"


def from_weights(config: TrainConfig, start: Path | None) -> TrainConfig:
    """The stage, beginning from these weights; from its own where there are none."""
    if start is None:
        return config
    return config.model_copy(update={"network": config.network.model_copy(update={"weights": start})})


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether there is a checkpoint of the stage's last step."""
    found = complete(folder / "checkpoints")
    return bool(found) and found[-1].name == f"step-{config.num_steps:08d}"


def refuse_unless_reached(gates: dict[str, Bound], folder: Path) -> None:
    """Raise ModelError when a number of the last line of a stage is out of its bounds, or was never measured."""
    for key, bound in gates.items():
        value = last_value(folder, key)
        if not bound.holds(value):
            asked = " and ".join(f"{side} {limit}" for side, limit in bound.model_dump(exclude_none=True).items())
            raise ModelError(
                f"{folder.name} ended with {key} {'unknown' if value is None else f'{value:.6g}'}, its gate asks for {asked}.",
                remedy="Train it for longer (num_steps), mend what it learns from, or change the gate; then the same command "
                "goes on.",
            )


def last_value(folder: Path, key: str) -> float | None:
    """A number of the last line of FOLDER/KIND.jsonl, with `key` KIND.name.name; None where there is none."""
    kind, *names = key.split(".")
    path = folder / f"{kind}.jsonl"
    value: Any = json.loads(path.read_text().splitlines()[-1]) if path.is_file() and path.stat().st_size else None
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def stages_text(stages: Sequence[LoadedStage], out: Path) -> str:
    """The stages as a table for the terminal."""
    lines = [f"{'stage':<22}{'steps':>8}{'packs':>7}{'learning rate':>15}  mixture; data; gates"]
    for number, stage in enumerate(stages, start=1):
        config = stage.train
        mixture = " : ".join(f"{part.name} {part.weight:g}" for part in config.plan.mixture) or "all"
        gates = ", ".join(f"{key} {bound.model_dump(exclude_none=True)}" for key, bound in stage.gates.items())
        lines.append(
            f"{stage_folder(out, number, stage).name:<22}{config.num_steps:>8,}{config.plan.num_packs:>7}"
            f"{config.optim.learning_rate:>15.1e}  {mixture}; {config.data.shards}; {gates or 'none'}"
        )
    return "\n".join(lines)


def tell(world: World, text: str) -> None:
    """Say something once."""
    if world.is_first:
        print(text, flush=True)
