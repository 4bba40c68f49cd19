"""How sure a figure is: the bootstrap over items, alone and for two reports of the same items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.evaluate.metric import Vector

RESAMPLINGS = 2_000
"""Draws; the ends of an interval then move by about a thirtieth of its width from seed to seed."""
SURE = 0.95


def weighted_interval(values: Vector, weights: Vector, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile interval of a weighted mean over items that were drawn independently; None for fewer than two."""
    if len(values) < 2:
        return None
    drawn = draws(len(values), seed)
    totals = weights[drawn].sum(axis=1)
    return interval_of((values * weights)[drawn].sum(axis=1) / totals)


def draws(num: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices [draws, num] of items drawn with replacement."""
    return np.random.default_rng(seed).integers(num, size=(RESAMPLINGS, num))


def interval_of(drawn: Vector) -> tuple[float, float]:
    """The middle 95 % of what was drawn."""
    low, high = np.quantile(drawn, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Paired:
    """How much a figure of one report is above that of another, over the items both have measured."""

    difference: float
    low: float
    high: float
    num_items: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out no difference at all."""
        return not self.low <= 0 <= self.high


def paired(one: Vector, other: Vector, weights: Vector, seed: int = 0) -> Paired | None:
    """The weighted mean of `other - one` of the same items, with its interval; None for fewer than two items."""
    found = weighted_interval(other - one, weights, seed)
    if found is None:
        return None
    return Paired(float(np.average(other - one, weights=weights)), *found, len(one))
