"""What is trained on in place of a damaged sample: the same on every rank that meets it, as near in size as there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.data.order import key_of, mix
from model.data.packing import Item

if TYPE_CHECKING:
    from model.data.batching import EpochPlan

NUM_CANDIDATES = 64
"""Pseudo-random rows that are looked at for each substitute."""


def substitute(plan: EpochPlan, wanted: Item, tried: Sequence[int], spare_tokens: int = 0) -> Item | None:
    """The sample to train on when those of the rows `tried`, the wanted one first, turned out damaged.

    Of 64 pseudo-random rows of the same part that were not tried, the dearest that is neither dearer nor longer than
    `wanted`. Where there is none, its size class being exhausted, the nearest of the dearer ones that has at most
    `spare_tokens` more; where its part has none, the same of the other parts. None when no part has any.
    """
    for distance in range(len(plan.parts)):
        number = (wanted.part + distance) % len(plan.parts)
        part = plan.parts[number]
        key = key_of(plan.key, "replace", number, wanted.epoch, wanted.row, len(tried) - 1)
        positions = np.array([mix(key + i) % part.num_rows for i in range(NUM_CANDIDATES)], dtype=np.int64)
        rows = part.rows_at(positions)
        flops, tokens = part.cost(rows)
        is_new = ~np.isin(rows, np.asarray(tried))
        fits = is_new & (flops <= wanted.flops) & (tokens <= wanted.tokens)
        near = is_new & (tokens <= wanted.tokens + spare_tokens)
        if fits.any():
            best = int(np.where(fits, flops, -1.0).argmax())
        elif near.any():
            best = int(np.where(near, np.abs(flops - wanted.flops), np.inf).argmin())
        else:
            continue
        row = int(rows[best])
        return wanted._replace(part=number, row=row, flops=float(flops[best]), tokens=int(tokens[best]))
    return None
