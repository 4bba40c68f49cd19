"""Clips of two collections that show or sound the same: the search of `near_duplicates`, across and not within."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.near_duplicates.prints import CROPS
from stages.near_duplicates.search import ClipPrints, candidates, likeness, moves_alike

if TYPE_CHECKING:
    import polars as pl

PRINTS = ("at_s", "pictures", "sound")
"""Columns of what clips are recognised by, as `fingerprint` measures them."""
AT_ONCE = 20_000
"""Pairs of clips whose prints are held at a time."""


class NearPair(NamedTuple):
    """A clip of one collection and one of the other."""

    one: str
    other: str
    is_seen: bool
    """They are copies, or show the same moving pictures whatever is heard with them."""
    is_heard: bool
    """They have one sound, whatever they show."""


def near_pairs(one: pl.LazyFrame, other: pl.LazyFrame) -> Iterator[NearPair]:
    """Pairs that are near, each once. Both have columns `row_id` and `PRINTS`; rows without prints are passed over.

    Holds the ids of all clips of both, and reads all once per `AT_ONCE` candidates.
    """
    import polars as pl

    own, mine = _numbered(one, "one", 0)
    items, its = _numbered(other, "other", len(own))
    both = pl.concat([mine, its])
    for part in candidates(both.drop("at_s")).iter_slices(AT_ONCE):
        needed = pl.concat([part["a"], part["b"].rename("a")]).unique()
        table = both.filter(pl.col("clip").is_in(needed.implode())).collect(engine="streaming")
        prints = {row["clip"]: _clip_prints(row) for row in table.iter_rows(named=True)}
        for a, b in part.iter_rows():
            alike = likeness(prints[a], prints[b])
            is_seen = alike.picture or moves_alike(prints[a], prints[b])
            if is_seen or alike.sound:
                yield NearPair(own[a], items[b - len(own)], is_seen, alike.sound)


def _numbered(rows: pl.LazyFrame, side: str, first: int) -> tuple[pl.Series, pl.LazyFrame]:
    """(ids of clips, their prints): the clips of one side are numbered from `first` on and count as one source, so that
    the search finds pairs across sides alone."""
    import polars as pl

    known = rows.filter(pl.col("pictures").is_not_null()).unique("row_id")
    ids = known.select("row_id").sort("row_id").collect(engine="streaming")
    numbers = ids.with_columns(clip=pl.int_range(first, first + len(ids), dtype=pl.UInt32)).lazy()
    return ids["row_id"], known.join(numbers, on="row_id").select("clip", *PRINTS, source_id=pl.lit(side))


def _clip_prints(row: dict[str, Any]) -> ClipPrints:
    return ClipPrints(
        np.array(row["at_s"], np.float64),
        np.array(row["pictures"], np.int64).view(np.uint64).reshape(-1, len(CROPS)),
        np.array(row["sound"], np.int32).view(np.uint32),
    )
