"""Generated meetings hold what their truth says, and the fits tell good settings from bad ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.fit_diarize import fit_likeness, likeness_pairs, listen, said_alone, sweep
from benchmarks.meetings import FIT, PUBLISHED, Voices, make_meeting
from pipeline.demo.voice import VOICES, synthesise
from schemas.spans import SPEECH_RATE_HZ
from stages.diarize.embedded import EmbeddedConfig

LINES = (
    "the boat is in the harbour and the men are asleep",
    "nobody knows what the old man wanted to say to her",
    "bring two chairs and a table into the garden",
)


@pytest.fixture(scope="module")
def voices() -> Voices:
    return {name: [synthesise(line, name).samples[::3].copy() for line in LINES] for name in VOICES}


def test_no_voice_both_chooses_and_is_published() -> None:
    assert not set(FIT.values()) & set(PUBLISHED.values())
    assert not FIT.keys() & PUBLISHED.keys()


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.slow
def test_a_meeting_is_loud_where_its_turns_are_and_the_same_every_time(voices: Voices, number: int) -> None:
    made, again = make_meeting(voices, number, seed=3), make_meeting(voices, number, seed=3)
    assert (made.samples == again.samples).all()
    assert made.turns == again.turns
    assert np.abs(made.samples).max() < 1
    is_said = np.zeros(len(made.samples), bool)
    for turn in made.turns:
        is_said[round(turn.start_s * SPEECH_RATE_HZ) : round(turn.end_s * SPEECH_RATE_HZ)] = True
    assert np.mean(made.samples[is_said] ** 2) > 4 * np.mean(made.samples[~is_said] ** 2)
    said = {name: [turn for turn in made.turns if turn.speaker == name] for name in {t.speaker for t in made.turns}}
    assert len(said) == 2 + number % 4
    assert all(sum(turn.duration_s >= 1.4 for turn in own) >= 2 for own in said.values())
    for own in said.values():
        assert all(one.end_s < other.start_s for one, other in pairwise(own))


def test_another_number_or_seed_is_another_meeting(voices: Voices) -> None:
    turns = [make_meeting(voices, number, seed).turns for number, seed in ((0, 3), (4, 3), (0, 4))]
    assert turns[0] != turns[1]
    assert turns[0] != turns[2]


def test_the_regression_finds_what_made_its_pairs() -> None:
    rng = np.random.default_rng(0)
    told = np.column_stack([rng.uniform(0, 1, 4000), rng.uniform(0, 2, 4000)])
    same = 40 * (told[:, 0] + 0.1 * told[:, 1] - 0.7) > rng.logistic(size=4000)
    found = fit_likeness(told, same)
    assert found["brevity_s"] == pytest.approx(0.1, abs=0.02)
    assert found["threshold"] == pytest.approx(0.7, abs=0.02)
    assert found["right"] > 0.95


@pytest.mark.slow
def test_settings_are_told_apart_on_what_the_networks_heard(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.meetings.LENGTH_S", 24.0)
    heard = listen([make_meeting(voices, 0, seed=3)])
    people, seconds = said_alone(heard[0])
    assert len(people) == 2
    assert seconds.shape == (len(heard[0].voices.units), 2)
    told, same = likeness_pairs(heard)
    assert told[same, 0].mean() > told[~same, 0].mean()
    good, bad = sweep(heard, [EmbeddedConfig(threshold=threshold) for threshold in (0.72, 1.5)])
    assert good["der_collar_0.25"] < bad["der_collar_0.25"]
    assert good["right_number_of_speakers"] > bad["right_number_of_speakers"] == 0
