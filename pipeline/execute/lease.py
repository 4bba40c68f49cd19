"""What the driver hands out and gets back: leases of sources, and units that are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.execute.collect import read_collected
from pipeline.execute.gates import begin, judge_again, reopen, settle_rest
from pipeline.ledger import Ledger, unit_tables
from pipeline.plan import Plan
from pipeline.store import RunDir
from pipeline.unit import Part, Unit, unit_key
from schemas.arrow_file import read_table, table_bytes
from schemas.records import UNFINISHED, Cost, Level, Source, Verdict, identity_of


@dataclass(frozen=True)
class Lease:
    """Sources that are carried through one pass by whoever holds it."""

    number: int
    """The pass."""
    sources: tuple[Source, ...]
    known: frozenset[str] = frozenset()
    """Source ids that have rows in the ledger, which are completed instead of begun."""
    retry_errors: bool = False
    lost: frozenset[str] = frozenset()
    """Ids of clips whose media are nowhere any more and have to be cut again."""

    def part(self, sources: Sequence[Source]) -> Lease:
        """A lease of some of its sources; costs what these cost, however many are known. Carries all that is `lost`."""
        known = frozenset(source.source_id for source in sources if source.source_id in self.known)
        return Lease(self.number, tuple(sources), known, self.retry_errors, self.lost)


@dataclass(frozen=True)
class Settled:
    """A unit that went through a pass, or the head or a part of one, its rows ready for the ledger."""

    source_id: str
    verdict: Verdict
    before: Verdict | None
    """How the source had settled, where it is not new."""
    duration_us: int
    """Length of the source; of a part, its share of that."""
    tables: Mapping[str, bytes] = field(repr=False)
    """Kind -> its rows as an Arrow file. A part has the source's row and its own clips, a head all there is."""
    cost: tuple[Cost, ...] = ()
    part: Part | None = None
    """Of a head, the first part."""
    is_head: bool = False
    """Whether the source's clips are still to come."""
    is_done: bool = True
    """Whether nothing of the source is out any more."""

    @property
    def key(self) -> str:
        """The unit's."""
        return unit_key(self.source_id, self.part)

    def rows(self) -> dict[str, pa.Table]:
        """Kind -> its rows."""
        return {kind: read_table(data) for kind, data in self.tables.items()}


class Desk:
    """Turns the sources of leases into open units, and carried units into rows. One per process and pass."""

    def __init__(self, plan: Plan, number: int, directory: RunDir) -> None:
        self._plan, self._number, self._directory = plan, number, directory

    def units(self, lease: Lease) -> Iterator[Unit]:
        """The units of a lease, ready to be measured; those in the ledger with all they hold, judged as far as they got.

        Where any is known, costs a look at the source ids of the whole ledger, and at all that the pass's Collect said.
        """
        known = sorted(source.source_id for source in lease.sources if source.source_id in lease.known)
        found: dict[str, Unit] = {}
        if known:
            ledger = Ledger(self._directory.url("ledger"))
            found = {unit.source.source_id: unit for unit in ledger.units(self._plan, known)}
        said = read_collected(self._plan, self._number, self._directory, known)
        for source in lease.sources:
            unit = found.pop(source.source_id, None)
            if unit is None:
                yield Unit.of_source(source)
                continue
            unit.before = unit.asset.verdict
            unit.asset.source = source
            reopen(unit, retry_errors=lease.retry_errors)
            if self._plan.cutter is not None:
                for clip in unit.clips:
                    if clip.row_id in lease.lost:
                        clip.hashes.pop(self._plan.cutter.name, None)
            judge_again(self._plan, self._number, unit)
            spec = self._plan.passes[self._number].collect
            if spec is not None:
                begin(self._plan, spec, unit, said.get(source.source_id, {}))
            yield unit

    def settled(self, unit: Unit) -> Settled:
        """The finished unit or part: what is still open in it is settled."""
        settle_rest(self._plan, self._number, unit)
        assert unit.asset.verdict is not None
        tables = unit_tables(self._plan, unit, self._plan.identity(self._number))
        duration_us, part = identity_of(unit.asset.structs)[1] or 0, unit.part
        if part is not None:
            del tables[Level.SHOT]
            each_us, rest_us = divmod(duration_us, part.count)
            duration_us = each_us + (rest_us if part.number == 0 else 0)
        packed = {kind: table_bytes(table) for kind, table in tables.items()}
        cost, is_done = tuple(unit.cost), part is None
        source_id = unit.source.source_id
        return Settled(source_id, unit.asset.verdict, unit.before, duration_us, packed, cost, part, is_done=is_done)

    def head(self, unit: Unit, parts: Sequence[Unit]) -> Settled:
        """A unit that goes on in parts, as the ledger has it until they are through: its open rows count as unfinished."""
        still_open = [node for node in unit.nodes if node.verdict is None]
        for node in still_open:
            node.verdict = UNFINISHED
        tables = {kind: table_bytes(table) for kind, table in unit_tables(self._plan, unit, None).items()}
        for node in still_open:
            node.verdict = None
        source_id, duration_us = unit.source.source_id, identity_of(unit.asset.structs)[1] or 0
        told = (unit.before, duration_us, tables, tuple(unit.cost), parts[0].part)
        return Settled(source_id, UNFINISHED, *told, is_head=True, is_done=False)
