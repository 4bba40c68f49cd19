"""Speech records: rows come back as they went in, windows share words out, moving is moving for all of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import SPEAKER, SPEECH_SPAN, STRETCH, TIMBRE, TURN, WORD
from schemas.spans import Reference, Speaker, SpeechSpan, Turn, Word, alone, overlaps, words_in
from schemas.stretches import Stretch, covered_s, merge

WORD_ROW = {"text": "hi", "start_s": 1.0, "end_s": 1.5, "confidence": None}
SPAN_ROW = {
    "text": "hi there", "speaker": "A", "language": "en", "start_s": 1.0, "end_s": 2.0, "is_overlap": True,
    "confidence": 0.5, "words": [WORD_ROW, {"text": "there", "start_s": 1.5, "end_s": 2.0, "confidence": 0.5}],
}  # fmt: skip
TIMBRE_ROW = {
    "span_index": 1, "speaker": "A", "origin": "same_span", "is_same_span": True, "asset_start_s": 3.0,
    "asset_end_s": 5.0, "similarity": None, "cleanliness": 0.75, "embedding": [0.5, -0.5],
}  # fmt: skip


@pytest.mark.parametrize(
    ("view", "kind", "row"),
    [
        (Word, WORD, WORD_ROW),
        (Stretch, STRETCH, {"start_s": 0.25, "end_s": 0.5}),
        (Turn, TURN, {"speaker": "B", "start_s": 0.25, "end_s": 0.5, "confidence": 0.75}),
        (Speaker, SPEAKER, {"speaker": "B", "speech_s": 4.0, "embedding": None}),
        (SpeechSpan, SPEECH_SPAN, SPAN_ROW),
        (Reference, TIMBRE, TIMBRE_ROW),
    ],
)
def test_a_row_comes_back_as_it_went_in(view: Any, kind: pa.StructType, row: dict[str, Any]) -> None:
    assert list(view.of(row).row()) == [field.name for field in kind]
    (read,) = pa.array([view.of(row).row()], kind).to_pylist()
    assert read == row
    assert view.of(read) == view.of(row)


WORDS = st.lists(st.tuples(st.integers(0, 320), st.integers(0, 30)), max_size=12)


def words_of(drawn: list[tuple[int, int]]) -> tuple[Word, ...]:
    return tuple(Word(str(i), a / 16, (a + length) / 16) for i, (a, length) in enumerate(sorted(drawn)))


@given(WORDS, st.lists(st.integers(0, 400), min_size=1, max_size=5))
def test_a_word_belongs_to_exactly_one_of_adjoining_windows(drawn: list[tuple[int, int]], edges: list[int]) -> None:
    words = words_of(drawn)
    bounds = [-1.0, *(edge / 16 for edge in sorted(edges)), 400.0]
    shared = [word for low, high in pairwise(bounds) for word in words_in(words, low, high)]
    assert sorted(shared, key=words.index) == list(words)


@given(WORDS, st.integers(0, 320), st.integers(1, 200))
def test_a_window_that_cuts_no_word_holds_those_wholly_inside(
    drawn: list[tuple[int, int]], start: int, length: int
) -> None:
    low, high = start / 16, (start + length) / 16
    words = [w for w in words_of(drawn) if w.duration_s and not any(w.start_s < edge < w.end_s for edge in (low, high))]
    assert list(words_in(words, low, high)) == [w for w in words if low <= w.start_s and w.end_s <= high]


@given(WORDS, st.integers(-160, 160))
def test_a_span_moves_with_its_words_and_back(drawn: list[tuple[int, int]], by: int) -> None:
    words = words_of(drawn)
    span = SpeechSpan(start_s=0.0, end_s=30.0, text="x", words=words)
    moved = span.moved(by / 16)
    assert [word.start_s for word in moved.words] == [word.start_s + by / 16 for word in words]
    assert moved.moved(-by / 16) == span


def test_of_a_span_only_what_the_window_holds_is_heard() -> None:
    span = SpeechSpan.of(SPAN_ROW)
    heard = span.heard_in(1.4, 10.0)
    assert heard is not None
    assert (heard.text, heard.start_s, heard.end_s) == ("there", pytest.approx(0.1), pytest.approx(0.6))
    assert span.heard_in(0.5, 3.0) == span.moved(-0.5)
    assert span.heard_in(5.0, 9.0) is None
    assert SpeechSpan(start_s=1.0, end_s=2.0, text="hi").heard_in(1.4, 10.0) is None


TURNS = st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 320), st.integers(1, 60)), max_size=10)


@given(TURNS)
def test_alone_and_overlaps_share_the_speech_between_them(drawn: list[tuple[str, int, int]]) -> None:
    turns = [Turn(s, a / 16, (a + n) / 16) for s, a, n in sorted(drawn, key=lambda t: t[1])]
    shared = overlaps(turns)
    single = [part for turn in turns for part in alone(turn, turn.speaker, turns)]
    assert merge([*shared, *single]) == merge(turns)
    assert all(covered_s(part, shared) == 0 for part in single)
    at = (np.arange(400) + 0.5) / 16
    speakers = [{t.speaker for t in turns if t.start_s <= instant < t.end_s} for instant in at]
    assert sum(s.duration_s for s in shared) == sum(len(s) > 1 for s in speakers) / 16


def test_a_guard_keeps_its_distance() -> None:
    turns = [Turn("A", 0.0, 4.0), Turn("B", 4.0, 5.0)]
    assert alone(turns[0], "A", turns, 0.5) == [Stretch(0.0, 3.5)]
    assert alone(turns[0], None, turns) == []
