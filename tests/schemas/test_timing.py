"""Exact times: adjoining spans add up, samples follow instants."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ids
from schemas.timing import Span, sample_at

TIME_BASES = st.sampled_from([(1, 25), (1001, 30000), (1, 90000), (1, 12800), (1, 1000)])


@given(base=TIME_BASES, cuts=st.lists(st.integers(-(2**33), 2**33), min_size=2, max_size=20, unique=True))
def test_adjoining_spans_add_up_to_the_microsecond(base: tuple[int, int], cuts: list[int]) -> None:
    cuts.sort()
    pieces = [Span(a, b, *base) for a, b in pairwise(cuts)]
    assert sum(piece.duration_us for piece in pieces) == Span(cuts[0], cuts[-1], *base).duration_us


@given(base=TIME_BASES, pts=st.integers(-(2**33), 2**33), rate=st.sampled_from([8000, 16000, 44100, 48000]))
def test_a_sample_is_at_most_half_a_sample_from_its_instant(base: tuple[int, int], pts: int, rate: int) -> None:
    instant = pts * Fraction(*base)
    assert abs(Fraction(sample_at(instant, rate), rate) - instant) <= Fraction(1, 2 * rate)


def test_a_span_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="not a span"):
        Span(2, 1, 1, 25)


def test_ids_depend_on_content_alone() -> None:
    span = Span(0, 100, 1, 25)
    assert ids.clip_id("a1", span, "1") == ids.clip_id("a1", Span(0, 100, 1, 25), "1")
    assert len({ids.clip_id("a1", span, "1"), ids.clip_id("a2", span, "1"), ids.clip_id("a1", span, "2")}) == 3
    assert 0 <= ids.fraction_of("c1") < 1
