"""Mixed conversations hold what their truth says, and the sweep tells a good threshold from a bad one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.fit_diarize import make_mix, single_voices, sweep
from pipeline.demo.clips import turns_audio
from schemas.spans import SPEECH_RATE_HZ
from stages.engines.voice import VoiceActivity


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("voices")
    made = [turns_audio(folder / f"{n}.wav", num_speakers=n, num_turns=8, seed=n) for n in (1, 2)]
    alone, together = ({**m.item, "path": m.path.name} for m in made)
    other = turns_audio(folder / "other.wav", num_speakers=1, num_turns=8, seed=3)
    items = [alone, together, {**other.item, "path": "other.wav", "ground_truth": {"speaker": "somebody else"}}]
    (folder / "manifest.json").write_text(json.dumps({"items": items}))
    return single_voices(folder, VoiceActivity.load())


def test_only_people_who_speak_alone_are_taken(voices: dict[str, list[np.ndarray]]) -> None:
    assert len(voices) == 2
    assert "somebody else" in voices


def test_a_mix_is_loud_where_its_turns_are_and_the_same_every_time(voices: dict[str, list[np.ndarray]]) -> None:
    mix, again = make_mix(voices, 3), make_mix(voices, 3)
    assert (mix.samples == again.samples).all()
    assert mix.turns == again.turns
    assert len({t.speaker for t in mix.turns}) == 2
    is_said = np.zeros(len(mix.samples), bool)
    for turn in mix.turns:
        is_said[round(turn.start_s * SPEECH_RATE_HZ) : round(turn.end_s * SPEECH_RATE_HZ)] = True
    loudness, rest = np.mean(mix.samples[is_said] ** 2), np.mean(mix.samples[~is_said] ** 2)
    assert loudness > 10 * rest


@pytest.mark.slow
def test_a_threshold_that_nothing_reaches_finds_too_many_people(voices: dict[str, list[np.ndarray]]) -> None:
    good, bad = sweep([make_mix(voices, n) for n in (0, 2)], (0.78, 1.5))
    assert good["der_collar_0.25"] < bad["der_collar_0.25"]
    assert good["right_number_of_speakers"] > bad["right_number_of_speakers"] == 0
