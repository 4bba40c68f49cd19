"""Between the stage contract and Ray Data: projects columns, isolates bad rows, keeps time, checks types, settles.

A `Worker` is Ray Data's callable: it holds the stages of one worker group and carries one unit (a source with its
shots and clips nested) through them. It is the only place that catches every exception, and it counts each one.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import Recipe
from pipeline.execute.monitor import MonitorLike, Poison, StageTally
from pipeline.plan import Plan, StageSpec, make_plan
from schemas.errors import ContractError, ItemError, NavaError, PlanError, StageTimeoutError
from schemas.ids import fraction_of
from schemas.verdict import Check, column, evaluate, settle
from stages.base import Context, Measure, Split

log = logging.getLogger("nava.adapter")
Unit = dict[str, Any]
Mutable = dict[str, Any]


class Worker:
    """Carries units through one worker group. Constructed in the worker process; models load on first use."""

    def __init__(self, recipe: Mapping[str, Any], group: int, store_dir: str, monitor: MonitorLike) -> None:
        self.plan: Plan = make_plan(Recipe.model_validate(recipe))
        self.group = self.plan.groups[group]
        self.is_last = group == len(self.plan.groups) - 1
        self.schema = self.plan.unit_schema()
        self.monitor = monitor
        self._scratch = tempfile.TemporaryDirectory(prefix="nava-")
        limits = self.plan.recipe.decoder.model_dump()
        self.context = Context(Path(self._scratch.name), store_dir, limits)
        self._ready: dict[str, Measure[Any] | Split[Any]] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        """The units of `table` after this group's stages, in the plan's unit schema."""
        return pa.Table.from_pylist([self.advance(unit) for unit in table.to_pylist()], schema=self.schema)

    def advance(self, unit: Unit) -> Unit:
        """`unit` after this group's stages; settled rows pass through untouched."""
        unit_id = unit["source_id"]
        poison = self.monitor.begin(unit_id)
        unit["shots"], unit["clips"] = unit.get("shots") or [], unit.get("clips") or []
        unit["cost"] = unit.get("cost") or []
        for spec in self.group.stages:
            if unit.get("verdict") is None:
                self._run(spec, unit, poison)
        if self.is_last:
            _settle_rest(self.plan, unit)
        self.monitor.end(unit_id)
        return unit

    def _run(self, spec: StageSpec, unit: Unit, poison: Sequence[Poison]) -> None:
        rows = [row for row in _rows(spec, unit) if row.get("verdict") is None]
        if not rows:
            return
        started, cpu = time.monotonic(), self._cpu_s()
        goes_alone = spec.is_split or any(item.stage == spec.name for item in poison)
        step = 1 if goes_alone else spec.resources.batch
        for at in range(0, len(rows), step):
            batch = self._without_poison(spec, unit, rows[at : at + step], poison)
            if batch:
                self._step(spec, unit, batch)
        tally = StageTally(
            rows=len(rows),
            errors=sum((row.get("verdict") or {}).get("status") == "error" for row in rows),
            wall_s=time.monotonic() - started,
            cpu_s=self._cpu_s() - cpu,
        )
        made = [row for row in _level(unit, spec.adds_to) if row.get("verdict") is None]
        tally.rejects = _apply_gates(self.plan, spec, unit, made)
        self.monitor.leave(unit["source_id"], spec.name, tally)
        unit["cost"].append({"stage": spec.name, "wall_s": tally.wall_s, "cpu_s": tally.cpu_s, "rows": tally.rows})

    def _without_poison(
        self, spec: StageSpec, unit: Unit, rows: Sequence[Mutable], poison: Sequence[Poison]
    ) -> list[Mutable]:
        bad = {item.row_id: item.cause for item in poison if item.stage == spec.name and item.cause != "suspect"}
        for row in rows:
            cause = bad.get(_row_id(row))
            if cause == "timeout":
                limit = spec.resources.timeout_s
                msg = f"{_where(unit, row)}: {spec.name} ran past its limit of {limit:g} s and was killed."
                remedy = f"Raise resources.{spec.name}.timeout_s if the file is worth it."
                _settle_error(row, spec.name, StageTimeoutError(msg, remedy=remedy))
            elif cause == "crash":
                msg = f"{_where(unit, row)}: {spec.name} took its worker process down repeatedly."
                _settle_error(row, spec.name, StageTimeoutError(msg, reason="worker_crash"))
        return [row for row in rows if _row_id(row) not in bad]

    def _step(self, spec: StageSpec, unit: Unit, batch: Sequence[Mutable]) -> None:
        """One call of the stage; a batch that fails as a whole is tried row by row."""
        ids = [_row_id(row) for row in batch]
        self.monitor.enter(unit["source_id"], spec.name, ids)
        with self._limited(spec, unit["source_id"], ids, len(batch)):
            outcome = self._attempt(spec, unit, batch)
        if isinstance(outcome, Exception):
            if len(batch) > 1:
                for row in batch:
                    self._step(spec, unit, [row])
            else:
                _settle_error(batch[0], spec.name, _as_item_error(outcome, spec, unit, batch[0]))
            return
        for row, result in zip(batch, outcome, strict=True):
            if isinstance(result, ItemError):
                _settle_error(row, spec.name, result)
            elif not spec.is_split:
                row[spec.column] = result

    def _attempt(self, spec: StageSpec, unit: Unit, batch: Sequence[Mutable]) -> Sequence[Any] | Exception:
        stage = self._stage(spec)
        try:
            views = [_view(spec, unit, row) for row in batch]
            if isinstance(stage, Split):
                children = [_checked(spec, child) for child in stage.split(views[0])]
                _adopt(self.plan, spec, unit, children)
                return [None]
            results = list(stage.process(views))
            if len(results) != len(batch):
                raise ContractError(f"{spec.name} returned {len(results)} results for {len(batch)} rows.")
            return [result if isinstance(result, ItemError) else _checked(spec, result) for result in results]
        except ItemError as error:
            return error
        except Exception as error:
            log.exception("%s failed on %s", spec.name, unit["uri"])
            return error

    def _cpu_s(self) -> float:
        """Processor time of this worker, of children that ended and of the decoder child that still runs."""
        own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        decoder = vars(self.context).get("media")
        decoding = 0.0 if decoder is None else decoder.cpu_s
        return float(own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + decoding)

    def _stage(self, spec: StageSpec) -> Measure[Any] | Split[Any]:
        if spec.name not in self._ready:
            stage = spec.cls(spec.config)
            try:
                stage.setup(self.context)
            except Exception as error:
                raise self._refusal(spec, error) from error
            self._ready[spec.name] = stage  # type: ignore[assignment]
        return self._ready[spec.name]

    def _refusal(self, spec: StageSpec, error: Exception) -> PlanError:
        """A stage that cannot start would fail on every row alike; that is no row's fault, so it ends the run."""
        reason = str(error) if isinstance(error, NavaError) else f"{type(error).__name__}: {error}."
        refusal = PlanError(
            f"stage {spec.name} cannot start. {reason}", remedy="Nothing is lost: afterwards the same command goes on."
        )
        self.monitor.refuse(str(refusal))
        return refusal

    @contextmanager
    def _limited(self, spec: StageSpec, unit_id: str, row_ids: list[str], num_rows: int) -> Iterator[None]:
        """Ends this process when the body outlasts the stage's limit; Ray then starts a new worker."""

        def give_up() -> None:
            self.monitor.expire(unit_id, spec.name, row_ids)
            os._exit(70)

        timer = threading.Timer(spec.resources.timeout_s * num_rows, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _rows(spec: StageSpec, unit: Unit) -> list[Mutable]:
    return _level(unit, spec.cls.level)


def _level(unit: Unit, level: str) -> list[Mutable]:
    if level == "asset":
        return [unit]
    rows: list[Mutable] = unit[f"{level}s"]
    return rows


def _row_id(row: Mutable) -> str:
    for level in ("clip", "shot"):
        if row.get(level):
            return str(row[level][f"{level}_id"])
    return str(row["source_id"])


def _where(unit: Unit, row: Mutable) -> str:
    return str(unit["uri"]) if row is unit else f"{unit['uri']} {_row_id(row)}"


def _view(spec: StageSpec, unit: Unit, row: Mutable) -> dict[str, Any]:
    """The columns `spec` reads, from the row and its ancestors."""
    view: dict[str, Any] = {}
    shot = _parent_shot(unit, row)
    for path in spec.cls.reads:
        name = path.split(".")[0]
        for holder in (row, shot, unit):
            if holder is not None and name in holder:
                view[name] = holder[name]
                break
    return view


def _parent_shot(unit: Unit, row: Mutable) -> Mutable | None:
    if row.get("clip"):
        wanted = row["clip"]["parent_id"]
        return next((shot for shot in unit["shots"] if shot["shot"]["shot_id"] == wanted), None)
    return None


def _checked(spec: StageSpec, result: Any) -> dict[str, Any]:
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


def _adopt(plan: Plan, spec: StageSpec, unit: Unit, children: Sequence[dict[str, Any]]) -> None:
    names = [field.name for field in plan.columns(spec.adds_to)]
    rows = [dict.fromkeys(names) | {spec.column: child} for child in children]
    _level(unit, spec.adds_to).extend(rows)


def _as_item_error(error: Exception, spec: StageSpec, unit: Unit, row: Mutable) -> ItemError:
    if isinstance(error, ItemError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    at = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    msg = f"{_where(unit, row)}: {spec.name} failed with {type(error).__name__}{at}: {error}."
    return ItemError(
        msg, reason="unexpected", remedy="This is a bug or an unforeseen input: please report it with the file."
    )


def _settle_error(row: Mutable, stage: str, error: ItemError) -> None:
    row["verdict"] = {
        "status": "error",
        "reason": error.reason,
        "message": str(error),
        "stage": stage,
        "failed_gates": [],
        "is_audit": False,
    }


def _apply_gates(plan: Plan, spec: StageSpec, unit: Unit, rows: Sequence[Mutable]) -> int:
    """Settles rows that `spec`'s gates turn away, audited clips excepted; returns how many."""
    checks = [check for check in plan.checks if check.stage == spec.name]
    turned_away = 0
    for row, status, verdict in _judge(plan, unit, rows, checks):
        if status in ("reject", "error") and not verdict["is_audit"]:
            row["verdict"] = verdict
            turned_away += status == "reject"
    return turned_away


def _judge(
    plan: Plan, unit: Unit, rows: Sequence[Mutable], checks: Sequence[Check]
) -> Iterator[tuple[Mutable, str, dict[str, Any]]]:
    if not rows:
        return
    table = _table(plan, unit, rows, checks)
    outcome = evaluate(table, checks)
    statuses, deciders = settle(outcome)
    for index, (row, status, check) in enumerate(zip(rows, statuses, deciders, strict=True)):
        failed = [other.name for other, hit in zip(checks, outcome.rejects[:, index], strict=True) if hit]
        value = None if check is None else column(table, check.path)[index].as_py()
        yield (
            row,
            status,
            {
                "status": status,
                "reason": None if check is None else (check.name if value is not None else f"{check.path}.missing"),
                "message": None if check is None else check.explain(value),
                "stage": None if check is None else check.stage,
                "failed_gates": failed,
                "is_audit": bool(row.get("clip")) and fraction_of(_row_id(row)) < plan.recipe.audit_fraction,
            },
        )


def _table(plan: Plan, unit: Unit, rows: Sequence[Mutable], checks: Sequence[Check]) -> pa.Table:
    paths = [path for check in checks for path in (check.path, *check.gate.when)]
    names = list(dict.fromkeys(path.split(".")[0] for path in paths))
    types = {spec.column: spec.cls.adds for spec in plan.stages}

    def value(row: Mutable, name: str) -> Any:
        for holder in (row, _parent_shot(unit, row), unit):
            if holder is not None and name in holder:
                return holder[name]
        return None

    arrays = {name: pa.array([value(row, name) for row in rows], type=types[name]) for name in names}
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(rows))})


