"""The unit of work in a worker's hands: one source with its shots and clips, as a tree of rows that are being measured.

It crosses from process to process as one row of `Plan.unit_schema`, and becomes ledger rows when it is finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.records import SOURCE, Cost, Level, Row, Source, Struct, Verdict, identity_of

NESTED = {Level.SHOT: "shots", Level.CLIP: "clips"}
"""Level -> the unit's column that holds its rows."""


@dataclass(eq=False)
class Node:
    """One row, with the row it was made out of."""

    level: Level
    parent: Node | None
    structs: dict[str, Struct | None]
    """Column -> what its stage measured; null where it was not reached."""
    verdict: Verdict | None = None
    """None while the row is open."""

    @property
    def row_id(self) -> str:
        """Its id, which is also that of its ledger row."""
        own = self.structs[self.level]
        assert own is not None
        return str(own[f"{self.level}_id"])

    def lookup(self, column: str) -> Any:
        """The column's value in this row or the nearest ancestor that has it, else None."""
        if column in self.structs:
            return self.structs[column]
        return None if self.parent is None else self.parent.lookup(column)


@dataclass(eq=False)
class AssetNode(Node):
    """The row of the source itself; its columns can be looked up as well."""

    source: Source = field(default_factory=lambda: Source(source_id="", uri=""))

    @property
    def row_id(self) -> str:
        """The source's id."""
        return self.source.source_id

    def lookup(self, column: str) -> Any:
        """See Node.lookup."""
        return self.structs[column] if column in self.structs else self.source.row().get(column)


@dataclass(eq=False)
class Unit:
    """A source, its rows of every level, and what they cost so far."""

    asset: AssetNode
    shots: list[Node] = field(default_factory=list)
    clips: list[Node] = field(default_factory=list)
    cost: list[Cost] = field(default_factory=list)

    @property
    def source(self) -> Source:
        """What the run was given."""
        return self.asset.source

    def rows(self, level: str) -> Sequence[Node]:
        """Its rows of one level."""
        if level == Level.ASSET:
            return [self.asset]
        return self.shots if level == Level.SHOT else self.clips

    def adopt(self, level: str, parent: Node, children: Iterable[Struct]) -> None:
        """Takes in the children that a stage made out of `parent`."""
        rows = self.shots if level == Level.SHOT else self.clips
        rows.extend(Node(Level(level), parent, {level: child}) for child in children)

    @classmethod
    def of_source(cls, source: Source) -> Unit:
        """A unit nobody has measured yet."""
        return cls(AssetNode(Level.ASSET, None, {}, source=source))

    @classmethod
    def of(cls, row: Row) -> Unit:
        """The unit in a row of `Plan.unit_schema`."""
        source = Source.of(row)
        apart = {*source.row(), *NESTED.values(), "verdict", "cost"}
        asset = AssetNode(Level.ASSET, None, _reached(row, apart), _verdict(row), source=source)
        unit = cls(asset, cost=[Cost.of(each) for each in row.get("cost") or ()])
        parents: dict[str, Node] = {}
        for level, rows in ((Level.SHOT, unit.shots), (Level.CLIP, unit.clips)):
            for child in row.get(NESTED[level]) or ():
                parent = parents[child[level]["parent_id"]] if level is Level.CLIP else asset
                node = Node(level, parent, _reached(child, {"verdict"}), _verdict(child))
                rows.append(node)
                parents[node.row_id] = node
        return unit

    def row(self) -> dict[str, Any]:
        """The unit as a row of `Plan.unit_schema`."""

        def plain(node: Node) -> dict[str, Any]:
            return {**node.structs, "verdict": None if node.verdict is None else node.verdict.row()}

        nested = {column: [plain(node) for node in self.rows(level)] for level, column in NESTED.items()}
        return {**self.source.row(), **plain(self.asset), **nested, "cost": [each.row() for each in self.cost]}

    def ledger_rows(self) -> list[dict[str, Any]]:
        """The rows of the finished unit as the ledger keeps them: the asset, then its shots, then its clips."""
        asset_id, duration_us = identity_of(self.asset.structs)
        known = self.source.row()
        rows = [
            self._ledger_row(self.asset, asset_id, duration_us)
            | {"source": {each.name: known[each.name] for each in SOURCE}, "cost": [each.row() for each in self.cost]}
        ]
        for node in (*self.shots, *self.clips):
            own = node.structs[node.level]
            assert own is not None
            rows.append(self._ledger_row(node, asset_id, own["duration_us"]) | {"parent_id": own["parent_id"]})
        return rows

    def _ledger_row(self, node: Node, asset_id: str | None, duration_us: int | None) -> dict[str, Any]:
        assert node.verdict is not None, "an open row never reaches the ledger"
        return {
            "kind": node.level.value,
            "row_id": node.row_id,
            "parent_id": None,
            "source_id": self.source.source_id,
            "asset_id": asset_id,
            "duration_us": duration_us,
            "verdict": node.verdict.row(),
            **node.structs,
        }


def _reached(row: Row, apart: set[str]) -> dict[str, Struct | None]:
    return {name: value for name, value in row.items() if name not in apart}


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    found = row.get("verdict")
    return None if found is None else Verdict.of(found)
