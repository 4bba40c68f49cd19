"""The chain of rows that leads to one clip, shot or source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline.ask.queries import STATUS, Run
from pipeline.ledger import asset_of, clip_of, shot_of
from schemas.errors import LedgerError
from schemas.printable import is_plain
from schemas.records import Asset, Clip, Level, Shot

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Found:
    """Which row a key names."""

    level: Level
    row_id: str
    parent_id: str | None
    source_id: str
    """Of several sources with these bytes, the first that was kept."""
    also: tuple[str, ...]
    """Source ids of the others."""


@dataclass(frozen=True)
class Chain:
    """Rows from a source down to the one asked for, or down to all that were made out of it."""

    rows: tuple[Asset | Shot | Clip, ...]
    also: tuple[str, ...]
    """Where the same bytes were given again."""


def find(run: Run, key: str) -> Chain:
    """The rows from source down to the row whose id, id prefix or file name is `key`; reads no other rows.

    A source or asset returns its asset row and all below it. Raises LedgerError with near misses.
    """
    import polars as pl

    found, ledger, plan = locate(run, key), run.ledger, run.plan
    kind, name = pl.col("kind"), pl.col("row_id")
    is_shown = pl.lit(True)
    if found.level is Level.CLIP:
        is_shown = (kind == Level.ASSET.value) | name.is_in([found.row_id, found.parent_id])
    elif found.level is Level.SHOT:
        is_shown = (kind == Level.ASSET.value) | (name == found.row_id)
    rows: dict[str, list[dict[str, Any]]] = {level: [] for level in Level}
    for row in ledger.rows(None, (pl.col("source_id") == found.source_id) & is_shown):
        rows[row["kind"]].append(row)
    asset = asset_of(plan, rows[Level.ASSET][0])
    shots = [
        shot_of(plan, row) for row in sorted(rows[Level.SHOT], key=lambda row: int(row[f"{Level.SHOT}.start_pts"]))
    ]
    clips = [
        clip_of(plan, row, asset)
        for row in sorted(rows[Level.CLIP], key=lambda row: int(row[f"{Level.CLIP}.start_pts"]))
    ]
    others = ledger.rows(Level.ASSET, pl.col("source_id").is_in(found.also), ["source.uri"]) if found.also else []
    return Chain((asset, *shots, *clips), tuple(row["source.uri"] for row in others))


def locate(run: Run, key: str) -> Found:
    """The one row that `key` names: a clip, a shot, or a source by its id, asset id or file name. Raises LedgerError."""
    import polars as pl

    key = key if is_plain(key) else quote(os.fsencode(key))  # as such names are spelt in `source.uri`
    for level in (Level.CLIP, Level.SHOT):
        hits = _hits(run, level, pl.col("row_id").str.starts_with(key))
        names = hits["row_id"].unique().sort()
        if len(names) > 1:
            raise LedgerError(f"'{key}' is the beginning of {len(names)} {level} ids.", remedy="Give more of it.")
        if len(names) == 1:
            return _first_kept(run, level, hits)
    has_prefix = pl.col("row_id").str.starts_with(key) | pl.col("asset_id").str.starts_with(key).fill_null(False)
    hits = _hits(run, Level.ASSET, has_prefix | pl.col("source.uri").str.contains(key, literal=True))
    known = hits["asset_id"].drop_nulls()
    are_alike = len(hits) > 0 and len(known) == len(hits) and known.n_unique() == 1
    if len(hits) != 1 and not are_alike:
        what = "matches nothing" if not len(hits) else f"matches {len(hits)} sources"
        raise LedgerError(f"'{key}' {what} in {run.dir.uri}.", remedy="Give a clip, shot or asset id, or a file name.")
    return _first_kept(run, Level.ASSET, hits)


def _hits(run: Run, level: Level, where: pl.Expr) -> pl.DataFrame:
    keys = run.facts.scan(level).filter(where).select("row_id", "parent_id", "source_id", "asset_id")
    return keys.collect(engine="streaming")


def _first_kept(run: Run, level: Level, hits: pl.DataFrame) -> Found:
    """The row under the source that stands for all, which have the same bytes."""
    import polars as pl

    sources = hits["source_id"].to_list()
    if len(sources) > 1:
        assets = run.ledger.rows(Level.ASSET, pl.col("source_id").is_in(sources), [STATUS])
        sources = [
            row["source_id"] for row in sorted(assets, key=lambda row: (row[STATUS] != "keep", row["source_id"]))
        ]
    hit = hits.row(by_predicate=pl.col("source_id") == sources[0], named=True)
    return Found(level, hit["row_id"], hit["parent_id"], sources[0], tuple(sources[1:]))