def _settle_rest(plan: Plan, unit: Unit) -> None:
    """Gives every row that is still open its final verdict."""
    levels: dict[str, list[Check]] = {level: [] for level in ("asset", "shot", "clip")}
    added_to = {spec.name: spec.adds_to for spec in plan.stages}
    for check in plan.checks:
        levels[added_to[check.stage]].append(check)
    open_clips = [row for row in unit["clips"] if row.get("verdict") is None]
    for row, status, verdict in _judge(plan, unit, open_clips, levels["clip"]):
        row["verdict"] = verdict if status != "open" else _unmeasured(verdict)
    parents = {row["clip"]["parent_id"] for row in unit["clips"]}
    for shot in unit["shots"]:
        if shot.get("verdict") is None:
            has_clip = shot["shot"]["shot_id"] in parents
            shot["verdict"] = unit["verdict"] or _plain(*(("keep",) if has_clip else ("reject", "shot.no_clip")))
    if unit.get("verdict") is None:
        unit["verdict"] = _plain("keep") if unit["clips"] else _plain("reject", "asset.no_clip")


def _plain(status: str, reason: str | None = None) -> dict[str, Any]:
    words = {
        "shot.no_clip": "no window of the wanted length fits into the shot",
        "asset.no_clip": "no shot gave a clip",
    }
    message = words.get(reason or "")
    return {
        "status": status, "reason": reason, "message": message, "stage": None, "failed_gates": [], "is_audit": False,
    }  # fmt: skip


def _unmeasured(verdict: dict[str, Any]) -> dict[str, Any]:
    msg = "a gated stage was not reached, so nothing vouches for the clip"
    return verdict | {"status": "error", "reason": "not_measured", "message": msg}
