"""The plan: what will run, on which columns, in which workers. Pure: no Ray, no media, no ledger.

`make_plan` checks the wiring (every column a stage reads is added before it), the gates (every gated field exists),
and the cluster (the smallest pool of every worker fits at once, because Ray waits silently when it does not).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa

import stages
from pipeline.config import Recipe
from schemas.errors import PlanError
from schemas.fields import Meaning, describe, f, fields_below, resolve, roles_of, values_at
from schemas.ids import digest
from schemas.records import CLIP, COST, FETCH_URI, SHOT, SOURCE, VERDICT, Level, Struct
from schemas.verdict import Check, checks_of
from stages.base import Collect, Resources, Split, Stage, StageConfig

LEVELS = tuple(Level)
HASHES = f(
    "hashes", pa.map_(pa.string(), pa.string()), doc="stage -> hash of what looked at the row; see StageSpec.hash"
)
FAILED_BY = f("failed_by", pa.string(), doc="hash of the stage that could not measure the row")
WORKER_GB = 1.0
"""A worker before any model: interpreter, Ray, Arrow, and the decoder child with its pictures."""
VALUES = {bool: "true or false", float: "a number", str: "a text; in quotes where YAML would read something else"}
"""What a gate compares values as -> how such a value is written in a recipe."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of a plan, validated."""

    name: str
    cls: type[Stage[StageConfig]]
    config: StageConfig
    resources: Resources
    hash: str
    """What made its answers: the stage's version and settings, the decoder's, and those of all the stages it reads."""

    @property
    def is_split(self) -> bool:
        """Whether the stage makes children."""
        return issubclass(self.cls, Split)

    @property
    def is_collect(self) -> bool:
        """Whether the stage looks at all rows of the run at once."""
        return issubclass(self.cls, Collect)

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads under its settings."""
        return self.cls.reads_with(self.config)

    @property
    def sees(self) -> tuple[str, ...]:
        """Columns it is shown: of what it reads, and of what it may read where it is there."""
        paths = (*self.reads, *self.cls.may_read(self.config))
        return tuple(dict.fromkeys(path.split(".")[0] for path in paths))

    @property
    def adds_to(self) -> Level:
        """The rows that carry what the stage adds."""
        return Level(self.cls.children if issubclass(self.cls, Split) else self.cls.level)

    @property
    def column(self) -> str:
        """The column that holds what the stage adds: its own name, or the child's level for a split."""
        return self.adds_to if self.is_split else self.name


@dataclass(frozen=True)
class WorkerGroup:
    """Neighbouring stages that share a worker process and its decoder; none, where units are only judged anew."""

    stages: tuple[StageSpec, ...]

    @property
    def name(self) -> str:
        """The stage names joined; shown in Ray's own dashboards."""
        return "+".join(spec.name for spec in self.stages)

    @property
    def cpus(self) -> float:
        """CPUs of one worker."""
        return max((spec.resources.cpus for spec in self.stages), default=1.0)

    @property
    def gpus(self) -> float:
        """GPUs of one worker."""
        return max((spec.resources.gpus for spec in self.stages), default=0.0)

    @property
    def memory_gb(self) -> float:
        """Memory of one worker: itself, and the models of all its stages at once."""
        return WORKER_GB + sum(spec.resources.memory_gb for spec in self.stages)

    @property
    def scratch_gb_per_h(self) -> float:
        """Local disk of one worker per hour of media in one source."""
        return sum(spec.resources.scratch_gb_per_h for spec in self.stages)


@dataclass(frozen=True)
class Pass:
    """A part of the chain that every unit goes through before any goes on: the Collect that begins it, then workers."""

    collect: StageSpec | None
    """None for the first pass, which begins with the sources."""
    groups: tuple[WorkerGroup, ...]

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """Its stages, in running order."""
        first = () if self.collect is None else (self.collect,)
        return (*first, *(spec for group in self.groups for spec in group.stages))


@dataclass(frozen=True)
class Cluster:
    """What a cluster offers: totals, and its largest node."""

    cpus: float
    gpus: float
    memory_gb: float
    node_cpus: float
    node_gpus: float


