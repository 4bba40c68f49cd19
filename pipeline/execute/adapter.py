"""Between the stage contract and whoever runs it: projects columns, isolates bad rows, keeps time, checks types.

A `Worker` holds the stages of one worker group and carries one unit (a source with its shots and clips) through them. It
is the only place that catches every exception, and it counts each one.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.execute.gates import (
    apply_gates,
    restore_failures,
    settle_error,
    settle_rest,
    turns_away,
    without_rejected,
)
from pipeline.execute.looks import LookCosts
from pipeline.execute.monitor import MonitorLike, Poison, StageTally
from pipeline.execute.parts import divide, divides_at
from pipeline.plan import Plan, StageSpec
from pipeline.unit import Node, Unit
from schemas.errors import ContractError, ItemError, MachineError, NavaError, PlanError, StageTimeoutError
from schemas.machine import GOES_ON, trouble_of
from schemas.records import Cost, Level, Struct
from schemas.scratch import Scratch
from stages.asset_pass import Spent, Wish
from stages.base import Context, Measure, Split

log = logging.getLogger("nava.adapter")
LIBRARY_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Of whoever runs stages: libraries never call home, and one worker uses one core so that as many fit as there are."""


class Worker:
    """Carries units through worker group `group` of pass `number`. Models load on first use.

    `ends_late` says what happens to a row that outlasts its stage's limit: True ends this process, so that somebody can
    start another; False lets it go on, for a worker that shares its process with the caller.
    """

    def __init__(
        self,
        plan: Plan,
        place: tuple[int, int],
        store_dir: str,
        monitor: MonitorLike,
        *,
        ends_late: bool = True,
        cuts_dir: str = "",
    ) -> None:
        self.plan = plan
        self.number, group = place
        groups = plan.passes[self.number].groups
        self.group = groups[group]
        self.is_last = group == len(groups) - 1
        self._first = groups[0].stages[0]
        divided, at = divides_at(plan, self.number) or (None, 0)
        self._divides_at = at if divided == group else None
        self.monitor, self.ends_late = monitor, ends_late
        self._scratch = Scratch("worker")
        configs = {spec.name: spec.config for spec in plan.stages}
        hashes = {spec.name: spec.hash for spec in plan.stages}
        self.context = Context(Path(self._scratch.name), store_dir, plan.recipe.decoder, configs, hashes, cuts_dir)
        self._looks = LookCosts()
        self._setup = Spent()
        self._ready: dict[str, Measure[Any] | Split[Any]] = {}

    def close(self) -> None:
        """Ends the decoder's child and removes the scratch folder."""
        if "media" in vars(self.context):
            self.context.media.close()
        self._scratch.cleanup()

    def advance(self, unit: Unit) -> list[Unit]:
        """Takes `unit` through this group's stages; settled rows pass through untouched.

        Returns the parts of a long one, of which each is to go through this group in its turn; nothing otherwise.
        """
        parts: list[Unit] = []
        poison = self.monitor.begin(unit.key)
        self.context.asset_pass.expect = lambda: self._looks.of(self._watching(unit))
        self.context.admits = partial(self._admits, unit)
        for at, spec in enumerate(self.group.stages):
            if at == self._divides_at:
                parts = divide(self.plan, unit)
            if unit.asset.verdict is None and not parts:
                self._run(spec, unit, poison)
        if self.is_last and not parts:
            settle_rest(self.plan, self.number, unit)
        for cost in self._looks.unasked():
            unit.cost.append(cost)
            self.monitor.leave(unit.key, cost.stage, StageTally(wall_s=cost.wall_s, cpu_s=cost.cpu_s))
        self.monitor.end(unit.key)
        return parts

    def measure(self, name: str, node: Node) -> Struct | ItemError:
        """What stage `name` measures of one row, checked; nothing is settled. Raises PlanError if it cannot start."""
        spec = next(spec for spec in self.group.stages if spec.name == name)
        (result,) = self._measured(spec, [node])
        return result

    def _watching(self, unit: Unit) -> dict[Wish, str]:
        """Which observers stages of this group will ask about `unit`, each with the stage that does first."""
        found: dict[Wish, str] = {}
        for spec in self._watchers(unit):
            wish = spec.cls.watches(spec.config, self.context)
            if wish is not None:
                found.setdefault(wish, spec.name)
        return found

    def _watchers(self, unit: Unit) -> Iterator[StageSpec]:
        """The stages of this group that will ask what the asset pass saw of `unit`."""
        for spec in self.group.stages:
            rows = unit.rows(spec.cls.level) if spec.cls.is_watching else ()
            is_new = not rows or any(node.verdict is None and node.hashes.get(spec.name) != spec.hash for node in rows)
            if spec.cls.is_watching and is_new:
                yield spec

    def _admits(self, unit: Unit, stage: str, found: Struct) -> bool:
        """See `Context.admits`."""
        if turns_away(self.plan, stage, found):
            return False
        for spec in self._watchers(unit):
            self._check_room(spec, unit, (found["duration_us"] or 0) / 1e6)
        return True

    def _run(self, spec: StageSpec, unit: Unit, poison: Sequence[Poison]) -> None:
        restore_failures(spec, unit)
        rows = [node for node in unit.rows(spec.cls.level) if node.verdict is None]
        new = [node for node in rows if node.hashes.get(spec.name) != spec.hash]
        if spec.cls.skips_rejected:
            new = without_rejected(self.plan, spec, new)
        if new:
            if spec is not self._first:
                for watcher in self._watchers(unit):
                    self._stage(
                        watcher
                    )  # whoever has the asset decoded, all are ready to look on, or the run ends here
            self._measure(spec, unit, new, poison)
        rejects = apply_gates(self.plan, spec, [node for node in unit.rows(spec.adds_to) if node.verdict is None])
        if new:
            self.monitor.leave(unit.key, spec.name, StageTally(rejects=rejects))

    def _measure(self, spec: StageSpec, unit: Unit, rows: Sequence[Node], poison: Sequence[Poison]) -> None:
        """Measures rows on which nothing of this stage's hash has been said yet."""
        unit.is_remade |= spec.cls.level != Level.CLIP
        if spec.is_split:
            unit.orphan(spec.adds_to, rows)
        for node in rows:
            node.hashes.pop(spec.name, None)
            if not spec.is_split:
                node.structs.pop(spec.column, None)
        started, frames, setup = self._clock(), self.context.media.frames_decoded, self._setup
        goes_alone = spec.is_split or any(item.stage == spec.name for item in poison)
        step = 1 if goes_alone else spec.resources.batch
        for at in range(0, len(rows), step):
            batch = self._without_poison(spec, unit, rows[at : at + step], poison)
            if batch:
                self._step(spec, unit, batch)
        used = self._clock() - started - (self._setup - setup)
        used = self._looks.shared_out(spec.name, used, self.context.asset_pass)
        tally = StageTally(
            rows=len(rows),
            errors=sum(node.verdict is not None and node.verdict.status == "error" for node in rows),
            wall_s=used.wall_s,
            cpu_s=used.cpu_s,
        )
        self.monitor.leave(unit.key, spec.name, tally)
        unit.cost = [each for each in unit.cost if each.stage != spec.name]
        decoded = self.context.media.frames_decoded - frames
        unit.cost.append(Cost(spec.name, tally.wall_s, tally.cpu_s, tally.rows, decoded))

    def _without_poison(
        self, spec: StageSpec, unit: Unit, rows: Sequence[Node], poison: Sequence[Poison]
    ) -> list[Node]:
        bad = {item.row_id: item.cause for item in poison if item.stage == spec.name and item.cause != "suspect"}
        for node in rows:
            cause = bad.get(node.row_id)
            if cause == "timeout":
                limit_s = _limit_s(spec, node)
                msg = f"{_where(unit, node)}: {spec.name} ran past its limit of {limit_s:.4g} s and was killed."
                remedy = f"Raise resources.{spec.name}.timeout_s or timeout_per_s if the file is worth it."
                settle_error(node, spec, StageTimeoutError(msg, remedy=remedy))
            elif cause == "crash":
                msg = f"{_where(unit, node)}: {spec.name} took its worker process down repeatedly."
                settle_error(node, spec, StageTimeoutError(msg, reason="worker_crash"))
        return [node for node in rows if node.row_id not in bad]

    def _step(self, spec: StageSpec, unit: Unit, batch: Sequence[Node]) -> None:
        """One call of the stage; a batch that fails as a whole is tried row by row."""
        ids = [node.row_id for node in batch]
        self.monitor.enter(unit.key, spec.name, ids)
        if not spec.cls.is_watching:
            self._check_room(spec, unit, sum(node.media_s for node in batch))
        limit_s = sum(_limit_s(spec, node) for node in batch)
        with self._limited(spec, unit.key, ids, limit_s):
            outcome = self._attempt(spec, unit, batch)
        if isinstance(outcome, Exception):
            if len(batch) > 1:
                for node in batch:
                    self._step(spec, unit, [node])
            else:
                settle_error(batch[0], spec, _as_item_error(outcome, spec, _where(unit, batch[0])))
            return
        for node, result in zip(batch, outcome, strict=True):
            if isinstance(result, ItemError):
                settle_error(node, spec, result)
                continue
            node.hashes[spec.name] = spec.hash
            if not spec.is_split:
                node.structs[spec.column] = result

    def _check_room(self, spec: StageSpec, unit: Unit, media_s: float) -> None:
        """Raises MachineError where the scratch folder has less room than the stage says it takes."""
        need_gb = spec.resources.scratch_gb_per_h * media_s / 3600
        folder = self.context.scratch_dir
        if need_gb and need_gb * 1e9 > (free := shutil.disk_usage(folder).free):
            msg = (
                f"{spec.name} takes about {need_gb:.3g} GB of scratch for {unit.source.uri}; "
                f"{folder} on {socket.gethostname()} has {free / 1e9:.3g} GB left."
            )
            raise MachineError(msg, remedy=f"Make room there, or set TMPDIR to a larger disk; {GOES_ON}")

    def _attempt(
        self, spec: StageSpec, unit: Unit, batch: Sequence[Node]
    ) -> Sequence[Struct | ItemError | None] | Exception:
        stage = self._stage(spec)
        try:
            if isinstance(stage, Split):
                children = [_checked(spec, child) for child in stage.split(_view(spec, batch[0]))]
                unit.adopt(spec.adds_to, batch[0], children)
                return [None]
            return self._measured(spec, batch)
        except ItemError as error:
            return error
        except Exception as error:
            places = (self.context.scratch_dir, self.context.store_dir, self.context.cuts_dir)
            if (trouble := trouble_of(error, places)) is not None:
                raise trouble from error
            log.exception("%s failed on %s", spec.name, unit.source.uri)
            return error

    def _measured(self, spec: StageSpec, batch: Sequence[Node]) -> list[Struct | ItemError]:
        stage = self._stage(spec)
        assert isinstance(stage, Measure)
        results = list(stage.process([_view(spec, node) for node in batch]))
        if len(results) != len(batch):
            raise ContractError(f"{spec.name} returned {len(results)} results for {len(batch)} rows.")
        return [result if isinstance(result, ItemError) else _checked(spec, result) for result in results]

    def _clock(self) -> Spent:
        return Spent(time.monotonic(), self._cpu_s())

    def _cpu_s(self) -> float:
        """Processor time of this worker, of children that ended and of the decoder child that still runs."""
        own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        decoder = vars(self.context).get("media")
        decoding = 0.0 if decoder is None else decoder.cpu_s - decoder.ended_cpu_s
        return float(own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + decoding)

    def _stage(self, spec: StageSpec) -> Measure[Any] | Split[Any]:
        if spec.name not in self._ready:
            stage, started = spec.cls(spec.config), self._clock()
            try:
                stage.setup(self.context)
            except Exception as error:
                raise self._refusal(spec, error) from error
            self._setup += self._clock() - started
            self._ready[spec.name] = stage  # type: ignore[assignment]
        return self._ready[spec.name]

    @staticmethod
    def _refusal(spec: StageSpec, error: Exception) -> PlanError:
        """A stage that cannot start would fail on every row alike; that is no row's fault, so it ends the run."""
        reason = str(error) if isinstance(error, NavaError) else f"{type(error).__name__}: {error}."
        return PlanError(
            f"stage {spec.name} cannot start. {reason}", remedy="Nothing is lost: afterwards the same command goes on."
        )

    @contextmanager
    def _limited(self, spec: StageSpec, unit_id: str, row_ids: list[str], limit_s: float) -> Iterator[None]:
        """Ends this process when the body outlasts its limit; another worker is then started elsewhere."""

        def give_up() -> None:
            self.monitor.expire(unit_id, spec.name, row_ids)
            os._exit(70)

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True
        if self.ends_late:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _limit_s(spec: StageSpec, node: Node) -> float:
    return spec.resources.timeout_s + spec.resources.timeout_per_s * node.media_s


