"""What training did: terminal, JSON lines, TensorBoard, and one Parquet row per trained sample.

metrics.jsonl          one line per interval: losses, speed, balance, stalls, health; means over the interval and all ranks
tensorboard/           the same numbers (`model/training/trackers.py`)
samples/*.parquet      step, clip id, timestep and errors of every sample (`SAMPLES`), one file per rank and
                       checkpoint interval, written before the checkpoint: on resume nothing is missing or double
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from model.network.flow import LossTerms
from model.ranks import World
from model.training.config import TrainConfig
from model.training.feed import MicroStep, Step
from model.training.health import Bottleneck, Ranks, SlowestRank, Spikes, bottleneck, longest_run
from model.training.losses import Losses, add_losses, losses, no_sums
from model.training.trackers import open_trackers
from model.training.transfer import IdleTime
from schemas.budget import Use
from schemas.errors import ModelError
from schemas.fields import f
from schemas.files import whole_path

CAUSES = ("wait", "queue", "read", "decode")
"""Seconds the trainer waited for a step, and what of it the loader spent on."""

SAMPLES: pa.Schema = pa.schema(
    [
        f("step", pa.int64(), unit="count", doc="optimiser step, from 1"),
        f("clip_id", pa.string(), doc="sample key in the shards"),
        f("row", pa.int64(), doc="row of the index"),
        f("epoch", pa.int32(), unit="count", doc="epoch of the draw"),
        f("use", pa.string(), doc="audio_video, video, audio or image: what it was trained on"),
        f("timestep", pa.float32(), doc="1000 sigma"),
        f("video_mse", pa.float32(), doc="mean squared error of the video velocity; null without"),
        f("audio_mse", pa.float32(), doc="mean squared error of the audio velocity; null without"),
        f("tokens", pa.int32(), unit="tokens", doc="video and audio tokens"),
        f("is_first_frame_clean", pa.bool_(), doc="the first frame was given"),
        f("is_cross_modal_masked", pa.bool_(), doc="picture and sound could not see each other"),
        f("is_text_dropped", pa.bool_(), doc="trained without its caption"),
    ]
)


class SampleFacts(TypedDict):
    """What is known of a trained sample before its errors are."""

    clip_id: str
    row: int
    epoch: int
    use: Use
    tokens: int
    is_first_frame_clean: bool
    is_cross_modal_masked: bool
    is_text_dropped: bool


class GpuMemory(TypedDict):
    """Peaks of an interval, of the rank that has most."""

    allocated: float
    reserved: float


class MetricsLine(Losses):
    """One line of metrics.jsonl: means over an interval and all ranks."""

    step: int
    learning_rate: float
    grad_norm: float | None
    """Before clipping, mean over the steps that were finite."""
    grad_norm_by_part: dict[str, float]
    """Of the last step, by part of the network."""
    skipped_steps: int
    """Left out, because their gradients were not finite; their losses are in no mean."""
    spikes: int
    substituted_samples: int
    """Damaged ones of this interval, on all ranks."""
    gpu_memory_gb: GpuMemory | None
    """None on a CPU."""
    slowest_rank: SlowestRank | None
    """None where there is one."""
    seconds_per_step: float
    tokens_per_s: float
    mfu: float | None
    padding: float
    imbalance: float
    stall: float
    """Share of the time that ranks waited for a step; on GPUs no more than the device was idle between steps."""
    stall_slowest_rank: float
    stall_causes_s: dict[str, float]
    sync: float
    """Share of the time that ranks waited for each other."""
    bottleneck: Bottleneck


@dataclass(slots=True)
class TrainedPack:
    """What is kept of one trained pack until it is reported and written: no latents, errors still on their device."""

    step: int
    samples: list[SampleFacts]
    timesteps: Tensor
    terms: LossTerms


@dataclass(slots=True)
class StepNorms:
    """Norms of a step's gradients, on the device."""

    total: Tensor
    by_part: dict[str, Tensor] = field(default_factory=dict)
    """Only for steps after which something is said."""


