"""The ledger: one Delta Lake table per run that holds every row and verdict, committed once per unit and pass.

Rows of all kinds share the table: `asset`, `shot`, `clip` (one commit per source) and `pack` (one commit per shard).
A commit carries the unit's id as a Delta application transaction whose version counts the passes the unit has been
through, so that writing the same unit twice is a no-op. A later pass replaces a unit's rows in one commit; reopening a
unit takes them back in one commit that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.plan import Plan
from pipeline.unit import Unit
from schemas.errors import LedgerError
from schemas.fields import f, struct
from schemas.records import COST, SOURCE, VERDICT, Asset, Clip, Level, Row, Shot, Source, Verdict
from schemas.shard import CUT

if TYPE_CHECKING:
    import polars as pl

LEDGER_VERSION = 1
OPEN = 0
"""Version of the Delta transaction of a unit whose rows were taken back; else it is the number of passes done."""
UNITS_AT_ONCE = 1000
"""Units to a commit or a read where many are touched at once."""
PACK_KIND = "pack"
"""Kind of the rows that tell what became of a clip when it was packed."""
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
SOURCE_COLUMN = f("source", SOURCE, doc="source row")
PACK_COLUMN = f("pack", PACK, doc="packing")
COST_COLUMN = f("cost", pa.list_(COST), doc="time per stage; the only column that differs between equal runs")
NOT_MEASURED = {field.name for field in (*KEYS, SOURCE_COLUMN, PACK_COLUMN, COST_COLUMN)}
"""Columns that no stage measured."""


def ledger_schema(plan: Plan) -> pa.Schema:
    """Columns of the ledger for `plan`: keys, source, one struct per stage, pack and cost."""
    stages = [pa.field(spec.column, spec.cls.adds) for spec in plan.stages]
    told = {"ledger_version": str(LEDGER_VERSION)}
    return pa.schema([*KEYS, SOURCE_COLUMN, *stages, PACK_COLUMN, COST_COLUMN], metadata=told)


def asset_of(row: Row) -> Asset:
    """The view of an asset's ledger row."""
    return Asset(
        source=Source.of(row["source"]),
        asset_id=row["asset_id"],
        duration_us=row["duration_us"],
        verdict=Verdict.of(row["verdict"]),
        structs=_measured(row),
    )


def shot_of(row: Row) -> Shot:
    """The view of a shot's ledger row."""
    return Shot(
        shot_id=row["row_id"],
        source_id=row["source_id"],
        duration_us=row["duration_us"],
        verdict=Verdict.of(row["verdict"]),
        structs=_measured(row),
    )


def clip_of(row: Row, asset: Asset) -> Clip:
    """The view of a clip's ledger row."""
    return Clip(
        clip_id=row["row_id"],
        shot_id=row["parent_id"],
        asset=asset,
        duration_us=row["duration_us"],
        verdict=Verdict.of(row["verdict"]),
        structs=_measured(row),
    )


