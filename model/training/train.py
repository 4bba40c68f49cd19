"""Training: the loop, and one step of it.

    plan -> feed -> agree on divisors -> forward and backward of each pack -> clip -> AdamW -> average -> report -> save

The loss of a step is the mean over all tokens of all its packs. Ranks first add up what the errors are to be divided by
(two numbers), so gradients of packs and ranks simply add up and it does not matter how samples fell on them.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from model.data.batching import EpochPlan
from model.data.position import PlanPosition, merge_positions
from model.data.reader import PackLoader, SampleReader, open_shards
from model.encoding.online import open_decoder, open_index
from model.network.context_parallel import whole_errors
from model.network.flow import FlowObjective, LossTerms
from model.ranks import World, make_team
from model.training.config import NetworkConfig, TrainConfig
from model.training.feed import Step, StepFeed
from model.training.health import gradient_norms, leave_out_unless_finite, num_updates
from model.training.kernels import choose_kernel
from model.training.metrics import Metrics, StepNorms
from model.training.optim import Ema, build_optimizer, build_schedule, clip_gradients, resume_schedule
from model.training.parallel import build_model, compute_dtype, make_mesh
from model.training.profiling import ProfileWindow
from model.training.resume import compare_recipes
from model.training.state import Checkpoints, Notes, load_tensors, read_notes, set_optimizer_step, state_tensors
from model.training.transfer import IdleTime
from model.training.validation import Validator, open_validator
from schemas.errors import MachineError, ShardError
from schemas.files import write_whole
from schemas.machine import GOES_ON

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send some time before they kill (Slurm: --signal=USR1@120)."""
PROFILE_SIGNAL = signal.SIGUSR2

LAST_TRIES = (5.0, 20.0, 60.0)
"""Seconds to wait before the states after the last step are written again, where that failed: somebody may make room."""


