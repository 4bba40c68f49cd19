"""Two runs held against each other: which hours came, which went, for what reason, and what differs in their recipes.

Clips are the same where their ids are: same bytes, same span, same rules of cutting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.ask.clips import ClipLists

if TYPE_CHECKING:
    import polars as pl

ABSENT = "not in the other run"
MOST_FLIPS = 500
"""Changed verdicts that are listed; all of them are counted."""


@dataclass(frozen=True)
class FallStep:
    """One step of the waterfall from the hours that one run keeps to those of the other."""

    reason: str
    us: int
    """Negative: kept before, and no more."""
    num_clips: int


@dataclass(frozen=True)
class Flip:
    """A clip that one run keeps and the other does not."""

    clip_id: str
    before: str
    """Status, or `not in the other run`."""
    before_reason: str | None
    after: str
    after_reason: str | None
    duration_us: int


@dataclass(frozen=True)
class RunComparison:
    """The first run is what it is compared with, the second the one that is looked at."""

    before_us: int
    after_us: int
    num_both: int
    lost: tuple[FallStep, ...]
    """By the reason the second run gives."""
    gained: tuple[FallStep, ...]
    """By the reason the first run gave."""
    num_flips: int
    flips: tuple[Flip, ...]
    recipe: tuple[tuple[str, Any, Any], ...]
    """(key, before, after)."""


def compare(before: ClipLists, after: ClipLists) -> RunComparison:
    """What changed from one run to the other."""
    import polars as pl

    first, second = (_by_clip(each) for each in (before, after))
    both = first.join(second, on="row_id", how="full", suffix=" after", coalesce=True)
    was, now = (pl.col(name).fill_null(ABSENT) for name in ("status", "status after"))
    both = both.with_columns(status=was, us=pl.coalesce("duration_us", "duration_us after")).with_columns(now)
    is_lost = (pl.col("status") == "keep") & (pl.col("status after") != "keep")
    is_gained = (pl.col("status") != "keep") & (pl.col("status after") == "keep")
    lost = both.filter(is_lost).with_columns(why=pl.coalesce("reason after", "status after"))
    gained = both.filter(is_gained).with_columns(why=pl.coalesce("reason", "status"))
    flips = pl.concat([lost, gained]).sort("us", "row_id", descending=[True, False])
    shown = flips.head(MOST_FLIPS).select("row_id", "status", "reason", "status after", "reason after", "us")
    return RunComparison(
        before_us=_kept(first),
        after_us=_kept(second),
        num_both=both.filter((pl.col("status") != ABSENT) & (pl.col("status after") != ABSENT)).height,
        lost=_steps(lost, -1),
        gained=_steps(gained, 1),
        num_flips=len(flips),
        flips=tuple(Flip(*row) for row in shown.iter_rows()),
        recipe=tuple(differences(before.run.raw_recipe, after.run.raw_recipe)),
    )


def _by_clip(lists: ClipLists) -> pl.DataFrame:
    """Each clip once, as it counts: bytes that were given twice have equal clips, of which at most one is kept."""
    import polars as pl

    texts = [pl.col(name).cast(pl.String) for name in ("status", "reason")]
    spine = lists.spine.select("row_id", "duration_us", *texts)
    return spine.sort(pl.col("status") != "keep", "row_id").unique("row_id", keep="first", maintain_order=True)


def _kept(clips: pl.DataFrame) -> int:
    import polars as pl

    return int(clips.filter(pl.col("status") == "keep")["duration_us"].sum())


def _steps(rows: pl.DataFrame, sign: int) -> tuple[FallStep, ...]:
    import polars as pl

    sums = rows.group_by("why").agg(us=pl.col("us").sum(), num=pl.len()).sort("us", "why", descending=[True, False])
    return tuple(FallStep(why, sign * int(us), int(num)) for why, us, num in sums.iter_rows())


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value after) of what differs in two recipes; None where a key is missing."""
    first, second = dict(_flat(before)), dict(_flat(after))
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inside in value.items():
            yield from _flat(inside, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
