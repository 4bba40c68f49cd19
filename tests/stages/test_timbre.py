"""Voice references: never the span itself when there is another utterance, never somebody else's voice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.spans import SPEECH_RATE_HZ, Speaker, SpeechSpan, Turn, Word
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.diarize.stage import describe_speakers, pieces_of
from stages.engines.speakers import EMBEDDER, EMBEDDING_SIZE, unit
from stages.engines.voice_memory import VoiceMemory
from stages.media.waveform import Waveform
from stages.timbre import (
    Choice,
    Dialogue,
    Timbre,
    TimbreConfig,
    VoiceJudge,
    choices,
    cleanliness,
    on_asset,
)
from tests.rows import clip_row, struct_of

CLIP = Stretch(10.0, 20.0)
SOUND = Waveform(np.full(40 * SPEECH_RATE_HZ, 0.1, np.float32), SPEECH_RATE_HZ, Fraction(0))


def span(speaker: str | None, start_s: float, end_s: float) -> SpeechSpan:
    return SpeechSpan(speaker=speaker, start_s=start_s, end_s=end_s, text="x")


def choose(one: SpeechSpan, turns: list[Turn], **config: Any) -> Any:
    """The best choice, where nobody is told from anybody but by turns; None without any."""
    given = {name: config.pop(name) for name in ("speech", "alone", "words") if name in config}
    heard = Dialogue(turns, **{"speech": [Stretch(0.0, 40.0)], "alone": [Stretch(0.0, 40.0)]} | given)
    sound = config.pop("sound", SOUND)
    return next(iter(choices(on_asset(one, CLIP), CLIP, heard, sound, TimbreConfig(**config))), None)


def test_another_utterance_of_the_clip_comes_first() -> None:
    turns = [Turn("A", 2, 8), Turn("A", 11, 13), Turn("B", 13, 15), Turn("A", 15, 18)]
    found = choose(span("A", 1.0, 3.0), turns)
    assert (found.where, found.origin) == (Stretch(15.5, 18.0), "same_clip")
    assert found.cleanliness == pytest.approx(1.0)


def test_then_another_utterance_of_the_asset() -> None:
    found = choose(span("A", 1.0, 3.0), [Turn("A", 2, 8), Turn("A", 11, 13)])
    assert (found.where, found.origin) == (Stretch(2, 8), "same_asset")


def test_then_the_span_itself_and_says_so() -> None:
    found = choose(span("A", 1.0, 3.0), [Turn("A", 11, 13), Turn("B", 12.5, 16)])
    assert (found.where, found.origin) == (Stretch(11, 12.0), "same_span")


def test_no_reference_where_the_speaker_is_unknown_or_never_alone() -> None:
    assert choose(span(None, 1, 3), [Turn("A", 2, 8)]) is None
    assert choose(span("A", 1, 3), [Turn("A", 11, 13), Turn("B", 0, 40)]) is None


def test_long_and_clean_beats_short_and_dirty() -> None:
    sound = Waveform(SOUND.samples.copy(), SPEECH_RATE_HZ, Fraction(0))
    sound.samples[30 * SPEECH_RATE_HZ : 36 * SPEECH_RATE_HZ : 100] = 1.0
    turns = [Turn("A", 2, 4), Turn("A", 5, 9), Turn("A", 11, 13), Turn("A", 30, 36)]
    speech = [Stretch(0, 4), Stretch(5, 40)]
    found = choose(span("A", 1, 3), turns, speech=speech, sound=sound)
    assert found.where == Stretch(5, 9)


def test_limits_are_kept() -> None:
    found = choose(span("A", 1, 3), [Turn("A", 11, 13), Turn("A", 22, 39)], max_s=6.0)
    assert found.where.duration_s == pytest.approx(6.0)
    assert choose(span("A", 1, 3), [Turn("A", 11, 13), Turn("A", 22, 23)]).origin == "same_span"
    with pytest.raises(ValueError, match="max_s"):
        TimbreConfig(min_s=5, max_s=2)


def test_only_where_one_voice_alone_is_heard() -> None:
    turns = [Turn("A", 2, 8), Turn("A", 11, 13)]
    found = choose(span("A", 1, 3), turns, alone=[Stretch(2, 4), Stretch(4.2, 6), Stretch(7, 8)])
    assert found.where == Stretch(2, 6)
    assert choose(span("A", 1, 3), turns, alone=[]) is None


def test_no_reference_begins_or_ends_inside_a_word() -> None:
    words = [Word("so", 1.8, 2.3), Word("what", 7.0, 8.4)]
    assert choose(span("A", 1, 3), [Turn("A", 2, 8), Turn("A", 11, 13)], words=words).where == Stretch(2.3, 7.0)


@pytest.fixture
def first(context: Any) -> Callable[..., float | None]:
    """Which of the stretches at 20 and 30 s is chosen for a span of A at 11 s, where A sounds like (1, 0) and B like (0, 1)."""

    def choose_by(
        voices: dict[float, tuple[float, float]], piece: Stretch | None = None, alone_s: float = 2.0
    ) -> float | None:
        memory = VoiceMemory.of(context)
        where = {11: Stretch(11, 11 + alone_s), 20: Stretch(20, 24), 21: piece, 30: Stretch(30, 34)}
        units: Any = {at_s: unit(np.array(v, np.float32)) for at_s, v in voices.items()}
        sound = replace(SOUND)
        memory.keep(sound, {where[at_s]: voice for at_s, voice in units.items()})
        speakers = [Speaker("A", 9.0, [1.0, 0.0]), Speaker("B", 9.0, [0.0, 1.0]), Speaker("C", 0.3, None)]
        pieces = [where[11], *([piece] if piece else [])]
        judge = VoiceJudge(memory, sound, pieces, speakers, TimbreConfig())
        found = [Choice(where[at_s], "same_asset", 1.0) for at_s in (20, 30)]
        chosen = judge.first(on_asset(span("A", 1.0, 3.0), CLIP), [Turn("A", 11, 13)], found)
        return chosen and chosen[0].where.start_s

    return choose_by


def test_what_sounds_like_somebody_else_is_no_reference(first: Callable[..., float | None]) -> None:
    assert first({11: (1, 0), 20: (1, 0.1), 30: (1, 0)}) == 20
    assert first({11: (1, 0), 20: (0.1, 1), 30: (1, 0)}) == 30
    assert first({11: (1, 0.6), 20: (1, 0), 30: (0.1, 1)}) == 20
    assert first({11: (1, 0.8), 20: (1, -0.9), 30: (0.1, 1)}) is None


def test_one_piece_of_somebody_else_is_enough_to_leave_a_stretch(first: Callable[..., float | None]) -> None:
    piece = Stretch(21.0, 22.0)
    assert first({11: (1, 0), 20: (1, 0.2), 21: (0.2, 1), 30: (1, 0)}, piece) == 30
    assert first({11: (1, 0), 20: (1, 0.2), 21: (1, 0.2), 30: (1, 0)}, piece) == 20


def test_a_span_that_sounds_like_somebody_else_has_no_reference(first: Callable[..., float | None]) -> None:
    assert first({11: (0.1, 1), 20: (1, 0), 30: (1, 0)}) is None


def test_a_span_whose_voice_is_hardly_heard_alone_has_no_reference(first: Callable[..., float | None]) -> None:
    assert first({11: (1, 0), 20: (1, 0), 30: (1, 0)}, alone_s=1.0) == 20
    assert first({11: (1, 0), 20: (1, 0), 30: (1, 0)}, alone_s=0.7) is None


def test_cleanliness_counts_silence_and_clipping() -> None:
    samples = np.full(SPEECH_RATE_HZ, 0.1, np.float32)
    assert cleanliness(Stretch(0, 1), [Stretch(0.5, 2)], samples) == pytest.approx(0.5)
    samples[: SPEECH_RATE_HZ // 4] = 1.0
    assert cleanliness(Stretch(0, 1), [Stretch(0, 2)], samples) == pytest.approx(0.75)


TURNS = st.lists(st.tuples(st.sampled_from("ABC"), st.floats(0, 36), st.floats(0.3, 8)), max_size=12)


@given(TURNS, st.floats(0, 8), st.floats(0.2, 4))
def test_a_reference_never_leaks(drawn: list[tuple[str, float, float]], start_s: float, length_s: float) -> None:
    turns = [Turn(s, a, min(40.0, a + d)) for s, a, d in drawn]
    config = TimbreConfig()
    one = span("A", start_s, min(10.0, start_s + length_s))
    found = choose(one, turns)
    if found is None:
        return
    where = found.where
    assert all(where.overlap_s(turn) < 1e-9 for turn in turns if turn.speaker != "A")
    assert 0 <= found.cleanliness <= 1
    if found.origin == "same_span":
        assert where.overlap_s(on_asset(one, CLIP)) == pytest.approx(where.duration_s)
    else:
        assert where.overlap_s(on_asset(one, CLIP)) == 0
        assert config.min_s <= where.duration_s <= config.max_s


@pytest.mark.slow
def test_stage_on_real_voices(media_dir: Path, context: Any) -> None:
    import json

    name = "multispeaker/phone_order_agent_customer_8k.wav"
    items = {i["path"]: i for i in json.loads((media_dir / "manifest.json").read_text())["items"]}
    given_turns = items[name]["ground_truth"]["speaker_turns"]
    turns = [Turn(t["speaker"], t["start"], t["end"]) for t in given_turns]
    pieces, memory = pieces_of(turns), VoiceMemory.of(context)
    sound = context.media.audio(media_dir / name, rate_hz=SPEECH_RATE_HZ, mono=True)
    spans = [span(t["speaker"], t["start"] - 10, t["end"] - 10) for t in given_turns if 10 <= t["start"] < 20]
    row = clip_row(
        media_dir / name,
        Span(250, 600, 1, 25),
        [*spans, span(None, 13, 14)],
        diarize=struct_of(
            "diarize",
            turns=[turn.row() for turn in turns],
            alone=[piece.row() for piece in pieces],
            speakers=[each.row() for each in describe_speakers(turns, pieces, sound, memory)],
        ),
        transcribe=struct_of("transcribe", speech=[Stretch(t["start"], t["end"]).row() for t in given_turns]),
    )
    stage = Timbre(TimbreConfig())
    stage.setup(context)
    (found,) = stage.process([row])
    assert isinstance(found, dict)
    assert set(found) == {field.name for field in Timbre.adds}
    assert (found["num_cross_utterance"], found["num_same_span"], found["num_missing"]) == (3, 0, 1)
    assert found["min_similarity"] > 0.65
    assert [r["origin"] for r in found["references"]] == ["same_clip", "same_asset", "same_clip"]
    context.media.close()


def test_stage_without_speech(context: Any) -> None:
    stage = Timbre(TimbreConfig())
    nothing = dict.fromkeys(("num_cross_utterance", "num_same_span", "num_missing"), 0)
    told = {"embedder": EMBEDDER, "embedding_dim": EMBEDDING_SIZE}
    assert stage.process([clip_row(probe=struct_of("probe", has_audio=False))]) == [
        struct_of("timbre", references=[], **nothing, **told)
    ]
