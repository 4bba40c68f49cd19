"""A unit between two worker groups: one Arrow row, and what of the unit is not in its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.plan import Plan
from pipeline.unit import Part, Unit
from schemas.records import Verdict


@dataclass(frozen=True)
class Hop:
    """What a worker puts into Ray's object store and a worker of the next group takes out, wherever they are."""

    key: str
    """The unit's."""
    row: pa.Table = field(repr=False)
    """One row of `Plan.unit_schema`."""
    part: Part | None
    before: Verdict | None
    is_remade: bool
    failures: Mapping[str, Verdict]
    """Row id -> how it failed before, of rows that are judged anew."""

    @classmethod
    def of(cls, plan: Plan, unit: Unit) -> Hop:
        """The unit, packed."""
        row = pa.Table.from_pylist([unit.row()], schema=plan.unit_schema())
        failures = {node.row_id: node.failure for node in unit.nodes if node.failure is not None}
        return cls(unit.key, row, unit.part, unit.before, unit.is_remade, failures)

    def unit(self) -> Unit:
        """The unit, unpacked."""
        (row,) = self.row.to_pylist()
        unit = Unit.of(row)
        unit.part, unit.before, unit.is_remade = self.part, self.before, self.is_remade
        for node in unit.nodes:
            node.failure = self.failures.get(node.row_id)
        return unit
