"""Writes a run's ledger: finished units many at a time, one writer at a time, nothing twice and nothing by halves."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.ledger import LEDGER_VERSION, NUM_UNITS, WRITER, Ledger, ledger_schema, patiently, said
from pipeline.plan import Plan
from schemas.errors import LedgerError

T = TypeVar("T")

FLUSH_UNITS = 256
FLUSH_BYTES = 64_000_000
FLUSH_S = 5.0
"""A kill loses what was not flushed: at most this much work of the driver's, none of it from the ledger."""
MOST_SMALL_FILES = 1000
"""More data files than this are compacted when a run opens its ledger: each costs a reader about a millisecond."""
COMPACTED_BYTES = 256_000_000
"""Size at which a file is left as it is when small ones are joined."""
ROW_GROUP = 8192
"""Rows that are read together at least: whoever looks at one row reads some 20 MB, whatever the size of the file."""
LOG_KEPT = "delta.logRetentionDuration"
USUALLY, NO_LONGER = "interval 30 days", "interval 0 days"
"""How long commits are kept beside the checkpoints that sum them up: Delta's default, and not at all."""
SKIPPING = {"delta.dataSkippingStatsColumns": "row_id,source_id", "delta.checkpointInterval": "20"}
"""Statistics of all columns would outweigh the rows; a checkpoint every 20 commits keeps opening the log cheap."""


