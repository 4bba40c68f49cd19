"""Where measurements become verdicts: gates after each stage, and the settling of whatever is still open at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.plan import Plan, StageSpec
from pipeline.unit import Node, Unit
from schemas.errors import ItemError
from schemas.ids import fraction_of
from schemas.records import NO_CHILD, Level, Struct, Verdict
from schemas.verdict import Check, Status, column, evaluate, settle


def settle_error(node: Node, stage: str, error: ItemError) -> None:
    """Settles a row as the error it ran into."""
    node.verdict = Verdict("error", error.reason, str(error), stage)


def apply_gates(plan: Plan, spec: StageSpec, rows: Sequence[Node]) -> int:
    """Settles rows that `spec`'s gates turn away, audited clips excepted; returns how many."""
    checks = [check for check in plan.checks if check.stage == spec.name]
    turned_away = 0
    for node, status, verdict in judge(plan, rows, checks):
        if status in ("reject", "error") and not verdict.is_audit:
            node.verdict = verdict
            turned_away += status == "reject"
    return turned_away


def judge(plan: Plan, rows: Sequence[Node], checks: Sequence[Check]) -> Iterator[tuple[Node, Status, Verdict]]:
    """What `checks` say of each row, with the verdict that follows if nothing else is asked."""
    if not rows:
        return
    table = _table(plan, rows, checks)
    outcome = evaluate(table, checks)
    statuses, deciders = settle(outcome)
    for index, (node, status, check) in enumerate(zip(rows, statuses, deciders, strict=True)):
        failed = tuple(other.name for other, hit in zip(checks, outcome.rejects[:, index], strict=True) if hit)
        is_audit = node.level is Level.CLIP and fraction_of(node.row_id) < plan.recipe.audit_fraction
        if check is None:
            yield node, status, Verdict(status, failed_gates=failed, is_audit=is_audit)
            continue
        value = column(table, check.path)[index].as_py()
        reason = check.name if value is not None else f"{check.path}.missing"
        yield node, status, Verdict(status, reason, check.explain(value), check.stage, failed, is_audit)


def _table(plan: Plan, rows: Sequence[Node], checks: Sequence[Check]) -> pa.Table:
    paths = [path for check in checks for path in (check.path, *check.gate.when)]
    names = list(dict.fromkeys(path.split(".")[0] for path in paths))
    types = {spec.column: spec.cls.adds for spec in plan.stages}
    arrays = {name: pa.array([node.lookup(name) for node in rows], type=types[name]) for name in names}
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(rows))})


def reopen(plan: Plan, number: int, unit: Unit) -> None:
    """Opens again what the passes before pass `number` kept, and what that pass or a later one had settled."""
    later = {spec.name for each in plan.passes[number:] for spec in each.stages}
    for node in _nodes(unit):
        verdict = node.verdict
        if verdict is not None and (verdict.status == "keep" or verdict.stage in later):
            node.verdict = None


def settle_rest(plan: Plan, number: int, unit: Unit) -> None:
    """Gives every row that is still open after pass `number` its verdict. Later passes may overturn a `keep`.

    A row below one that was turned away goes with it; a shot or asset without clips is nothing to keep.
    """
    if unit.asset.verdict is not None:
        for node in (*unit.shots, *unit.clips):
            node.verdict = node.verdict or unit.asset.verdict
        return
    reached = [spec.name for each in plan.passes[: number + 1] for spec in each.stages if spec.adds_to == Level.CLIP]
    checks = [check for check in plan.checks if check.stage in reached]
    open_clips = [node for node in unit.clips if node.verdict is None]
    for node, status, verdict in judge(plan, open_clips, checks):
        node.verdict = verdict if status != "open" else _unmeasured(verdict)
    parents = {id(node.parent) for node in unit.clips}
    for shot in unit.shots:
        if shot.verdict is None:
            shot.verdict = Verdict("keep") if id(shot) in parents else NO_CHILD[Level.SHOT]
    unit.asset.verdict = Verdict("keep") if unit.clips else NO_CHILD[Level.ASSET]


def begin(plan: Plan, number: int, unit: Unit, collected: Mapping[str, Struct]) -> None:
    """Puts what the Collect before pass `number` said of the unit's rows into them, and applies its gates.

    `collected` is row id -> struct; a row it does not name was not reached.
    """
    spec = plan.passes[number].collect
    assert spec is not None
    reopen(plan, number, unit)
    rows = unit.rows(spec.adds_to)
    for node in rows:
        node.structs[spec.column] = collected.get(node.row_id)
    apply_gates(plan, spec, [node for node in rows if node.verdict is None and node.structs[spec.column] is not None])


def _nodes(unit: Unit) -> tuple[Node, ...]:
    return (unit.asset, *unit.shots, *unit.clips)


def _unmeasured(verdict: Verdict) -> Verdict:
    msg = "a gated stage was not reached, so nothing vouches for the clip"
    return replace(verdict, status="error", reason="not_measured", message=msg)
