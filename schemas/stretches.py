"""Stretches of time in seconds and runs of frames: one algebra for speech, silence, standstills and whatever lasts.

All are half-open, [start, end). A gap is closed where it is shorter than the gap given; what touches is always one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Runs = NDArray[np.int64]
"""Runs of frames or samples [k, 2], in order: first, and one past the last."""
Bounds = NDArray[Any]


class Timed(ABC):
    """Base of the frozen records that begin and end: [start_s, end_s) on the clock of whoever holds them."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    start_s: float
    end_s: float

    @classmethod
    @abstractmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The record held in `row`, whose other columns are left alone; a nullable column it lacks reads as null."""

    @classmethod
    def all_of(cls, rows: Iterable[Mapping[str, Any]] | None) -> list[Self]:
        """The record of each of `rows`; none for null."""
        return [cls.of(row) for row in rows or ()]

    @property
    def duration_s(self) -> float:
        """Length."""
        return self.end_s - self.start_s

    @property
    def middle_s(self) -> float:
        """The instant halfway."""
        return (self.start_s + self.end_s) / 2

    def overlap_s(self, other: Timed) -> float:
        """Seconds that both cover."""
        return max(0.0, min(self.end_s, other.end_s) - max(self.start_s, other.start_s))

    def moved(self, by_s: float) -> Self:
        """The same, `by_s` later: how a record changes clocks, `moved(-clip_start_s)` from the asset's to the clip's."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)

    def within(self, start_s: float, end_s: float) -> Self:
        """The same with both ends brought into [start_s, end_s]; what lies outside shrinks to nothing at the near end."""
        low, high = (min(max(at, start_s), end_s) for at in (self.start_s, self.end_s))
        return replace(self, start_s=low, end_s=high)


@dataclass(frozen=True, slots=True, order=True)
class Stretch(Timed):
    """A stretch of time and nothing else: a `schemas.records.STRETCH`."""

    start_s: float
    end_s: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["start_s"], row["end_s"])

    def row(self) -> dict[str, float]:
        """The STRETCH struct."""
        return {"start_s": self.start_s, "end_s": self.end_s}


def merge(stretches: Iterable[Timed], gap_s: float = 0.0) -> list[Stretch]:
    """The union of `stretches` in order of time, with gaps shorter than `gap_s` (or of nothing) closed."""
    bounds = sorted((stretch.start_s, stretch.end_s) for stretch in stretches)
    joined = _joined(np.array(bounds, np.float64).reshape(-1, 2), gap_s)
    return [Stretch(start_s, end_s) for start_s, end_s in joined.tolist()]


def pad(stretches: Sequence[Timed], pad_s: float, duration_s: float) -> list[Stretch]:
    """`stretches` widened by `pad_s` at both ends, inside [0, duration_s] and at most to the middle of each gap.

    `stretches` are in order and do not overlap.
    """
    padded: list[Stretch] = []
    for index, stretch in enumerate(stretches):
        before = (stretches[index - 1].end_s + stretch.start_s) / 2 if index else 0.0
        after = (stretch.end_s + stretches[index + 1].start_s) / 2 if index + 1 < len(stretches) else duration_s
        padded.append(Stretch(max(before, stretch.start_s - pad_s), min(after, duration_s, stretch.end_s + pad_s)))
    return padded


def inside(where: Timed, stretches: Iterable[Timed]) -> list[Stretch]:
    """The parts of `where` that each of `stretches` covers, in their order, empty ones left out."""
    parts = (Stretch(max(where.start_s, s.start_s), min(where.end_s, s.end_s)) for s in stretches)
    return [part for part in parts if part.duration_s > 0]


def outside(where: Timed, stretches: Iterable[Timed]) -> list[Stretch]:
    """The parts of `where` that none of `stretches` covers; `stretches` are in order of start."""
    left, here = [], where.start_s
    for stretch in stretches:
        if stretch.end_s <= here or stretch.start_s >= where.end_s:
            continue
        if stretch.start_s > here:
            left.append(Stretch(here, stretch.start_s))
        here = max(here, stretch.end_s)
    if here < where.end_s:
        left.append(Stretch(here, where.end_s))
    return left


def covered_s(where: Timed, stretches: Iterable[Timed]) -> float:
    """Seconds of `where` covered by `stretches`, which do not overlap each other."""
    return sum((part.duration_s for part in inside(where, stretches)), 0.0)


def runs(mask: NDArray[np.bool_]) -> Runs:
    """The stretches of True in `mask` [n]: [k, 2], first and one past the last, in order."""
    return np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).reshape(-1, 2)


def bridged(found: Runs, gap: float) -> Runs:
    """`found` [k, 2], in order of start, with gaps shorter than `gap` frames (or of none) closed; overlaps are joined."""
    return _joined(found, gap)


def _joined(bounds: Bounds, gap: float) -> Bounds:
    """`bounds` [k, 2], in order of start, as one wherever they overlap, touch or leave less than `gap` between them."""
    starts, ends = bounds[:, 0], np.maximum.accumulate(bounds[:, 1])
    gaps = starts[1:] - ends[:-1]
    is_apart = (gaps > 0) & (gaps >= gap)
    edge = np.ones(min(1, len(bounds)), bool)
    first, last = np.concatenate([edge, is_apart]), np.concatenate([is_apart, edge])
    return np.stack([starts[first], ends[last]], axis=1)
