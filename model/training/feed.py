"""Steps ready for the device: planned, read, moded, noised and packed one step ahead of the trainer, in a thread."""

from __future__ import annotations

import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.data.batching import SampleRef
from model.data.position import PlanPosition
from model.data.reader import LoadedPack, PackLoader
from model.encoding.latents import restrict
from model.network.config import NavaConfig
from model.network.context_parallel import Team, keep_share, keep_targets
from model.network.flow import FlowObjective, Noised, clip_generators
from model.network.tokens import Packed, Sample, pack
from model.training.transfer import Arrival, DeviceCopies


@dataclass(slots=True)
class MicroStep:
    """One pack of this rank. `is_idle`: the plan had nothing left for this rank; its one empty sample counts nothing."""

    packed: Packed
    noised: Noised
    refs: list[SampleRef]
    is_idle: bool
    num_shared: int
    """Samples shared with the team; they come first."""
    first_counted: int
    """Samples before it are counted and reported by another rank of the team."""
    arrived: Arrival | None = None
    """When it is on the device; `StepFeed.receive` before kernels read it."""


@dataclass(slots=True)
class Step:
    """This rank's share of one optimiser step."""

    number: int
    micro_steps: list[MicroStep]
    divisors: Tensor
    """[2] float64 in host memory: this rank's part of what video and audio errors are divided by."""
    position: PlanPosition
    """Plan position of this rank's teams after the step."""
    discord: int
    """Zero when summed over ranks, unless the ranks of a team hold different shared samples."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long the trainer waited for it, in all (`wait`) and by cause (`queue`, `read`, `decode`)."""
    num_substituted: int = 0
    """Samples of it, up to now and ahead, that were damaged."""
    others_s: float = 0.0
    """How long this rank waited for the others to come to it."""


class StepFeed:
    """Steps made of the loader's packs, the next one prepared while the trainer works. Iterate, then `close`, which closes
    the loader too.

    Random numbers come from (seed, step, clip): the step is counted over the whole run and the same at any number of
    ranks, and a clip that a mixture draws twice in an epoch gets fresh noise.
    """

    def __init__(
        self,
        loader: PackLoader[Sample],
        num_micro_steps: int,
        objective: FlowObjective,
        network: NavaConfig,
        *,
        seed: int,
        device: torch.device,
        team: Team | None = None,
    ) -> None:
        self.loader, self.num_micro_steps, self.objective = loader, num_micro_steps, objective
        self._network, self._seed, self._team = network, seed, team
        self._copies = DeviceCopies(device)
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

    def receive(self, micro: MicroStep) -> tuple[Packed, Noised]:
        """What the network is given, for kernels queued from now on."""
        return self._copies.receive((micro.packed, micro.noised), micro.arrived)

    def close(self) -> None:
        """Stop all threads; what is ahead is dropped."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self.loader.close()

    def _prepare(self) -> Step:
        began, before, replaced = time.perf_counter(), self._stalls(), self.loader.num_replaced
        loaded = [next(self.loader) for _ in range(self.num_micro_steps)]
        number, position = loaded[-1].step, loaded[-1].position
        assert position is not None, "the last pack of a step carries its position"
        micro_steps = [self._micro_step(number, pack_of) for pack_of in loaded]
        divisors = torch.zeros(2, dtype=torch.float64)
        for micro in micro_steps:
            if not micro.is_idle:
                divisors += self.objective.shares(micro.noised.samples[micro.first_counted :]).sum(1)
        after = self._stalls()
        seconds = {cause: after[cause] - before[cause] for cause in after}
        seconds = {"prepare": time.perf_counter() - began, **seconds}
        replaced = self.loader.num_replaced - replaced
        return Step(number, micro_steps, divisors, position, self._discord(micro_steps), seconds, replaced)

    def _micro_step(self, number: int, loaded: LoadedPack[Sample]) -> MicroStep:
        samples = [restrict(s, ref.use) for s, ref in zip(loaded.samples, loaded.refs, strict=True)]
        is_idle = not samples
        samples = samples or [idle_sample(self._network)]
        generators = clip_generators(self._seed, number, [s.clip_id for s in samples])
        if not is_idle:
            samples = self.objective.sample_modes(samples, generators)
        noised = self.objective.noise(samples, generators)
        packed = pack(noised.samples, self._network)
        num_shared, first_counted = sum(ref.is_shared for ref in loaded.refs), 0
        if self._team is not None and num_shared:
            packed = keep_share(packed, num_shared, self._team)
            noised = keep_targets(noised, packed)
            first_counted = 0 if self._team.is_first else num_shared
        (packed, noised), arrived = self._copies.send((packed, noised))
        return MicroStep(packed, noised, loaded.refs, is_idle, num_shared, first_counted, arrived)

    def _discord(self, micro_steps: list[MicroStep]) -> int:
        """A digest of the shared samples, with such a sign and factor that it cancels out over a team that agrees."""
        if self._team is None:
            return 0
        names = [[s.clip_id for s in micro.noised.samples[: micro.num_shared]] for micro in micro_steps]
        digest = zlib.crc32(repr(names).encode())
        return digest * (self._team.num_members - 1) if self._team.is_first else -digest

    def _stalls(self) -> dict[str, float]:
        stalls = self.loader.stalls
        return {"queue": stalls.queue_s, "read": stalls.read_s, "decode": stalls.decode_s}


def idle_sample(config: NavaConfig) -> Sample:
    """The smallest sample there is: a rank without work must still take part in gathering and reducing weights."""
    return Sample("", text=torch.zeros(0, config.text_dim), audio=torch.zeros(1, config.audio_channels))
