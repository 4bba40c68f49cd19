"""The unit of work in a worker's hands: one source with its shots and clips, as a tree of rows that are being measured.

It crosses from process to process as one row of `Plan.unit_schema`, and becomes flat ledger rows when it is finished. The
clips of a long source are shared out to several units, its parts (`pipeline.execute.parts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.records import Cost, Level, Row, Source, Struct, Verdict, identity_of, size_of

LEAST_BYTES_PER_S = 50_000
"""400 kbit/s: less than almost any video needs, so that a file of unknown length is given time enough."""
NESTED = {Level.SHOT: "shots", Level.CLIP: "clips"}
"""Level -> the unit's column that holds its rows."""


@dataclass(eq=False)
class Node:
    """One row, with the row it was made out of."""

    level: Level
    parent: Node | None
    structs: dict[str, Struct | None]
    """Column -> what its stage measured; null where it was not reached, or failed."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Stage -> hash of the stage that looked at the row; absent where it did not. A split looks at the parents."""
    verdict: Verdict | None = None
    """None while the row is open."""
    failed_by: str | None = None
    """Hash of the stage that could not measure the row; its verdict says how."""
    failure: Verdict | None = None
    """The verdict of a row that failed before, while the unit is judged anew."""

    @property
    def row_id(self) -> str:
        """Its id, which is also that of its ledger row."""
        own = self.structs[self.level]
        assert own is not None
        return str(own[f"{self.level}_id"])

    @property
    def media_s(self) -> float:
        """Length of its media in seconds."""
        own = self.structs[self.level]
        assert own is not None
        return float(own["duration_us"]) / 1e6

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

    @property
    def media_s(self) -> float:
        """Length of its media in seconds: measured, or before that what its bytes may hold at most."""
        _, duration_us = identity_of(self.structs)
        return size_of(self.structs) / LEAST_BYTES_PER_S if duration_us is None else duration_us / 1e6

    def lookup(self, column: str) -> Any:
        """See Node.lookup."""
        return self.structs[column] if column in self.structs else self.source.row().get(column)


@dataclass(frozen=True)
class Part:
    """Which part of a source a unit is, of how many."""

    number: int
    count: int


@dataclass(eq=False)
class Unit:
    """A source, its rows of every level, and what they cost so far; of a part some of its clips, with the rows above them."""

    asset: AssetNode
    shots: list[Node] = field(default_factory=list)
    clips: list[Node] = field(default_factory=list)
    cost: list[Cost] = field(default_factory=list)
    part: Part | None = None
    """None for a whole source."""
    before: Verdict | None = None
    """How the source had settled, where it is not new."""
    is_remade: bool = False
    """Whether anything above the clips was measured since the unit was taken up."""

    @property
    def source(self) -> Source:
        """What the run was given."""
        return self.asset.source

    @property
    def key(self) -> str:
        """Its name among all units that are in somebody's hands."""
        return unit_key(self.source.source_id, self.part)

    def rows(self, level: str) -> Sequence[Node]:
        """Its rows of one level."""
        if level == Level.ASSET:
            return [self.asset]
        return self.shots if level == Level.SHOT else self.clips

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its rows of all levels."""
        return (self.asset, *self.shots, *self.clips)

    def adopt(self, level: str, parent: Node, children: Iterable[Struct]) -> None:
        """Takes in the children that a stage made out of `parent`."""
        rows = self.shots if level == Level.SHOT else self.clips
        rows.extend(Node(Level(level), parent, {level: child}) for child in children)

    def orphan(self, level: str, parents: Sequence[Node]) -> None:
        """Forgets the children of `parents`, rows of `level`, and all below them."""
        gone = {id(parent) for parent in parents}
        if level == Level.SHOT:
            lost = {id(shot) for shot in self.shots if id(shot.parent) in gone}
            self.shots = [shot for shot in self.shots if id(shot) not in lost]
            self.clips = [clip for clip in self.clips if id(clip.parent) not in lost]
        else:
            self.clips = [clip for clip in self.clips if id(clip.parent) not in gone]

    @classmethod
    def of_source(cls, source: Source) -> Unit:
        """A unit nobody has measured yet."""
        return cls(AssetNode(Level.ASSET, None, {}, source=source))

    @classmethod
    def of(cls, row: Row) -> Unit:
        """The unit in a row of `Plan.unit_schema`."""
        asset = AssetNode(Level.ASSET, None, {}, source=Source.of(row))
        _fill(asset, row, {*asset.source.row(), *NESTED.values(), "cost"})
        unit = cls(asset, cost=[Cost.of(each) for each in row.get("cost") or ()])
        parents: dict[str, Node] = {}
        for level, rows in ((Level.SHOT, unit.shots), (Level.CLIP, unit.clips)):
            for child in row.get(NESTED[level]) or ():
                parent = parents[child[level]["parent_id"]] if level is Level.CLIP else asset
                node = Node(level, parent, {})
                _fill(node, child, set())
                rows.append(node)
                parents[node.row_id] = node
        return unit

    def row(self) -> dict[str, Any]:
        """The unit as a row of `Plan.unit_schema`."""

        def plain(node: Node) -> dict[str, Any]:
            verdict = None if node.verdict is None else node.verdict.row()
            told = {"hashes": list(node.hashes.items()), "failed_by": node.failed_by, "verdict": verdict}
            return {**node.structs, **told}

        nested = {column: [plain(node) for node in self.rows(level)] for level, column in NESTED.items()}
        return {**self.source.row(), **plain(self.asset), **nested, "cost": [each.row() for each in self.cost]}


def unit_key(source_id: str, part: Part | None) -> str:
    """The source's id, with the number of the part."""
    return source_id if part is None else f"{source_id}.{part.number}"


def _fill(node: Node, row: Mapping[str, Any], apart: set[str]) -> None:
    verdict = row.get("verdict")
    node.verdict = None if verdict is None else Verdict.of(verdict)
    node.hashes, node.failed_by = dict(row.get("hashes") or ()), row.get("failed_by")
    apart = apart | {"verdict", "hashes", "failed_by"}
    node.structs = {name: value for name, value in row.items() if name not in apart and value is not None}
