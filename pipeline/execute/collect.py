"""Runs a Collect over the rows of the whole run, and says which units it concerns."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.plan import StageSpec
from schemas.errors import ContractError, NavaError, PlanError
from schemas.records import Struct
from stages.base import Collect, Context

Collected = Mapping[str, Mapping[str, Struct]]
"""source id -> row id -> what the Collect said of that row."""


def collect(spec: StageSpec, ledger: Ledger) -> Collected:
    """What `spec` says of every committed row of its level.

    Costs what the stage costs, and memory for one struct per row. Raises PlanError if the stage cannot start, and
    ContractError if it answers for rows that are not there, twice for one, or in other columns than it declared.
    """
    stage = spec.cls(spec.config)
    assert isinstance(stage, Collect)
    with tempfile.TemporaryDirectory(prefix="nava-collect-") as folder:
        try:
            stage.setup(Context(Path(folder)))
        except (NavaError, OSError, ImportError) as error:
            raise PlanError(f"stage {spec.name} cannot start. {error}") from error
        rows = ledger.rows(spec.adds_to, spec.cls.reads)
        table = stage.collect(rows).collect(engine="streaming").to_arrow()
        owners = ledger.owners(spec.adds_to)
    names = [field.name for field in spec.cls.adds]
    if set(table.column_names) != {"row_id", *names}:
        msg = f"{spec.name} declared row_id and {sorted(names)} but returned {sorted(table.column_names)}."
        raise ContractError(msg)
    ids = table["row_id"].to_pylist()
    if len(ids) != len(set(ids)) or not owners.keys() >= set(ids):
        raise ContractError(f"{spec.name} must answer at most once for each {spec.cls.level} it was given.")
    try:
        structs = table.select(names).cast(pa.schema([(field.name, field.type) for field in spec.cls.adds]))
    except pa.ArrowInvalid as error:
        raise ContractError(f"{spec.name} returned other types than it declared: {error}.") from None
    found: dict[str, dict[str, Struct]] = {}
    for row_id, struct in zip(ids, structs.to_pylist(), strict=True):
        found.setdefault(owners[row_id], {})[row_id] = struct
    return found
