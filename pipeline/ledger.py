"""The ledger: one Delta Lake table per run that holds every row and verdict, partitioned by kind: asset, shot, clip.

Columns are flat and named by their dotted paths (`sync.offset_ms`), so that a question reads the leaves it needs; a stage's
`{stage}.hash` says what looked at the row and is null where nobody did. Docs and roles stay out of the written schema: they
would outweigh the rows (see `ledger_fields`, docs/ledger.md).

Units are committed many at a time (`LedgerWriter`), each with all its rows or not at all. Whether a unit is there is read
from the rows: its asset row names the identity of the plan it went through. One writer transaction with a rising version makes
a second writer lose cleanly. Reading costs what the columns asked for cost, and never grows with the number of commits
after a compaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from pipeline.plan import Plan
from pipeline.unit import NESTED, Node, Unit
from schemas.errors import LedgerError
from schemas.fields import f
from schemas.leaves import bare, flattened, leaves, nested, small_first
from schemas.records import COST, SOURCE, VERDICT, Asset, Clip, Level, Shot, Source, Verdict, identity_of
from stages import objects
from stages.retry import TryAgainError

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

LEDGER_VERSION = 2
WRITER = "writer"
"""Application id of the one Delta transaction all commits carry."""
NUM_UNITS = "nava_units"
"""Key of a commit's metadata that tells how many units it holds."""
NEAR_ROWS = 4096
"""Rows that lie no further apart are read in one go."""
MOST_SAID = 600
"""Characters of a library's message that are passed on."""
FOR_GOOD = re.compile(r"\b(401 Unauthorized|403 Forbidden|404 Not Found)\b")
"""What a store answers whom it does not let in, or where it has no such bucket: not asked again."""
MOST_PLACES = 64
"""Rows in more places than this are read with all that lies between them: each place costs a look at the files' footers."""
KEYS = [
    f("kind", pa.string(), doc="asset, shot or clip"),
    f("row_id", pa.string(), doc="id of the row"),
    f("parent_id", pa.string(), doc="id of the row it came from; null for assets"),
    f("source_id", pa.string(), doc="unit of work the row was committed with"),
    f("asset_id", pa.string(), doc="asset of the row; null where the bytes could not be had"),
    f("duration_us", pa.int64(), unit="us", doc="length of the row; null where it could not be measured"),
    f("verdict", VERDICT, doc="how the row settled"),
    f("source", SOURCE, doc="what the run was given; of assets"),
    f("failed_by", pa.string(), doc="hash of the stage that could not measure the row; verdict.stage names it"),
    f(
        "passed",
        pa.string(),
        doc="identity of the plan up to the pass the unit went through; of assets, null if unfinished",
    ),
]
COST_COLUMN = f(
    "cost",
    pa.list_(COST),
    doc="time per stage; with the attempts that fetching took all that differs between equal runs; of assets",
)


def hash_column(stage: str) -> str:
    """The column that says which version of a stage looked at a row."""
    return f"{stage}.hash"


def ledger_schema(plan: Plan) -> pa.Schema:
    """The columns as they are written, for all kinds of rows."""
    fields = [leaf for key in KEYS for leaf in leaves(key.name, key.type)]
    for spec in plan.stages:
        fields.append(pa.field(hash_column(spec.name), pa.string()))
        fields += leaves(spec.column, spec.cls.adds)
    fields += leaves(COST_COLUMN.name, COST_COLUMN.type)
    return pa.schema(small_first({field.name: field for field in fields}.values()))


def unit_tables(plan: Plan, unit: Unit, passed: str | None) -> dict[str, pa.Table]:
    """Kind -> the ledger rows of a settled unit, only the columns that kind has; `passed` is None for an unfinished one."""
    asset_id, duration_us = identity_of(unit.asset.structs)
    tables = {}
    for level in Level:
        nodes = unit.rows(level)
        if not nodes:
            continue
        owns = [node.structs[level] or {} for node in nodes] if level is not Level.ASSET else [{}]
        columns: dict[str, Any] = {
            "kind": [level.value] * len(nodes),
            "row_id": [node.row_id for node in nodes],
            "parent_id": [own.get("parent_id") for own in owns],
            "source_id": [unit.source.source_id] * len(nodes),
            "asset_id": [asset_id] * len(nodes),
            "duration_us": [own.get("duration_us", duration_us) for own in owns],
            "failed_by": [node.failed_by for node in nodes],
            **flattened("verdict", [_verdict_of(node) for node in nodes], VERDICT),
        }
        if level is Level.ASSET:
            columns |= flattened("source", [unit.source.row()], SOURCE)
            columns["passed"] = [passed]
            columns["cost"] = pa.array([[each.row() for each in unit.cost]], type=bare(COST_COLUMN.type))
        for spec in plan.stages:
            if level in (spec.adds_to, spec.cls.level):
                columns[hash_column(spec.name)] = pa.array([node.hashes.get(spec.name) for node in nodes], pa.string())
            if level is spec.adds_to:
                columns |= flattened(spec.column, [node.structs.get(spec.column) for node in nodes], spec.cls.adds)
        tables[level.value] = _typed(columns, ledger_schema(plan))
    return tables


