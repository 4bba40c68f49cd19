"""Voice activity and the rules on stretches of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch, covered_s, merge, pad
from stages.engines.voice import VoiceActivity, VoiceConfig, draw_stretches

RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def voice() -> VoiceActivity:
    return VoiceActivity.load()


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, list[Any]]:
    """Two synthetic voices taking turns: (samples at 16 kHz, true turns)."""
    import soundfile

    from pipeline.demo.clips import turns_audio

    path = tmp_path_factory.mktemp("voice") / "talk.wav"
    made = turns_audio(path, num_turns=4, seed=5)
    samples, _ = soundfile.read(path, dtype="float32")
    return samples, made.item["ground_truth"]["speaker_turns"]


def test_speech_is_found_where_it_is(voice: VoiceActivity, talk: tuple[np.ndarray, list[Any]]) -> None:
    samples, turns = talk
    found = voice.stretches(samples, VoiceConfig())
    said = [Stretch(t["start"], t["end"]) for t in turns]
    total = sum(s.duration_s for s in said)
    missed = sum(s.duration_s - covered_s(s, found) for s in said)
    extra = sum(s.duration_s - covered_s(s, said) for s in found)
    assert missed < 0.15 * total
    assert extra < 0.15 * total


def test_silence_noise_and_music_are_not_speech(voice: VoiceActivity) -> None:
    times = np.arange(5 * SPEECH_RATE_HZ) / SPEECH_RATE_HZ
    chord = (
        sum(np.sin(2 * np.pi * f * times) for f in (261.6, 329.6, 392.0)) * 0.1 * (1 + np.sin(2 * np.pi * 2 * times))
    )
    for sound in (np.zeros(5 * SPEECH_RATE_HZ), RANDOM.normal(0, 0.05, 5 * SPEECH_RATE_HZ), chord):
        assert voice.stretches(sound.astype(np.float32), VoiceConfig()) == []


def test_the_state_is_carried_over_blocks(
    voice: VoiceActivity, talk: tuple[np.ndarray, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = talk[0][: 4 * SPEECH_RATE_HZ]
    whole = voice.probabilities(samples)
    monkeypatch.setattr("stages.engines.voice._BLOCK", 7)
    np.testing.assert_allclose(voice.probabilities(samples), whole, atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 511, 512, 513])
def test_any_length_is_accepted(voice: VoiceActivity, num_samples: int) -> None:
    assert len(voice.probabilities(np.zeros(num_samples, np.float32))) == -(-num_samples // 512)


@given(st.lists(st.floats(0, 1), max_size=300), st.floats(0, 0.5))
def test_drawn_stretches_lie_inside_and_apart(probabilities: list[float], pad_s: float) -> None:
    duration_s = len(probabilities) * 512 / SPEECH_RATE_HZ
    found = draw_stretches(np.array(probabilities, np.float32), VoiceConfig(pad_s=pad_s), duration_s)
    edges = [edge for stretch in found for edge in (stretch.start_s, stretch.end_s)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= duration_s + 1e-9 for edge in edges)


def test_hysteresis_bridges_pauses_and_drops_crumbs() -> None:
    probabilities = np.array([0] * 10 + [0.9] * 10 + [0.4] * 5 + [0] * 3 + [0.9] * 10 + [0] * 20 + [0.9] * 2 + [0] * 10)
    (stretch,) = draw_stretches(probabilities.astype(np.float32), VoiceConfig(pad_s=0), 99.0)
    assert (stretch.start_s, stretch.end_s) == pytest.approx((0.32, 38 * 0.032))


def test_merging_and_padding() -> None:
    assert merge([Stretch(2, 3), Stretch(0, 1), Stretch(0.5, 1.5)]) == [Stretch(0, 1.5), Stretch(2, 3)]
    assert merge([Stretch(0, 1), Stretch(1.2, 2)], gap_s=0.3) == [Stretch(0, 2)]
    assert pad([Stretch(1, 2), Stretch(2.2, 3)], 0.5, 3.1) == [Stretch(0.5, 2.1), Stretch(2.1, 3.1)]


def test_pauses_of_a_real_speech(media_dir: Path, context: Any, voice: VoiceActivity) -> None:
    sound = context.media.audio(media_dir / "speech" / "jfk_inaugural_11s.flac", rate_hz=SPEECH_RATE_HZ)
    assert len(voice.stretches(np.array(sound.samples), VoiceConfig())) == 4
    context.media.close()
