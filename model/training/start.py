"""A stage begun or gone on with, by what its recipe asks for."""

from __future__ import annotations

from pathlib import Path

from model.ranks import World, open_world
from model.training.config import TrainConfig
from model.training.distill import Distillation
from model.training.train import Training


def train(config: TrainConfig, folder: Path, *, allow_changes: bool = False) -> int:
    """Steps done in all. Every rank calls this; see `Training`."""
    with open_world() as world, open_training(config, folder, world, allow_changes=allow_changes) as training:
        training.run()
        return training.step


def open_training(config: TrainConfig, folder: Path, world: World, *, allow_changes: bool = False) -> Training:
    """What trains the stage, or distils, to be entered."""
    trainer = Training if config.distill is None else Distillation
    return trainer(config, folder, world, allow_changes=allow_changes)