@dataclass(frozen=True)
class Plan:
    """A recipe that is known to fit together."""

    recipe: Recipe
    stages: tuple[StageSpec, ...]
    passes: tuple[Pass, ...]
    checks: tuple[Check, ...]

    def identity(self, number: int) -> str:
        """What a unit that went through pass `number` is the answer to: its stages, their gates, the audit lane."""
        reached = {spec.name: spec.hash for each in self.passes[: number + 1] for spec in each.stages}
        gates = {
            name: {field: gate.model_dump(mode="json") for field, gate in fields.items()}
            for name, fields in self.recipe.ordered_gates().items()
            if name in reached
        }
        return digest(json.dumps([reached, gates, self.recipe.audit_fraction]))

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """The worker groups of all passes."""
        return tuple(group for each in self.passes for group in each.groups)

    @property
    def cutter(self) -> StageSpec | None:
        """The stage that leaves the media of clips for the shards; None in a recipe that only measures."""
        columns = [path.partition(".")[0] for _, path in self.meaning("payload")]
        return next((spec for spec in self.stages if spec.column in columns), None)

    def at_level(self, level: str) -> list[StageSpec]:
        """Stages whose column lives on rows of `level`."""
        return [spec for spec in self.stages if spec.adds_to == level]

    def fields(self, level: str) -> list[tuple[str, pa.Field]]:
        """(dotted path, field) of everything measured on rows of `level`, at any depth."""
        return list(fields_below(pa.field(spec.column, spec.cls.adds) for spec in self.at_level(level)))

    def meaning(self, meaning: Meaning) -> list[tuple[Level, str]]:
        """(level, path) of the fields that say they hold it (see `schemas.fields.MEANINGS`)."""
        return [
            (level, path.removesuffix("[]"))
            for level in LEVELS
            for path, field in self.fields(level)
            if roles_of(field).get("means") == meaning
        ]

    def values(self, meaning: Meaning, structs: Mapping[str, Struct | None]) -> list[Any]:
        """What holds this meaning among the structs of a row."""
        return [value for _, path in self.meaning(meaning) for value in values_at(structs, path)]

    def columns(self, level: str) -> list[pa.Field]:
        """The columns of rows of `level`, verdict included."""
        own = [f(spec.column, spec.cls.adds, doc=_first_line(spec.cls)) for spec in self.at_level(level)]
        return [*own, HASHES, FAILED_BY, f("verdict", VERDICT, doc="how the row settled")]

    def unit_schema(self) -> pa.Schema:
        """The row that flows through Ray: one source, with its shots and clips nested."""
        return pa.schema(
            [
                *SOURCE,
                FETCH_URI,
                *self.columns(Level.ASSET),
                pa.field("shots", pa.list_(pa.struct(self.columns(Level.SHOT)))),
                pa.field("clips", pa.list_(pa.struct(self.columns(Level.CLIP)))),
                pa.field("cost", pa.list_(COST)),
            ]
        )


def make_plan(recipe: Recipe, cluster: Cluster | None = None) -> Plan:
    """The checked plan of `recipe`, for `cluster` if one is given. Raises PlanError."""
    specs = _specs(recipe)
    _check_wiring(specs)
    checks = tuple(checks_of(recipe.ordered_gates()))
    _check_gates(specs, checks)
    passes = _passes(specs)
    if cluster is not None:
        for each in passes:
            check_capacity(each.groups, cluster)
    return Plan(recipe, specs, passes, checks)


def _specs(recipe: Recipe) -> tuple[StageSpec, ...]:
    specs: list[StageSpec] = []
    made: dict[str, str] = {}
    for name, config in recipe.stage_configs().items():
        cls = stages.load(name)
        spec = StageSpec(name, cls, config, recipe.resources.get(name, cls.resources), "")
        read = {column: made[column] for column in sorted(spec.sees) if column in made}
        told = [name, cls.version, config.model_dump(mode="json"), recipe.decoder.model_dump(mode="json"), read]
        spec = replace(spec, hash=digest(json.dumps(told)))
        specs.append(spec)
        made[spec.column] = spec.hash
    return tuple(specs)


