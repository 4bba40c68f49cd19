"""`near_duplicates`: which clips show and sound the same, whatever file they come from, so that one of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from schemas.fields import f, struct
from stages.base import Collect, Resources, StageConfig
from stages.near_duplicates.prints import CROPS
from stages.near_duplicates.search import ClipPrints, candidates, likeness

if TYPE_CHECKING:
    import polars as pl

PRINTS = ("fingerprint.at_s", "fingerprint.pictures", "fingerprint.sound")
CHOSEN_BY = ("probe.width_px", "probe.height_px", "clip.start_pts", "clip.end_pts", "clip.tb_num", "clip.tb_den")
AT_ONCE = 20_000
"""Pairs whose fingerprints are held at a time."""


class NearDuplicatesConfig(StageConfig):
    """Nothing to choose."""


class NearDuplicates(Collect[NearDuplicatesConfig]):
    """Groups of clips that are copies of one another: recoded, scaled, cropped around the middle, mirrored, trimmed, letterboxed.

    Copies from half to twice as fast are found by a sound that moves its pitch along or keeps it, and where something moves by
    pictures alone. The largest picture stands for a group, of equals the longest clip.
    A clip of bytes that were given twice is one. Clips of one source are not held against each other, and what is dubbed is no
    copy. A clip that a gate has turned away before it had a fingerprint stands for none.
    """

    name = "near_duplicates"
    version = "2"
    level = "clip"
    reads = (*PRINTS, *CHOSEN_BY)
    adds = struct(
        f("group", pa.string(), doc="clip id that stands for all that are alike", in_shard=False),
        f("num_alike", pa.int32(), unit="count", doc="clips that are alike, this one included", in_shard=False),
        f("is_representative", pa.bool_(), doc="this is the clip that stands for the others", in_shard=False),
        f(
            "sound_group",
            pa.string(),
            doc="smallest id of the clips with this sound, whatever they show; at another speed, where they show the same",
            in_shard=False,
        ),
    )
    Config = NearDuplicatesConfig
    resources = Resources(memory_gb=1.0)

    def collect(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """See `stages.near_duplicates.search`. Holds the ids of all clips, and reads all once per `AT_ONCE` candidates."""
        import polars as pl

        num, den = pl.col("clip.tb_num"), pl.col("clip.tb_den")
        clips = (
            rows.filter(pl.col("fingerprint.pictures").is_not_null())
            .select(
                "row_id",
                "source_id",
                pixels=pl.col("probe.width_px").cast(pl.Int64) * pl.col("probe.height_px"),
                long=(pl.col("clip.end_pts") - pl.col("clip.start_pts")) * num / den,
            )
            .collect(engine="streaming")
            .sort("row_id", "source_id")
            .unique("row_id", keep="first", maintain_order=True)
        )
        clips = clips.with_row_index("clip")
        prints = rows.rename(dict(zip(PRINTS, ("at_s", "pictures", "sound"), strict=True))).join(
            clips.lazy().select("row_id", "source_id", "clip"), on=["row_id", "source_id"]
        ).select("clip", "source_id", "at_s", "pictures", "sound")  # fmt: skip
        copies, heard = self._alike(prints, candidates(prints.drop("at_s")))
        ranked = clips.sort(["pixels", "long", "row_id"], descending=[True, True, False], nulls_last=True)
        place = ranked.with_row_index("place").sort("clip")["place"].to_numpy()
        groups, sounds = (_groups(len(clips), pairs) for pairs in (copies, heard))
        ids = clips["row_id"]
        first = _first_of(groups, place)
        stands = ids.gather(first)
        return clips.lazy().select(
            "row_id",
            group=stands,
            num_alike=pl.Series(np.bincount(groups, minlength=1)[groups] if len(groups) else groups, dtype=pl.Int32),
            is_representative=stands == ids,
            sound_group=ids.gather(_first_of(sounds, np.arange(len(ids)))),
        )

    def _alike(self, prints: pl.LazyFrame, pairs: pl.DataFrame) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Pairs that are copies, and pairs with one sound, of the candidates."""
        import polars as pl

        copies, heard = [], []
        for part in pairs.iter_slices(AT_ONCE):
            wanted = pl.concat([part["a"], part["b"].rename("a")]).unique()
            table = prints.filter(pl.col("clip").is_in(wanted.implode())).collect(engine="streaming")
            known = {
                row["clip"]: ClipPrints(
                    np.array(row["at_s"], np.float64),
                    np.array(row["pictures"], np.int64).view(np.uint64).reshape(-1, len(CROPS)),
                    np.array(row["sound"], np.int32).view(np.uint32),
                )
                for row in table.iter_rows(named=True)
            }
            for a, b in part.iter_rows():
                found = likeness(known[a], known[b])
                if found.picture:
                    copies.append((a, b))
                if found.sound:
                    heard.append((a, b))
        return copies, heard


def _groups(num: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Number of the group of each of `num` clips, which are joined by `pairs`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(num, num))
    return np.asarray(connected_components(graph, directed=False)[1])


def _first_of(groups: np.ndarray, place: np.ndarray) -> np.ndarray:
    """For each clip, the one of its group that has the smallest place."""
    order = np.argsort(place)
    _, first = np.unique(groups[order], return_index=True)
    return np.asarray(order[first][groups])
