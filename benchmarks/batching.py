"""Batching compared: padding, balance over ranks, randomness, waiting and planning speed of the published strategies and ours.

    python -m benchmarks.batching --ranks 8 64 512 4096 --json FILE [--corpus S1 S2] [--index RUN/index [--copies N]]
                                  [--only ours]

Costs are modelled FLOPs (`schemas.budget`), not step times: the table says how even the work is, not how fast it runs.

    pad    padding rows / computed rows
    imb    mean over steps of the dearest rank over the mean rank (linear + quadratic cost of what is computed); p99 beside
    eff    useful FLOPs / (ranks x dearest rank, summed over steps): the share of the fleet that does useful work
    ICC    intra-class correlation of log tokens by step: 0 random batches, 1 one length per step
    age    packs a sample waits in the planner's buffer, 99th percentile
    ahead  packs that a rank must have encoded ahead so that encoders working at the mean rate do not keep it waiting within 32
           steps, with video tokens as the cost of encoding; mean over ranks
    k/s    thousand samples planned per CPU second, one thread (only for planners that are real code here)

Rows named plan.strategy=... are what `nava-train train` trains with under that key: packed, so without padding.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.corpus import Regime, synthetic_index
from benchmarks.strategies import (
    Clock,
    LhotseSetting,
    OfficialBuckets,
    Step,
    fixed_batch,
    lhotse_buckets,
    official_as_configured,
    our_plan,
)
from model.data.index import ShardIndex
from model.data.plan_config import PlanConfig, SupplyConfig
from model.data.preview import intra_class_correlation
from model.training.config import load_recipe
from schemas.budget import NAVA_6B, forward_flops, training_flops
from schemas.errors import NavaError

NUM_STEPS = {8: 400, 64: 200, 512: 60, 4096: 12}
MAX_LHOTSE_SAMPLES = 25_000
MIN_LHOTSE_STEPS = 5
"""Samples asked of lhotse per row of the table, but at least five steps: at 200 to 4,000 per second it takes longest."""
LHOTSE = {
    "lhotse, 10 buckets, padded": LhotseSetting(10, is_quadratic=False, is_padded=True),
    "lhotse, 30 buckets + quadratic, padded": LhotseSetting(30, is_quadratic=True, is_padded=True),
    "lhotse, 30 buckets + quadratic, packed": LhotseSetting(30, is_quadratic=True, is_padded=False),
}
OURS = "ours: plan.strategy=flop_packs"
TRAINABLE: dict[str, dict[str, Any]] = {
    "release: plan.strategy=length_buckets": {"strategy": "length_buckets"},
    "release: plan.strategy=synced_buckets": {"strategy": "synced_buckets"},
    "fixed batch: plan.strategy=padded": {"strategy": "padded"},
    OURS: {},
    "ours, supply-aware: plan.supply": {"supply": SupplyConfig()},
}
CLIPS_PER_BATCH = {"S1": (2.05, 2.3), "S2": (1.3, 1.25)}
"""Of the longest clip's tokens per batch for the peers, of the dearest clip's FLOPs per pack for us."""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of the table; `skipped` says why there are no numbers."""

    corpus: str
    strategy: str
    num_ranks: int
    skipped: str = ""
    num_steps: int = 0
    padding: float = float("nan")
    imbalance_mean: float = float("nan")
    imbalance_p99: float = float("nan")
    efficiency: float = float("nan")
    correlation: float = float("nan")
    age_p99: float = float("nan")
    encoded_ahead: float = float("nan")
    samples_per_cpu_s: float = float("nan")


def score(corpus: str, strategy: str, num_ranks: int, steps: Iterator[Step], clock: Clock) -> Score:
    """Metrics over the given steps."""
    ratios, lengths, encoding = [], [], []
    useful = dearest = 0.0
    real_rows = computed_rows = 0
    for step in steps:
        executed = 3 * forward_flops(NAVA_6B, step.video, step.audio, None, step.rows).total
        by_rank = np.bincount(step.rank, executed, minlength=num_ranks)
        ratios.append(by_rank.max() / by_rank.mean())
        dearest += by_rank.max() * num_ranks
        useful += float(training_flops(NAVA_6B, step.video, step.audio).sum())
        real_rows += int((step.video + step.audio).sum())
        computed_rows += int(step.rows.sum())
        lengths.append(np.log(step.video + step.audio))
        encoding.append(np.bincount(step.rank, step.video, minlength=num_ranks))
    return Score(
        corpus,
        strategy,
        num_ranks,
        num_steps=len(ratios),
        padding=1 - real_rows / computed_rows,
        imbalance_mean=float(np.mean(ratios)),
        imbalance_p99=float(np.percentile(ratios, 99)),
        efficiency=useful / dearest,
        correlation=intra_class_correlation(lengths),
        age_p99=clock.age_packs,
        encoded_ahead=packs_ahead(np.array(encoding)),
        samples_per_cpu_s=clock.num_samples / clock.seconds if clock.seconds else float("nan"),
    )