def _passes(specs: Sequence[StageSpec]) -> tuple[Pass, ...]:
    """The chain cut before every Collect."""
    starts = [0, *(at for at, spec in enumerate(specs) if spec.is_collect), len(specs)]
    passes = []
    for start, end in pairwise(starts):
        collect = specs[start] if start < len(specs) and specs[start].is_collect else None
        passes.append(Pass(collect, _fuse(specs[start + (collect is not None) : end])))
    return tuple(passes)


def check_capacity(groups: Sequence[WorkerGroup], cluster: Cluster) -> None:
    """Raises PlanError where one worker of every group cannot run at the same time."""
    for group in groups:
        if group.cpus > cluster.node_cpus or group.gpus > cluster.node_gpus:
            msg = (
                f"workers for {group.name} need {group.cpus:g} CPUs and {group.gpus:g} GPUs on one node; "
                f"the largest node has {cluster.node_cpus:g} and {cluster.node_gpus:g}."
            )
            raise PlanError(msg, remedy=f"Lower resources.{group.stages[0].name}.cpus/gpus or add a larger node.")
    cpus, gpus = sum(group.cpus for group in groups), sum(group.gpus for group in groups)
    if cpus > cluster.cpus or gpus > cluster.gpus:
        msg = (
            f"one worker of each of the {len(groups)} groups needs {cpus:g} CPUs and {gpus:g} GPUs together; "
            f"the cluster has {cluster.cpus:g} and {cluster.gpus:g}, and Ray would wait for ever without a word."
        )
        raise PlanError(
            msg, remedy="Give neighbouring stages equal resources so that they share a worker, or add nodes."
        )


def _fuse(specs: Sequence[StageSpec]) -> tuple[WorkerGroup, ...]:
    groups: list[list[StageSpec]] = []
    for spec in specs:
        wants = (spec.resources.cpus, spec.resources.gpus)
        if groups and wants == (groups[-1][-1].resources.cpus, groups[-1][-1].resources.gpus):
            groups[-1].append(spec)
        else:
            groups.append([spec])
    return tuple(WorkerGroup(tuple(group)) for group in groups)


def _check_wiring(specs: Sequence[StageSpec]) -> None:
    known: dict[str, pa.Field] = {field.name: field for field in (*SOURCE, FETCH_URI)}
    level_of = dict.fromkeys(known, Level.ASSET)
    made: set[str] = {Level.ASSET}
    for spec in specs:
        if spec.is_collect and spec is specs[0]:
            raise PlanError(
                f"stage '{spec.name}' looks at all rows of the run, and no stage before it measures any.",
                remedy="Put it behind the stages it reads.",
            )
        if spec.cls.level not in made:
            raise PlanError(
                f"stage '{spec.name}' works on {spec.cls.level}s, which no earlier stage makes.",
                remedy=f"Put the stage that splits into {spec.cls.level}s before it.",
            )
        there = [path for path in spec.cls.may_read(spec.config) if path.split(".")[0] in known]
        for path in (*spec.reads, *there):
            head = path.split(".")[0]
            visible = head in known and LEVELS.index(level_of[head]) <= LEVELS.index(Level(spec.cls.level))
            if not visible:
                later = [other.name for other in specs if other.column == head]
                remedy = f"Move '{later[0]}' before '{spec.name}'." if later else f"Add stage '{head}' before it."
                raise PlanError(f"stage '{spec.name}' reads {path}, which no earlier stage adds.", remedy=remedy)
            try:
                resolve(pa.schema(list(known.values())), path)
            except KeyError as error:
                raise PlanError(f"stage '{spec.name}' reads {path}: no such field, {error.args[0]}.") from None
        made.add(spec.adds_to)
        known[spec.column] = pa.field(spec.column, spec.cls.adds)
        level_of[spec.column] = spec.adds_to
    for level, struct in ((Level.SHOT, SHOT), (Level.CLIP, CLIP)):
        for spec in specs:
            if spec.is_split and spec.adds_to == level:
                missing = [field.name for field in struct if spec.cls.adds.get_field_index(field.name) < 0]
                if missing:
                    raise PlanError(f"stage '{spec.name}' must add {level} fields {', '.join(missing)}.")


