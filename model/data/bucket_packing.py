"""The published batching strategies beside our own, runnable in training: fixed batches of samples of about one length.

    padded            a fixed number of samples, whatever their lengths
    length_buckets    of one length bucket, which every stream draws for itself
    synced_buckets    the same, and all streams draw the same bucket in a step; one that has too few samples for it draws another
                      of the same kind, pictures or sound alone, where it can

Buckets are equal in width between the shortest and the longest duration, pictures and sound alone apart, as the release codes
them. Our network computes no padding, so what these cost here is their imbalance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.data.index import ShardIndex
from model.data.order import DrawPart, key_of, mix
from model.data.packing import Item, Pack, Packer
from schemas.budget import Use, length_bucket


@dataclass(frozen=True, slots=True)
class Buckets:
    """How the samples of a plan are sorted and drawn."""

    of: Callable[[int, int], int]
    """Bucket of a row of the index in a part of the mixture."""
    shares: NDArray[np.float64]
    """[2 x num_lengths] of all draws: sound alone, then pictures."""
    num_lengths: int
    batch_size: int
    common_key: int | None
    """Random numbers that all streams have alike; None where each draws for itself."""


class Planned(Protocol):
    """What buckets need of an `EpochPlan`."""

    index: ShardIndex
    config: Any
    """`PlanConfig`."""
    parts: list[DrawPart]
    key: int

    def part_use(self, part: int) -> Use | None:
        """Modalities that a part is restricted to."""
        ...


def open_buckets(plan: Planned) -> Buckets:
    """The buckets of a plan whose strategy has some. Cost: a pass over the token columns of the index."""
    config, index = plan.config, plan.index
    num = 1 if config.strategy == "padded" else config.num_buckets
    lengths = np.where(index.audio_tokens > 0, index.audio_tokens, index.video_tokens).astype(np.int64)
    low, high = int(lengths.min()), int(lengths.max())
    shares = np.zeros(2 * num)

    def bucket(rows: NDArray[np.int64], use: Use | None) -> NDArray[np.int64]:
        has_picture = index.has_video[rows] & (use != "audio")
        if num == 1 or low == high or use == "image":
            return np.zeros(len(rows), np.int64) if num == 1 else has_picture * num
        return length_bucket(lengths[rows], low, high, num) + has_picture * num

    for number, part in enumerate(plan.parts):
        rows = np.arange(part.num_rows) if part.rows is None else part.rows
        counts = np.bincount(bucket(rows, plan.part_use(number)), minlength=2 * num)
        shares += counts * part.num_draws / part.num_rows

    @lru_cache(maxsize=1 << 16)
    def of(row: int, part: int) -> int:
        return int(bucket(np.array([row]), plan.part_use(part))[0])

    common = key_of(plan.key, "bucket") if config.strategy == "synced_buckets" else None
    return Buckets(of, shares / shares.sum(), num, config.batch_size, common)


class BucketPacker(Packer):
    """A `Packer` whose packs are batches of one bucket. Its state is the same: one random draw a pack."""

    buckets: Buckets

    def _pack(self, shared: tuple[Item, ...], flops: float, tokens: float) -> Pack:
        self._num_draws += 1
        filled: dict[int, list[Item]] = {}
        for item in self._items.values():
            filled.setdefault(self.buckets.of(item.row, item.part), []).append(item)
        if not filled:
            return Pack((), shared, flops, tokens)
        own: list[Item] = []
        for item in filled[self._drawn_bucket(filled)][: self.buckets.batch_size]:
            if own and tokens + item.tokens > self._limits.token_budget:
                break
            own.append(self._remove(item.serial))
            flops, tokens = flops + item.flops, tokens + item.tokens
        self._fill()
        return Pack(tuple(own), shared, flops, tokens)

    def _drawn_bucket(self, filled: dict[int, list[Item]]) -> int:
        """The bucket of this pack: of those that hold a batch, drawn by how much is in each; the fullest if none does."""
        size, common = self.buckets.batch_size, self.buckets.common_key
        ready = sorted(number for number, items in filled.items() if len(items) >= size)
        if common is not None:
            wanted = _draw(self.buckets.shares, common + self._num_draws)
            if wanted in ready:
                return wanted
            kind = wanted // self.buckets.num_lengths
            ready = [number for number in ready if number // self.buckets.num_lengths == kind] or ready
        if not ready:
            return max(sorted(filled), key=lambda number: len(filled[number]))
        counts = np.array([len(filled[number]) for number in ready], np.float64)
        return ready[_draw(counts / counts.sum(), self._key + self._num_draws)]


def _draw(shares: NDArray[np.float64], key: int) -> int:
    """The position that a pseudo-random number picks in proportion to its share."""
    at = (mix(key) % (1 << 53)) / (1 << 53)
    return min(int(np.searchsorted(np.cumsum(shares), at, side="right")), len(shares) - 1)