@dataclass(slots=True)
class Interval:
    """What was seen since the last line."""

    began: float = field(default_factory=time.perf_counter)
    packs: list[TrainedPack] = field(default_factory=list)
    work: list[tuple[float, float, float]] = field(default_factory=list)
    """Per step: useful tokens, useful FLOPs, tokens computed beyond the useful ones."""
    seconds: list[dict[str, float]] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    others_s: float = 0.0
    num_substituted: int = 0


class Metrics:
    """Collects every step; says and writes something every `log_every_steps` (the only device synchronisation here)."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        world: World,
        *,
        num_steps: int,
        resumed_step: int,
        idle: IdleTime | None = None,
    ) -> None:
        self._idle = idle or IdleTime(world.device)
        self._folder, self._config, self._world, self._num_steps = folder, config, world, num_steps
        self._interval = Interval()
        self._unwritten: list[TrainedPack] = []
        self._first_unwritten = resumed_step + 1
        self._trackers = open_trackers(folder, config, resumed_step) if world.is_first else []
        self._spikes, self._ranks = Spikes(config.health), Ranks(world)
        self.num_skipped_in_a_row = 0
        dist.barrier(group=world.control)

    def is_due(self, step: int) -> bool:
        """Whether something is said after this step."""
        return step % self._config.output.log_every_steps == 0 or step == self._num_steps

    def log(self, kind: str, line: Mapping[str, Any]) -> None:
        """Hand a line of another kind to wherever numbers go; on the first rank."""
        for tracker in self._trackers:
            tracker.log(kind, line)

    def record(self, step: Step, terms: list[LossTerms], norms: StepNorms, learning_rate: float) -> None:
        """Take in one step; at the end of an interval, reduce over ranks and report."""
        interval = self._interval
        for micro, pack_terms in zip(step.micro_steps, terms, strict=True):
            if not micro.is_idle:
                timesteps = micro.noised.timesteps[micro.first_counted :]
                seen = TrainedPack(step.number, _sample_facts(micro), timesteps, _detached(pack_terms))
                interval.packs.append(seen)
                self._unwritten.append(seen)
        interval.work.append(_work(step, self._config.plan.context_parallel))
        interval.seconds.append(step.seconds)
        interval.norms.append(norms.total)
        interval.others_s += step.others_s
        interval.num_substituted += step.num_substituted
        if self.is_due(step.number):
            self._report(step.number, learning_rate, norms.by_part)

    def write_samples(self) -> None:
        """Put the rows of all steps since the last call on disk; call it before a checkpoint is written.

        Raises OSError when they cannot be written; they are then part of the next call.
        """
        if not self._unwritten:
            return
        last = self._unwritten[-1].step
        table = pa.concat_tables([_sample_rows(seen) for seen in self._unwritten])
        path = self._folder / "samples" / f"{self._first_unwritten:08d}-{last:08d}-{self._world.rank:05d}.parquet"
        with whole_path(path) as partial:
            pq.write_table(table, partial)
        self._first_unwritten, self._unwritten = last + 1, []

    def close(self) -> None:
        """Close what numbers go to. Rows of samples since the last `write_samples` are dropped: no checkpoint has seen them."""
        for tracker in self._trackers:
            tracker.close()

    def _report(self, step: int, learning_rate: float, by_part: dict[str, Tensor]) -> None:
        interval, size, flow = self._interval, self._world.size, self._config.flow
        norms = torch.stack([norm.double() for norm in interval.norms]).cpu().numpy()
        is_finite = np.isfinite(norms)
        elapsed_s = time.perf_counter() - interval.began
        first_step = step - len(norms) + 1
        by_step = np.zeros((len(norms), *no_sums().shape))
        for seen in interval.packs:
            if is_finite[seen.step - first_step]:
                add_losses(by_step[seen.step - first_step], seen.timesteps, seen.terms)
        work = np.array(interval.work, dtype=np.float64)
        stalls = np.array([sum(seconds[cause] for seconds in interval.seconds) for cause in CAUSES])
        if (idle_s := self._idle.take_s()) is not None:
            stalls *= min(
                1.0, idle_s / max(stalls[0], 1e-9)
            )  # the host runs ahead: its waiting is the device's in part
        counts = np.array([float(interval.num_substituted), interval.others_s])
        parts = (by_step.shape, work.shape, stalls.shape, counts.shape)
        flat = np.concatenate([by_step.ravel(), work.ravel(), stalls, counts])
        by_step, total_work, total_stalls, counts = _split(_reduced(self._world, flat, dist.ReduceOp.SUM), parts)
        memory = _gpu_memory(self._world)
        slowest = _reduced(self._world, np.concatenate([work[:, 1], stalls[:1], memory]), dist.ReduceOp.MAX)
        slowest_work, slowest_wait, memory = slowest[: len(work)], slowest[len(work)], slowest[len(work) + 1 :]
        spikes = self._spikes_of(first_step, by_step, norms)
        tokens, flops, surplus = total_work.sum(0)
        stall, sync = total_stalls[0] / (elapsed_s * size), counts[1] / (elapsed_s * size)
        causes_s = dict(zip(CAUSES[1:], total_stalls[1:].tolist(), strict=True))
        line: MetricsLine = {
            "step": step,
            **losses(by_step.sum(0), flow.video_weight, flow.audio_weight),
            "learning_rate": learning_rate,
            "grad_norm": float(norms[is_finite].mean()) if is_finite.any() else None,
            "grad_norm_by_part": {part: float(norm) for part, norm in by_part.items()},
            "skipped_steps": int((~is_finite).sum()),
            "spikes": len(spikes),
            "substituted_samples": int(counts[0]),
            "gpu_memory_gb": {"allocated": memory[0], "reserved": memory[1]} if memory[1] else None,
            "slowest_rank": self._ranks.slowest((elapsed_s - interval.others_s) / len(work)),
            "seconds_per_step": elapsed_s / len(work),
            "tokens_per_s": tokens / elapsed_s,
            "mfu": self._mfu(flops, elapsed_s),
            "padding": surplus / max(1.0, tokens + surplus),
            "imbalance": float((slowest_work * size / np.maximum(total_work[:, 1], 1)).mean()),
            "stall": stall,
            "stall_slowest_rank": slowest_wait / elapsed_s,
            "stall_causes_s": causes_s,
            "sync": sync,
            "bottleneck": bottleneck(stall, causes_s, sync, is_encoding=self._config.data.online is not None),
        }
        self._interval = Interval()
        if self._world.is_first:
            print("".join(f"{spike}\n" for spike in spikes) + terminal_line(line, self._num_steps), flush=True)
        self.log("metrics", line)
        self._refuse_to_go_on(step, ~is_finite)

    def _spikes_of(self, first_step: int, by_step: NDArray[np.float64], norms: NDArray[np.float64]) -> list[str]:
        """What stands out in these steps, by step."""
        found = []
        for step, (sums, norm) in enumerate(zip(by_step, norms.tolist(), strict=True), start=first_step):
            loss = losses(sums, self._config.flow.video_weight, self._config.flow.audio_weight)["loss"]
            told = [
                self._spikes.look("loss", loss) if loss is not None else "",
                self._spikes.look("gradient norm", norm),
            ]
            found += [f"step {step}: {each}" for each in told if each]
        return found

    def _refuse_to_go_on(self, step: int, is_bad: NDArray[np.bool_]) -> None:
        """Raises ModelError, on all ranks alike, after too many steps in a row that had to be left out."""
        most = self._config.health.max_skipped_steps
        longest, self.num_skipped_in_a_row = longest_run(is_bad, self.num_skipped_in_a_row)
        if longest >= most:
            raise ModelError(
                f"the gradients of {longest} steps in a row up to step {step} were not finite. Nothing was learnt from them.",
                remedy="Go on from checkpoints/good, the last one after which training was sound, with a lower learning rate "
                "or other numbers (parallel.precision); samples/ and metrics.jsonl name what was trained on.",
            )
        if is_bad.any() and self._world.is_first:
            print(
                f"{int(is_bad.sum())} steps up to step {step} were left out: their gradients were not finite",
                flush=True,
            )

    def _mfu(self, flops: float, elapsed_s: float) -> float | None:
        """Share of the peak that went into useful FLOPs; None where there is no GPU to compare with."""
        if self._world.device.type == "cpu":
            return None
        done = flops * self._config.relative_cost
        return done / (elapsed_s * self._world.size * self._config.hardware.peak_flops)


def terminal_line(line: MetricsLine, num_steps: int) -> str:
    """One interval for people."""
    kinds = {"video": line["loss_video"], "audio": line["loss_audio"]}
    by_kind = ", ".join(f"{kind} {value:.4f}" for kind, value in kinds.items() if value is not None)
    left_s = int((num_steps - line["step"]) * line["seconds_per_step"])
    mfu = "" if line["mfu"] is None else f"  MFU {line['mfu']:.1%}"
    loss = "-" if line["loss"] is None else f"{line['loss']:.4f} ({by_kind})"
    held_up = "" if line["bottleneck"] == "compute" else f"  held up by {line['bottleneck']}"
    norm = "-" if line["grad_norm"] is None else f"{line['grad_norm']:.3g}"
    return (
        f"step {line['step']}/{num_steps}  loss {loss}  lr {line['learning_rate']:.2e}  "
        f"norm {norm}  {line['tokens_per_s']:,.0f} tokens/s{mfu}  imbalance {line['imbalance']:.3f}  "
        f"stall {line['stall']:.1%}{held_up}  {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
    )


def read_samples(folder: Path) -> pa.Table:
    """Every trained sample of a training folder, in step order: what the inspector and the ledger join on `clip_id`."""
    paths = sorted((folder / "samples").glob("*.parquet"))
    tables = [pq.read_table(path, schema=SAMPLES) for path in paths]
    return (
        pa.concat_tables(tables).sort_by([("step", "ascending"), ("clip_id", "ascending")])
        if tables
        else SAMPLES.empty_table()
    )


def _sample_facts(micro: MicroStep) -> list[SampleFacts]:
    counted = slice(micro.first_counted, None)
    return [
        {
            "clip_id": sample.clip_id,
            "row": ref.row,
            "epoch": ref.epoch,
            "use": ref.use,
            "tokens": ref.tokens,
            "is_first_frame_clean": sample.is_first_frame_clean,
            "is_cross_modal_masked": sample.is_cross_modal_masked,
            "is_text_dropped": len(sample.text) == 0,
        }
        for sample, ref in zip(micro.noised.samples[counted], micro.refs[counted], strict=True)
    ]


def _sample_rows(seen: TrainedPack) -> pa.Table:
    video, audio = (mse.float().cpu().tolist() for mse in (seen.terms.video_mse, seen.terms.audio_mse))
    rows = [
        {
            **facts,
            "step": seen.step,
            "timestep": timestep,
            "video_mse": video[i] if facts["use"] != "audio" else None,
            "audio_mse": audio[i] if "audio" in facts["use"] else None,
        }
        for i, (facts, timestep) in enumerate(zip(seen.samples, seen.timesteps.cpu().tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def _gpu_memory(world: World) -> NDArray[np.float64]:
    """[allocated, reserved] peaks since the last call, in GB; zeros on a CPU."""
    if world.device.type != "cuda":
        return np.zeros(2)
    peaks = torch.cuda.max_memory_allocated(world.device), torch.cuda.max_memory_reserved(world.device)
    torch.cuda.reset_peak_memory_stats(world.device)
    return np.array(peaks) / 1e9


def _detached(terms: LossTerms) -> LossTerms:
    return LossTerms(*(term.detach() for term in terms))


def _work(step: Step, num_members: int) -> tuple[float, float, float]:
    """Useful tokens and FLOPs, and the tokens beyond: those of ranks without work, and any the index does not know of.

    Of a sample that ranks share each does one part in `num_members`.
    """
    refs = [(ref, num_members if ref.is_shared else 1) for micro in step.micro_steps for ref in micro.refs]
    tokens = sum(ref.tokens / num_parts for ref, num_parts in refs)
    computed = sum(micro.packed.num_video_tokens + micro.packed.num_audio_tokens for micro in step.micro_steps)
    return tokens, sum(ref.flops / num_parts for ref, num_parts in refs), computed - tokens


def _split(flat: NDArray[np.float64], shapes: tuple[tuple[int, ...], ...]) -> list[NDArray[np.float64]]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def _reduced(world: World, values: NDArray[np.float64], operation: Any) -> NDArray[np.float64]:
    tensor = torch.from_numpy(values.copy())
    dist.all_reduce(tensor, operation, group=world.control)
    reduced: NDArray[np.float64] = tensor.numpy()
    return reduced
