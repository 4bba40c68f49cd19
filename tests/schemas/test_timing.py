"""Exact times: adjoining spans add up, samples follow instants."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ids
from schemas.timing import Span, sample_at
from tests.strategies import TIME_BASES, adjoining_spans


@given(adjoining_spans())
def test_adjoining_spans_add_up_to_the_microsecond(pieces: list[Span]) -> None:
    whole = replace(pieces[0], end_pts=pieces[-1].end_pts)
    assert sum(piece.duration_us for piece in pieces) == whole.duration_us


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
