"""Steps ready for the device: planned, read, moded, noised and packed one step ahead of the trainer, in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.batching import EpochPlan, SampleRef
from model.config import NavaConfig
from model.data import PackLoader, RawSample, SampleReader
from model.flow import FlowObjective, Noised, clip_generators
from model.latents import restrict
from model.tokens import Packed, Sample, pack
from model.train_config import TrainConfig


@dataclass(slots=True)
class MicroStep:
    """One pack of this rank. `is_idle`: the plan had nothing left for this rank; its one empty sample counts nothing."""

    packed: Packed
    noised: Noised
    refs: list[SampleRef]
    is_idle: bool


@dataclass(slots=True)
class Step:
    """This rank's share of one optimiser step."""

    number: int
    micro_steps: list[MicroStep]
    divisors: Tensor
    """[2] float64 in host memory: this rank's part of what video and audio errors are divided by."""
    position: dict[str, Any]
    """Plan position of this rank's teams after the step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long the trainer waited for it, in all (`wait`) and by cause (`queue`, `read`, `decode`)."""


class StepFeed:
    """Steps in plan order from a saved position, the next one prepared while the trainer works. Iterate, then `close`.

    Random numbers come from (seed, step, clip): the step is counted over the whole run and the same at any number of
    ranks, and a clip that a mixture draws twice in an epoch gets fresh noise.
    """

    def __init__(
        self,
        plan: EpochPlan,
        reader: SampleReader,
        decode: Callable[[RawSample], Sample],
        config: TrainConfig,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        position: dict[str, Any] | None = None,
        damaged: dict[str, str] | None = None,
    ) -> None:
        stream = plan.stream(rank, world_size, position)
        self.num_micro_steps = len(stream.teams)
        self.loader = PackLoader(
            stream,
            reader,
            decode,
            num_workers=config.data.num_workers,
            prefetch=max(config.data.prefetch_packs, self.num_micro_steps),
            damaged=damaged,
        )
        self.objective = FlowObjective(config.flow)
        self._network = config.network.network()
        self._seed, self._device = config.seed, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="step-feed")
        self._next: Future[Step] = self._worker.submit(self._prepare)

    def __next__(self) -> Step:
        began = time.perf_counter()
        step = self._next.result()
        waited_s = time.perf_counter() - began
        self._next = self._worker.submit(self._prepare)
        # What the preparing thread waited for, scaled to the part of it that the trainer had to wait through.
        share = min(1.0, waited_s / max(step.seconds.pop("prepare"), 1e-9))
        step.seconds = {"wait": waited_s, **{cause: share * s for cause, s in step.seconds.items()}}
        return step

    def close(self) -> None:
        """Stop all threads; what is ahead is dropped."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self.loader.close()

    def _prepare(self) -> Step:
        began, before = time.perf_counter(), self._stalls()
        loaded = [next(self.loader) for _ in range(self.num_micro_steps)]
        number, position = loaded[-1].step, loaded[-1].position
        assert position is not None, "the last pack of a step carries its position"
        micro_steps, divisors = [], torch.zeros(2, dtype=torch.float64)
        for pack_of in loaded:
            clips = [restrict(s, ref.use) for s, ref in zip(pack_of.samples, pack_of.refs, strict=True)]
            samples = clips or [idle_sample(self._network)]
            generators = clip_generators(self._seed, number, [s.clip_id for s in samples])
            if clips:
                samples = self.objective.sample_modes(samples, generators)
                divisors += self.objective.shares(samples).sum(1)
            noised = self.objective.noise(samples, generators)
            packed = pack(noised.samples, self._network)
            micro_steps.append(self._moved(MicroStep(packed, noised, pack_of.refs, not clips)))
        after = self._stalls()
        seconds = {cause: after[cause] - before[cause] for cause in after}
        return Step(number, micro_steps, divisors, position, {"prepare": time.perf_counter() - began, **seconds})

    def _stalls(self) -> dict[str, float]:
        stalls = self.loader.stalls
        return {"queue": stalls.queue_s, "read": stalls.read_s, "decode": stalls.decode_s}

    def _moved(self, micro: MicroStep) -> MicroStep:
        if self._device.type == "cpu":
            return micro
        noised, device = micro.noised, self._device
        targets = [
            [None if t is None else t.to(device) for t in ts] for ts in (noised.video_targets, noised.audio_targets)
        ]
        moved = Noised(noised.samples, noised.timesteps.to(device), noised.weights.to(device), *targets)
        return MicroStep(micro.packed.to(device), moved, micro.refs, micro.is_idle)


def idle_sample(config: NavaConfig) -> Sample:
    """The smallest sample there is: a rank without work must still take part in gathering and reducing weights."""
    return Sample("", text=torch.zeros(0, config.text_dim), audio=torch.zeros(1, config.audio_channels))