def _measured(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in NOT_MEASURED}


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

    def commit(self, unit_id: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Appends the rows of one unit in one transaction; False if that unit is already there."""
        from deltalake import write_deltalake

        if self.passes(unit_id):
            return False
        write_deltalake(self._table, self._arrow(rows), mode="append", commit_properties=_counted([unit_id], 1))
        self._table.update_incremental()
        return True

    def replace(self, unit: Unit, passes: int) -> None:
        """Puts the rows of a unit that went through `passes` passes in place of those it has, in one transaction."""
        from deltalake import write_deltalake

        unit_id = unit.source.source_id
        write_deltalake(
            self._table,
            self._arrow(unit.ledger_rows()),
            mode="overwrite",
            predicate=f"kind != '{PACK_KIND}' AND source_id = '{unit_id}'",
            commit_properties=_counted([unit_id], passes),
        )
        self._table.update_incremental()

    def _arrow(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema)

    def passes(self, unit_id: str) -> int:
        """Passes the unit has been through since it was last reopened; 0 if it is not there."""
        return int(self._table.transaction_version(unit_id) or OPEN)

    def with_errors(self) -> list[str]:
        """Source ids of the units in which the source, a shot or a clip settled as an error."""
        import polars as pl

        is_error = pl.col("verdict").struct.field("status") == "error"
        rows = self._scan().filter((pl.col("kind") != PACK_KIND) & is_error)
        return sorted(rows.select("source_id").unique().collect()["source_id"].to_list())

    def reopen(self, source_ids: Sequence[str]) -> None:
        """Takes the rows of these units back, so that a run measures them anew."""
        for chunk in _chunks(source_ids):
            names = ", ".join(f"'{source_id}'" for source_id in chunk)
            self._table.delete(
                f"kind != '{PACK_KIND}' AND source_id IN ({names})", commit_properties=_counted(chunk, OPEN)
            )
            self._table.update_incremental()

    def units(self, source_ids: Sequence[str]) -> Iterator[Unit]:
        """These units as they stand, in order of id; the rows of `UNITS_AT_ONCE` are held at a time."""
        import polars as pl

        for chunk in _chunks(sorted(source_ids)):
            wanted = (pl.col("kind") != PACK_KIND) & pl.col("source_id").is_in(chunk)
            rows: dict[str, list[dict[str, Any]]] = {}
            for row in _arrow_of(self._scan().filter(wanted)).to_pylist():
                rows.setdefault(row["source_id"], []).append(row)
            for source_id in sorted(rows):
                yield _unit_of(rows[source_id])

    def commit_times(self) -> list[float]:
        """Unix times of the commits, oldest first."""
        return sorted(entry["timestamp"] / 1000 for entry in self._table.history() if entry["operation"] == "WRITE")

    def table(self, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All committed rows of one kind, in a fixed order."""
        import polars as pl

        rows = self._scan().filter(pl.col("kind") == kind).sort("source_id", "row_id")
        if columns is not None:
            rows = rows.select(list(dict.fromkeys(["kind", "row_id", "source_id", *columns])))
        return _arrow_of(rows)

    def rows(self, level: str, paths: Sequence[str]) -> pl.LazyFrame:
        """`row_id`, `source_id` and a column per dotted path, named by it, of all rows of a level, in a fixed order.

        A path may lead into the row's own columns or those of its shot or asset.
        """
        import polars as pl

        def of_level(kind: str) -> pl.LazyFrame:
            keys = [pl.col(name) for name in ("row_id", "source_id", "parent_id")]
            return self._scan().filter(pl.col("kind") == kind).select(*keys, *(_leaf(path) for path in paths))

        found = of_level(level)
        above = [(Level.SHOT, "parent_id", "row_id")] if level == Level.CLIP else []
        above += [(Level.ASSET, "source_id", "source_id")] if level != Level.ASSET else []
        for kind, own_key, its_key in above:
            parents = of_level(kind).select(pl.col(its_key).alias("key"), *paths)
            joined = found.join(parents, left_on=own_key, right_on="key", how="left", suffix=" above")
            found = joined.with_columns(pl.coalesce(path, f"{path} above").alias(path) for path in paths)
        return found.select("row_id", "source_id", *paths).sort("row_id")

    def source_ids(self) -> list[str]:
        """Source ids of all units that are there."""
        return [str(source_id) for source_id in self.table(Level.ASSET, [])["source_id"].to_pylist()]

    def owners(self, level: str) -> dict[str, str]:
        """row id -> source id of all rows of a level."""
        rows = self.table(level, [])
        return dict(zip(rows["row_id"].to_pylist(), rows["source_id"].to_pylist(), strict=True))

    def _scan(self) -> pl.LazyFrame:
        import polars as pl

        self._table.update_incremental()
        return pl.scan_delta(self._table)

    def settled(self, kind: str, columns: Sequence[str] | None = None, *, packed: bool = True) -> pa.Table:
        """Rows of one kind as they finally stand: with errors of packing, if `packed`."""
        needed = None if columns is None else [*columns, "verdict"]
        table = self.table(kind, needed)
        return self._with_pack_errors(table) if packed and kind == Level.CLIP else table

    def _with_pack_errors(self, table: pa.Table) -> pa.Table:
        packs = self.table(PACK_KIND, ["verdict"])
        outcome = dict(zip(packs["row_id"].to_pylist(), packs["verdict"].to_pylist(), strict=True))
        verdicts = [
            outcome[row] if (outcome.get(row) or {}).get("status") == "error" else verdict
            for row, verdict in zip(table["row_id"].to_pylist(), table["verdict"].to_pylist(), strict=True)
        ]
        at = table.schema.get_field_index("verdict")
        return table.set_column(at, table.schema.field(at), pa.array(verdicts, type=table.schema.field(at).type))


def _counted(unit_ids: Sequence[str], passes: int) -> Any:
    from deltalake import CommitProperties, Transaction

    return CommitProperties(app_transactions=[Transaction(app_id=unit_id, version=passes) for unit_id in unit_ids])


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), UNITS_AT_ONCE):
        yield ids[first : first + UNITS_AT_ONCE]


def _leaf(path: str, suffix: str = "") -> pl.Expr:
    import polars as pl

    head, *rest = path.split(".")
    found = pl.col(head + suffix)
    for name in rest:
        found = found.struct.field(name)
    return found.alias(path)


def _arrow_of(rows: pl.LazyFrame) -> pa.Table:
    import polars as pl

    return rows.collect().to_arrow(compat_level=pl.CompatLevel.oldest())


def _unit_of(rows: Sequence[Row]) -> Unit:
    """The unit whose ledger rows these are."""
    nested: dict[str, list[dict[str, Any]]] = {level: [] for level in Level}
    for row in rows:
        reached = {name: value for name, value in _measured(row).items() if value is not None}
        nested[row["kind"]].append(reached | {"verdict": row["verdict"]})
    (asset,) = nested[Level.ASSET]
    (told,) = (row for row in rows if row["kind"] == Level.ASSET)
    shots = sorted(nested[Level.SHOT], key=lambda row: row[Level.SHOT]["index"])
    place = {row[Level.SHOT]["shot_id"]: at for at, row in enumerate(shots)}
    clips = sorted(nested[Level.CLIP], key=lambda row: (place[row[Level.CLIP]["parent_id"]], row[Level.CLIP]["index"]))
    return Unit.of({**told["source"], **asset, "cost": told["cost"], "shots": shots, "clips": clips})
