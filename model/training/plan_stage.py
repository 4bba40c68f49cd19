"""What a stage will do and need, before any GPU is used: the plan's preview, memory per GPU, and what cannot fit."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.preview import MemoryRow, PreviewFacts, memory_table, preview, preview_text, refuse_what_cannot_fit
from model.encoding.online import open_index
from model.network.nava import Nava
from model.training.config import TrainConfig
from schemas.budget import num_parameters
from schemas.errors import PlanError
from schemas.files import write_whole

MAX_PREVIEWED_PACKS = 4096
"""The preview plans this many packs at most, seconds of work at any number of GPUs."""


class StageMemoryRow(MemoryRow):
    """Estimated bytes per GPU of this stage's recipe."""

    micro_steps: int
    whole_gradient_bytes: int
    """Of gradients held while micro-steps are added up."""
    divides: bool
    """The packs of a step can be shared out over this number of GPUs."""


def plan_stage(
    config: TrainConfig, num_gpus: tuple[int, ...], out: Path | None = None, *, memory_only: bool = False
) -> str:
    """The page `nava-train plan` prints; also written to `out` as plan.json and plan.txt, for the inspector.

    Raises PlanError when the stage fits none of `num_gpus`, or when its packs cannot be made of the index.
    """
    check_parameters(config)
    memory = stage_memory(config, num_gpus)
    facts: dict[str, object] = {"recipe": config.name, "num_steps": config.num_steps}
    if memory_only:
        text = memory_text(config, memory)
        facts["memory"] = memory
    else:
        shown: PreviewFacts = {**preview_facts(config, open_index(config.data), num_gpus), "memory": memory}
        text = preview_text(shown)
        facts |= shown
    if undivided := [str(row["num_gpus"]) for row in memory if not row["divides"]]:
        teams = f" in teams of {config.plan.context_parallel}" if config.plan.context_parallel > 1 else ""
        text += (
            f"\n{config.plan.num_packs} packs per step cannot be shared out over {', '.join(undivided)} GPUs{teams}."
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "plan.json", json.dumps(facts, indent=1).encode())
        write_whole(out / "plan.txt", f"{text}\n".encode())
    if not any(row["fits"] for row in memory):
        num_shards = max(num_gpus) // config.parallel.num_replicas
        budget, hardware = config.plan.token_budget, config.hardware
        refuse_what_cannot_fit(config.shape, budget, hardware, config.parallel.recompute, max(1, num_shards))
        raise PlanError(
            f"the gradients of one rank do not fit beside a pack on {max(num_gpus)} GPUs.",
            remedy="Set parallel.sync_every_micro_step to true.",
        )
    return text


def preview_facts(config: TrainConfig, index: ShardIndex, num_gpus: tuple[int, ...]) -> PreviewFacts:
    """`model.data.preview.preview` of the stage, planned no further than it takes to tell."""
    plan = EpochPlan(index, config.plan, config.shape)
    num_steps = max(1, min(50, MAX_PREVIEWED_PACKS // config.plan.num_packs))
    recompute = config.parallel.recompute
    return preview(plan, num_steps=num_steps, num_gpus=num_gpus, hardware=config.hardware, recompute=recompute)


def stage_memory(config: TrainConfig, num_gpus: tuple[int, ...]) -> list[StageMemoryRow]:
    """Estimated bytes per GPU at each number of GPUs: copies of the states and whole gradients included."""
    parallel, rows = config.parallel, list[StageMemoryRow]()
    for n in num_gpus:
        shards = max(1, n // parallel.num_replicas)
        (row,) = memory_table(config.shape, config.plan.token_budget, config.hardware, parallel.recompute, (shards,))
        num_micro_steps = max(1, config.plan.num_packs // n)
        whole = 0 if parallel.sync_every_micro_step or num_micro_steps == 1 else 4 * num_parameters(config.shape)
        total = row["total_bytes"] + whole
        divides = config.plan.num_packs % n == 0 and n % config.plan.context_parallel == 0
        fits = total <= config.hardware.memory_bytes and n % parallel.num_replicas == 0
        rows.append({**row, "num_gpus": n, "micro_steps": num_micro_steps, "whole_gradient_bytes": whole,
                     "total_bytes": total, "fits": fits, "divides": divides})  # fmt: skip
    return rows


def memory_text(config: TrainConfig, memory: list[StageMemoryRow]) -> str:
    """Memory per GPU as a table for the terminal, when there is no index to preview."""
    shape, hardware = config.shape, config.hardware
    lines = [
        f"{config.name}: {num_parameters(shape) / 1e9:.3f} B parameters, packs of at most {config.plan.token_budget:,} "
        f"tokens, recompute={config.parallel.recompute}, {config.parallel.precision}",
        f"{'GPUs':>6}{'micro-steps':>13}{'states GB':>11}{'activations GB':>16}{'whole grads GB':>16}{'total GB':>10}"
        f"  fits {hardware.name} ({hardware.memory_bytes / 1e9:.0f} GB)",
    ]
    for row in memory:
        counts = (row["states_bytes"], row["activations_bytes"], row["whole_gradient_bytes"], row["total_bytes"])
        sizes = [count / 1e9 for count in counts]
        numbers = "".join(f"{size:>{width}.1f}" for size, width in zip(sizes, (11, 16, 16, 10), strict=True))
        lines.append(f"{row['num_gpus']:>6}{row['micro_steps']:>13}{numbers}  {'yes' if row['fits'] else 'NO'}")
    return "\n".join(lines)


def check_parameters(config: TrainConfig) -> int:
    """Parameters of the network, counted on the meta device. Raises PlanError if the budget's formula differs."""
    with torch.device("meta"):
        counted: int = sum(parameter.numel() for parameter in Nava(config.network.network()).parameters())
    if counted != num_parameters(config.shape):
        raise PlanError(
            f"the network has {counted:,} parameters, the budget reckons with {num_parameters(config.shape):,}."
        )
    return counted
