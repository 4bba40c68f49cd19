"""Distillation to few steps: the training loop, whose every step teaches a fake network what a student generates.

    plan -> feed -> conditions -> student generates -> fake network learns of it
                                                    -> every fifth step: the student is moved by teacher and fake network

`model` is the student and what a checkpoint holds as `model.` and `ema.`; the teacher are the weights all three begin with.
Clips are read for their captions, voices, sizes and first frames alone. `matching.py` has the mathematics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from model.data.position import PlanPosition
from model.encoding.codec import open_codecs
from model.network.config import NavaConfig
from model.network.flow import LossTerms, Noised, clip_generators
from model.network.tokens import Sample, Velocity, pack
from model.ranks import World
from model.sampling.config import Prompt
from model.sampling.sample import encode_negative
from model.sampling.sampler import few_step_sigmas
from model.training.config import DistillConfig, NetworkConfig
from model.training.feed import MicroStep, Step
from model.training.health import gradient_norms, leave_out_unless_finite, num_updates
from model.training.losses import Losses, add_losses, losses, no_sums
from model.training.matching import Negatives, each_latent, generate, guided_velocity, matched
from model.training.metrics import StepNorms
from model.training.optim import build_optimizer, build_schedule, clip_gradients
from model.training.parallel import build_model, let_go
from model.training.state import Notes, set_optimizer_step, state_tensors
from model.training.train import Training
from model.training.validation import Validator
from schemas.errors import ModelError


class DistillLine(Losses):
    """One line of distill.jsonl: means over the student's updates of an interval and all ranks.

    A loss is the mean square of (fake - real) / mean |x0 - real|, by the level of x_t.
    """

    step: int
    num_updates: int
    grad_norm: float
    """Before clipping."""


class Distillation(Training):
    """What one rank holds while it distils."""

    def build(self, network: NetworkConfig, mesh: DeviceMesh) -> None:
        """Student, fake network and teacher."""
        super().build(network, mesh)
        config, world = self.config, self.world
        self.fake: Any = build_model(network, config.parallel, mesh, world, config.seed)
        self.fake_optimizer = build_optimizer(self.fake, config.optim)
        self.schedule = build_schedule(self.fake_optimizer, config.optim, config.num_steps)
        teacher = self.settings.teacher_of(network)
        self.teacher: Any = build_model(teacher, config.parallel, mesh, world, config.seed, is_trained=False)
        self.sigmas: list[float] = few_step_sigmas(self.settings.student_steps, config.flow.shift).tolist()
        self.negatives = read_negatives(self.settings.codecs, network.network(), world)
        self._moved: list[tuple[Tensor, LossTerms]] = []
        self._norms: list[Tensor] = []

    @property
    def settings(self) -> DistillConfig:
        """The recipe's."""
        assert self.config.distill is not None, "a recipe that distils"
        return self.config.distill

    def tensors(self) -> dict[str, Tensor]:
        """See `Training.tensors`; the fake network and its optimiser under `fake.`."""
        fake = state_tensors(self.fake, self.fake_optimizer, None)
        return super().tensors() | {f"fake.{name}": tensor for name, tensor in fake.items()}

    def is_students(self, step: int) -> bool:
        """Whether the student is moved in this step."""
        return step % self.settings.fake_updates == 0

    def num_passes(self, step: int) -> int:
        """After how many of its passes the student's clips are taken: one number a step, as ranks gather weights together."""
        (generator,) = clip_generators(self.config.seed, step, ["passes of the student"])
        return 1 + int(torch.randint(len(self.sigmas), (1,), generator=generator))

    def accumulate(self, step: Step) -> list[LossTerms]:
        """Gradients of the fake network, and of the student in its steps; errors of the fake network, pack by pack."""
        divisors = self._agree(step).to(self.world.device)
        errors: list[LossTerms] = []
        for micro in step.micro_steps:
            is_last = len(errors) == len(step.micro_steps) - 1
            for network in (self.model, self.fake):
                network.set_requires_gradient_sync(is_last or self.config.parallel.sync_every_micro_step)
            if not errors:
                self.idle.begins()
            errors.append(self._learn_from(step.number, micro, divisors))
        for network in (self.model, self.fake, self.teacher):
            let_go(network)
        return errors

    def move(self, step: Step) -> StepNorms:
        """See `Training.move`; norms are those of the fake network. If any is not finite, neither network moves."""
        max_norm, is_students = self.config.optim.max_grad_norm, self.is_students(step.number)
        by_part = gradient_norms(self.fake) if self.metrics.is_due(step.number) else {}
        norm = clip_gradients(self.fake.parameters(), max_norm)
        moving, found = [self.fake_optimizer], norm
        if is_students:
            self._norms.append(clip_gradients(self.model.parameters(), max_norm))
            moving, found = [*moving, self.optimizer], torch.hypot(norm, self._norms[-1])
        rate = self.schedule.get_last_lr()[0]
        for optimizer in moving:
            for group in optimizer.param_groups:
                group["lr"] = rate * (1.0 if optimizer is self.optimizer else self.settings.fake_rate)
            leave_out_unless_finite(optimizer, found)
            optimizer.step()
            optimizer.zero_grad()
        if is_students and self.ema is not None:
            self.ema.update()
        return StepNorms(torch.where(found.isfinite(), norm, found), by_part)

    def report(self, step: Step, learnt: tuple[list[LossTerms], StepNorms]) -> None:
        """See `Training.report`; the student's figures go to distill.jsonl."""
        super().report(step, learnt)
        if self.metrics.is_due(step.number) and self._norms:
            line = self._line(step.number)
            self.metrics.log("distill", line)
            if self.world.is_first:
                loss = "-" if line["loss"] is None else f"{line['loss']:.4f}"
                print(f"  student: loss {loss}  norm {line['grad_norm']:.3g}", flush=True)

    def look(self, validator: Validator) -> None:
        """Held-out clips as the student makes them, scored or not; the loss of its velocities would say nothing."""
        if samples := validator.generate(self.model, self.ema, self.step):
            self.metrics.log("validation", {"step": self.step, "samples": samples})

    def _learn_from(self, number: int, micro: MicroStep, divisors: Tensor) -> LossTerms:
        """Backward passes of one pack; errors of the fake network, whose noise levels are now those of the pack."""
        objective, network = self.feed.objective, self.fake.config
        samples, is_students = micro.noised.samples, self.is_students(number)
        generators = clip_generators(self.config.seed, number, [s.clip_id for s in samples], self.world.device)
        with torch.set_grad_enabled(is_students):
            clips = generate(self.model, samples, self.sigmas[: self.num_passes(number)], generators)
        if is_students:
            self._pull(clips, generators, micro, divisors)
            clips = [each_latent(clip, Tensor.detach) for clip in clips]
        noised = objective.noise(clips, generators)
        timesteps = noised.timesteps.to(self.world.device)
        terms = objective.loss(self.fake(pack(noised.samples, network), timesteps), noised)
        loss = objective.total(terms, divisors)
        (loss * 0 if micro.is_idle else loss).backward()
        micro.noised = noised
        return terms

    def _pull(self, clips: list[Sample], generators: list[torch.Generator], micro: MicroStep, divisors: Tensor) -> None:
        """The student's backward pass."""
        objective = self.feed.objective
        with torch.no_grad():
            noised = objective.noise(clips, generators)
            timesteps = noised.timesteps.to(self.world.device)
            fake = self.fake(pack(noised.samples, self.fake.config), timesteps)
            real = guided_velocity(self.teacher, noised, timesteps, self.settings.guidance, self.negatives)
            targets: Noised = matched(clips, noised, real, fake)
        made = Velocity([clip.video for clip in clips], [clip.audio for clip in clips])
        terms = objective.loss(made, targets)
        loss = objective.total(terms, divisors)
        (loss * 0 if micro.is_idle else loss).backward()
        if not micro.is_idle:
            self._moved.append((timesteps, LossTerms(*(term.detach() for term in terms))))

    def _line(self, step: int) -> DistillLine:
        sums = no_sums()
        for timesteps, terms in self._moved:
            add_losses(sums, timesteps, terms)
        total = torch.from_numpy(sums)
        dist.all_reduce(total, group=self.world.control)
        norms, flow = torch.stack(self._norms), self.config.flow
        self._moved, self._norms = [], []
        return {
            "step": step,
            "num_updates": len(norms),
            "grad_norm": float(norms.mean()),
            **losses(sums, flow.video_weight, flow.audio_weight),
        }

    def _notes(self, position: PlanPosition, trouble: str) -> tuple[Notes | None, str]:
        notes, trouble = super()._notes(position, trouble)
        updates = num_updates(self.fake_optimizer)
        if notes is not None:
            notes["num_fake_updates"] = updates
        return notes, trouble

    def _resume(self, allow_changes: bool) -> Notes | None:
        notes = super()._resume(allow_changes)
        if notes is not None:
            set_optimizer_step(self.fake_optimizer, notes["num_fake_updates"])
        return notes


def read_negatives(codecs: Path | None, network: NavaConfig, world: World) -> Negatives:
    """The release's negative prompts, read by the first rank through the text encoder among `codecs`; without it no text.

    Every rank calls it. Raises ModelError when there is no text encoder.
    """
    rows = [torch.zeros(0, network.text_dim)] * 2
    if codecs is not None:
        if world.is_first:
            encoder = open_codecs(codecs, network, torch.device("cpu"), torch.bfloat16).text
            if encoder is None:
                raise ModelError(
                    f"{codecs} has no text encoder to read negative prompts with.",
                    remedy="Give distill.codecs a folder with text_encoder/ and tokenizer/, or leave it out.",
                )
            rows = [encode_negative(Prompt(mode=mode), encoder).float() for mode in ("joint", "audio")]
        dist.broadcast_object_list(rows, src=0, group=world.control)
    return Negatives(*rows)
