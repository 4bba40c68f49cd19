"""Speech records: rows come back as they went in, windows share words out, moving is moving for all of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import PASSAGE, SPEAKER, SPEECH_SPAN, STRETCH, TIMBRE, TURN, WORD
from schemas.spans import Passage, Reference, Speaker, SpeechSpan, Turn, Word, alone, joined, overlaps, words_in
from schemas.stretches import Stretch, covered_s, merge
from tests.strategies import speech_spans, turns, words

WORD_ROW = {"text": "hi", "start_s": 1.0, "end_s": 1.5, "confidence": None}
HEARING_ROW = {
    "language": "en", "language_confidence": 0.75, "language_from": "detected", "words_from": "pocketsphinx",
    "no_speech_prob": 0.125, "avg_logprob": -0.25, "compression_ratio": 1.5,
}  # fmt: skip
SPAN_ROW = {
    "text": "hi there", "speaker": "A", "start_s": 1.0, "end_s": 2.0, "is_overlap": True,
    "confidence": 0.5, "words": [WORD_ROW, {"text": "there", "start_s": 1.5, "end_s": 2.0, "confidence": 0.5}],
    **HEARING_ROW,
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
        (Passage, PASSAGE, {"start_s": 0.25, "end_s": 0.5, **HEARING_ROW}),
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


@given(words(), st.lists(st.integers(0, 400), min_size=1, max_size=5))
def test_a_word_belongs_to_exactly_one_of_adjoining_windows(said: tuple[Word, ...], edges: list[int]) -> None:
    bounds = [-1.0, *(edge / 16 for edge in sorted(edges)), 400.0]
    shared = [word for low, high in pairwise(bounds) for word in words_in(said, low, high)]
    assert sorted(shared, key=said.index) == list(said)


@given(words(), st.integers(0, 320), st.integers(1, 200))
def test_a_window_that_cuts_no_word_holds_those_wholly_inside(said: tuple[Word, ...], start: int, length: int) -> None:
    low, high = start / 16, (start + length) / 16
    whole = [w for w in said if w.duration_s and not any(w.start_s < edge < w.end_s for edge in (low, high))]
    assert list(words_in(whole, low, high)) == [w for w in whole if low <= w.start_s and w.end_s <= high]


@given(speech_spans(), st.integers(-160, 160))
def test_a_span_moves_with_its_words_and_back(spans: list[SpeechSpan], by: int) -> None:
    for span in spans:
        moved = span.moved(by / 16)
        assert [word.start_s for word in moved.words] == [word.start_s + by / 16 for word in span.words]
        assert moved.moved(-by / 16) == span


@given(speech_spans(), st.integers(1, 400))
def test_two_windows_hear_every_word_of_a_span_between_them(spans: list[SpeechSpan], edge: int) -> None:
    end_s = 1000.0
    for span in spans:
        before, after = span.heard_in(0.0, edge / 16), span.heard_in(edge / 16, end_s)
        heard = [*(before.text.split() if before else ()), *(after.text.split() if after else ())]
        assert heard == span.text.split()
        for part, length_s in ((before, edge / 16), (after, end_s)):
            assert part is None or 0 <= part.start_s <= part.end_s <= length_s


def test_of_a_span_only_what_the_window_holds_is_heard() -> None:
    span = SpeechSpan.of(SPAN_ROW)
    heard = span.heard_in(1.4, 10.0)
    assert heard is not None
    assert (heard.text, heard.start_s, heard.end_s) == ("there", pytest.approx(0.1), pytest.approx(0.6))
    assert span.heard_in(0.5, 3.0) == span.moved(-0.5)
    assert span.heard_in(5.0, 9.0) is None
    assert SpeechSpan(start_s=1.0, end_s=2.0, text="hi").heard_in(1.4, 10.0) is None


@given(turns())
def test_alone_and_overlaps_share_the_speech_between_them(found: list[Turn]) -> None:
    shared = overlaps(found)
    single = [part for turn in found for part in alone(turn, turn.speaker, found)]
    assert merge([*shared, *single]) == merge(found)
    assert all(covered_s(part, shared) == 0 for part in single)
    at = (np.arange(480) + 0.5) / 16
    speakers = [{t.speaker for t in found if t.start_s <= instant < t.end_s} for instant in at]
    assert sum(s.duration_s for s in shared) == sum(len(s) > 1 for s in speakers) / 16


def test_a_guard_keeps_its_distance() -> None:
    found = [Turn("A", 0.0, 4.0), Turn("B", 4.0, 5.0)]
    assert alone(found[0], "A", found, 0.5) == [Stretch(0.0, 3.5)]
    assert alone(found[0], None, found) == []


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (("Son", "las", "10:30."), "Son las 10:30."),
        (("今", "天", "iPhone", "15", "很", "贵，"), "今天iPhone 15很贵，"),
        (("वह", "घर", "है।"), "वह घर है।"),
        (("اليوم", "جميل"), "اليوم جميل"),
        (("오늘", "날씨가"), "오늘 날씨가"),
        ((), ""),
    ],
)
def test_words_are_joined_as_their_script_is_written(texts: tuple[str, ...], whole: str) -> None:
    assert joined(texts) == whole