def packs_ahead(cost_SR: NDArray[np.float64], longest: int = 32) -> float:
    """Most by which a rank's encoding of any run of at most `longest` steps exceeds the mean rate, in packs, over ranks.

    cost_SR: [steps, ranks].
    """
    mean = cost_SR.mean()
    running_SR = np.cumsum(np.vstack([np.zeros(cost_SR.shape[1]), cost_SR - mean]), axis=0) / mean
    most_R = np.zeros(cost_SR.shape[1])
    for length in range(1, min(longest, len(cost_SR)) + 1):
        most_R = np.maximum(most_R, (running_SR[length:] - running_SR[:-length]).max(axis=0))
    return float(most_R.mean())


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits that suit a corpus: tokens per batch for the peers, token budget and FLOP target (None: derived) for us."""

    peer_tokens: int
    token_budget: int
    flop_target: float | None = None

    @classmethod
    def for_index(cls, index: ShardIndex, corpus: str) -> Budgets:
        """Two of the longest clips per batch in S1, a little over one in S2; for others what the shipped recipes allow."""
        if corpus not in CLIPS_PER_BATCH:
            gpu_tokens = load_recipe("stage2_joint").plan.token_budget
            return cls(gpu_tokens, gpu_tokens)
        clips = CLIPS_PER_BATCH[corpus]
        video, audio = index.video_tokens.astype(np.int64), index.audio_tokens.astype(np.int64)
        flops, tokens = training_flops(NAVA_6B, video, audio), video + audio
        target = clips[1] * float(flops.max())
        return cls(int(clips[0] * tokens.max()), int(1.35 * target * tokens.mean() / flops.mean()), target)


def compare(index: ShardIndex, corpus: str, num_ranks: int, only: str = "") -> Iterator[Score]:
    """One score per strategy whose name contains `only`."""
    budgets = Budgets.for_index(index, corpus)
    num_steps = NUM_STEPS.get(num_ranks, 50)
    per_batch = budgets.peer_tokens / float((index.video_tokens + index.audio_tokens).mean())
    lhotse_steps = min(num_steps, max(MIN_LHOTSE_STEPS, int(MAX_LHOTSE_SAMPLES / (per_batch * num_ranks))))
    limits = {"num_packs": num_ranks, "token_budget": budgets.token_budget, "flop_target": budgets.flop_target}
    trainable = {name: PlanConfig.model_validate({**limits, **keys}) for name, keys in TRAINABLE.items()}
    strategies: dict[str, Callable[[Clock], Iterator[Step]]] = {
        "fixed batch of 4, padded": lambda _: fixed_batch(index, num_ranks),
        "official, as configured (batch 1)": lambda _: official_as_configured(index, num_ranks),
        "official, 5 length buckets, batch 4": lambda _: OfficialBuckets(index, num_ranks, 5).steps(),
        "official, 10 length buckets, batch 4": lambda _: OfficialBuckets(index, num_ranks, 10).steps(),
        **{name: partial(lhotse_buckets, index, num_ranks, budgets.peer_tokens, LHOTSE[name]) for name in LHOTSE},
        **{name: partial(our_plan, index, config) for name, config in trainable.items()},
    }
    for name, steps in strategies.items():
        if only not in name:
            continue
        clock = Clock()
        try:
            asked = islice(steps(clock), lhotse_steps if name in LHOTSE else num_steps)
            yield score(corpus, name, num_ranks, asked, clock)
        except NavaError as error:
            yield Score(corpus, name, num_ranks, skipped=str(error))


HEADER = (
    "| corpus | strategy | ranks | steps | pad % | imb mean | imb p99 | eff % | ICC | age p99 | ahead | k samples/CPU-s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table_row(result: Score) -> str:
    """One line of the Markdown table."""
    start = f"| {result.corpus} | {result.strategy} | {result.num_ranks} |"
    if result.skipped:
        return f"{start} skipped: {result.skipped} ||||||||||"
    age = "-" if np.isnan(result.age_p99) else f"{result.age_p99:.0f}"
    speed = "-" if np.isnan(result.samples_per_cpu_s) else f"{result.samples_per_cpu_s / 1e3:.1f}"
    return (
        f"{start} {result.num_steps} | {100 * result.padding:.1f} | {result.imbalance_mean:.4f} | "
        f"{result.imbalance_p99:.4f} | {100 * result.efficiency:.2f} | {result.correlation:.3f} | {age} | "
        f"{result.encoded_ahead:.2f} | {speed} |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--corpus", nargs="*", choices=get_args(Regime), default=["S1", "S2"])
    parser.add_argument("--shots", type=int, default=400_000, help="shots in the synthetic corpus")
    parser.add_argument("--index", type=Path, help="also compare on this index (a folder or a file)")
    parser.add_argument("--copies", type=int, default=1, help="copies of its rows, when it is too small for the ranks")
    parser.add_argument("--only", default="", metavar="TEXT", help="only strategies whose name contains this")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    corpora: list[tuple[str, ShardIndex, float]] = []
    for regime in options.corpus:
        index, lost = synthetic_index(options.shots, regime)
        corpora.append((regime, index, lost))
    if options.index:
        index = ShardIndex.open(options.index)
        if options.copies > 1:
            index = ShardIndex.from_table(pa.concat_tables([index.table] * options.copies))
        corpora.append((f"{options.index.name} x {options.copies}", index, 0.0))
    results: list[dict[str, Any]] = []
    print(HEADER, flush=True)
    for corpus, index, lost in corpora:
        for num_ranks in options.ranks:
            for result in compare(index, corpus, num_ranks, options.only):
                results.append({**asdict(result), "corpus_tokens_lost": lost})
                print(table_row(result), flush=True)
    if not results:
        parser.error(f"no strategy has {options.only!r} in its name")
    about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "machine": platform.machine()}
    options.json.write_text(json.dumps({**about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
