"""Finds the pairs of clips that are alike, without looking at all pairs.

Two clips become candidates where hashes of theirs are equal: keys of two pictures, half of the hash that most pictures of a clip
have, or four hashes of sound at one distance in time. A hash that many clips share (a title, a test card) leads nowhere and is
left out. Only candidates are compared in full: pictures at 25 speeds, and sound at those at which the pictures fit.

Measured on drawn clips of 5 s of which none is a copy, on one core: 2,000 take 0.4 s, 8,000 1.9 s and 32,000 10.0 s and a
gigabyte, 0.2 to 0.3 ms a clip, and nothing larger was tried. Memory is that of one pass, which holds its own part of all hashes;
there is a pass for every `CLIPS_PER_PASS` clips and each reads them all, so beyond one pass reading grows with their square.
Pairs are counted in memory; those by chance were 14 among the 32,000, and grow with the square as well. Comparing takes 6 ms a
candidate of 6 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.near_duplicates.prints import CROPS, HOP_S, KEY_BITS, Hashes, apart
from stages.near_duplicates.speeds import SPEEDS, sped_alike

if TYPE_CHECKING:
    import polars as pl

CLIPS_PER_PASS = 200_000
"""By reckoning, not measured: their hashes take some gigabytes."""
MOST_SHARED = 100
"""Clips that may share a hash before it is left out."""
LEAST_PICTURES, LEAST_USUAL, LEAST_SOUNDS = 2, 1, 4
"""Equal hashes that make two clips a candidate."""
HALVES = tuple(sum(1 << bit for bit in range(63) if bit % 4 in two) for two in combinations(range(4), 2))
"""Masks of half of a hash each (its last bit, the sign of a number in a table, is left out): up to two quarters may differ."""
NEAR_S = 0.26
"""Pictures of two clips that lie so close on a common clock, four a second being kept, are held against each other."""
STEP_S = 0.25
LEAST_COMMON, LEAST_SHARE = 6, 0.5
"""Pictures two clips must have in common in time, and which share of the shorter one's."""
SAME_BITS = 12
"""Two pictures that differ in no more of 64 bits are one: recoded ones differ in 2 to 6, cropped ones in 10, others in 32."""
SAME_SHARE, WITH_SOUND, STANDING_STILL = 0.7, 0.5, 0.95
"""Share of the common pictures that are one in a copy; where the sound is one, too; where nothing moves and nothing is heard."""
CLEARLY = 0.1
"""By so much larger a share is one at another speed where the speed is another and the sound says nothing of it."""
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
    """Whether they have one sound, whatever they show; at another speed only where they show the same."""


def candidates(rows: pl.LazyFrame) -> pl.DataFrame:
    """Columns a < b, each pair once, of clips of different sources.

    `rows` are `clip` (a number), `source_id`, `pictures` and `sound`, as `fingerprint` measures them.
    """
    import polars as pl

    num_passes = 1 + int(rows.select(pl.len()).collect(engine="streaming").item()) // CLIPS_PER_PASS
    ways = ((LEAST_PICTURES, _by_pictures), (LEAST_USUAL, _by_usual), (LEAST_SOUNDS, _by_sound))
    found = []
    for least, way in ways:
        parts = [way(rows, pl.col("key") % num_passes == number) for number in range(num_passes)]
        table = pl.concat([pairs.collect(engine="streaming") for pairs in parts])
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


def _by_usual(rows: pl.LazyFrame, is_due: pl.Expr) -> pl.LazyFrame:
    """How many halves of usual hashes two clips share, the whole of one and any middle of the other.

    Where little moves, all pictures have about one hash, and no two exactly; at another speed other pictures are looked at.
    """
    import polars as pl

    halves = pl.col("pictures").map_batches(_usual_halves, return_dtype=pl.List(pl.Int64), is_elementwise=True)
    keys = rows.filter(pl.col("pictures").list.len() > 0).select("clip", "source_id", key=halves)
    whole, each = (
        side.explode("key").filter(is_due).unique()
        for side in (keys.with_columns(pl.col("key").list.head(len(HALVES))), keys)
    )
    return _pairs(whole, each, pl.lit(0))


