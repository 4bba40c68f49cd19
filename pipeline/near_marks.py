"""Clips of a run that are near an evaluation set, as a file of the run: what `decontaminate` found and `select` leaves out.

contaminated.arrow   clip_id, by, item, set: a row per clip and way in which it is near; `schemas.held_against` has its facts
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.store import RunDir
from schemas.arrow_file import read_facts, read_table, table_bytes, with_facts
from schemas.held_against import CONTAMINATED, HeldAgainst

if TYPE_CHECKING:
    import polars as pl

SCHEMA = pa.schema([("clip_id", pa.string()), ("by", pa.string()), ("item", pa.string()), ("set", pa.string())])
"""The clip, the way in which it is near, the clip or source of the set that it is near, and what the set is called."""


def read_near(run: RunDir) -> pl.DataFrame:
    """The marks of a run, as `SCHEMA`; none for one that was held against nothing."""
    import polars as pl

    table = read_table(run.read(CONTAMINATED)) if run.exists(CONTAMINATED) else SCHEMA.empty_table()
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def write_near(run: RunDir, found: pl.DataFrame, held: HeldAgainst) -> None:
    """Puts what was found against a set in place of what an earlier look at it found."""
    import polars as pl

    kept = read_near(run).filter(pl.col("set") != held.name)
    rows = pl.concat([kept, found.with_columns(set=pl.lit(held.name)).select(SCHEMA.names)]).unique().sort(SCHEMA.names)
    facts = read_facts(run.read(CONTAMINATED)) if run.exists(CONTAMINATED) else {}
    schema = with_facts(SCHEMA, facts | held.fact())
    run.write(CONTAMINATED, table_bytes(rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)))


def forget_near(run: RunDir, is_gone: Callable[[str], bool]) -> None:
    """Takes the marks of clips away that `is_gone` names, and those that name them."""
    if not run.exists(CONTAMINATED):
        return
    table = read_table(run.read(CONTAMINATED))
    rows = [row for row in table.to_pylist() if not is_gone(row["clip_id"])]
    run.write(CONTAMINATED, table_bytes(pa.Table.from_pylist(rows, schema=table.schema)))
