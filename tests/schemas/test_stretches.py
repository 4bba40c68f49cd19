"""The algebra of stretches and runs, held against the instants and frames they cover."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.stretches import Stretch, Timed, bridged, covered_s, inside, merge, outside, pad, runs
from tests.strategies import TICKS, stretches


def covers(stretches: list[Stretch], ticks: int = 480) -> np.ndarray:
    """Which sixteenths of a second are covered."""
    at = (np.arange(ticks) + 0.5) / 16
    found = np.zeros(ticks, bool)
    for stretch in stretches:
        found |= (at >= stretch.start_s) & (at < stretch.end_s)
    return found


@given(stretches())
def test_a_union_covers_the_same_instants_once(drawn: list[Stretch]) -> None:
    merged = merge(drawn)
    assert merge(merged) == merged
    assert (covers(merged) == covers(drawn)).all()
    assert sum(s.duration_s for s in merged) == covers(drawn).sum() / 16
    assert all(a.end_s < b.start_s for a, b in pairwise(merged))


@given(stretches(), st.integers(0, 40))
def test_closing_gaps_leaves_only_longer_ones(drawn: list[Stretch], gap: int) -> None:
    closed = merge(drawn, gap / 16)
    assert merge(closed, gap / 16) == closed
    assert all(b.start_s - a.end_s >= gap / 16 for a, b in pairwise(closed))
    assert not (covers(merge(drawn)) & ~covers(closed)).any()
    assert [s.start_s for s in closed[:1]] == [s.start_s for s in merge(drawn)[:1]]


@given(stretches(), TICKS, st.integers(1, 200))
def test_inside_and_outside_share_a_stretch_between_them(drawn: list[Stretch], start: int, length: int) -> None:
    where, others = Stretch(start / 16, (start + length) / 16), merge(drawn)
    covered, left = inside(where, others), outside(where, others)
    assert merge([*covered, *left]) == [where]
    assert not (covers(covered, 640) & covers(left, 640)).any()
    assert covered_s(where, others) + sum(s.duration_s for s in left) == where.duration_s
    assert covered_s(where, others) == sum(where.overlap_s(other) for other in others)


@given(stretches(), st.integers(0, 16))
def test_padding_stays_inside_the_sound_and_out_of_neighbours(drawn: list[Stretch], width: int) -> None:
    merged = [s for s in merge(drawn) if s.end_s <= 30.0]
    padded = pad(merged, width / 16, 30.0)
    assert all(p.start_s <= m.start_s and p.end_s >= m.end_s for p, m in zip(padded, merged, strict=True))
    assert all(p.start_s >= 0 and p.end_s <= 30.0 for p in padded)
    assert all(a.end_s <= b.start_s for a, b in pairwise(padded))


@given(st.lists(st.booleans(), max_size=60))
def test_runs_rebuild_their_mask(drawn: list[bool]) -> None:
    mask = np.array(drawn, bool)
    found = runs(mask)
    rebuilt = np.zeros(len(mask), bool)
    for first, end in found:
        assert first < end
        rebuilt[first:end] = True
    assert (rebuilt == mask).all()
    assert (found[1:, 0] > found[:-1, 1]).all(), "two runs that touch are one"


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 8))
def test_bridging_fills_the_short_gaps_and_no_other(drawn: list[bool], gap: int) -> None:
    mask = np.array(drawn, bool)
    closed = np.zeros(len(mask), bool)
    for first, end in bridged(runs(mask), gap):
        closed[first:end] = True
    short = [(a, b) for a, b in runs(~mask) if b - a < gap and a > 0 and b < len(mask)]
    expected = mask.copy()
    for first, end in short:
        expected[first:end] = True
    assert (closed == expected).all()


def test_bridging_joins_runs_that_overlap() -> None:
    assert bridged(np.array([[0, 9], [2, 4], [9, 12], [14, 15]]), 0).tolist() == [[0, 12], [14, 15]]


@given(TICKS, st.integers(0, 80), st.integers(-400, 400))
def test_moving_is_undone_by_moving_back(start: int, length: int, by: int) -> None:
    stretch = Stretch(start / 16, (start + length) / 16)
    assert stretch.moved(by / 16).moved(-by / 16) == stretch
    assert stretch.moved(by / 16).duration_s == stretch.duration_s


def test_a_window_cuts_what_sticks_out() -> None:
    assert Stretch(1.0, 5.0).within(2.0, 4.0) == Stretch(2.0, 4.0)
    assert Stretch(1.0, 1.5).within(2.0, 4.0) == Stretch(2.0, 2.0)
    assert Stretch(2.5, 3.0).within(2.0, 4.0) == Stretch(2.5, 3.0)


def test_only_records_that_say_how_they_are_read_exist() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Timed()  # type: ignore[abstract]
