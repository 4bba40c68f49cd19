"""The clips that a pool's rules find in a run: those that fulfil its conditions, and of them hours in balance.

Hours are shared like water among cups: every value of a field gets the same, one that has less gives all it has, and what it
leaves is shared by the others; then in each of them the next field. Within the smallest group clips come in the order of
their ids, which are hashes: a sample without regard to anything, that stays as it is when others arrive, and whose clips lie
side by side in shards. The clip at the edge of a group is taken with the probability that keeps hours right on the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.ask.clips import ClipLists, ClipQuestion
from pipeline.ask.condition import parsed_conditions
from pipeline.ask.grouped import path_of_field
from pipeline.ask.queries import US_PER_HOUR
from pipeline.ask.stats import NOT_MEASURED
from pipeline.near_marks import read_near
from pipeline.pools.pool_rules import PoolRules
from schemas.ids import fraction_of

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Selection:
    """What rules find."""

    rules: PoolRules
    fields: tuple[str, ...]
    """The fields of `PoolRules.balance`, by their whole names."""
    clips: pl.DataFrame
    """clip_id, us, and the text of each field, of the clips of the pool; sorted by id."""
    all_us: dict[tuple[str, str], int]
    """(field, value) -> microseconds of all clips that fulfil the conditions."""
    found_us: int
    """Of all of them."""
    num_near: int = 0
    """Clips that fulfil the conditions and are near an evaluation set, which were left out."""

    @property
    def us(self) -> int:
        """Microseconds in the pool."""
        return int(self.clips["us"].sum())


def choose(lists: ClipLists, rules: PoolRules) -> Selection:
    """The pool of a run. Raises LedgerError for a field that no clip has, with the nearest name."""
    import polars as pl

    fields = tuple(dict.fromkeys(path_of_field(lists, name) for name in rules.balance))
    conditions = tuple(each for text in rules.query for each in parsed_conditions(text))
    is_found = lists.matching(ClipQuestion(status="keep", conditions=conditions))
    spine = lists.spine.select(clip_id="row_id", us="duration_us")
    told = [lists.column(path).cast(pl.String).fill_null(NOT_MEASURED).alias(path) for path in fields]
    clips = spine.hstack(told).filter(pl.Series(is_found)).sort("clip_id")
    marked = [] if rules.with_near else read_near(lists.run.dir)["clip_id"].unique().to_list()
    is_near = clips["clip_id"].is_in(marked)
    clips = clips.filter(~is_near)
    sums = [(path, clips.group_by(path).agg(pl.col("us").sum())) for path in fields]
    all_us = {(path, value): us for path, table in sums for value, us in table.iter_rows()}
    taken = clips if rules.hours is None else balanced(clips, rules.hours * US_PER_HOUR, fields)
    return Selection(rules, fields, taken, all_us, int(clips["us"].sum()), int(is_near.sum()))


def balanced(clips: pl.DataFrame, budget_us: float, fields: Sequence[str]) -> pl.DataFrame:
    """Of clips sorted by id those that fill the budget, shared out evenly over the values of the first field, in each of
    them over those of the next, and so on."""
    import polars as pl

    root = "all"
    rooted = clips.with_columns(pl.lit(0).alias(root))
    shares = pl.DataFrame({root: [0], "share": [float(budget_us)]}, schema_overrides={root: pl.Int32})
    for depth in range(len(fields)):
        shares = _shared(rooted, shares, [root, *fields[:depth]], fields[depth])
    keys = [root, *fields]
    upto = rooted.join(shares, on=keys, maintain_order="left").with_columns(upto=pl.col("us").cum_sum().over(keys))
    is_edge = (pl.col("upto") > pl.col("share")) & (pl.col("upto") - pl.col("us") < pl.col("share"))
    edges = upto.filter(is_edge).select(
        "clip_id", part=(pl.col("share") - pl.col("upto") + pl.col("us")) / pl.col("us")
    )
    lucky = [name for name, part in edges.iter_rows() if fraction_of(f"pool {name}") < part]
    is_in = (pl.col("upto") <= pl.col("share")) | pl.col("clip_id").is_in(lucky)
    return upto.filter(is_in).select(clips.columns)


def _shared(clips: pl.DataFrame, shares: pl.DataFrame, above: Sequence[str], name: str) -> pl.DataFrame:
    """A row per value of `name` in each group `above`, with its share of what that group has.

    In order of size, the level that water reaches is the largest of (what is left) / (cups left) over all beginnings.
    """
    import polars as pl

    keys = [*above, name]
    cups = clips.group_by(keys).agg(size=pl.col("us").sum()).join(shares, on=list(above)).sort(*above, "size", name)
    left = pl.col("share") - (pl.col("size").cum_sum() - pl.col("size")).over(above)
    cups_left = (pl.len() - pl.int_range(pl.len())).over(above)
    level = (left / cups_left).max().over(above)
    return cups.with_columns(share=pl.min_horizontal(pl.col("size").cast(pl.Float64), level)).select(*keys, "share")
