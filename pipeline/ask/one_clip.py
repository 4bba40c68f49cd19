"""The chain of one clip by the places of its rows: what `find` answers, without looking through the ledger.

Where facts are cached, the place of a row in them tells the data file of the ledger and the row in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.ask.clips import ClipLists
from pipeline.ask.find import Chain
from pipeline.ledger import asset_of, clip_of, shot_of
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl


def chain_of_clip(lists: ClipLists, clip_id: str) -> Chain | None:
    """The rows from source to clip; None where `find` has to answer: no cache, no such clip, or bytes that were given twice."""
    import polars as pl

    run, ids = lists.run, lists.spine["row_id"]
    at = ids.index_of(clip_id)
    if at is None or (ids == clip_id).sum() > 1 or run.facts.path(Level.SHOT) is None:
        return None
    clip = _row(lists, Level.CLIP, at)
    is_shot = (pl.col("row_id") == clip["parent_id"]) & (pl.col("source_id") == clip["source_id"])
    shots = run.facts.scan(Level.SHOT).select("row_id", "source_id").with_row_index("at").filter(is_shot).select("at")
    shot = _row(lists, Level.SHOT, int(shots.collect().item()))
    asset_row = _row(lists, Level.ASSET, int(lists.spine["asset_at"][at]))
    plan = run.plan
    asset = asset_of(plan, asset_row)
    return Chain((asset, shot_of(plan, shot), clip_of(plan, clip, asset)), ())


def _row(lists: ClipLists, level: Level, at: int) -> dict[str, Any]:
    """The ledger's row whose facts lie at this place; columns that its file lacks are null."""
    import polars as pl

    run = lists.run
    place = run.facts.place(level, at)
    if place is None:
        rows: pl.DataFrame = run.ledger.scan(level).slice(at, 1).collect()
    else:
        name, number = place
        rows = (
            pl.scan_parquet(f"{run.ledger.uri}/{name}", glob=False, hive_partitioning=False).slice(number, 1).collect()
        )
    known = dict.fromkeys(run.ledger.table.schema().to_arrow().names)
    return {**known, **rows.row(0, named=True)}