def _check_gates(specs: Sequence[StageSpec], checks: Sequence[Check]) -> None:
    by_stage, by_column = {spec.name: spec for spec in specs}, {spec.column: spec for spec in specs}
    fields = pa.schema([pa.field(spec.column, spec.cls.adds) for spec in specs])
    for check in checks:
        spec = by_stage[check.stage]
        if spec.is_split and spec.name != spec.column:
            raise PlanError(f"gates.{check.path}: shots are not gated.", remedy="Gate a field of the clip instead.")
        found = _gated(fields, check.path, f"gates.{check.path}")
        for path, wanted in check.gate.when.items():
            condition = _gated(fields, path, f"gates.{check.path}.when")
            level = by_column[path.partition(".")[0]].adds_to
            if LEVELS.index(level) > LEVELS.index(spec.adds_to):
                msg = f"gates.{check.path}.when: {path} is measured on {level}s, the gate looks at {spec.adds_to}s."
                raise PlanError(msg, remedy="Name a field of the same rows or of those they were made out of.")
            _check_bound(f"gates.{check.path}.when", path, condition, wanted)
        if check.operator in ("min", "max", "abs_max") and _kind_of(found.type) is not float:
            raise PlanError(
                f"gates.{check.name}: {check.path} is {found.type}, which has no order.", remedy="Use equals."
            )
        _check_bound(f"gates.{check.name}", check.path, found, check.bound)


def _gated(fields: pa.Schema, path: str, where: str) -> pa.Field:
    try:
        return resolve(fields, path)
    except KeyError as error:
        raise PlanError(f"{where}: no such field, {error.args[0]}.") from None


def _check_bound(where: str, path: str, field: pa.Field, bound: Any) -> None:
    """Raises PlanError for a value, or one of several, that the field can never have: comparing them would fail or be false."""
    kind = _kind_of(field.type)
    if kind is None:
        raise PlanError(
            f"{where}: {path} is {field.type}, which has no single value.", remedy="Name a field inside it."
        )
    for value in bound if isinstance(bound, list | tuple) else [bound]:
        if type(value) is not kind:
            remedy = f"Give {VALUES[kind]}."
            raise PlanError(f"{where}: {path} is {field.type} and never equals {value!r}.", remedy=remedy)


def _kind_of(kind: pa.DataType) -> type[bool | float | str] | None:
    """What a gate compares values of an Arrow type as; None for those it cannot compare, such as lists."""
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return float
    return str if pa.types.is_string(kind) else None


def render(plan: Plan, cluster: Cluster | None = None, *, has_columns: bool = True) -> str:
    """The plan as text: workers, then each stage with its gates, and with its columns and units where it `has_columns`."""
    lines = [f"recipe {plan.recipe.name}  measure hash {plan.recipe.measure_hash()}", ""]
    if cluster is not None:
        lines += [f"cluster: {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs, {cluster.memory_gb:.0f} GB", ""]
    lines.append("workers (each runs its stages in one process)")
    for each in plan.passes:
        if each.collect is not None:
            lines.append(f"  then {each.collect.name}, over all {each.collect.cls.level}s at once")
        for group in each.groups:
            need = f"{group.cpus:g} CPU, {group.gpus:g} GPU, {group.memory_gb:g} GB"
            if group.scratch_gb_per_h:
                need += f", {group.scratch_gb_per_h:g} GB of scratch per hour of the longest source"
            lines.append(f"  {group.name}  ({need})")
    for spec in plan.stages:
        engine = getattr(spec.config, "engine", None)
        version = f"v{spec.cls.version}" + (f", engine {engine}" if engine else "")
        made = f"per {spec.cls.level}"
        if spec.is_split:
            made = f"{spec.cls.level} -> {spec.adds_to}s"
        elif spec.is_collect:
            made = f"over all {spec.cls.level}s"
        lines += ["", f"{spec.name}  {made}, {version}: {_first_line(spec.cls)}"]
        if has_columns:
            lines.append(f"  reads {', '.join(spec.reads)}")
        for path, kind, unit, doc in describe(list(spec.cls.adds), f"{spec.column}.") if has_columns else ():
            lines.append(f"  {path:<38} {kind:<8} {unit:<10} {doc}")
        for check in plan.checks:
            if check.stage == spec.name:
                only = "".join(f", when {path} = {value}" for path, value in check.gate.when.items())
                lines.append(f"  gate {check.name} {check.bound}{only} (missing: {check.gate.missing})")
    return "\n".join(lines) + "\n"


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]
