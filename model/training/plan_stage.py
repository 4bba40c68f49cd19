"""What a stage will do and need, before any GPU is used: the plan's preview, memory per GPU, and what cannot fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.preview import PreviewFacts, preview, preview_text
from model.encoding.online import open_index
from model.network.nava import Nava
from model.training.config import LoraConfig, TrainConfig
from model.training.memory import memory_per_gpu, most_tokens
from schemas.budget import num_parameters
from schemas.errors import PlanError
from schemas.files import write_whole
from schemas.recipe import RecipePart

MAX_PREVIEWED_PACKS = 4096
"""The preview plans this many packs at most, seconds of work at any number of GPUs."""


class MemoryRow(TypedDict):
    """Estimated bytes per GPU of this stage's recipe at one number of GPUs (`model/training/memory.py`)."""

    num_gpus: int
    micro_steps: int
    states_bytes: int
    gathered_bytes: int
    gradients_bytes: int
    kept_bytes: int
    """Of activations after the forward pass."""
    activations_bytes: int
    """At their peak."""
    workspace_bytes: int
    total_bytes: int
    fits: bool
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
    facts: dict[str, object] = {"recipe": config.name, "num_steps": config.num_steps, "memory": memory}
    text = memory_text(config, memory)
    if not memory_only:
        shown = preview_facts(config, open_index(config.data), num_gpus)
        text = f"{preview_text(shown)}\n\n{text}"
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
        refuse_what_cannot_fit(config, max(num_gpus))
    return text


