"""Every gate a clip was held against: value, bound, margin, and whether it passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipeline.ask.clips import margin
from pipeline.ask.stats import clip_checks
from pipeline.plan import Plan
from schemas.fields import resolve, unit_of, values_at
from schemas.leaves import bare
from schemas.records import Clip, Level, Struct
from schemas.verdict import Check, evaluate

Outcome = Literal["passed", "failed", "not measured", "not reached", "not asked"]
ORDERED = ("min", "max", "abs_max")


@dataclass(frozen=True)
class GateOf:
    """One gate and one clip."""

    check: Check
    unit: str
    value: Any
    """None where there is none."""
    margin: float | None
    """How far within the bound, negative beyond it; None without a value or an order."""
    outcome: Outcome
    """`not reached`: settled before. `not asked`: the gate is for other clips (`when`)."""


def gates_of(clip: Clip, plan: Plan) -> list[GateOf]:
    """The gates on clips, in order, as `clip` stands to them."""
    checks = clip_checks(plan)
    structs: Mapping[str, Struct | None] = {**clip.asset.structs, **clip.structs}
    kinds = {spec.column: spec.cls.adds for level in (Level.ASSET, Level.CLIP) for spec in plan.at_level(level)}
    table = pa.table({name: pa.array([structs.get(name)], bare(kind)) for name, kind in kinds.items()})
    said = evaluate(table, checks)
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
    found = []
    for at, check in enumerate(checks):
        values = values_at(structs, check.path)
        value = values[0] if values else None
        unit = unit_of(resolve(schema, check.path))
        outcome: Outcome = "passed"
        if said.unreached[at, 0]:
            outcome = "not reached"
        elif said.missing[at, 0]:
            outcome = "not measured"
        elif said.failed[at, 0]:
            outcome = "failed"
        elif _is_excused(check, structs):
            outcome = "not asked"
        near = None
        if check.operator in ORDERED and isinstance(value, int | float):
            near = float(margin(check, float(value)))
        found.append(GateOf(check, unit, value, near, outcome))
    return found


def _is_excused(check: Check, structs: Mapping[str, Struct | None]) -> bool:
    """Whether a condition of the gate does not hold, so that the gate looks away."""
    for path, wanted in check.gate.when.items():
        values = values_at(structs, path)
        options = wanted if isinstance(wanted, list) else [wanted]
        if not values or values[0] not in options:
            return True
    return False
