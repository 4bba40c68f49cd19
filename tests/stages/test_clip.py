"""Clips lie inside their shot, never cut a word, respect pauses, and carry their words on their own clock."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import CLIP, span_of
from schemas.spans import Hearing, Passage, SpeechSpan, Turn, Word, overlaps
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.clip import (
    ClipConfig,
    ClipSplit,
    Talk,
    group_utterances,
    plan_windows,
    spans_within,
    spoken_fields,
    spoken_words,
)
from tests.rows import shot_row, struct_of


@st.composite
def shots(draw: st.DrawFn) -> tuple[np.ndarray, list[Word], float, float]:
    """Frame times of one shot at any, perhaps varying rate, words over it, and length limits."""
    steps = draw(st.lists(st.sampled_from([1 / 60, 1 / 30, 0.04, 0.1, 0.5]), min_size=1, max_size=300))
    times = draw(st.floats(0, 100)) + np.concatenate([[0.0], np.cumsum(steps)])
    words, at = [], float(times[0]) - 1.0
    for gap, length in draw(st.lists(st.tuples(st.floats(0, 1.5), st.floats(0.01, 1.2)), max_size=60)):
        words.append(Word("x", at + gap, at + gap + length))
        at += gap + length
    min_s = draw(st.floats(0.2, 4.0))
    return times, words, min_s, min_s * draw(st.floats(1.0, 6.0))


def utterances_of(words: list[Word], pause_s: float = 0.3) -> list[Stretch]:
    return [Stretch(u[0].start_s, u[-1].end_s) for u in group_utterances(words, pause_s)]


@settings(max_examples=150)
@given(shots())
def test_windows_are_disjoint_in_range_and_cut_no_word(case: Any) -> None:
    times, words, min_s, max_s = case
    windows = plan_windows(times, words, utterances_of(words), min_s, max_s)
    last = 0
    for first, end in windows:
        assert last <= first < end <= len(times) - 1
        assert min_s - 1e-6 <= times[end] - times[first] <= max_s + 1e-6
        for edge in (times[first], times[end]):
            assert not any(word.start_s < edge < word.end_s for word in words)
        last = end
    kept = sum(times[b] - times[a] for a, b in windows)
    gaps = sum(
        times[b] - times[a]
        for a, b in zip([0] + [w[1] for w in windows], [w[0] for w in windows] + [len(times) - 1], strict=True)
    )
    assert kept + gaps == pytest.approx(times[-1] - times[0])


@settings(max_examples=60)
@given(shots())
def test_no_silent_stretch_that_would_hold_a_window_is_left(case: Any) -> None:
    times, _, min_s, max_s = case
    windows = plan_windows(times, [], [], min_s, max_s)
    edges = [0] + [i for w in windows for i in w] + [len(times) - 1]
    steps = np.diff(times)
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        left = times[b] - times[a]
        assert left < min_s + 1e-6 or steps.max() > max_s - min_s, "a window would have fitted here"


def test_silence_is_divided_evenly() -> None:
    times = np.arange(0, 25 * 25 + 1) / 25
    windows = plan_windows(times, [], [], 2.0, 10.0)
    lengths = [times[b] - times[a] for a, b in windows]
    assert len(windows) == 3
    assert sum(lengths) == pytest.approx(25.0)
    assert max(lengths) - min(lengths) <= 0.08


def test_cuts_fall_into_pauses_away_from_words() -> None:
    times = np.arange(0, 30 * 24 + 1) / 30
    words = [Stretch(0.5 + i, 1.2 + i) for i in range(7)] + [Stretch(9.0 + i * 0.8, 9.8 + i * 0.8) for i in range(12)]
    utterances = [*words[:7], Stretch(9.0, 18.6)]
    windows = plan_windows(times, words, utterances, 2.0, 10.0)
    assert windows
    for first, end in windows:
        for edge in (times[first], times[end]):
            assert not any(u.start_s < edge < u.end_s for u in utterances)
    kept = [w for w in words if any(times[a] <= w.start_s and w.end_s <= times[b] for a, b in windows)]
    assert kept == words


def test_long_speech_is_cut_at_its_widest_gap() -> None:
    times = np.arange(0, 25 * 16 + 1) / 25
    words = [Stretch(i * 0.5, i * 0.5 + 0.49) for i in range(16)]
    words += [Stretch(8.21 + i * 0.5, 8.7 + i * 0.5) for i in range(15)]
    windows = plan_windows(times, words, [Stretch(0.0, 16.0)], 2.0, 10.0)
    inner = [times[i] for w in windows for i in w if 0 < i < len(times) - 1]
    assert inner
    assert all(7.99 <= edge <= 8.21 for edge in inner)


def test_shot_that_begins_inside_a_word_starts_after_it() -> None:
    times = np.arange(0, 25 * 6 + 1) / 25
    ((first, _),) = plan_windows(times, [Stretch(-0.3, 0.35)], [Stretch(-0.3, 0.35)], 2.0, 10.0)
    assert times[first] >= 0.35


def test_limits_must_be_ordered() -> None:
    with pytest.raises(ValueError, match="max_s"):
        ClipConfig(min_s=5, max_s=4)


SAID = (Word("lay", 0.4, 0.7, 0.9), Word("white", 0.7, 1.0, 0.7), Word("set", 1.1, 1.5), Word("blue", 2.6, 2.9, 0.5))
TURNS = (Turn("A", 0.3, 1.05, 1.0), Turn("B", 0.95, 3.0, 1.0))
ENGLISH = Hearing(language="en", language_confidence=0.9, language_from="detected", avg_logprob=-0.2)
SPANISH = replace(ENGLISH, language="es", language_confidence=0.7)
TRANSCRIBE = struct_of(
    "transcribe",
    language="en",
    speech=[Stretch(0.0, 3.0).row()],
    words=[word.row() for word in SAID],
    passages=[Passage(0.4, 1.5, ENGLISH).row(), Passage(2.5, 2.9, SPANISH).row()],
)
DIARIZE = struct_of("diarize", turns=[turn.row() for turn in TURNS], overlaps=[part.row() for part in overlaps(TURNS)])


def test_words_become_spans_of_one_speaker_each_on_the_clip_clock() -> None:
    talk = Talk.of({"transcribe": TRANSCRIBE, "diarize": DIARIZE}, 0.3)
    clip = Span(5, 50, 1, 20)  # 0.25 s to 2.5 s
    first, second = spans_within(clip, talk.utterances, talk.overlaps)
    assert [(s.speaker, s.text, s.hearing) for s in (first, second)] == [
        ("A", "lay white", ENGLISH),
        ("B", "set", ENGLISH),
    ]
    assert (first.start_s, first.end_s) == (pytest.approx(0.15), pytest.approx(0.75))
    assert (first.confidence, second.confidence) == (pytest.approx(0.8), None)
    assert [first.is_overlap, second.is_overlap] == [True, False]
    assert second.words[-1].end_s == second.end_s <= float(clip.duration)


@st.composite
def talks(draw: st.DrawFn) -> dict[str, Any]:
    """What two speakers say in a minute, in words of up to a second and turns that overlap, as stages leave it."""
    at = st.floats(0, 60, allow_subnormal=False)
    starts = sorted(draw(st.lists(at, max_size=60)))
    lengths = draw(st.lists(st.floats(0, 1), min_size=len(starts), max_size=len(starts)))
    words = [Word("w", start, start + length, None, None) for start, length in zip(starts, lengths, strict=True)]
    turns = [
        Turn(draw(st.sampled_from("ab")), start, start + draw(st.floats(0.1, 9)))
        for start in draw(st.lists(at, max_size=9))
    ]
    speech = [Stretch(start, start + draw(st.floats(0.1, 3))) for start in draw(st.lists(at, max_size=9))]
    return {
        "transcribe": {
            "words": [word.row() for word in words],
            "speech": [each.row() for each in speech],
            "language": "en",
        },
        "diarize": {"turns": [turn.row() for turn in turns], "overlaps": [each.row() for each in overlaps(turns)]},
    }


def test_a_language_of_its_own_begins_a_span_and_the_clip_tells_the_least_sure_of_its_languages() -> None:
    talk = Talk.of({"transcribe": TRANSCRIBE, "diarize": None}, 2.0)
    assert [[word.text for word in utterance] for utterance in talk.utterances] == [["lay", "white", "set"], ["blue"]]
    spans = spans_within(Span(0, 60, 1, 20), talk.utterances, talk.overlaps)
    told = spoken_fields(spans)
    assert (told["language"], told["language_confidence"]) == ("mul", 0.7)
    assert (told["is_language_measured"], told["is_text_scored"], told["no_speech_prob"]) == (True, True, None)
    assert [span["language"] for span in told["spans"]] == ["en", "es"]
    assert [SpeechSpan.of(span).hearing for span in told["spans"]] == [ENGLISH, SPANISH]
    quiet = spoken_fields([])
    assert (quiet["language"], quiet["is_language_measured"]) == (None, False)


@given(talks(), st.floats(0, 50), st.floats(3, 10))
def test_what_is_said_elsewhere_changes_no_window(row: dict[str, Any], start_s: float, length_s: float) -> None:
    talk = Talk.of(row, 0.3)
    near = talk.near(Stretch(start_s, start_s + length_s))
    times = np.linspace(start_s, start_s + length_s, 40)

    def planned(known: Talk) -> Any:
        words = [word for utterance in known.utterances for word in utterance]
        windows = plan_windows(times, words, known.busy(), 1.0, 4.0)
        spans = [Span(round(times[a] * 1e6), round(times[b] * 1e6), 1, 1_000_000) for a, b in windows]
        return windows, [spans_within(span, known.utterances, known.overlaps) for span in spans]

    assert planned(near) == planned(talk)


def test_speakers_are_those_whose_turns_cover_most_of_a_word() -> None:
    turns = [Turn("b", 0.0, 1.0), Turn("a", 0.9, 3.0), Turn("b", 1.2, 1.3), Turn("a", 5.0, 6.0)]
    words = [Word("w", *span, None, None) for span in ((4.0, 4.5), (0.8, 1.0), (1.0, 1.4), (2.9, 5.2), (5.5, 5.5))]
    spoken = spoken_words(words, turns)
    assert [(word.start_s, word.speaker) for word in spoken] == [
        (0.8, "b"), (1.0, "a"), (2.9, "a"), (4.0, None), (5.5, None)
    ]  # fmt: skip


def test_speech_without_words_is_not_to_be_cut_through() -> None:
    heard = {**TRANSCRIBE, "speech": [{"start_s": 0.3, "end_s": 3.0}, {"start_s": 5.0, "end_s": 6.0}]}
    talk = Talk.of({"transcribe": heard, "diarize": None}, 0.3)
    assert talk.busy() == [Stretch(0.4, 1.5), Stretch(2.6, 2.9), Stretch(5.0, 6.0)]
    assert Talk.of({"transcribe": None, "diarize": None}, 0.3).busy() == []


def still_frames(path: Path, num: int) -> None:
    """A video at a varying rate: `num` frames, every fifth one stands twice as long."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.time_base = 64, 48, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        pts = 0
        for i in range(num):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            pts += 80 if i % 5 == 0 else 40
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize("has_speech", [True, False])
def test_stage_cuts_on_real_frame_times_and_hours_balance(tmp_path: Path, context: Context, has_speech: bool) -> None:
    path = tmp_path / "vfr.mp4"
    still_frames(path, 120)
    decoded = context.media.frames(path, size=(16, 16))
    span = Span(int(decoded.pts[0]), decoded.end_pts, decoded.num, decoded.den)
    heard = TRANSCRIBE if has_speech else struct_of("transcribe", words=[], speech=[])
    turns = DIARIZE if has_speech else struct_of("diarize", turns=[], overlaps=[])
    row = shot_row(path, span, transcribe=heard, diarize=turns)
    stage = ClipSplit(ClipConfig(min_s=1.0, max_s=3.0))
    stage.setup(context)
    clips = stage.split(row)
    assert clips
    pts = set(decoded.pts.tolist()) | {decoded.end_pts}
    kept = 0
    for clip in clips:
        own = span_of(clip)
        assert {own.start_pts, own.end_pts} <= pts
        assert clip["num_frames"] == int(((decoded.pts >= own.start_pts) & (decoded.pts < own.end_pts)).sum())
        assert set(clip) == {field.name for field in CLIP}
        kept += clip["duration_us"]
    assert 0 < kept <= span.duration_us
    assert any(c["has_speech"] for c in clips) == has_speech
    assert stage.split({**row, "shot": {**row["shot"], "is_transition": True}}) == []


def test_a_shot_is_one_clip_where_files_are_scored_whatever_is_said_at_its_end(
    tmp_path: Path, context: Context
) -> None:
    path = tmp_path / "vfr.mp4"
    still_frames(path, 120)
    decoded = context.media.frames(path, size=(16, 16))
    span = Span(int(decoded.pts[0]), decoded.end_pts, decoded.num, decoded.den)
    word = {"text": "late", "start_s": 0.5, "end_s": 99.0, "confidence": 1.0}
    heard = struct_of("transcribe", words=[word], speech=[{"start_s": 0.5, "end_s": 99.0}])
    row = shot_row(path, span, transcribe=heard, diarize=DIARIZE)
    for is_whole, num_us in ((True, span.duration_us), (False, 0)):
        stage = ClipSplit(ClipConfig(min_s=1.0, max_s=3.0, whole_shots=is_whole))
        stage.setup(context)
        assert sum(clip["duration_us"] for clip in stage.split(row)) == num_us
