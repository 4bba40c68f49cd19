"""What of a run is near an evaluation set, as text and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.ask.clips import ClipLists
from pipeline.ask.queries import Run
from pipeline.show.screen import hms, plural, table
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl

SHOWN = 12


def near_plain(run: Run, found: pl.DataFrame) -> dict[str, Any]:
    """Clips with the ways in which they are near, and sums."""
    return {"ways": _sums(run, found), "near": found.to_dicts()}


def near_text(run: Run, found: pl.DataFrame, lacking: Mapping[str, str]) -> str:
    """A line per way, then some of the clips. `lacking`: ways that were not compared, and the run that has not what it takes."""
    lines = [f"{way} was not compared: no stage of {uri} measures what it takes" for way, uri in lacking.items()]
    sums = _sums(run, found)
    rows = [
        (way, f"{told['num_clips']:,}", f"{told['num_kept']:,}", hms(told["kept_us"]), f"{told['num_items']:,}")
        for way, told in sums.items()
    ]
    lines += table(("near by", "num", "kept", "hours kept", "items met"), rows, right=(1, 2, 3, 4))
    if len(found):
        shown = [(row["clip_id"], row["by"], row["item"]) for row in found.head(SHOWN).iter_rows(named=True)]
        lines += ["", *table((Level.CLIP, "by", "item"), shown)]
        if len(found) > SHOWN:
            lines.append(f"and {len(found) - SHOWN:,} more in {run.dir.uri}/contaminated.arrow")
    num = found["clip_id"].n_unique()
    return "\n".join([*lines, "", f"{plural(num, Level.CLIP)} marked; pools leave them out"])


def _sums(run: Run, found: pl.DataFrame) -> dict[str, dict[str, int]]:
    import polars as pl

    spine = ClipLists(run).spine.select(
        clip_id="row_id", is_kept=pl.col("status").cast(pl.String) == "keep", us="duration_us"
    )
    told = found.join(spine.unique("clip_id"), on="clip_id", how="left").with_columns(
        pl.col("is_kept").fill_null(False)
    )
    sums = {}
    for way in found["by"].unique().sort().to_list():
        mine = told.filter(pl.col("by") == way)
        kept = mine.filter(pl.col("is_kept"))
        sums[way] = {
            "num_clips": len(mine), "num_kept": len(kept), "kept_us": int(kept["us"].sum()),
            "num_items": mine["item"].n_unique(),
        }  # fmt: skip
    return sums
