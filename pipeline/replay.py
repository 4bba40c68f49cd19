"""Measures rows of a finished run again with one stage, and says what differs from the ledger: `nava-curate replay`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.ask.find import locate
from pipeline.ask.queries import Run
from pipeline.execute.here import here
from pipeline.unit import Node
from schemas.errors import ItemError, LedgerError, RecipeError


@dataclass(frozen=True)
class Difference:
    """One value that came out otherwise."""

    row_id: str
    path: str
    before: Any
    now: Any


@dataclass(frozen=True)
class Replayed:
    """What a replay found."""

    num_rows: int
    differences: tuple[Difference, ...]


def replay(run: Run, stage: str, key: str) -> Replayed:
    """Runs `stage` again on the row that `key` names (see `locate`), or on all rows of its level below that row.

    Nothing is written. Raises RecipeError if the stage cannot be replayed, and LedgerError if no row it measured is
    found.
    """
    specs = {spec.name: spec for spec in run.plan.stages}
    if stage not in specs or specs[stage].is_split or specs[stage].is_collect:
        known = [spec.name for spec in run.plan.stages if not (spec.is_split or spec.is_collect)]
        raise RecipeError(
            f"'{stage}' is no stage of this run that measures rows.", remedy=f"Known: {', '.join(known)}."
        )
    spec = specs[stage]
    at_key = locate(run, key)
    (unit,) = run.ledger.units(run.plan, [at_key.source_id])
    rows = [
        node
        for node in unit.rows(spec.cls.level)
        if node.structs.get(spec.column) is not None and any(each.row_id == at_key.row_id for each in _lineage(node))
    ]
    if not rows:
        raise LedgerError(f"'{key}' has no {spec.cls.level} that {stage} measured.", remedy="See `nava-curate why`.")
    number, at = next(
        (number, at)
        for number, each in enumerate(run.plan.passes)
        for at, group in enumerate(each.groups)
        if spec in group.stages
    )
    found: list[Difference] = []
    with here(run.plan, run.dir) as executor:
        worker = executor.workers(number)[at]
        worker.context.cuts_dir = str(worker.context.scratch_dir / "cuts")
        for node in rows:
            now = worker.measure(stage, node)
            if isinstance(now, ItemError):
                found.append(Difference(node.row_id, stage, node.structs[spec.column], str(now)))
            else:
                found += [Difference(node.row_id, *each) for each in differences(node.structs[spec.column], now, stage)]
    return Replayed(len(rows), tuple(found))


def differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, before, now) of every leaf in which two structs differ; NaN equals NaN."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from differences(before.get(name), now.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for at, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{path}[{at}]")
    elif before != now and not (_is_nan(before) and _is_nan(now)):
        yield path, before, now


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _lineage(node: Node) -> Iterator[Node]:
    here: Node | None = node
    while here is not None:
        yield here
        here = here.parent
