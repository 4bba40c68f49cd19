"""The ledger: one Delta Lake table per run that holds every row and verdict, committed once per unit of work.

Rows of all kinds share the table: `asset`, `shot`, `clip` (one commit per source) and `pack` (one commit per shard).
A commit carries the unit's id as a Delta application transaction, so that writing the same unit twice is a no-op; reopening
a unit takes its rows back in one commit that says so.

Duplicate bytes: sources with the same asset id are all measured facts, but only the first by source id counts; the
others settle as `reject(duplicate)` when the ledger is read, so the answer does not depend on who finished first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.plan import Plan
from schemas.errors import LedgerError
from schemas.fields import f, struct
from schemas.records import COST, FETCH_URI, SOURCE, VERDICT
from schemas.shard import CUT

LEDGER_VERSION = 1
OPEN, SETTLED = 0, 1
"""Versions of a unit's Delta transaction."""
PACK = struct(f("shard", pa.string(), doc="shard the clip went to"), *CUT)
KEYS = [
    f("kind", pa.string(), doc="asset, shot, clip or pack"),
    f("row_id", pa.string(), doc="id of the row"),
    f("parent_id", pa.string(), doc="id of the row it came from; null for assets"),
    f("source_id", pa.string(), doc="unit of work the row was committed with"),
    f("asset_id", pa.string(), doc="asset of the row; null where the bytes could not be had"),
    f("duration_us", pa.int64(), unit="us", doc="length of the row; null where it could not be measured"),
    f("verdict", VERDICT, doc="how the row settled"),
]


def ledger_schema(plan: Plan) -> pa.Schema:
    """Columns of the ledger for `plan`: keys, source, one struct per stage, pack and cost."""
    stages = [pa.field(spec.column, spec.cls.adds) for spec in plan.stages]
    return pa.schema(
        [*KEYS, f("source", SOURCE, doc="source row"), *stages, f("pack", PACK, doc="packing"),
         f("cost", pa.list_(COST), doc="time per stage; the only column that differs between equal runs")],
        metadata={"ledger_version": str(LEDGER_VERSION)},
    )  # fmt: skip


def rows_of(unit: dict[str, Any]) -> list[dict[str, Any]]:
    """The ledger rows of a finished unit: the asset, then its shots, then its clips."""
    asset = (unit.get("download") or {}).get("asset_id")
    keys = {"source_id": unit["source_id"], "asset_id": asset}
    source = {field.name: unit.get(field.name) for field in SOURCE}
    nested = {"shots", "clips", "verdict", "cost", FETCH_URI.name, *source}
    measured = {name: value for name, value in unit.items() if name not in nested}
    duration = (unit.get("probe") or {}).get("duration_us")
    rows = [
        {**keys, "kind": "asset", "row_id": unit["source_id"], "parent_id": None, "duration_us": duration,
         "verdict": unit["verdict"], "source": source, "cost": unit["cost"], **measured}
    ]  # fmt: skip
    for level in ("shot", "clip"):
        for row in unit[f"{level}s"]:
            own = row[level]
            rows.append({**keys, **row, "kind": level, "row_id": own[f"{level}_id"], "parent_id": own["parent_id"],
                         "duration_us": own["duration_us"]})  # fmt: skip
    return rows


