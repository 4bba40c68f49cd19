"""How sure a figure is: the one bootstrap of the benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLINGS = 1000
"""Draws per interval; its ends then move by about a twentieth of its width from seed to seed."""


def bootstrap_interval(statistic: Callable[[NDArray[Any]], float], num: int) -> list[float] | None:
    """The 95 % percentile interval of a figure over `num` things that were drawn independently: clips, files, passes.

    `statistic` is the figure of some of them, given by their indices [num], drawn with replacement; draws of which it is
    NaN are left out. The same figures give the same interval. None for fewer than two things, which do not vary.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    if num < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # its own interval is NaN if one draw is; ours is not
        drawn = bootstrap(
            (np.arange(num),),
            statistic,
            n_resamples=RESAMPLINGS,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        ).bootstrap_distribution
    known = drawn[~np.isnan(drawn)]
    return [float(end) for end in np.quantile(known, [0.025, 0.975])] if len(known) else None


def pooled_ratio(rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Pooled ratio of errors to total over files, with a 95 % bootstrap interval over files."""
    if not rows or not sum(total for _, total in rows):
        return {"value": None, "interval": None, "files": len(rows)}
    table = np.array(rows, float)

    def pooled(picked: NDArray[np.int64]) -> float:
        errors, total = table[picked].sum(axis=0)
        return float(errors / max(total, 1e-9))

    interval = bootstrap_interval(pooled, len(table))
    return {"value": pooled(np.arange(len(table))), "interval": interval, "files": len(table)}
