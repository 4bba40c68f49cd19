"""Voices of one asset: embedded once, the same whoever asks and in whichever worker, and close to those of whole stretches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.demo.clips import turns_audio
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan, Turn
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.diarize.stage import Diarize, DiarizeConfig
from stages.engines.speakers import SpeakerEncoder, similarity
from stages.engines.voice_memory import VoiceMemory, joined
from stages.timbre import Timbre, TimbreConfig
from tests.rows import asset_row, clip_row, struct_of


class Counting:
    """A speaker encoder that counts what it is given."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self.encoder, self.num_seconds = encoder, 0.0

    def embed_all(self, pieces: list[np.ndarray]) -> list[np.ndarray | None]:
        self.num_seconds += sum(map(len, pieces)) / SPEECH_RATE_HZ
        return self.encoder.embed_all(pieces)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return turns_audio(tmp_path / "talk.wav", num_speakers=2, num_turns=4, seed=1).path


def measured(stage: Any, context: Context, row: dict[str, Any]) -> dict[str, Any]:
    stage.setup(context)
    (found,) = stage.process([row])
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_stage_finds_the_same_where_it_has_to_listen_again(talk: Path, context: Context, tmp_path: Path) -> None:
    diarized = measured(Diarize(DiarizeConfig()), context, asset_row(talk))
    memory = VoiceMemory.of(context)
    sound = context.media.audio(talk)
    pieces = Stretch.all_of(diarized["alone"])
    told = memory.embed(sound, [(piece,) for piece in pieces])
    again = VoiceMemory(Context(tmp_path)).embed(sound, [(piece,) for piece in pieces])
    assert all(np.array_equal(one, other) for one, other in zip(told, again, strict=True))

    turns = Turn.all_of(diarized["turns"])
    spans = [SpeechSpan(speaker=t.speaker, start_s=t.start_s, end_s=t.end_s, text="x") for t in turns]
    speech = [Stretch(t.start_s, t.end_s).row() for t in turns]
    row = clip_row(
        talk,
        Span(0, 60, 1, 1),
        spans,
        diarize=struct_of("diarize", **diarized),
        transcribe=struct_of("transcribe", speech=speech),
    )
    memory.encoder = counting = Counting(memory.encoder)  # type: ignore[assignment]
    found = measured(Timbre(TimbreConfig()), context, row)
    elsewhere = Context(tmp_path)
    assert measured(Timbre(TimbreConfig()), elsewhere, row) == found
    assert found["num_cross_utterance"] == len(spans)
    assert counting.num_seconds < 0.25 * sum(r["asset_end_s"] - r["asset_start_s"] for r in found["references"])
    for each in (context, elsewhere):
        each.media.close()


def test_a_voice_is_that_of_its_pieces_or_its_own(talk: Path, context: Context) -> None:
    memory = VoiceMemory.of(context)
    sound = context.media.audio(talk)
    where = [Stretch(0.5, 2.5)]
    whole = memory.encoder.embed(joined(sound, where))
    assert whole is not None
    in_two = memory.voice(sound, where, [Stretch(0.5, 1.5), Stretch(1.5, 2.5), Stretch(6.0, 8.0)])
    assert in_two is not None
    assert not np.array_equal(in_two, whole)
    assert similarity(in_two, whole) > 0.9
    assert np.linalg.norm(in_two) == pytest.approx(1, abs=1e-5)
    for too_little in ([], [Stretch(0.5, 1.5)], [Stretch(0.0, 60.0)]):
        assert np.array_equal(memory.voice(sound, where, too_little), whole)  # type: ignore[arg-type]
    assert memory.voice(sound, [], [Stretch(0.5, 1.5)]) is None
    assert memory.voice(sound, [Stretch(0.5, 0.6)], []) is None, "too short for any voice"