def preview_facts(config: TrainConfig, index: ShardIndex, num_gpus: tuple[int, ...]) -> PreviewFacts:
    """`model.data.preview.preview` of the stage, planned no further than it takes to tell."""
    plan = EpochPlan(index, config.plan, config.shape)
    num_steps = max(1, min(50, MAX_PREVIEWED_PACKS // config.plan.num_packs))
    facts = preview(plan, num_steps=num_steps, num_gpus=num_gpus, hardware=config.hardware)
    hours = {number: config.relative_cost * each for number, each in facts["epoch_hours"].items()}
    return {**facts, "epoch_hours": hours}


def stage_memory(config: TrainConfig, num_gpus: tuple[int, ...]) -> list[MemoryRow]:
    """Estimated bytes per GPU at each number of GPUs: copies of the states and whole gradients included."""
    rows: list[MemoryRow] = []
    for n in num_gpus:
        need = memory_per_gpu(config, n)
        fits = need.total_bytes <= config.hardware.memory_bytes and n % config.parallel.num_replicas == 0
        rows.append(
            {
                "num_gpus": n,
                "micro_steps": max(1, config.plan.num_packs // n),
                "states_bytes": need.states_bytes,
                "gathered_bytes": need.gathered_bytes,
                "gradients_bytes": need.gradients_bytes,
                "kept_bytes": need.activations.kept,
                "activations_bytes": need.activations.peak,
                "workspace_bytes": need.workspace_bytes,
                "total_bytes": need.total_bytes,
                "fits": fits,
                "divides": config.plan.num_packs % n == 0 and n % config.plan.context_parallel == 0,
            }
        )
    return rows


def memory_text(config: TrainConfig, memory: list[MemoryRow]) -> str:
    """Memory per GPU as a table for the terminal, at most 120 columns."""
    shape, hardware = config.shape, config.hardware
    titles = (("states", 9), ("gathered", 10), ("gradients", 11), ("kept", 8), ("activations", 13), ("total", 9))
    lines = [
        f"{config.name}: {num_parameters(shape) / 1e9:.3f} B parameters, packs of at most {config.plan.token_budget:,} "
        f"tokens, recompute={config.parallel.recompute}, {config.parallel.precision}; GB per GPU",
        f"{'GPUs':>6}{'micro-steps':>13}{''.join(f'{name:>{width}}' for name, width in titles)}"
        f"  fits {hardware.name} ({hardware.memory_bytes / 1e9:.0f} GB)",
    ]
    for row in memory:
        counts = (row["states_bytes"], row["gathered_bytes"], row["gradients_bytes"], row["kept_bytes"],
                  row["activations_bytes"], row["total_bytes"])  # fmt: skip
        numbers = "".join(f"{n / 1e9:>{width}.1f}" for n, (_, width) in zip(counts, titles, strict=True))
        lines.append(f"{row['num_gpus']:>6}{row['micro_steps']:>13}{numbers}  {'yes' if row['fits'] else 'NO'}")
    if config.distill is not None:
        lines.append(
            "three networks: student and fake network with their optimisers, and the teacher's weights. A step computes "
            f"{config.relative_cost:.1f} times what training would, and hours are of that."
        )
    lines.append(
        "activations at their peak, of which kept after the forward pass; counted on the blocks themselves, not compiled. "
        f"total with {memory[0]['workspace_bytes'] / 1e9:.0f} GB set aside for CUDA, NCCL and fragmentation."
    )
    return "\n".join(lines)


def refuse_what_cannot_fit(config: TrainConfig, num_gpus: int) -> None:
    """Raise PlanError when a full pack does not fit one GPU of `num_gpus`, with the changes of the recipe that would."""
    need, hardware = memory_per_gpu(config, num_gpus), config.hardware
    if need.total_bytes <= hardware.memory_bytes:
        return
    raise PlanError(
        f"{num_parameters(config.shape) / 1e9:.2f} B parameters and packs of {config.plan.token_budget:,} tokens need about "
        f"{need.total_bytes / 1e9:.0f} GB per GPU on {num_gpus} GPUs; {hardware.name} has "
        f"{hardware.memory_bytes / 1e9:.0f} GB (states {need.states_bytes / 1e9:.0f} GB, "
        f"gradients {need.gradients_bytes / 1e9:.0f} GB, activations {need.activations.peak / 1e9:.0f} GB with "
        f"recompute={config.parallel.recompute}).",
        remedy=what_would_fit(config, num_gpus),
    )


class Way(NamedTuple):
    """Changes of a recipe with which it fits."""

    what: str
    settings: tuple[str, ...]
    num_tokens: int
    """Of a pack."""


def ways_to_fit(config: TrainConfig, num_gpus: int) -> list[Way]:
    """Changes with which the stage fits, least change first: less kept and gradients scattered, then smaller packs.

    Where the states do not fit, what still trains: all weights from host memory, or adapters beside frozen weights in 16 or
    8 bits. Empty when nothing does.
    """
    parallel = config.parallel.model_copy(update={"sync_every_micro_step": True})
    full = parallel.model_copy(update={"recompute": "full"})
    here = [_way("all weights", config, num_gpus, parallel=changed) for changed in (parallel, full)]
    for way in here:
        if way.num_tokens >= config.plan.token_budget:
            return [way]
    if here[-1].num_tokens:
        return here[-1:]
    offloaded = full.model_copy(update={"offload": True})
    elsewhere = [_way("all weights, from {host:.0f} GB of host memory a GPU", config, num_gpus, parallel=offloaded)]
    for frozen in ("bfloat16", "float8"):
        network = config.network
        lora = network.lora if network.is_partial else LoraConfig()
        weights = network.weights or Path("WEIGHTS")
        changed = network.model_copy(update={"lora": lora, "frozen": frozen, "weights": weights})
        elsewhere.append(_way("adapters", config, num_gpus, parallel=full, network=changed))
    possible = [way for way in elsewhere if way.num_tokens]
    enough = [way for way in possible if way.num_tokens >= config.plan.token_budget]
    return [*possible[:1], *enough[1:2]] if possible and possible[0] in enough else possible


def _way(what: str, config: TrainConfig, num_gpus: int, **sections: RecipePart) -> Way:
    changed = config.model_copy(update=sections)
    tokens = min(config.plan.token_budget, most_tokens(changed, num_gpus, config.hardware.memory_bytes))
    settings = [
        f"--set {section}.{key}={_as_text(value)}"
        for section, part in sections.items()
        for key, value in part.model_dump(mode="json").items()
        if value != getattr(config, section).model_dump(mode="json")[key]
    ]
    if 0 < tokens < config.plan.token_budget:
        settings.append(f"--set plan.token_budget={tokens}")
    return Way(what.format(host=memory_per_gpu(changed, num_gpus).host_bytes / 1e9), tuple(settings), tokens)


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return f"'{{rank: {value['rank']}}}'"
    return str(value).lower() if isinstance(value, bool) else str(value)


def what_would_fit(config: TrainConfig, num_gpus: int) -> str:
    """A sentence about the changes of the recipe, or the numbers of GPUs, with which the stage would fit."""
    ways, memory = ways_to_fit(config, num_gpus), config.hardware.memory_bytes
    if ways:
        said = "; or ".join(
            f"with {' '.join(way.settings)}{'' if way.what == 'all weights' else f' ({way.what})'}" for way in ways
        )
        if all(way.num_tokens >= config.plan.token_budget for way in ways):
            return f"It fits {said}."
        return (
            f"It fits {said}, if no clip is longer; a longer one needs plan.context_parallel, which "
            "shares it out over several GPUs."
        )
    full = config.parallel.model_copy(update={"sync_every_micro_step": True, "recompute": "full"})
    for more in (2, 4, 8, 16, 32, 64, 128, 256):
        if more > num_gpus and most_tokens(config.model_copy(update={"parallel": full}), more, memory):
            return f"The states alone do not fit: they are shared out over all GPUs, use {more} of this kind or larger ones."
    return "The states alone do not fit, at any number of GPUs of this kind: use larger ones or a smaller network."


CARDS = ((1, 24), (1, 48), (1, 80), (8, 80), (64, 80), (8, 141))
"""(GPUs, GB each) that `plan --cards` goes through."""


def cards_text(config: TrainConfig, cards: Sequence[tuple[int, int]] = CARDS) -> str:
    """For GPUs of several sizes, what the stage needs as it is, and with what changes it fits where it does not."""
    check_parameters(config)
    lines = [f"{'cards':<14}{'needs GB':>9}  as it is"]
    for num_gpus, num_gb in cards:
        hardware = replace(config.hardware, name=f"{num_gb} GB card", memory_bytes=num_gb * 10**9)
        stage = config.model_copy(update={"hardware": hardware})
        need = memory_per_gpu(stage, num_gpus)
        fits = need.total_bytes <= hardware.memory_bytes
        refused = f"refused: states of {need.states_bytes / 1e9:.0f} GB"
        if need.fixed_bytes <= hardware.memory_bytes:
            refused = f"refused: activations of {need.activations.peak / 1e9:.0f} GB"
        answer = "fits" if fits else refused
        lines.append(f"{f'{num_gpus} x {num_gb} GB':<14}{need.total_bytes / 1e9:>9.1f}  {answer}")
        for way in () if fits else ways_to_fit(stage, num_gpus):
            lines += [f"{'':<14}{way.what}, packs of {way.num_tokens:,} tokens:", f"{'':<16}{' '.join(way.settings)}"]
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