def _typed(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    fields = [field for field in schema if field.name in columns]
    arrays = [
        pa.array(values, field.type) if isinstance(values := columns[field.name], list) else values for field in fields
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _verdict_of(node: Node) -> dict[str, Any]:
    assert node.verdict is not None, "an open row never reaches the ledger"
    return node.verdict.row()


def rows_to_units(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Iterator[Unit]:
    """The units whose flat ledger rows these are, in order of source id."""
    by_source: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        by_source.setdefault(row["source_id"], {level: [] for level in Level})[row["kind"]].append(row)
    for source_id in sorted(by_source):
        kinds = by_source[source_id]
        (asset,) = kinds[Level.ASSET]
        shots = sorted(kinds[Level.SHOT], key=lambda row: row[f"{Level.SHOT}.index"])
        place = {row["row_id"]: at for at, row in enumerate(shots)}
        clips = sorted(kinds[Level.CLIP], key=lambda row: (place[row["parent_id"]], row[f"{Level.CLIP}.index"]))
        yield Unit.of(
            {
                **nested("source", asset, SOURCE),
                **_plain(plan, Level.ASSET, asset),
                NESTED[Level.SHOT]: [_plain(plan, Level.SHOT, row) for row in shots],
                NESTED[Level.CLIP]: [_plain(plan, Level.CLIP, row) for row in clips],
                "cost": asset["cost"],
            }
        )


def _plain(plan: Plan, level: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A flat row as a row of `Plan.unit_schema`."""
    hashes = {
        spec.name: row[hash_column(spec.name)]
        for spec in plan.stages
        if level in (spec.adds_to, spec.cls.level) and row.get(hash_column(spec.name)) is not None
    }
    verdict = nested("verdict", row, VERDICT)
    return {
        **structs_of(plan, level, row),
        "hashes": list(hashes.items()),
        "failed_by": row["failed_by"],
        "verdict": verdict,
    }


def structs_of(plan: Plan, level: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Column -> what its stage measured, of a flat row; null where it was not reached or failed."""
    return {
        spec.column: nested(spec.column, row, spec.cls.adds)
        if spec.is_split or row.get(hash_column(spec.name)) is not None
        else None
        for spec in plan.at_level(level)
    }


def asset_of(plan: Plan, row: Mapping[str, Any]) -> Asset:
    """The view of an asset's flat row."""
    return Asset(
        source=Source.of(nested("source", row, SOURCE)),
        asset_id=row["asset_id"],
        duration_us=row["duration_us"],
        verdict=Verdict.of(nested("verdict", row, VERDICT)),
        structs=structs_of(plan, Level.ASSET, row),
    )


def shot_of(plan: Plan, row: Mapping[str, Any]) -> Shot:
    """The view of a shot's flat row."""
    return Shot(
        shot_id=row["row_id"],
        source_id=row["source_id"],
        duration_us=row["duration_us"],
        verdict=Verdict.of(nested("verdict", row, VERDICT)),
        structs=structs_of(plan, Level.SHOT, row),
    )


def clip_of(plan: Plan, row: Mapping[str, Any], asset: Asset) -> Clip:
    """The view of a clip's flat row."""
    return Clip(
        clip_id=row["row_id"],
        shot_id=row["parent_id"],
        asset=asset,
        duration_us=row["duration_us"],
        verdict=Verdict.of(nested("verdict", row, VERDICT)),
        structs=structs_of(plan, Level.CLIP, row),
    )


def patiently(uri: str, once: Callable[[], T]) -> T:
    """What `once` does with the table at `uri`; on an object store done again after errors that may pass, then raises the last.

    delta-rs itself asks again for what it was refused, but not for a list of files of which it received a part.
    """
    from deltalake.exceptions import DeltaError

    def attempt() -> T:
        try:
            return once()
        except (DeltaError, OSError) as error:
            if FOR_GOOD.search(str(error)):
                raise
            raise TryAgainError(str(error)) from error

    if "://" not in uri:
        return once()
    try:
        return objects.STORE.run(attempt)[0]
    except TryAgainError as error:
        raise error.__cause__ or error from None


def said(error: Exception) -> str:
    """What a library's error says, on one line and not more than `MOST_SAID`: it may quote whole rows, its cause stands last."""
    text = " ".join(re.sub(r"\x1b\[\d+m|↳", "", str(error)).split()).rstrip(".")
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID // 2]} ... {text[-MOST_SAID // 2 :]}"


class Ledger:
    """A run's Delta table, for reading. `uri` is a local path or an object-store URL."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def table(self) -> Any:
        """The table as it is at the first look; `refresh` looks again. Raises LedgerError if it is missing or damaged."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        def opened() -> Any:
            try:
                return DeltaTable(self.uri)
            except TableNotFoundError:
                return None

        try:
            table = patiently(self.uri, opened)
            told = json.loads(table.metadata().description or "{}") if table is not None else {}
        except (DeltaError, OSError) as error:
            remedy = "Run `nava-curate verify` to see which commit, and take its file back from a copy."
            raise LedgerError(f"the ledger at {self.uri} cannot be read: {said(error)}.", remedy=remedy) from error
        except ValueError:
            told = {}
        if table is None:
            msg = f"no ledger at {self.uri}."
            raise LedgerError(msg, remedy="Give the folder that `nava-curate run --out` wrote.")
        if told.get("ledger_version") != LEDGER_VERSION:
            msg = f"the ledger at {self.uri} was written by another version of this program."
            raise LedgerError(msg, remedy="Curate into a new --out, or read it with the version that wrote it.")
        return table

    def refresh(self) -> None:
        """Sees what was committed since."""
        patiently(self.uri, self.table.update_incremental)

    def scan(self, kind: str) -> pl.LazyFrame:
        """All rows of one kind, lazily; ask for the columns that are needed and no others."""
        import polars as pl

        return pl.scan_delta(self.table).filter(pl.col("kind") == str(kind))

    def passed(self) -> pl.DataFrame:
        """`source_id` and `passed` of every unit that is there: two leaves, whatever else the rows hold."""
        return self.scan(Level.ASSET).select("source_id", "passed").collect()

    def rows(
        self, kind: str | None, where: pl.Expr | None = None, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Flat rows of one kind, or of all, as plain data, in a fixed order; for few rows at a time."""
        import polars as pl

        names = list(dict.fromkeys(["source_id", "row_id", *columns])) if columns is not None else None
        is_wanted = pl.lit(True) if kind is None else pl.col("kind") == str(kind)
        found = self._only(is_wanted if where is None else is_wanted & where, names)
        return list(found.sort("source_id", "row_id").iter_rows(named=True))

    def units(self, plan: Plan, source_ids: Sequence[str]) -> Iterator[Unit]:
        """These units as they stand, in order of id; all their rows are held at once."""
        import polars as pl

        frame = self._only(pl.col("source_id").is_in(list(source_ids)))
        yield from rows_to_units(plan, list(frame.iter_rows(named=True)))

    def _only(self, where: pl.Expr, names: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows that fulfil a condition. What the condition looks at is read first, then what lies near a hit."""
        import polars as pl

        whole = pl.scan_delta(self.table)
        places = whole.with_row_index("at").filter(where).select("at").collect(engine="streaming")
        is_far = (pl.col("at").diff() > NEAR_ROWS).fill_null(False).cum_sum()
        near = places.sort("at").group_by(is_far.alias("run")).agg(first=pl.col("at").min(), last=pl.col("at").max())
        parts = [whole.slice(first, last - first + 1) for _, first, last in near.iter_rows()]
        if len(parts) > MOST_PLACES or not parts:
            parts = [whole if parts else whole.limit(0)]
        found = (part.filter(where).select(pl.all() if names is None else pl.col(names)) for part in parts)
        return pl.concat([part.collect(engine="streaming") for part in found])

    def collectable(self, level: str, paths: Sequence[str]) -> pl.LazyFrame:
        """`row_id`, `source_id` and a column per path of all rows of a level, in a fixed order: what a Collect sees.

        A path may lead into the row's own columns or those of its shot or asset.
        """
        import polars as pl

        found = self.scan(level).select("row_id", "source_id", "parent_id", *paths)
        above = [(Level.SHOT, "parent_id", "row_id")] if level == Level.CLIP else []
        above += [(Level.ASSET, "source_id", "source_id")] if level != Level.ASSET else []
        for kind, own_key, its_key in above:
            parents = self.scan(kind).select(pl.col(its_key).alias("key"), *paths)
            joined = found.join(parents, left_on=own_key, right_on="key", how="left", suffix=" above")
            above_them = {path: f"{path} above" for path in paths}
            found = joined.with_columns(pl.coalesce(*pair).alias(pair[0]) for pair in above_them.items())
            found = found.drop(above_them.values())
        return found.select("row_id", "source_id", *paths).sort("row_id")

    def commits(self, most: int = 20) -> list[tuple[float, int]]:
        """(unix time, units) of the newest commits of rows, oldest first."""
        told = patiently(self.uri, lambda: self.table.history(most))
        entries = [entry for entry in told if entry["operation"] == "WRITE"]
        return sorted((entry["timestamp"] / 1000, int(entry.get(NUM_UNITS, 0))) for entry in entries)