def _usual_halves(pictures: pl.Series) -> pl.Series:
    """Lists of 36 keys, by `CROPS` and `HALVES`, of the bits that most pictures of a clip have, from its hashes."""
    import polars as pl

    if not len(pictures):
        return pl.Series([], dtype=pl.List(pl.Int64))
    hashes = pictures.explode().to_numpy().view(np.uint64).reshape(-1, len(CROPS))
    num = pictures.list.len().to_numpy().astype(np.int64) // len(CROPS)
    first = np.cumsum(num) - num
    usual = np.zeros((len(num), len(CROPS)), np.uint64)
    for bit in range(64):
        set_in = np.add.reduceat(hashes >> np.uint64(bit) & np.uint64(1), first, axis=0)
        usual |= (2 * set_in >= num[:, None]).astype(np.uint64) << np.uint64(bit)
    halves = usual[:, :, None] & np.array(HALVES, np.uint64)
    return pl.Series(halves.reshape(len(num), -1).view(np.int64)).cast(pl.List(pl.Int64))


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
    Where pictures fit at another speed the sound is asked at that speed as well. If it says nothing, or in silence, something
    has to move, and of what is heard the pictures have to fit at no speed but another.
    """
    fits = Fits.of(one, other)
    best = float(fits.share.max(initial=0.0))
    if sounds_alike(one.sound, other.sound):
        return Resemblance(best >= WITH_SOUND, True)
    if any(speed != 1.0 and sped_alike(one.sound, other.sound, speed) for speed in fits.speeds(WITH_SOUND)):
        return Resemblance(True, True)
    if one.is_heard and other.is_heard:
        return Resemblance(fits.is_moving and best >= fits.at_one_speed + CLEARLY, False)
    return Resemblance(fits.is_moving or best >= STANDING_STILL, False)


def moves_alike(one: ClipPrints, other: ClipPrints) -> bool:
    """Whether two clips show the same moving pictures, whatever is heard with them."""
    return Fits.of(one, other).is_moving


@dataclass(frozen=True)
class Fits:
    """Every way to lay one clip over another that leaves enough in common, nearest speeds first."""

    speed: NDArray[np.float64]
    """[n]: how many times as fast the other clip plays"""
    offset_s: NDArray[np.float64]
    """[n]: when it shows the beginning of the one"""
    share: NDArray[np.float64]
    """[n]: of the pictures in common, those that are one"""

    @classmethod
    def of(cls, one: ClipPrints, other: ClipPrints) -> Fits:
        """Of two clips; none where too few pictures are one at any time."""
        least = max(LEAST_COMMON, LEAST_SHARE * min(len(one.at_s), len(other.at_s)))
        nothing = cls(*np.zeros((3, 0)))
        if min(len(one.at_s), len(other.at_s)) < LEAST_COMMON:
            return nothing
        is_one = np.minimum(
            apart(one.pictures[:, None, :], other.pictures[None, :, :1]).min(2),
            apart(one.pictures[:, None, :1], other.pictures[None, :, :]).min(2),
        ) <= SAME_BITS  # fmt: skip
        if is_one.any(axis=1).sum() < WITH_SOUND * least:
            return nothing
        before = np.pad(np.cumsum(is_one, axis=1), ((0, 0), (1, 0)))
        return cls(*np.hstack([_laid(before, one.at_s / speed, other.at_s, speed, least) for speed in SPEEDS]))

    def speeds(self, least_share: float) -> list[float]:
        """Those at which at least this share of the pictures is one, nearest first."""
        return [speed for speed in SPEEDS if (self.share[self.speed == speed] >= least_share).any()]

    @property
    def at_one_speed(self) -> float:
        """Largest share at the speed the clips have."""
        return float(self.share[self.speed == 1.0].max(initial=0.0))

    @property
    def is_moving(self) -> bool:
        """Whether clips fit where they fit best, and fewer pictures are one elsewhere."""
        if self.share.max(initial=0.0) < SAME_SHARE:
            return False
        best = int(self.share.argmax())
        is_other = (self.speed == self.speed[best]) & (np.abs(self.offset_s - self.offset_s[best]) >= ELSEWHERE_S)
        return bool(is_other.any() and np.median(self.share[is_other]) <= ELSEWHERE_SHARE)


def _laid(
    before: NDArray[np.int64], one_s: NDArray[np.float64], other_s: NDArray[np.float64], speed: float, least: float
) -> NDArray[np.float64]:
    """[3, n]: fields of `Fits` at one speed, of pictures at `one_s` [k] and `other_s` [m].

    `before` [k, m + 1] counts, for each of the one's pictures, those of the other's that are the same and lie before.
    """
    offsets = np.arange(other_s[0] - one_s[-1], other_s[-1] - one_s[0] + STEP_S, STEP_S)
    wanted, each = offsets[:, None] + one_s, np.arange(len(one_s))
    low, high = np.searchsorted(other_s, wanted - NEAR_S), np.searchsorted(other_s, wanted + NEAR_S)
    num_common, num_one = (high > low).sum(1), (before[each, high] > before[each, low]).sum(1)
    is_enough = num_common >= least
    share = num_one[is_enough] / num_common[is_enough]
    return np.stack([np.full(len(share), speed), offsets[is_enough], share])


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
