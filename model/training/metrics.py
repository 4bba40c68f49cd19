"""What training did: terminal, JSON lines, TensorBoard, and one Parquet row per trained sample.

metrics.jsonl          one line per interval: losses, speed, balance, stalls; means over the interval and all ranks
tensorboard/           the same numbers
samples/*.parquet      step, clip id, timestep and errors of every sample (`SAMPLES`), one file per rank and
                       checkpoint interval, written before the checkpoint: on resume nothing is missing or double
"""

from __future__ import annotations

import json
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

from model.network.flow import NUM_STEPS, LossTerms
from model.training.config import TrainConfig
from model.training.feed import MicroStep, Step
from model.training.parallel import World
from schemas.budget import Modality
from schemas.fields import f
from schemas.files import whole_path, write_whole

NUM_NOISE_LEVELS = 10
"""Losses are shown for tenths of sigma: 0-0.1 is nearly clean, 0.9-1 nearly noise."""

CAUSES = ("wait", "queue", "read", "decode")
"""Seconds the trainer waited for a step, and what of it the loader spent on."""

SAMPLES: pa.Schema = pa.schema(
    [
        f("step", pa.int64(), unit="count", doc="optimiser step, from 1"),
        f("clip_id", pa.string(), doc="sample key in the shards"),
        f("row", pa.int64(), doc="row of the index"),
        f("epoch", pa.int32(), unit="count", doc="epoch of the draw"),
        f("use", pa.string(), doc="audio_video, video or audio: what it was trained on"),
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
    use: Modality
    tokens: int
    is_first_frame_clean: bool
    is_cross_modal_masked: bool
    is_text_dropped: bool


class Losses(TypedDict):
    """Losses of an interval; None where nothing was seen."""

    loss: float
    loss_video: float | None
    loss_audio: float | None
    loss_video_by_noise: list[float | None]
    """By tenths of sigma."""
    loss_audio_by_noise: list[float | None]


class MetricsLine(Losses):
    """One line of metrics.jsonl: means over an interval and all ranks."""

    step: int
    learning_rate: float
    grad_norm: float
    seconds_per_step: float
    tokens_per_s: float
    mfu: float | None
    padding: float
    imbalance: float
    stall: float
    """Share of the time that ranks waited for a step."""
    stall_slowest_rank: float
    stall_causes_s: dict[str, float]


@dataclass(slots=True)
class TrainedPack:
    """What is kept of one trained pack until it is reported and written: no latents, errors still on their device."""

    step: int
    samples: list[SampleFacts]
    timesteps: Tensor
    terms: LossTerms


@dataclass(slots=True)
class Interval:
    """What was seen since the last line."""

    began: float = field(default_factory=time.perf_counter)
    packs: list[TrainedPack] = field(default_factory=list)
    work: list[tuple[float, float, float]] = field(default_factory=list)
    """Per step: useful tokens, useful FLOPs, tokens computed beyond the useful ones."""
    seconds: list[dict[str, float]] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)


class Metrics:
    """Collects every step; says and writes something every `log_every_steps` (the only device synchronisation here)."""

    def __init__(self, folder: Path, config: TrainConfig, world: World, *, num_steps: int, resumed_step: int) -> None:
        self._folder, self._config, self._world, self._num_steps = folder, config, world, num_steps
        self._interval = Interval()
        self._unwritten: list[TrainedPack] = []
        self._first_unwritten = resumed_step + 1
        self._writer: Any = None
        if world.is_first:
            _forget_after(folder, resumed_step)
            if config.output.has_tensorboard:
                from tensorboardX import SummaryWriter

                self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)
        dist.barrier(group=world.control)

    def record(self, step: Step, terms: list[LossTerms], norm: Tensor, learning_rate: float) -> None:
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
        interval.norms.append(norm)
        is_due = step.number % self._config.output.log_every_steps == 0 or step.number == self._num_steps
        if is_due:
            self._report(step.number, learning_rate)

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
        """Close TensorBoard's file. Rows of samples since the last `write_samples` are dropped: no checkpoint has seen them."""
        if self._writer is not None:
            self._writer.close()

    def _report(self, step: int, learning_rate: float) -> None:
        interval, size = self._interval, self._world.size
        sums = np.zeros((2, NUM_NOISE_LEVELS, 2))
        for seen in interval.packs:
            _add_losses(sums, seen)
        work = np.array(interval.work, dtype=np.float64)
        stalls = np.array([sum(seconds[cause] for seconds in interval.seconds) for cause in CAUSES])
        grad_norm = float(torch.stack([norm.double() for norm in interval.norms]).mean())
        elapsed_s = time.perf_counter() - interval.began
        parts = (sums.shape, work.shape, stalls.shape)
        total = _reduced(self._world, np.concatenate([sums.ravel(), work.ravel(), stalls]), dist.ReduceOp.SUM)
        sums, total_work, total_stalls = _split(total, parts)
        slowest = _reduced(self._world, np.concatenate([work[:, 1], stalls[:1]]), dist.ReduceOp.MAX)
        tokens, flops, surplus = total_work.sum(0)
        line: MetricsLine = {
            "step": step,
            **losses(sums, self._config.flow.video_weight, self._config.flow.audio_weight),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "seconds_per_step": elapsed_s / len(work),
            "tokens_per_s": tokens / elapsed_s,
            "mfu": self._mfu(flops, elapsed_s),
            "padding": surplus / max(1.0, tokens + surplus),
            "imbalance": float((slowest[:-1] * size / np.maximum(total_work[:, 1], 1)).mean()),
            "stall": total_stalls[0] / (elapsed_s * size),
            "stall_slowest_rank": slowest[-1] / elapsed_s,
            "stall_causes_s": dict(zip(CAUSES[1:], total_stalls[1:].tolist(), strict=True)),
        }
        self._interval = Interval()
        if self._world.is_first:
            self._emit(line)

    def _mfu(self, flops: float, elapsed_s: float) -> float | None:
        """Share of the peak that went into useful FLOPs; None where there is no GPU to compare with."""
        if self._world.device.type == "cpu":
            return None
        return flops / (elapsed_s * self._world.size * self._config.hardware.peak_flops)

    def _emit(self, line: MetricsLine) -> None:
        with open(self._folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(terminal_line(line, self._num_steps), flush=True)
        if self._writer is not None:
            for name, value in _flat(line):
                if name != "step":
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()


def losses(sums: NDArray[np.float64], video_weight: float, audio_weight: float) -> Losses:
    """Losses out of sums [modality, noise level, (weighted error, share)]; None where nothing was seen."""
    errors, shares = sums[..., 0], sums[..., 1]

    def mean(error: float, share: float) -> float | None:
        return float(error / share) if share > 0 else None

    video, audio = (mean(errors[i].sum(), shares[i].sum()) for i in (0, 1))
    levels = [[mean(e, s) for e, s in zip(errors[i], shares[i], strict=True)] for i in (0, 1)]
    return {
        "loss": video_weight * (video or 0.0) + audio_weight * (audio or 0.0),
        "loss_video": video,
        "loss_audio": audio,
        "loss_video_by_noise": levels[0],
        "loss_audio_by_noise": levels[1],
    }


def terminal_line(line: MetricsLine, num_steps: int) -> str:
    """One interval for people."""
    kinds = {"video": line["loss_video"], "audio": line["loss_audio"]}
    by_kind = ", ".join(f"{kind} {value:.4f}" for kind, value in kinds.items() if value is not None)
    left_s = int((num_steps - line["step"]) * line["seconds_per_step"])
    mfu = "" if line["mfu"] is None else f"  MFU {line['mfu']:.1%}"
    return (
        f"step {line['step']}/{num_steps}  loss {line['loss']:.4f} ({by_kind})  lr {line['learning_rate']:.2e}  "
        f"norm {line['grad_norm']:.3g}  {line['tokens_per_s']:,.0f} tokens/s{mfu}  imbalance {line['imbalance']:.3f}  "
        f"stall {line['stall']:.1%}  {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
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
            "video_mse": video[i] if "video" in facts["use"] else None,
            "audio_mse": audio[i] if "audio" in facts["use"] else None,
        }
        for i, (facts, timestep) in enumerate(zip(seen.samples, seen.timesteps.cpu().tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def _add_losses(sums: NDArray[np.float64], seen: TrainedPack) -> None:
    """Adds one pack to [modality, noise level, (weight x share x error, share)]."""
    terms, sigma = seen.terms, seen.timesteps.double().cpu().numpy() / NUM_STEPS
    level = np.minimum((sigma * NUM_NOISE_LEVELS).astype(int), NUM_NOISE_LEVELS - 1)
    pairs = ((terms.video_mse, terms.video_shares), (terms.audio_mse, terms.audio_shares))
    for modality, (mse, share) in enumerate(pairs):
        shares = share.double().cpu().numpy()
        np.add.at(sums[modality, :, 0], level, (terms.weights * mse).double().cpu().numpy() * shares)
        np.add.at(sums[modality, :, 1], level, shares)


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


def _flat(line: Mapping[str, object], prefix: str = "") -> list[tuple[str, float]]:
    """Scalars of a line by tag; what is None is left out."""
    flat: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            flat += [(f"{prefix}{name}/{i / len(value):.1f}", v) for i, v in enumerate(value) if v is not None]
        elif isinstance(value, int | float):
            flat.append((prefix + name, value))
    return flat


def _forget_after(folder: Path, step: int) -> None:
    """Remove what a killed run wrote beyond the checkpoint it is resumed from; it will be trained again, identically."""
    lines = folder / "metrics.jsonl"
    if lines.exists():
        kept = [line for line in lines.read_text().splitlines() if line and json.loads(line)["step"] <= step]
        write_whole(lines, "".join(line + "\n" for line in kept).encode())
    for path in (folder / "samples").glob("*.parquet"):
        if int(path.name.split("-")[1]) > step:
            path.unlink()
