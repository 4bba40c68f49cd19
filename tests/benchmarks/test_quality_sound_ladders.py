"""Faults of speech are as large as their rungs say, and what falls is called falling."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality_sound import LOUD
from benchmarks.quality_sound_ladders import clipped, cut_off, distortion_db, falls, with_holes, with_noise

VOICE = np.random.default_rng(0).laplace(0, LOUD / np.sqrt(2), 64_000).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


def test_clipping_changes_the_shape_and_not_the_level() -> None:
    for share in (0.05, 0.2, 0.5):
        flat = clipped(VOICE, share)
        assert power(flat) == pytest.approx(power(VOICE), rel=1e-4)
        assert (np.abs(flat) > 0.999 * np.abs(flat).max()).mean() == pytest.approx(share, abs=0.01)
    assert np.array_equal(clipped(VOICE, 0.0), VOICE)


def test_other_faults_are_as_large_as_stated() -> None:
    assert 10 * np.log10(power(VOICE) / power(with_noise(VOICE, 15) - VOICE)) == pytest.approx(15, abs=0.2)
    assert (with_holes(VOICE, 0.3) == 0).mean() == pytest.approx(0.3, abs=0.1)
    assert np.array_equal(with_holes(VOICE, 0.0), VOICE)
    heard = np.abs(np.fft.rfft(cut_off(VOICE, 3000))) ** 2
    assert heard[len(heard) // 2 :].sum() < 1e-3 * heard.sum()


def test_distortion_is_what_is_no_copy() -> None:
    assert distortion_db(VOICE, 0.5 * VOICE) > 100
    assert distortion_db(VOICE, with_noise(VOICE, 20)) == pytest.approx(20, abs=0.3)


def test_a_rating_that_rises_at_one_rung_does_not_fall() -> None:
    told = falls(np.array([[4.0, 3.0, 2.0], [4.2, 3.1, 2.2], [3.9, 3.0, 3.1]]))
    assert told["drop"] == pytest.approx([1.0, 0.6], abs=0.01)
    assert (told["falls_in_the_mean"], told["falls_beyond_doubt"]) == (True, False)
    assert told["steps_that_fall"] == pytest.approx(5 / 6)
    assert not falls(np.array([[3.0, 3.2], [3.1, 3.1]]))["falls_in_the_mean"]
