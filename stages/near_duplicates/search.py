"""Finds the pairs of clips that are alike, without looking at all pairs.

Two clips become candidates where hashes of theirs are equal: keys of two pictures, or four hashes of sound at one distance in
time. A hash that many clips share (a title, a test card) leads nowhere and is left out. Only candidates are compared in full.
Memory is that of one pass, which holds its own part of all hashes; there is a pass for every `CLIPS_PER_PASS` clips and each
reads them all, so beyond one pass time grows with their square. Pairs are counted in memory. No more than 900 clips have been
tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.near_duplicates.prints import CROPS, HOP_S, KEY_BITS, Hashes, apart

if TYPE_CHECKING:
    import polars as pl

CLIPS_PER_PASS = 200_000
"""By reckoning, not measured: their hashes take some gigabytes."""
MOST_SHARED = 100
"""Clips that may share a hash before it is left out."""
LEAST_PICTURES, LEAST_SOUNDS = 2, 4
"""Equal hashes that make two clips a candidate."""
SPEEDS = tuple(speed for base in (1.0, 1.1, 1.25, 1.5, 2.0) for speed in {base, 1 / base})
NEAR_S = 0.26
"""Pictures of two clips that lie so close on a common clock, four a second being kept, are held against each other."""
STEP_S = 0.25
LEAST_COMMON, LEAST_SHARE = 6, 0.5
"""Pictures two clips must have in common in time, and which share of the shorter one's."""
SAME_BITS = 12
"""Two pictures that differ in no more of 64 bits are one: recoded ones differ in 2 to 6, cropped ones in 10, others in 32."""
SAME_SHARE, WITH_SOUND, STANDING_STILL = 0.7, 0.5, 0.95
"""Share of the common pictures that are one in a copy; where the sound is one, too; where nothing moves and nothing is heard."""
ELSEWHERE_S, ELSEWHERE_SHARE = 1.5, 0.4
"""Something moves where fewer pictures are one with the clips moved by so much; else any part of a scene fits any other."""
SOUND_BITS, SOUND_S = 0.3, 1.5
"""Share of bits in which the sound of a copy differs, over this long at least; strangers differ in half (Haitsma: 0.35)."""


@dataclass(frozen=True)
class ClipPrints:
    """Fingerprints of one clip."""

    at_s: NDArray[np.float64]
    """[n]"""
    pictures: Hashes
    """[n, 6]"""
    sound: NDArray[np.uint32]
    """[m]"""

    @property
    def is_heard(self) -> bool:
        """Whether there is enough sound to tell it by."""
        return bool(np.count_nonzero(self.sound) * HOP_S >= SOUND_S)


@dataclass(frozen=True)
class Resemblance:
    """What two clips have in common."""

    picture: bool
    """Whether one is a copy of the other."""
    sound: bool
    """Whether they have one sound, whatever they show."""
    share: float
    """Of the pictures in common where they fit best, those that are one."""


def candidates(rows: pl.LazyFrame) -> pl.DataFrame:
    """Columns a < b, each pair once, of clips of different sources.

    `rows` are `clip` (a number), `source_id`, `pictures` and `sound`, as `fingerprint` measures them.
    """
    import polars as pl

    num_passes = 1 + int(rows.select(pl.len()).collect(engine="streaming").item()) // CLIPS_PER_PASS
    counted: dict[int, list[pl.DataFrame]] = {LEAST_PICTURES: [], LEAST_SOUNDS: []}
    for number in range(num_passes):
        is_due = pl.col("key") % num_passes == number
        for least, pairs in ((LEAST_PICTURES, _by_pictures(rows, is_due)), (LEAST_SOUNDS, _by_sound(rows, is_due))):
            counted[least].append(pairs.collect(engine="streaming"))
    found = []
    for least, parts in counted.items():
        table = pl.concat(parts)
        total = table.group_by(pl.exclude("num")).agg(pl.col("num").sum())
        found.append(total.filter(pl.col("num") >= least).select("a", "b"))
    return pl.concat(found).unique().sort("a", "b")


def _by_pictures(rows: pl.LazyFrame, is_due: pl.Expr) -> pl.LazyFrame:
    """How many keys two clips share, the whole of one and any middle of the other."""
    import polars as pl

    number = pl.int_ranges(pl.col("pictures").list.len(), dtype=pl.Int64)
    each = (
        rows.select("clip", "source_id", key=pl.col("pictures"), view=number)
        .explode("key", "view")
        .drop_nulls("key")
        .with_columns(pl.col("view") % len(CROPS), pl.col("key") & ((1 << KEY_BITS) - 1))
        .filter(is_due)
    )
    whole = each.filter(pl.col("view") == 0).drop("view").unique()
    return _pairs(whole, each.drop("view").unique(), pl.lit(0))


