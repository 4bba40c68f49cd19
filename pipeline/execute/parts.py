"""Long sources in parts: once its pictures have been looked at, the clips of some minutes at a time go their own way.

    unit --stages that need all of it--> head, for the ledger
                                     \\-> part 0, part 1, ... --stages of clips--> their clips, for the ledger

Several workers share the parts of a source, and a part that is finished stays so whatever becomes of the others: the head
says in the ledger that the source is `unfinished`, each part replaces its clips there, and the same command goes on from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.execute.gates import settle_shots
from pipeline.execute.lease import Settled
from pipeline.ledger import COST_COLUMN
from pipeline.plan import Plan
from pipeline.unit import Node, Part, Unit
from schemas.arrow_file import table_bytes
from schemas.leaves import bare
from schemas.records import Cost, Level, span_of

PART_S = 600.0
"""Media time of a part, and the length from which on a source has parts: minutes of work, and few enough commits."""


def divides_at(plan: Plan, number: int) -> tuple[int, int] | None:
    """(group, stage in it) of pass `number` before which long units are divided; None where no stage follows.

    What looks at whole assets, or at what the asset pass saw of them, is before that.
    """
    groups = plan.passes[number].groups
    places = [(at, index) for at, group in enumerate(groups) for index in range(len(group.stages))]
    stages = [spec.cls for group in groups for spec in group.stages]
    needs_all = [stage.level != Level.CLIP or stage.is_watching for stage in stages]
    first = max((at + 1 for at, is_needed in enumerate(needs_all) if is_needed), default=0)
    return places[first] if first < len(places) else None


def divide(plan: Plan, unit: Unit) -> list[Unit]:
    """The parts of a long unit, in time order; none for one that is short, settled or a part itself.

    What the unit has cost so far goes with its head, or with the first part if nothing above the clips has changed.
    """
    if unit.part is not None or unit.asset.verdict is not None or unit.asset.media_s <= PART_S:
        return []
    by_time: dict[int, list[Node]] = {}
    for clip in unit.clips:
        span = clip.structs[Level.CLIP]
        assert span is not None
        by_time.setdefault(int(span_of(span).start // int(PART_S)), []).append(clip)
    if len(by_time) < 2:
        return []
    settle_shots(unit)
    unit.cost = _still_true(plan, unit)
    parts = []
    for at, clips in enumerate(by_time[key] for key in sorted(by_time)):
        shots = list({id(clip.parent): clip.parent for clip in clips if clip.parent is not None}.values())
        cost = unit.cost if at == 0 and not unit.is_remade else []
        part = Part(at, len(by_time))
        parts.append(replace(unit, asset=copy(unit.asset), shots=shots, clips=clips, cost=list(cost), part=part))
    return parts


def _still_true(plan: Plan, unit: Unit) -> list[Cost]:
    """Cost of stages that some row was measured by as they are now; what others cost is paid anew."""
    hashes = {spec.name: spec.hash for spec in plan.stages}
    told = {name for node in unit.nodes for name, own in node.hashes.items() if hashes.get(name) == own}
    return [each for each in unit.cost if each.stage in told]


@dataclass
class _Open:
    """A source some of whose parts are still out."""

    left: set[int]
    cost: list[Cost] = field(default_factory=list)
    asset: pa.Table | None = None
    """The row of its head."""


class Joiner:
    """Puts sources together again: what workers send of parts becomes what the ledger and the display take in.

    Holds one row of every source that is in parts at the moment.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    def forget(self, source_id: str) -> None:
        """The source begins anew, or is done."""
        self._open.pop(source_id, None)

    def take(self, settled: Settled) -> Settled:
        """The same with the source's row as it now stands; `is_done` once nothing of the source is out."""
        if settled.part is None:
            self.forget(settled.source_id)
            return settled
        known = self._open.setdefault(settled.source_id, _Open(set(range(settled.part.count))))
        known.cost = _added([*known.cost, *settled.cost])
        asset = settled.rows()[Level.ASSET]
        if settled.is_head:
            known.asset = asset
            return settled
        known.left.discard(settled.part.number)
        if not known.left:
            self.forget(settled.source_id)
        tables = {kind: data for kind, data in settled.tables.items() if kind != Level.ASSET}
        row = known.asset if known.left else asset
        if row is not None:
            cost = pa.array([[each.row() for each in known.cost]], bare(COST_COLUMN.type))
            at = row.schema.get_field_index(COST_COLUMN.name)
            tables[Level.ASSET] = table_bytes(row.set_column(at, row.schema.field(at), cost))
        return replace(settled, tables=tables, is_done=not known.left)


def _added(cost: Sequence[Cost]) -> list[Cost]:
    """One entry per stage, in order of appearance."""
    total: dict[str, Cost] = {}
    for each in cost:
        total[each.stage] = total[each.stage] + each if each.stage in total else each
    return list(total.values())
