"""Figures about voices: errors at the split's bound, and how much of a reference is whose."""

from __future__ import annotations

import pytest

from benchmarks.quality_speech import at_split
from benchmarks.quality_timbre import spoken_shares
from schemas.spans import Turn
from schemas.stretches import Stretch


def test_errors_at_the_split_are_those_beyond_its_bound_or_none_without_it() -> None:
    same, different = [0.5, 0.65, 0.9], [0.0, 0.65]
    assert at_split(same, different, 0.65) == {
        "similarity": 0.65,
        "same_missed": pytest.approx(1 / 3),
        "different_joined": 0.5,
    }
    assert at_split(same, different, 0.0) == {"similarity": 0.0, "same_missed": 0.0, "different_joined": 1.0}
    assert at_split(same, different, None) == {"similarity": None, "same_missed": None, "different_joined": None}
    assert at_split([], [], 0.65)["same_missed"] is None


def test_shares_of_a_reference_count_overlapping_turns_once() -> None:
    turns = [("ann", 0.0, 2.0), ("ann", 1.5, 3.0), ("bob", 2.5, 4.0), ("cid", 9.0, 9.5)]
    truth = [Turn(name, start, end) for name, start, end in turns]
    assert spoken_shares(truth, Stretch(1.0, 5.0)) == {"ann": pytest.approx(0.5), "bob": pytest.approx(0.375)}