def _by_sound(rows: pl.LazyFrame, is_due: pl.Expr) -> pl.LazyFrame:
    """How many hashes of sound two clips share at each distance in time."""
    import polars as pl

    at = pl.int_ranges(pl.col("sound").list.len(), dtype=pl.Int64)
    each = (
        rows.select("clip", "source_id", key=pl.col("sound"), at=at)
        .explode("key", "at")
        .with_columns(pl.col("key").cast(pl.Int64) & 0xFFFFFFFF)
        .filter((pl.col("key") > 0) & is_due)
        .unique(["clip", "key"], keep="first", maintain_order=True)
    )
    forward = pl.col("clip") < pl.col("clip_right")
    distance = pl.col("at") - pl.col("at_right")
    return _pairs(each, each, pl.when(forward).then(distance).otherwise(-distance) // 2)


def _pairs(left: pl.LazyFrame, right: pl.LazyFrame, apart_by: pl.Expr) -> pl.LazyFrame:
    """(a, b, apart, num): how many keys clips a < b share, by what they are apart; keys of many clips are left out."""
    import polars as pl

    common = [side.group_by("key").len().filter(pl.col("len") <= MOST_SHARED).select("key") for side in (left, right)]
    few_left, few_right = (
        side.join(few, on="key", how="semi") for side, few in zip((left, right), common, strict=True)
    )
    joined = few_left.join(few_right, on="key").filter(pl.col("source_id") != pl.col("source_id_right"))
    ordered = joined.select(
        "key",
        apart=apart_by.cast(pl.Int64),
        a=pl.min_horizontal("clip", "clip_right"),
        b=pl.max_horizontal("clip", "clip_right"),
    ).unique()
    return ordered.group_by("a", "b", "apart").agg(num=pl.len())


def likeness(one: ClipPrints, other: ClipPrints) -> Resemblance:
    """What two clips have in common, whichever of them is a trimmed, sped up, cropped or mirrored copy.

    Pictures alone do not make a copy of what is heard: people who talk before one background, and dubbed films, differ in sound.
    Only of clips that are played at another speed the sound says nothing; then, and in silence, something has to move.
    """
    sound = sounds_alike(one.sound, other.sound)
    speed, share, elsewhere = _best_fit(one, other)
    is_moving = share >= SAME_SHARE and elsewhere <= ELSEWHERE_SHARE
    if sound:
        return Resemblance(share >= WITH_SOUND, sound, share)
    if one.is_heard and other.is_heard:
        return Resemblance(is_moving and speed != 1.0, sound, share)
    return Resemblance(is_moving or share >= STANDING_STILL, sound, share)


def moves_alike(one: ClipPrints, other: ClipPrints) -> bool:
    """Whether two clips show the same moving pictures, whatever is heard with them."""
    _, share, elsewhere = _best_fit(one, other)
    return share >= SAME_SHARE and elsewhere <= ELSEWHERE_SHARE


def _best_fit(one: ClipPrints, other: ClipPrints) -> tuple[float, float, float]:
    """(speed, share of pictures that are one, that share in the median of other offsets) where two clips fit best."""
    nothing = 1.0, 0.0, 1.0
    if min(len(one.at_s), len(other.at_s)) < LEAST_COMMON:
        return nothing
    is_one = np.minimum(
        apart(one.pictures[:, None, :], other.pictures[None, :, :1]).min(2),
        apart(one.pictures[:, None, :1], other.pictures[None, :, :]).min(2),
    ) <= SAME_BITS  # fmt: skip
    fits = np.array(list(_fits(is_one, one.at_s, other.at_s)))
    if not len(fits):
        return nothing
    speed, offset_s, best = fits[fits[:, 2].argmax()].tolist()
    moved = fits[(fits[:, 0] == speed) & (np.abs(fits[:, 1] - offset_s) >= ELSEWHERE_S), 2]
    return speed, best, float(np.median(moved)) if len(moved) else 1.0


def _fits(
    is_one: NDArray[np.bool_], one_s: NDArray[np.float64], other_s: NDArray[np.float64]
) -> Iterator[tuple[float, float, float]]:
    """(speed, offset in s, share that is one) of every way to lay one clip over the other that has enough in common."""
    least = max(LEAST_COMMON, LEAST_SHARE * min(len(one_s), len(other_s)))
    before = np.pad(np.cumsum(is_one, axis=1), ((0, 0), (1, 0)))
    for speed in SPEEDS:
        on_clock, each = one_s * speed, np.arange(len(one_s))
        for offset_s in np.arange(other_s[0] - on_clock[-1], other_s[-1] - on_clock[0] + STEP_S, STEP_S):
            wanted = on_clock + offset_s
            low, high = np.searchsorted(other_s, wanted - NEAR_S), np.searchsorted(other_s, wanted + NEAR_S)
            is_common = high > low
            if is_common.sum() >= least:
                found = before[each, high] > before[each, low]
                yield speed, float(offset_s), float(found[is_common].mean())


def sounds_alike(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Whether two sounds are one where they fit best."""
    least = round(SOUND_S / HOP_S)
    if min(len(one), len(other)) < least:
        return False
    _, mine, its = np.intersect1d(one[one > 0], other[other > 0], return_indices=True)
    mine, its = np.flatnonzero(one > 0)[mine], np.flatnonzero(other > 0)[its]
    for offset in np.unique(its - mine):
        low, high = max(0, -offset), min(len(one), len(other) - offset)
        a, b = one[low:high], other[low + offset : high + offset]
        is_heard = (a > 0) & (b > 0)
        if is_heard.sum() >= least:
            wrong = np.bitwise_count(a[is_heard] ^ b[is_heard]).mean() / 32
            if wrong <= SOUND_BITS:
                return True
    return False