def _where(unit: Unit, node: Node) -> str:
    return unit.source.uri if node is unit.asset else f"{unit.source.uri} {node.row_id}"


def _view(spec: StageSpec, node: Node) -> dict[str, Any]:
    """The columns `spec` reads, from the row and its ancestors."""
    return {name: node.lookup(name) for name in spec.sees}


def _checked(spec: StageSpec, result: Any) -> Struct:
    """`result` if it has exactly the declared fields, castable, and no NaN among its numbers."""
    declared = [field.name for field in spec.cls.adds]
    if not isinstance(result, Mapping) or set(result) != set(declared):
        got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
        raise ContractError(f"{spec.name} declared {sorted(declared)} but returned {got}.")
    odd = [key for key, value in result.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise ContractError(f"{spec.name} returned a number that is not finite for {odd}; null means not measurable.")
    plain: dict[str, Any] = pa.array([dict(result)], type=spec.cls.adds).to_pylist()[0]
    return plain


def _as_item_error(error: Exception, spec: StageSpec, where: str) -> ItemError:
    if isinstance(error, ItemError):
        return error
    if isinstance(error, MemoryError):
        msg = f"{where}: {spec.name} needs more memory than its worker may take."
        remedy = f"Raise resources.{spec.name}.memory_gb if the file is worth it."
        return ItemError(msg, reason="worker_memory", remedy=remedy)
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    at = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    msg = f"{where}: {spec.name} failed with {type(error).__name__}{at}: {error}."
    return ItemError(
        msg, reason="unexpected", remedy="This is a bug or an unforeseen input: please report it with the file."
    )
