"""`duplicates`: which sources are the same, so that each is counted, kept and packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from schemas.fields import f, struct
from stages.base import Collect, Resources, StageConfig

if TYPE_CHECKING:
    import polars as pl


class DuplicatesConfig(StageConfig):
    """Nothing to choose."""


class Duplicates(Collect[DuplicatesConfig]):
    """Sources with the same bytes, whatever their names; the one with the smallest id stands for all of them."""

    name = "duplicates"
    version = "1"
    level = "asset"
    reads = ("download.asset_id",)
    adds = struct(
        f("group", pa.string(), doc="source id that stands for all with these bytes", in_shard=False),
        f("num_alike", pa.int32(), unit="count", doc="sources with these bytes, this one included", in_shard=False),
        f("is_representative", pa.bool_(), doc="this is the source that stands for the others", in_shard=False),
    )
    Config = DuplicatesConfig
    resources = Resources(memory_gb=0.1)

    def collect(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """One group-by over the asset ids: time and memory grow with the number of sources."""
        import polars as pl

        same = "download.asset_id"
        return (
            rows.filter(pl.col(same).is_not_null())
            .with_columns(group=pl.col("source_id").min().over(same), num_alike=pl.len().over(same).cast(pl.Int32))
            .select("row_id", "group", "num_alike", is_representative=pl.col("source_id") == pl.col("group"))
        )