class LedgerWriter:
    """The one writer of a ledger, from `with` to its end. Costs a fraction of a millisecond per new unit, whatever is there.

    Units that are replaced cost the rewriting of every file that holds rows of theirs, once per commit: of much of the
    table where they lie scattered over it.

    Raises LedgerError when another writer has taken over, and when the table was made by another version.
    """

    def __init__(self, uri: str, plan: Plan) -> None:
        self.schema = ledger_schema(plan)
        self.ledger = Ledger(uri)
        self._tried(self._create)
        self._tried(self._add_columns)
        self._version = int(self.ledger.table.transaction_version(WRITER) or 0)
        self._waiting: dict[str, list[pa.Table]] = {}
        self._ids: list[str] = []
        self._units: list[str] = []
        self._rows: list[str] = []
        self._replaces = False
        self._bytes = 0
        self._since = time.monotonic()

    def __enter__(self) -> LedgerWriter:
        self.compact()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, LedgerError):
            self.flush()

    def add(self, source_id: str, tables: Mapping[str, pa.Table], *, is_there: bool, is_part: bool = False) -> bool:
        """Takes in the rows of a finished unit, in place of those it has if `is_there`; whether that led to a commit.

        Of a part only the rows given are replaced. Rows of one source wait one at a time: later ones replace earlier.
        """
        if source_id in self._ids:
            self.flush()
        for kind, table in tables.items():
            self._waiting.setdefault(kind, []).append(table)
            self._bytes += table.nbytes
        self._ids.append(source_id)
        if is_part:
            self._rows += [row_id for table in tables.values() for row_id in table["row_id"].to_pylist()]
        else:
            self._units.append(source_id)
        self._replaces |= is_there or is_part
        is_full = len(self._ids) >= FLUSH_UNITS or self._bytes >= FLUSH_BYTES
        return self.flush() if is_full or time.monotonic() - self._since >= FLUSH_S else False

    def flush(self) -> bool:
        """Commits what is waiting, in one transaction; False if nothing was."""
        if not self._ids:
            return False
        whole = [pa.concat_tables(tables, promote_options="default") for tables in self._waiting.values()]
        data = pa.concat_tables([self.schema.empty_table(), *whole], promote_options="default").select(
            self.schema.names
        )
        self._write(data.cast(self.schema))
        self._waiting, self._ids, self._units, self._rows, self._replaces, self._bytes = {}, [], [], [], False, 0
        self._since = time.monotonic()
        return True

    def _write(self, data: pa.Table) -> None:
        from deltalake import write_deltalake

        how: dict[str, Any] = {"mode": "append"}
        if self._replaces:
            told = {"source_id": self._units, "row_id": self._rows}
            places = [f"{key} IN ({', '.join(map(repr, ids))})" for key, ids in told.items() if ids]
            how = {"mode": "overwrite", "predicate": " OR ".join(places)}

        def act(properties: Any) -> None:
            write_deltalake(
                self.ledger.table, data, commit_properties=properties, writer_properties=_row_groups(), **how
            )

        self._committed(act)

    def forget(self, source_ids: Sequence[str]) -> None:
        """Removes the rows of these sources. Older files still hold them, until `drop_past`."""
        self.flush()
        if source_ids:
            places = f"source_id IN ({', '.join(map(repr, source_ids))})"
            self._committed(
                lambda properties: self.ledger.table.delete(
                    places, commit_properties=properties, writer_properties=_row_groups()
                )
            )

    def drop_past(self) -> None:
        """Removes every file and commit that the newest version of the table does not need.

        What is asked of the past, such as when units were committed, begins anew. A reader that has an older version open
        has to open the table again.
        """
        self.flush()
        self._tried(self._without_past)
        self.ledger.refresh()

    def _without_past(self) -> None:
        self.ledger.refresh()
        table = self.ledger.table
        table.alter.set_table_properties({LOG_KEPT: NO_LONGER})
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        table.update_incremental()
        table.create_checkpoint()
        table.cleanup_metadata()
        table.alter.set_table_properties({LOG_KEPT: USUALLY})

    def _committed(self, act: Callable[[Any], object]) -> None:
        """Does what changes the table in one transaction, once, whatever becomes of its answer."""
        from deltalake.exceptions import DeltaError

        commit = uuid.uuid4().hex
        properties = self._properties(commit)

        def once() -> None:
            try:
                act(properties)
            except (DeltaError, OSError) as error:
                if self._is_committed(commit):
                    return
                if self._is_overtaken():
                    msg = f"another run has begun to write to {self.ledger.uri}."
                    raise LedgerError(msg, remedy="Let one of them finish; then the same command goes on.") from error
                raise

        self._tried(once)
        self._version += 1
        self.ledger.refresh()

    def _tried(self, once: Callable[[], T]) -> T:
        """What `once` does, which finds out by itself whether it was done before. Raises LedgerError."""
        from deltalake.exceptions import DeltaError

        try:
            return patiently(self.ledger.uri, once)
        except (DeltaError, OSError) as error:
            msg = f"the ledger at {self.ledger.uri} could not be written: {said(error)}."
            raise LedgerError(msg, remedy="Nothing is lost: afterwards the same command goes on.") from error

    def _properties(self, commit: str) -> Any:
        from deltalake import CommitProperties, Transaction

        transactions = [Transaction(app_id=WRITER, version=self._version + 1)]
        told = {"nava_commit": commit, NUM_UNITS: str(len(self._units))}
        return CommitProperties(app_transactions=transactions, custom_metadata=told)

    def _is_committed(self, commit: str) -> bool:
        """Whether a commit whose answer was lost is there after all."""
        self.ledger.refresh()
        return any(entry.get("nava_commit") == commit for entry in self.ledger.table.history(5))

    def _is_overtaken(self) -> bool:
        """Whether the newest commit of rows, as last seen, is another writer's."""
        return int(self.ledger.table.transaction_version(WRITER) or 0) != self._version

    def _create(self) -> None:
        """Makes the table if there is none."""
        from deltalake import DeltaTable

        if not DeltaTable.is_deltatable(self.ledger.uri):
            told = json.dumps({"ledger_version": LEDGER_VERSION})
            DeltaTable.create(
                self.ledger.uri, self.schema, partition_by=["kind"], description=told, configuration=SKIPPING
            )

    def _add_columns(self) -> None:
        """Gives an older table the columns of stages the recipe has gained, and fields that structs in lists have gained."""
        self.ledger.refresh()
        known = {field.name: field.type for field in pa.schema(self.ledger.table.schema().to_arrow())}
        new = [field for field in self.schema if known.get(field.name) != field.type]
        if new:
            from deltalake import Schema

            self.ledger.table.alter.add_columns(list(Schema.from_arrow(pa.schema(new)).fields))

    def compact(self, most_files: int = MOST_SMALL_FILES) -> bool:
        """Joins small files once there are too many; answers stay what they were. Costs about 10 ms a file."""
        if len(self.ledger.table.file_uris()) <= most_files:
            return False

        def once() -> None:
            self.ledger.refresh()
            self.ledger.table.optimize.compact(target_size=COMPACTED_BYTES, writer_properties=_row_groups())

        self._tried(once)
        self.ledger.refresh()
        return True


def _row_groups() -> Any:
    from deltalake import WriterProperties

    return WriterProperties(max_row_group_size=ROW_GROUP)
