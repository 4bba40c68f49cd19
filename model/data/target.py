"""The FLOP target of packs where the plan leaves it open: near what the tokens allow, and one that the corpus reaches.

Where clips have few sizes and few of them fit a pack, their sums leave gaps: two clips of 27,407 tokens fill 84 % of a
budget of 65,536, and nothing comes between one and two. A target inside a gap leaves every pack short or makes some packs
dearer than others. Then several targets are tried on samples of the corpus, with the packer itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.data.order import DrawPart, key_of, mix
from model.data.packing import Item, Limits, Packer

HEADROOM = 1.25
"""Token budget over mean tokens of a pack: at 1.2 the token limit costs 0.3 % of balance, at 1.35 0.01 %."""
FILLED = 0.997
"""Mean fill of the packs at which the target with that headroom is kept: the imbalance of 1.003 aimed at."""
TRIAL_SAMPLES = 1024
"""Samples a trial fills packs with: 300 packs of two or three, in 25 to 50 ms."""
TRIAL_SHARES = np.linspace(0.5, 1.0, 26)
"""Shares of the token budget tried as target where packs stay emptier than that."""
EQUAL_BALANCE = 0.002
"""Trials whose mean over dearest pack differs by less are equally good, within what a thousand samples can tell; the
largest packs win."""


class TargetTrial:
    """Fills packs with pseudo-random samples of a mixture, to see which target suits them."""

    def __init__(self, parts: Sequence[DrawPart], token_budget: int, members: int, buffer_size: int, key: int) -> None:
        self._token_budget, self._members, self._buffer_size, self._key = token_budget, members, buffer_size, key
        num_draws = sum(part.num_draws for part in parts)
        items: list[Item] = []
        for number, part in enumerate(parts):
            count = max(1, round(TRIAL_SAMPLES * part.num_draws / num_draws))
            part_key = key_of(key, "trial", number)
            rows = part.rows_at(np.array([mix(part_key + i) % part.num_rows for i in range(count)], dtype=np.int64))
            flops, tokens = part.cost(rows)
            draws = zip(rows.tolist(), flops.tolist(), tokens.tolist(), strict=True)
            items += [Item(mix(part_key + i), number, 0, *draw) for i, draw in enumerate(draws)]
        self._items = [item._replace(serial=serial) for serial, item in enumerate(sorted(items))]

    def levels(self, flop_target: float) -> NDArray[np.float64]:
        """[num_packs] FLOPs of packs that aim at the target; empty when one takes all samples or fits none."""
        supply = iter(self._items)
        limits = Limits(flop_target, self._token_budget, self._members)
        packer = Packer(lambda: next(supply, None), limits, self._buffer_size, self._key)
        levels: list[float] = []
        while (packs := packer.team_step())[0].items and len(packer.state[0]) == self._buffer_size:
            levels.extend(pack.flops for pack in packs)
        return np.array(levels)


def derived_target(trial: TargetTrial, full_flops: float, least_flops: float) -> float:
    """Training FLOPs per pack.

    full_flops: what a pack costs whose mean samples fill the token budget; least_flops: share of one rank in the dearest
    sample, below which it would fit nowhere. Without packs to judge by, the target is full_flops / HEADROOM.
    """
    target = full_flops / HEADROOM
    levels = trial.levels(target)
    if target >= least_flops and (not len(levels) or levels.mean() >= FILLED * target):
        return target
    trials = [trial.levels(share * full_flops) for share in TRIAL_SHARES if share * full_flops >= least_flops]
    trials = [levels for levels in trials if len(levels)]
    if not trials:
        return target
    balance = np.array([levels.mean() / levels.max() for levels in trials])
    even = [trials[i] for i in np.flatnonzero(balance > balance.max() - EQUAL_BALANCE)]
    return max(least_flops, float(max(even, key=np.mean).max())) * (1 + 1e-9)