class Ledger:
    """A run's Delta table. `uri` is a local path or an object-store URL."""

    def __init__(self, uri: str, schema: pa.Schema | None = None) -> None:
        self.uri = uri
        self._schema = schema

    def create(self, measure_hash: str) -> None:
        """Makes the empty table, or checks that an existing one belongs to the same measurements."""
        from deltalake import DeltaTable

        assert self._schema is not None
        if DeltaTable.is_deltatable(self.uri):
            known = self._table.metadata().description
            if known != measure_hash:
                msg = f"{self.uri} holds a run of another recipe (measure hash {known}, now {measure_hash})."
                raise LedgerError(msg, remedy="Use a new --out, or `stats --set` to ask what other gates would do.")
            return
        # Statistics of the wide structs would outweigh the rows, and rewritten files lack some that readers then miss.
        told = {"delta.dataSkippingStatsColumns": "kind,row_id,source_id"}
        DeltaTable.create(self.uri, self._schema, description=measure_hash, configuration=told)

    @cached_property
    def _table(self) -> Any:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            return DeltaTable(self.uri)
        except TableNotFoundError:
            msg = f"no ledger at {self.uri}."
            raise LedgerError(msg, remedy="Give the folder that `nava-curate run --out` wrote.") from None

    def commit(self, unit_id: str, rows: Sequence[dict[str, Any]]) -> bool:
        """Appends the rows of one unit in one transaction; False if that unit is already there."""
        from deltalake import CommitProperties, Transaction, write_deltalake

        table = self._table
        if self.has(unit_id):
            return False
        data = pa.Table.from_pylist(list(rows), schema=self._schema)
        once = CommitProperties(app_transactions=[Transaction(app_id=unit_id, version=SETTLED)])
        write_deltalake(table, data, mode="append", commit_properties=once)
        table.update_incremental()
        return True

    def has(self, unit_id: str) -> bool:
        """Whether the unit was committed, and not reopened since."""
        return bool(self._table.transaction_version(unit_id) == SETTLED)

    def with_errors(self) -> list[str]:
        """Source ids of the units in which the source, a shot or a clip settled as an error."""
        import polars as pl

        self._table.update_incremental()
        is_error = pl.col("verdict").struct.field("status") == "error"
        rows = pl.scan_delta(self._table).filter((pl.col("kind") != "pack") & is_error)
        return sorted(rows.select("source_id").unique().collect()["source_id"].to_list())

    def reopen(self, source_ids: Sequence[str]) -> None:
        """Takes the rows of these units back, so that a run measures them anew; a thousand units to a commit."""
        from deltalake import CommitProperties, Transaction

        for first in range(0, len(source_ids), 1000):
            chunk = source_ids[first : first + 1000]
            names = ", ".join(f"'{source_id}'" for source_id in chunk)
            opened = CommitProperties(app_transactions=[Transaction(app_id=name, version=OPEN) for name in chunk])
            self._table.delete(f"kind != 'pack' AND source_id IN ({names})", commit_properties=opened)
            self._table.update_incremental()

    def commit_times(self) -> list[float]:
        """Unix times of the commits, oldest first."""
        return sorted(entry["timestamp"] / 1000 for entry in self._table.history() if entry["operation"] == "WRITE")

    def table(self, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All committed rows of one kind, duplicates of bytes included, in a fixed order."""
        import polars as pl

        self._table.update_incremental()
        rows = pl.scan_delta(self._table).filter(pl.col("kind") == kind).sort("source_id", "row_id")
        if columns is not None:
            rows = rows.select(list(dict.fromkeys(["kind", "row_id", "source_id", *columns])))
        return rows.collect().to_arrow(compat_level=pl.CompatLevel.oldest())

    def canonical_sources(self) -> dict[str, str]:
        """asset id -> the one source id whose rows count: the smallest."""
        assets = self.table("asset", ["asset_id"])
        first: dict[str, str] = {}
        for asset, source in zip(assets["asset_id"].to_pylist(), assets["source_id"].to_pylist(), strict=True):
            if asset is not None:
                first.setdefault(asset, source)
        return first

    def settled(self, kind: str, columns: Sequence[str] | None = None, *, packed: bool = True) -> pa.Table:
        """Rows of one kind as they finally stand: duplicates resolved and, if `packed`, packing errors applied.

        Assets that repeat another's bytes come back as reject(duplicate); their shots and clips are left out.
        """
        needed = None if columns is None else [*columns, "asset_id", "verdict"]
        table = self.table(kind, needed)
        canonical = self.canonical_sources()
        assets, sources = table["asset_id"].to_pylist(), table["source_id"].to_pylist()
        first = [asset is None or canonical[asset] == source for asset, source in zip(assets, sources, strict=True)]
        if kind != "asset":
            table = table.filter(pa.array(first, pa.bool_()))
            return self._with_pack_errors(table) if packed and kind == "clip" else table
        verdicts = [
            verdict if is_first or verdict["status"] == "error" else _duplicate(canonical[asset])
            for verdict, is_first, asset in zip(table["verdict"].to_pylist(), first, assets, strict=True)
        ]
        return _replace(table, verdicts)

    def _with_pack_errors(self, table: pa.Table) -> pa.Table:
        packs = self.table("pack", ["verdict"])
        outcome = dict(zip(packs["row_id"].to_pylist(), packs["verdict"].to_pylist(), strict=True))
        verdicts = [
            outcome[row] if (outcome.get(row) or {}).get("status") == "error" else verdict
            for row, verdict in zip(table["row_id"].to_pylist(), table["verdict"].to_pylist(), strict=True)
        ]
        return _replace(table, verdicts)


def _replace(table: pa.Table, verdicts: list[Any]) -> pa.Table:
    at = table.schema.get_field_index("verdict")
    return table.set_column(at, table.schema.field(at), pa.array(verdicts, type=table.schema.field(at).type))


def _duplicate(of_source: str) -> dict[str, Any]:
    return {
        "status": "reject", "reason": "duplicate", "message": f"same bytes as source {of_source}", "stage": "download",
        "failed_gates": ["duplicate"], "is_audit": False,
    }  # fmt: skip
