"""What a plan will do, before any GPU is used: mixture, buckets, balance, steps and hours, as numbers and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from model.data.batching import EpochPlan
from model.data.packing import Pack
from schemas.budget import aspect_label

LENGTH_EDGES_S = (2.0, 5.0, 10.0, 20.0)
LENGTH_NAMES = ("under 2 s", "2-5 s", "5-10 s", "10-20 s", "over 20 s")


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU. Defaults: H200, dense bf16 peak, memory as reported by the driver, best published MFU of a video DiT.

    32.9 % is Wan 2.1 14B on 128 H100 (NVIDIA-NeMo/DFM performance summary); put in your own once measured.
    """

    name: str = "H200"
    peak_flops: float = 989e12
    memory_bytes: int = 143_771 * 2**20
    mfu: float = 0.329


@dataclass(frozen=True, slots=True)
class StepBalance:
    """How evenly steps are filled. `efficiency` is the share of the fleet's time that does useful FLOPs."""

    num_steps: int
    num_samples: int
    imbalance_mean: float
    imbalance_p99: float
    efficiency: float
    correlation: float
    mean_tokens: float
    max_tokens: float


class BucketRow(TypedDict):
    """What of the index lies in one bucket of modality, aspect and length."""

    bucket: str
    length: str
    samples: int
    tokens: int
    flops_share: float


class PhaseRow(TypedDict):
    """A later phase of the mixture."""

    from_step: int
    shares: dict[str, float]
    """Of the drawn samples, by part."""


class PreviewFacts(TypedDict):
    """Everything `nava-train plan` shows, ready for JSON and for the inspector."""

    plan: str
    index: str
    num_rows: int
    epoch_samples: int
    epoch_flops: float
    steps_per_epoch: float
    num_packs: int
    context_parallel: int
    flop_target: float
    token_budget: int
    parts: list[dict[str, Any]]
    """`PartSummary` and its `repeats`, at the beginning."""
    phases: list[PhaseRow]
    buckets: list[BucketRow]
    balance: dict[str, Any]
    """`StepBalance`."""
    hardware: dict[str, Any]
    """`Hardware`."""
    epoch_hours: dict[str, float]
    """By number of GPUs."""


def measure_balance(steps: list[list[Pack]], num_members: int = 1) -> StepBalance:
    """Balance over steps, each a list of packs (one per rank and micro-step). Packs hold no padding by construction.

    Every `num_members` neighbouring packs are a team's, whose shared samples count once.
    `correlation` is the intra-class correlation of log tokens by step: 0 for random batches, 1 for batches of one length.
    """
    flops = np.array([[pack.flops for pack in packs] for packs in steps])
    ratios = flops.max(axis=1) / flops.mean(axis=1)
    drawn = [[i for n, p in enumerate(packs) for i in (p.own if n % num_members else p.items)] for packs in steps]
    lengths = [np.log([max(1, item.tokens) for item in items]) for items in drawn]
    tokens = np.array([pack.tokens for packs in steps for pack in packs])
    return StepBalance(
        num_steps=len(steps),
        num_samples=sum(map(len, lengths)),
        imbalance_mean=float(ratios.mean()),
        imbalance_p99=float(np.percentile(ratios, 99)),
        efficiency=float(flops.sum() / (flops.shape[1] * flops.max(axis=1).sum())),
        correlation=intra_class_correlation(lengths),
        mean_tokens=float(tokens.mean()),
        max_tokens=float(tokens.max()),
    )


def intra_class_correlation(groups: list[NDArray[np.float64]]) -> float:
    """Share of the variance that lies between groups beyond chance, at least 0; nan when it cannot be told."""
    size = float(np.mean([len(group) for group in groups]))
    everything = np.concatenate(groups)
    within_chance = everything.var() / size
    if len(groups) < 3 or size <= 1 or everything.var() == 0:
        return float("nan")
    between = np.var([group.mean() for group in groups])
    return max(0.0, float((between - within_chance) / (everything.var() - within_chance)))