class Training:
    """Everything one rank holds while it trains: starts in `folder`, or goes on from its newest checkpoint.

    `allow_changes` goes on although the recipe differs in what it may not (`model/training/resume.py`).
    """

    def __init__(self, config: TrainConfig, folder: Path, world: World, *, allow_changes: bool = False) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.step = 0
        self.num_steps = config.num_steps
        self._is_stopping = self._is_save_wanted = False
        self._last: Step | None = None
        self._stop_requested = threading.Event()
        self._handlers: dict[int, Any] = {}
        self.checkpoints = Checkpoints(
            config.output.checkpoints or folder / "checkpoints",
            world,
            num_kept=config.output.num_checkpoints_kept,
            keep_every_steps=config.output.keep_every_steps,
            is_asynchronous=config.output.is_asynchronous,
        )
        self.plan = EpochPlan(open_index(config.data), config.plan, config.shape)
        self.plan.teams_of_rank(world.rank, world.size)
        if config.plan.num_epochs is not None:
            self.num_steps = min(self.num_steps, self.plan.num_steps())
        self.team = make_team(world, config.plan.context_parallel)
        mesh = make_mesh(world, config.parallel)
        shape, numbers = config.network.network(), compute_dtype(config.parallel)
        backend = choose_kernel(config.network.attention_backend, shape, numbers, config.plan.token_budget, world)
        network = config.network.model_copy(update={"attention_backend": backend})
        self.build(network, mesh)
        notes = self._resume(allow_changes)
        self.validator = open_validator(config, folder, world, self.plan.index)
        self.feed = self._open_feed(notes)
        self.profile = ProfileWindow(folder / "profiles", world.rank, config.health.profile_steps)
        self.idle = IdleTime(world.device)
        self.metrics = Metrics(folder, config, world, num_steps=self.num_steps, resumed_step=self.step, idle=self.idle)
        if world.is_first:
            recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_whole(folder / "recipe.yaml", recipe.encode())

    def build(self, network: NetworkConfig, mesh: DeviceMesh) -> None:
        """What is trained, and what moves it."""
        config = self.config
        self.model: Any = build_model(network, config.parallel, mesh, self.world, config.seed)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, config.num_steps)
        self.ema = Ema(self.model, config.optim.ema_decay) if config.optim.ema_decay else None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name, the live ones."""
        return state_tensors(self.model, self.optimizer, self.ema)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            stop = self._stop_requested
            profile = self.profile.requested
            self._handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in STOP_SIGNALS}
            self._handlers[PROFILE_SIGNAL] = signal.signal(PROFILE_SIGNAL, lambda *_: profile.set())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.feed.close()
        self._close_decoder()
        if kind is None:
            self.checkpoints.finish()
        self.metrics.close()

    def run(self) -> bool:
        """Train to the last step, or until asked to stop; whether it was the last."""
        while self.has_more:
            step = self.next_step()
            losses = self.learn(step)
            self.report(step, losses)
            self.validate()
            if self.is_save_due:
                self.save(step)
        self.settle()
        return self.step >= self.num_steps

    @property
    def has_more(self) -> bool:
        """Whether there is another step to do."""
        return self.step < self.num_steps and not self._is_stopping

    @property
    def is_save_due(self) -> bool:
        """Whether the states after this step are kept; always after the last one, and soon after one that was not written."""
        is_regular = self.step % self.config.output.checkpoint_every_steps == 0
        return is_regular or self._is_save_wanted or not self.has_more

    def next_step(self) -> Step:
        """This rank's packs of the next step."""
        return next(self.feed)

    def learn(self, step: Step) -> tuple[list[LossTerms], StepNorms]:
        """One optimiser step: (errors of every sample that counts here, pack by pack; gradient norms before clipping).

        A step whose gradients are not finite changes nothing, on all ranks alike.
        """
        self.profile.before_step()
        terms = self.accumulate(step)
        norms = self.move(step)
        self.idle.ends()
        self.step = step.number
        self.profile.after_step(self.step)
        return terms, norms

    def accumulate(self, step: Step) -> list[LossTerms]:
        """Gradients of the whole step, summed over packs and ranks, left in the parameters; errors as `learn` has them."""
        divisors, objective = self._agree(step).to(self.world.device), self.feed.objective
        errors: list[LossTerms] = []
        for micro in step.micro_steps:
            is_last = len(errors) == len(step.micro_steps) - 1
            self.model.set_requires_gradient_sync(is_last or self.config.parallel.sync_every_micro_step)
            packed, noised = self.feed.receive(micro)
            if not errors:
                self.idle.begins()
            terms = objective.loss(self.model(packed, noised.timesteps), noised)
            loss = objective.total(terms, divisors)
            (loss * 0 if micro.is_idle else loss).backward()
            errors.append(whole_errors(terms, micro.num_shared, self.team))
        return errors

    def move(self, step: Step) -> StepNorms:
        """Weights along their gradients, of which none are left, and their average; norms before clipping."""
        by_part = gradient_norms(self.model) if self.metrics.is_due(step.number) else {}
        norm = clip_gradients(self.model.parameters(), self.config.optim.max_grad_norm)
        leave_out_unless_finite(self.optimizer, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return StepNorms(norm, by_part)

    def report(self, step: Step, learnt: tuple[list[LossTerms], StepNorms]) -> None:
        """Record the step, move the learning rate on, publish a checkpoint that has become whole."""
        self.checkpoints.poll()
        self.metrics.record(step, *learnt, self.schedule.get_last_lr()[0])
        if self.metrics.is_due(step.number) and not self.metrics.num_skipped_in_a_row:
            self.checkpoints.prove(step.number)
        self.schedule.step()

    def validate(self) -> None:
        """Look at the held-out clips if it is time to; every rank calls it."""
        every = self.config.validation.every_steps
        if self.validator is None or not every or self._is_stopping:
            return
        if self.step % every == 0 or self.step == self.num_steps:
            self.look(self.validator)

    def look(self, validator: Validator) -> None:
        """The loss of held-out clips, and some of them generated."""
        line = validator.measure(self.model, self.step)
        samples = validator.generate(self.model, self.ema, self.step)
        self.metrics.log("validation", {**line, "samples": samples} if samples else line)

    def save(self, step: Step) -> None:
        """Write the states after `step`; with the samples seen until then, which lie on disk before it is published."""
        trouble = ""
        try:
            self.metrics.write_samples()
        except OSError as error:
            trouble = f"{error.strerror}: {error.filename}"
        self._last = step
        notes, trouble = self._notes(step.position, trouble)
        self.checkpoints.save(self.step, self.tensors(), notes, trouble)

    def settle(self) -> None:
        """Wait until the last states are on disk, writing them again where that failed.

        Raises MachineError when they still could not be written after `LAST_TRIES`.
        """
        for pause_s in LAST_TRIES:
            if not (failure := self.checkpoints.finish()) or self._last is None:
                return
            time.sleep(pause_s)
            self.save(self._last)
        if failure := self.checkpoints.finish():
            raise MachineError(
                f"the states after step {self.step} could not be written to {self.checkpoints}: {failure}.",
                remedy=f"Make room there, or make it writable; {GOES_ON} It goes on from the checkpoint before.",
            )

    def _agree(self, step: Step) -> Tensor:
        """Divisors of the whole step, summed over ranks; the same message says whether any rank was asked to stop, and

        whether a checkpoint that could not be written is tried again after this step.

        Raises ShardError on all ranks when a team's ranks read different shared samples, before they wait for each other.
        """
        retry_steps = max(1, self.config.output.checkpoint_every_steps // 10)
        is_retry_due = self.checkpoints.has_failed and step.number % retry_steps == 0
        flags = [float(self._stop_requested.is_set()), step.discord, float(is_retry_due)]
        message = torch.cat([step.divisors, torch.tensor(flags, dtype=torch.float64)])
        began = time.perf_counter()
        dist.all_reduce(message, group=self.world.control)
        step.others_s = time.perf_counter() - began
        self._is_stopping, self._is_save_wanted = bool(message[2] > 0), bool(message[4] > 0)
        if message[3] != 0:
            raise ShardError(
                f"step {step.number}: ranks that share a sample read different ones.",
                remedy="A sample is damaged for some ranks only: run `nava-curate verify` where each of them reads.",
            )
        return message[:2]

    def _notes(self, position: PlanPosition, trouble: str) -> tuple[Notes | None, str]:
        """What goes into a checkpoint, with positions and damaged samples of all ranks, on rank 0; None elsewhere.

        And what troubles any rank, on rank 0.
        """
        mine = (position, dict(self.feed.loader.damaged), trouble)
        everyone: list[Any] | None = [None] * self.world.size if self.world.is_first else None
        dist.gather_object(mine, everyone, dst=0, group=self.world.control)
        if everyone is None:
            return None, ""
        notes: Notes = {
            "step": self.step,
            "schedule": self.schedule.state_dict(),
            "num_updates": num_updates(self.optimizer),
            "num_ema_updates": self.ema.num_updates if self.ema is not None else 0,
            "recipe": self.config.with_absolute_paths().model_dump(mode="json"),
            "world_size": self.world.size,
            "position": merge_positions(position for position, *_ in everyone),
            "damaged": {clip_id: reason for _, theirs, _ in everyone for clip_id, reason in theirs.items()},
        }
        return notes, next((theirs for *_, theirs in everyone if theirs), "")

    def _resume(self, allow_changes: bool) -> Notes | None:
        """Notes of the newest checkpoint, its tensors being loaded; None at the very start.

        Raises RecipeError when the recipe is not the one that wrote it, in what makes a run another experiment.
        """
        newest = self.checkpoints.newest()
        if newest is None:
            return None
        began, notes = time.perf_counter(), read_notes(newest)
        changes: list[str] = []
        if isinstance(notes["recipe"], dict):  # a digest in checkpoints of earlier versions
            given = self.config.with_absolute_paths().model_dump(mode="json")
            changes = compare_recipes(notes["recipe"], given, allow_changes=allow_changes)
        load_tensors(newest, self.tensors(), self.world)
        self.step = notes["step"]
        set_optimizer_step(self.optimizer, notes.get("num_updates", self.step))
        resume_schedule(self.schedule, notes["schedule"], self.config.optim)
        if self.ema is not None:
            self.ema.num_updates = notes["num_ema_updates"]
        if self.world.is_first:
            print("".join(f"another recipe than before: {change}\n" for change in changes), end="")
            print(f"resumed after step {self.step}; states read in {time.perf_counter() - began:.2f} s", flush=True)
        return notes

    def _open_feed(self, notes: Notes | None) -> StepFeed:
        data, network = self.config.data, self.config.network.network()
        began = time.perf_counter()
        decode, self._close_decoder = open_decoder(data, network, self.plan.index)
        stream = self.plan.stream(self.world.rank, self.world.size, notes and notes["position"])
        loader = PackLoader(
            stream,
            SampleReader(self.plan.index, open_shards(data.shards), verify=data.has_checksums),
            decode,
            num_workers=data.num_workers,
            prefetch=max(data.prefetch_packs, len(stream.teams)),
            damaged=notes and notes["damaged"],
        )
        objective, device = FlowObjective(self.config.flow), self.world.device
        feed = StepFeed(
            loader, len(stream.teams), objective, network, seed=self.config.seed, device=device, team=self.team
        )
        if notes and self.world.is_first:
            print(f"plan position taken up in {1e3 * (time.perf_counter() - began):.1f} ms", flush=True)
        return feed
