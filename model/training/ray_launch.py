"""Ranks started by Ray Train instead of torchrun, from the same recipe: a cluster that curates can train too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.training.config import TrainConfig


def train_on_ray(config: TrainConfig, folder: Path, num_workers: int, *, allow_changes: bool = False) -> None:
    """Train a stage on `num_workers` ranks, one GPU each where the cluster has GPUs. `folder` must be seen by all nodes.

    A worker that dies takes the group down; Ray starts it again and it goes on from the newest checkpoint, three times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={
            "config": config.with_absolute_paths().model_dump_json(),
            "folder": str(folder.resolve()),
            "allow_changes": allow_changes,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if has_gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=has_gpus),
        run_config=RunConfig(
            name=config.name,
            storage_path=str((folder / "ray").resolve()),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    trainer.fit()


def _train_rank(given: dict[str, Any]) -> None:
    from model.training.start import train

    config = TrainConfig.model_validate_json(given["config"])
    train(config, Path(given["folder"]), allow_changes=given["allow_changes"])
