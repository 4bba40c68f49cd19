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


def settle_error(node: Node, spec: StageSpec, error: ItemError) -> None:
    """Settles a row as the error it ran into in a stage."""
    node.verdict = Verdict("error", error.reason, str(error), spec.name)
    node.failed_by = spec.hash


def apply_gates(plan: Plan, spec: StageSpec, rows: Sequence[Node]) -> int:
    """Settles rows that `spec`'s gates turn away, audited clips excepted; returns how many."""
    checks = [check for check in plan.checks if check.stage == spec.name]
    turned_away = 0
    for node, status, verdict in judge(plan, rows, checks):
        if status in ("reject", "error") and not verdict.is_audit:
            node.verdict = verdict
            turned_away += status == "reject"
    return turned_away


def without_rejected(plan: Plan, spec: StageSpec, rows: Sequence[Node]) -> list[Node]:
    """The rows that no gate before stage `spec` turns away; audited ones are open whatever the gates say."""
    before = [other.name for other in plan.stages[: plan.stages.index(spec)] if other.adds_to == spec.adds_to]
    checks = [check for check in plan.checks if check.stage in before]
    return [node for node, status, _ in judge(plan, rows, checks) if status in ("keep", "open")]


def turns_away(plan: Plan, stage: str, found: Struct) -> bool:
    """Whether a gate behind `stage` turns away an asset of which it found this, and of which nothing else is known."""
    checks = [check for check in plan.checks if check.stage == stage]
    return any(status == "reject" for _, status, _ in judge(plan, [Node(Level.ASSET, None, {stage: found})], checks))


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


def reopen(unit: Unit, *, retry_errors: bool = False) -> None:
    """Opens every row of a finished unit, to be judged anew from what was measured.

    A row that failed in a stage fails again without being asked, unless `retry_errors` makes that stage look again.
    """
    for node in unit.nodes:
        failed_by, node.failed_by = node.failed_by, None
        verdict, node.verdict, node.failure = node.verdict, None, None
        if verdict is not None and failed_by is not None and not retry_errors:
            node.failed_by, node.failure = failed_by, verdict
        if verdict is not None and verdict.status == "error" and retry_errors:
            node.hashes.pop(str(verdict.stage), None)


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
    settle_shots(unit)
    unit.asset.verdict = Verdict("keep") if unit.clips else NO_CHILD[Level.ASSET]


def settle_shots(unit: Unit) -> None:
    """Gives every open shot its verdict, which its clips do not change any more."""
    parents = {id(node.parent) for node in unit.clips}
    for shot in unit.shots:
        if shot.verdict is None:
            shot.verdict = Verdict("keep") if id(shot) in parents else NO_CHILD[Level.SHOT]


def judge_again(plan: Plan, number: int, unit: Unit) -> None:
    """Takes a reopened unit through the gates of all passes before pass `number`, on what is measured already."""
    for each in plan.passes[:number]:
        for spec in each.stages:
            if unit.asset.verdict is None:
                restore_failures(spec, unit)
                made = [node for node in unit.rows(spec.adds_to) if node.verdict is None]
                apply_gates(plan, spec, [node for node in made if spec.is_split or spec.name in node.hashes])


def restore_failures(spec: StageSpec, unit: Unit) -> None:
    """Settles the open rows that this very stage could not measure before."""
    for node in unit.rows(spec.cls.level):
        is_known = node.failure is not None and node.failure.stage == spec.name
        if node.verdict is None and is_known:
            if node.failed_by == spec.hash:
                node.verdict = node.failure
            else:
                node.failed_by = node.failure = None


def begin(plan: Plan, spec: StageSpec, unit: Unit, collected: Mapping[str, Struct]) -> None:
    """Puts what a Collect said of the unit's rows into them, and applies its gates.

    `collected` is row id -> struct; a row it does not name was not reached.
    """
    rows = unit.rows(spec.adds_to)
    for node in rows:
        said = collected.get(node.row_id)
        node.structs[spec.column] = said
        node.hashes.pop(spec.name, None)
        if said is not None:
            node.hashes[spec.name] = spec.hash
    apply_gates(plan, spec, [node for node in rows if node.verdict is None and node.structs[spec.column] is not None])


def _unmeasured(verdict: Verdict) -> Verdict:
    msg = "a gated stage was not reached, so nothing vouches for the clip"
    return replace(verdict, status="error", reason="not_measured", message=msg)
