"""Bootstrap intervals hold what they should as often as they say, and do not pretend where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.intervals import bootstrap_interval


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    interval = bootstrap_interval(lambda at: float(values[at].mean()), len(values))
    assert interval is not None
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval[0] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval[1] == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert interval == bootstrap_interval(lambda at: float(values[at].mean()), len(values))


def test_draws_without_a_figure_are_left_out() -> None:
    hits = np.array([0.0, 4.0, 4.0])
    interval = bootstrap_interval(lambda at: 4.0 if hits[at].sum() else float("nan"), 3)
    assert interval == [4.0, 4.0]
    assert bootstrap_interval(lambda at: float("nan"), 3) is None
    assert bootstrap_interval(lambda at: 1.0, 1) is None