def buckets(plan: EpochPlan) -> list[BucketRow]:
    """Rows, tokens and FLOPs of one pass over the index by modality, aspect and length, the dearest first."""
    index = plan.index
    flops, tokens = plan.cost(np.arange(len(index)), None)
    table = index.numbers("height_px", "width_px", "duration_s")
    labels = {0: "audio"}
    sizes = np.where(index.has_video, table["height_px"].astype(np.int64) * 65_536 + table["width_px"], 0)
    for size in np.unique(sizes[sizes > 0]).tolist():
        labels[size] = aspect_label(size // 65_536, size % 65_536)
    names = np.array([labels[size] for size in sizes.tolist()])
    lengths = np.searchsorted(LENGTH_EDGES_S, table["duration_s"], side="right")
    rows: list[BucketRow] = []
    for name in np.unique(names).tolist():
        for length in range(len(LENGTH_NAMES)):
            chosen = (names == name) & (lengths == length)
            if chosen.any():
                share = float(flops[chosen].sum() / flops.sum())
                rows.append(
                    {
                        "bucket": name,
                        "length": LENGTH_NAMES[length],
                        "samples": int(chosen.sum()),
                        "tokens": int(tokens[chosen].sum()),
                        "flops_share": share,
                    }
                )
    return sorted(rows, key=lambda row: -row["flops_share"])


def phases(plan: EpochPlan) -> list[PhaseRow]:
    """The mixture in each later phase."""
    rows: list[PhaseRow] = []
    for phase, parts in zip(plan.config.phases, plan.phases[1:], strict=True):
        num_draws = sum(part.num_draws for part in parts)
        rows.append({"from_step": phase.from_step, "shares": {p.name: p.num_draws / num_draws for p in parts}})
    return rows


def preview(
    plan: EpochPlan,
    *,
    num_steps: int = 50,
    num_gpus: tuple[int, ...] = (8, 64, 128),
    hardware: Hardware | None = None,
) -> PreviewFacts:
    """What `nava-train plan` shows. Plans the first `num_steps` steps."""
    hardware = hardware or Hardware()
    steps = []
    for packs in plan.all_packs():
        steps.append(packs)
        if len(steps) == num_steps:
            break
    hours = {str(n): plan.epoch_flops / (n * hardware.peak_flops * hardware.mfu) / 3600 for n in num_gpus}
    return {
        "plan": plan.digest,
        "index": plan.index.digest,
        "num_rows": len(plan.index),
        "epoch_samples": plan.epoch_samples,
        "epoch_flops": plan.epoch_flops,
        "steps_per_epoch": plan.steps_per_epoch,
        "num_packs": plan.config.num_packs,
        "context_parallel": plan.config.context_parallel,
        "flop_target": plan.limits.flop_target,
        "token_budget": plan.limits.token_budget,
        "parts": [{**asdict(part), "repeats": part.repeats} for part in plan.summaries],
        "phases": phases(plan),
        "buckets": buckets(plan),
        "balance": asdict(measure_balance(steps, plan.config.context_parallel)),
        "hardware": asdict(hardware),
        "epoch_hours": hours,
    }


def preview_text(facts: PreviewFacts) -> str:
    """The preview as a page for the terminal, at most 120 columns."""
    balance, hardware = facts["balance"], facts["hardware"]
    lines = [
        f"plan {facts['plan'][:12]}  index {facts['index'][:12]}  {facts['num_rows']:,} rows",
        "",
        f"{'part':<20}{'rows':>12}{'draws/epoch':>14}{'repeats':>10}{'share of FLOPs':>16}{'longest tokens':>16}",
    ]
    for part in facts["parts"]:
        share = part["flops"] / facts["epoch_flops"]
        numbers = f"{part['num_rows']:>12,}{part['num_draws']:>14,}{part['repeats']:>10.2f}{share:>16.1%}"
        lines.append(f"{part['name']:<20}{numbers}{part['longest_tokens']:>16,}")
    for phase in facts["phases"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in phase["shares"].items())
        lines.append(f"from step {phase['from_step']:,} of the samples: {shares}")
    lines += ["", f"{'bucket':<12}{'length':<12}{'samples':>12}{'tokens':>18}{'share of FLOPs':>16}"]
    for row in facts["buckets"]:
        numbers = f"{row['samples']:>12,}{row['tokens']:>18,}{row['flops_share']:>16.1%}"
        lines.append(f"{row['bucket']:<12}{row['length']:<12}{numbers}")
    teams = f", {facts['context_parallel']} ranks share a long sample" if facts["context_parallel"] > 1 else ""
    lines += [
        "",
        f"step        {facts['num_packs']} packs of {facts['flop_target'] / 1e12:,.4g} TFLOP, "
        f"at most {facts['token_budget']:,} tokens (mean {balance['mean_tokens']:,.0f}){teams}",
        f"imbalance   {balance['imbalance_mean']:.4f} mean, {balance['imbalance_p99']:.4f} p99 "
        f"(slowest rank over mean, first {balance['num_steps']} steps)",
        f"efficiency  {balance['efficiency']:.2%}",
        f"epoch       {facts['epoch_samples']:,} samples, {facts['steps_per_epoch']:,.1f} steps, "
        f"{facts['epoch_flops'] / 1e18:,.4g} EFLOP",
        "hours       "
        + ", ".join(f"{hours:,.2f} on {n} GPUs" for n, hours in facts["epoch_hours"].items())
        + " an epoch, "
        f"if {hardware['mfu']:.1%} of {hardware['peak_flops'] / 1e12:.0f} TFLOP/s are reached",
    ]
    return "\n".join(lines)
