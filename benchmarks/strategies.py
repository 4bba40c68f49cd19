"""Batching strategies under one roof: each yields, step by step, which samples every rank computes and with how many rows.

The peers: a fixed batch with padding; the official loader as configured and with its equal-width length buckets (own
re-implementation of the published behaviour); lhotse's own DynamicBucketingSampler; our `EpochPlan`.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.plan_config import PlanConfig
from schemas.budget import NAVA_6B, length_bucket

Ints = NDArray[np.int64]
QUADRATIC_TOKENS = 23_552
"""Tokens at which attention costs as much as everything linear (12 d^2 + 4 d f = 4 L d): lhotse's `quadratic_duration`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One global step: parallel arrays over its samples. `rows` are the token rows computed, with padding."""

    rank: Ints
    video: Ints
    audio: Ints
    rows: Ints


@dataclass
class Clock:
    """CPU seconds spent on planning, samples planned, and waiting of samples in packs (99th percentile), if any."""

    seconds: float = 0.0
    num_samples: int = 0
    age_packs: float = float("nan")

    def __call__(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The same steps, timed."""
        while True:
            began = time.process_time()
            step = next(steps, None)
            self.seconds += time.process_time() - began
            if step is None:
                return
            yield step


class Draws:
    """Endless independent passes over rows in a random order."""

    def __init__(self, rows: Ints, seed: int) -> None:
        self._rows = np.random.default_rng(seed).permutation(rows)
        self._next = 0

    def take(self, count: int) -> Ints:
        """The next `count` rows."""
        positions = (self._next + np.arange(count)) % len(self._rows)
        self._next = (self._next + count) % len(self._rows)
        return self._rows[positions]


def step_of(index: ShardIndex, batches: Iterable[Ints], *, is_padded: bool) -> Step:
    """A step from each rank's rows of the index."""
    batches = list(batches)
    rows = np.concatenate(batches)
    video, audio = index.video_tokens[rows].astype(np.int64), index.audio_tokens[rows].astype(np.int64)
    rank = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    computed = video + audio
    if is_padded:
        longest = np.zeros(len(batches), np.int64)
        np.maximum.at(longest, rank, computed)
        computed = longest[rank]
    return Step(rank, video, audio, computed)


def fixed_batch(index: ShardIndex, num_ranks: int, batch: int = 4) -> Iterator[Step]:
    """`batch` random samples per rank, padded to the longest of the rank."""
    draws = Draws(np.arange(len(index)), 1)
    while True:
        yield step_of(index, draws.take(num_ranks * batch).reshape(num_ranks, batch), is_padded=True)


def official_as_configured(index: ShardIndex, num_ranks: int) -> Iterator[Step]:
    """Batch of one, and one modality per step that all ranks share, drawn in proportion to the corpus."""
    rng, pools = random.Random(2), _modality_pools(index)
    draws = [Draws(pool, 2 + i) for i, pool in enumerate(pools)]
    weights = [len(pool) for pool in pools]
    while True:
        chosen = rng.choices(draws, weights)[0]
        yield step_of(index, chosen.take(num_ranks)[:, None], is_padded=True)


def _modality_pools(index: ShardIndex) -> list[Ints]:
    pools = [np.flatnonzero(index.has_video), np.flatnonzero(~index.has_video)]
    return [pool for pool in pools if len(pool)]


@dataclass
class _RankBuckets:
    """What one rank holds of one modality."""

    queue: deque[int]
    buckets: list[deque[int]]


class OfficialBuckets:
    """Equal-width length buckets with cross-rank bucket sync, as in the published loader.

    Rank 0 draws a ready bucket in proportion to its fill and all ranks follow; a rank short of samples there makes its own
    draw. Video is bucketed by latent frames only, audio by tokens; a bucket holds at most `queue_batches` batches.
    """

    def __init__(self, index: ShardIndex, num_ranks: int, num_buckets: int, batch: int = 4) -> None:
        self._index, self._num_ranks, self._num_buckets, self._batch = index, num_ranks, num_buckets, batch
        self._cap, self._rng = 8 * batch, random.Random(3)
        self._pools = _modality_pools(index)
        self._bucket_of_row = np.zeros(len(index), np.int64)
        for pool in self._pools:
            audio = index.audio_tokens[pool].astype(np.int64)
            # latent frames follow from the paired audio tokens: ((T - 1) * 4 + 1) / 24 * 25 of them
            length = audio if not index.has_video[pool[0]] else np.rint((audio * 24 / 25 - 1) / 4).astype(np.int64) + 1
            low = 0 if not index.has_video[pool[0]] else int(length.min())
            self._bucket_of_row[pool] = length_bucket(length, low, int(length.max()), num_buckets)
        draws = [Draws(pool, 30 + i) for i, pool in enumerate(self._pools)]
        self._draws = draws
        self._ranks = [[self._new_rank(i) for _ in range(num_ranks)] for i in range(len(self._pools))]

    def _new_rank(self, pool: int) -> _RankBuckets:
        rank = _RankBuckets(
            deque(self._draws[pool].take(self._cap).tolist()), [deque() for _ in range(self._num_buckets)]
        )
        for _ in range(6):
            self._refill(pool, rank)
        return rank

    def _refill(self, pool: int, rank: _RankBuckets) -> None:
        bounced = 0
        for _ in range(256):
            if not rank.queue or bounced >= 3:
                break
            row = rank.queue.popleft()
            bucket = rank.buckets[self._bucket_of_row[row]]
            if len(bucket) >= self._cap:
                rank.queue.append(row)
                bounced += 1
            else:
                bucket.append(row)
                bounced = 0
        missing = self._cap - len(rank.queue)
        if missing > 0:
            rank.queue.extend(self._draws[pool].take(missing).tolist())

    def _draw(self, pool: int, rank: _RankBuckets) -> int:
        for _ in range(50):
            ready = [i for i, bucket in enumerate(rank.buckets) if len(bucket) >= self._batch]
            if ready:
                return self._rng.choices(ready, [len(rank.buckets[i]) for i in ready])[0]
            self._refill(pool, rank)
        raise RuntimeError("no bucket fills up: the index is too small for this strategy")

    def steps(self) -> Iterator[Step]:
        """Endless steps."""
        while True:
            pool = self._rng.choices(range(len(self._pools)), [len(p) for p in self._pools])[0]
            ranks = self._ranks[pool]
            chosen = self._draw(pool, ranks[0])
            batches = []
            for rank in ranks:
                bucket = chosen if len(rank.buckets[chosen]) >= self._batch else self._draw(pool, rank)
                batches.append(np.array([rank.buckets[bucket].popleft() for _ in range(self._batch)]))
                self._refill(pool, rank)
            yield step_of(self._index, batches, is_padded=True)


@dataclass(frozen=True, slots=True)
class LhotseSetting:
    """How lhotse is run: bins, quadratic penalty, and whether its batches are padded or packed afterwards."""

    num_buckets: int
    is_quadratic: bool
    is_padded: bool


def lhotse_buckets(
    index: ShardIndex, num_ranks: int, token_budget: int, setting: LhotseSetting, clock: Clock
) -> Iterator[Step]:
    """lhotse's DynamicBucketingSampler over all ranks with synchronised buckets; a cut lasts tokens / 1000 seconds."""
    from lhotse import MonoCut
    from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketingSampler

    draws = Draws(np.arange(len(index)), 9)

    class Cuts:
        """An endless lazy manifest."""

        def __iter__(self) -> Iterator[Any]:
            while True:
                for row in draws.take(1000).tolist():
                    tokens = int(index.video_tokens[row]) + int(index.audio_tokens[row])
                    yield MonoCut(id=str(row), start=0, duration=tokens / 1000, channel=0)

    sampler = DynamicBucketingSampler(
        Cuts(),
        max_duration=token_budget / 1000,
        quadratic_duration=QUADRATIC_TOKENS / 1000 if setting.is_quadratic else None,
        num_buckets=setting.num_buckets,
        buffer_size=max(20_000, 40 * num_ranks),
        shuffle=True,
        drop_last=True,
        world_size=num_ranks,
        rank=0,
        seed=9,
        sync_buckets=True,
    )
    iter(sampler)

    def batches() -> Iterator[list[Ints]]:
        while True:
            yield [np.array([int(cut.id) for cut in sampler._next_batch()]) for _ in range(num_ranks)]

    for batch in clock(batches()):
        clock.num_samples += sum(map(len, batch))
        yield step_of(index, batch, is_padded=setting.is_padded)


def our_plan(index: ShardIndex, config: PlanConfig, clock: Clock) -> Iterator[Step]:
    """Our plan with one pack per rank, metered after the buffers have turned over twice (steady state)."""
    plan = EpochPlan(index, config, NAVA_6B)
    stream = plan.stream()
    per_pack = plan.epoch_samples / plan.steps_per_epoch / config.num_packs
    for _ in range(int(2 * config.buffer_samples / per_pack)):
        next(stream)
    ages: deque[float] = deque(maxlen=200_000)
    newest = [0] * config.num_packs
    for packs in clock(iter(stream)):
        clock.num_samples += sum(len(pack.items) for pack in packs)
        for team, pack in enumerate(packs):
            newest[team] = max(newest[team], *(item.serial for item in pack.items))
            ages.extend((newest[team] - item.serial) / per_pack for item in pack.items)
        clock.age_packs = float(np.percentile(ages, 99))
        yield step_of(index, [np.array([item.row for item in pack.items]) for pack in packs], is_padded=False)
