"""Runs a Collect over the rows of the whole run, and leaves what it said where workers find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.ledger import Ledger, hash_column
from pipeline.plan import Plan, StageSpec
from pipeline.store import RunDir
from schemas.arrow_file import read_table, table_bytes
from schemas.errors import ContractError, NavaError, PlanError
from schemas.leaves import leaves
from schemas.records import Struct
from schemas.scratch import Scratch
from stages.base import Collect, Context

FOLDER = "collected"
IS_SAID = "is said"


def collect(spec: StageSpec, ledger: Ledger, directory: RunDir) -> list[str]:
    """Asks `spec` about every row of its level and writes its answers to `collected/{stage}.arrow`.

    Returns the source ids whose rows say something else. Costs what the stage costs, and memory for one answer per row.
    Raises PlanError if the stage cannot start, and ContractError if it answers for rows that are not there, twice for one,
    or in other columns than it declared.
    """
    import polars as pl

    stage = spec.cls(spec.config)
    assert isinstance(stage, Collect)
    with Scratch("collect") as folder:
        try:
            stage.setup(Context(Path(folder)))
        except (NavaError, OSError, ImportError) as error:
            raise PlanError(f"stage {spec.name} cannot start. {error}") from error
        answers = stage.collect(ledger.collectable(spec.adds_to, spec.cls.reads)).collect(engine="streaming")
    names = [field.name for field in spec.cls.adds]
    if set(answers.columns) != {"row_id", *names}:
        raise ContractError(f"{spec.name} declared row_id and {sorted(names)} but returned {sorted(answers.columns)}.")
    flat = [leaf.name for field in spec.cls.adds for leaf in leaves(f"{spec.column}.{field.name}", field.type)]
    known = ledger.scan(spec.adds_to).select("row_id", "source_id", hash_column(spec.name), *flat).collect()
    if answers["row_id"].n_unique() != len(answers) or len(answers.join(known, on="row_id", how="anti")):
        raise ContractError(f"{spec.name} must answer at most once for each {spec.cls.level} it was given.")
    try:
        table = answers.to_arrow(compat_level=pl.CompatLevel.oldest()).select(["row_id", *names])
        table = table.cast(pa.schema([("row_id", pa.string()), *((field.name, field.type) for field in spec.cls.adds)]))
    except pa.ArrowInvalid as error:
        raise ContractError(f"{spec.name} returned other types than it declared: {error}.") from None
    typed = pl.DataFrame(table).with_columns(pl.lit(True).alias(IS_SAID))
    joined = known.join(typed, on="row_id", how="left")
    said = joined.filter(pl.col(IS_SAID)).select("source_id", "row_id", *names).sort("source_id", "row_id")
    directory.write(f"{FOLDER}/{spec.name}.arrow", table_bytes(said.to_arrow(compat_level=pl.CompatLevel.oldest())))
    was_said = (pl.col(hash_column(spec.name)) == spec.hash).fill_null(False)
    is_said = pl.col(IS_SAID).fill_null(False)
    same = [pl.col(f"{spec.column}.{name}").eq_missing(pl.col(name)) for name in names]
    changed = joined.filter((was_said != is_said) | (is_said & ~pl.all_horizontal(same)))
    return sorted(changed["source_id"].unique().to_list())


def read_collected(
    plan: Plan, number: int, directory: RunDir, source_ids: Sequence[str]
) -> Mapping[str, Mapping[str, Struct]]:
    """source id -> row id -> what the Collect of pass `number` said, of these sources; empty for the first pass.

    Reads what it said of the whole run, and holds it until these are picked out. Raises LedgerError if that is not there.
    """
    import pyarrow.compute as pc

    spec = plan.passes[number].collect
    if spec is None or not source_ids:
        return {}
    table = read_table(directory.read(f"{FOLDER}/{spec.name}.arrow"))
    table = table.filter(pc.is_in(table["source_id"], value_set=pa.array(list(source_ids), pa.string())))
    found: dict[str, dict[str, Struct]] = {}
    for row in table.to_pylist():
        struct = {field.name: row[field.name] for field in spec.cls.adds}
        found.setdefault(row["source_id"], {})[row["row_id"]] = struct
    return found
