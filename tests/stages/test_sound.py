"""Speech, music and silence where they are, ratings that fall with noise, and two channels that are one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from benchmarks.quality_sound import leveled
from benchmarks.quality_sound_ladders import clipped, cut_off, with_holes, with_noise
from pipeline.demo.scenes import Still
from pipeline.demo.sound import music
from pipeline.demo.voice import SAMPLE_RATE_HZ, synthesise
from pipeline.demo.write import Encoding, encode
from schemas.networks.p808 import WINDOW, opinion_of_window, spectrogram
from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch
from stages.base import Context
from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session
from stages.sound.events import both, events_of
from stages.sound.mos import SpeechRater, plc_spectrum, windows_of
from stages.sound.stage import SOUND, SoundConfig, SoundStage, audible_in, described, heard_in, kind_of, stereo_of
from tests.rows import clip_row, span_of_file, speech_span

SPOKEN = synthesise("The children walked home from school in the rain.", "ben").samples
PACKAGE_PLC = 3.28
"""What `speechmos.plcmos.run` of speechmos 0.0.1.1 says of this at 16 kHz; it draws raters, and from 3.26 to 3.31 was seen."""


def test_events_are_bridged_and_short_ones_dropped() -> None:
    probabilities = np.zeros((1000, 3), np.float32)
    probabilities[100:300, 0], probabilities[320:500, 0] = 0.9, 0.9
    probabilities[700:715, 2] = 1.0
    found = events_of(probabilities)
    (speech,) = found["speech"]
    assert (speech.start_s, speech.end_s) == (pytest.approx(1.0, abs=0.1), pytest.approx(5.0, abs=0.1))
    assert found["music"] == found["singing"] == []


def test_a_voice_that_sings_does_not_speak_between_two_notes() -> None:
    probabilities = np.zeros((900, 3), np.float32)
    probabilities[100:400, 1], probabilities[200:230] = 0.9, (0.9, 0.1, 0.0)
    probabilities[600:800, 0] = 0.9
    found = events_of(probabilities)
    assert [len(found[event]) for event in ("speech", "singing", "music")] == [1, 1, 0]
    assert found["speech"][0].start_s > 5.9


def test_speech_that_voice_activity_does_not_know_is_none() -> None:
    probabilities = np.ones((300, 3), np.float32) * np.float32([1, 0, 1])
    assert heard_in(probabilities, [])["speech"] == []
    assert heard_in(probabilities, [Stretch(1, 2)])["speech"] == [Stretch(0, 3)]
    assert heard_in(probabilities, [])["music"] == [Stretch(0, 3)]


def test_shares_are_of_the_clip_and_the_rest_is_other() -> None:
    samples = np.full(16_000 * 10, 0.1, np.float32)
    samples[16_000 * 8 :] = 0
    heard = {"speech": [Stretch(0, 4)], "singing": [], "music": [Stretch(3, 6)]}
    found = described(heard, samples, 2)
    assert (found["speech_ratio"], found["music_ratio"], found["other_ratio"]) == (0.4, 0.3, pytest.approx(0.2))
    assert (found["music_under_speech_ratio"], found["kind"]) == (0.25, "multi_speaker")
    assert [row["kind"] for row in found["heard"]] == ["speech", "music", "other"]
    assert both([Stretch(0, 1)], [Stretch(1, 2)]) == 0
    assert audible_in(samples) == [Stretch(0, 8)]


@pytest.mark.parametrize(
    ("shares", "is_audible", "speakers", "kind"),
    [
        ({"speech": 0.6, "singing": 0.0, "music": 0.9}, True, 1, "single_speaker"),
        ({"speech": 0.6, "singing": 0.0, "music": 0.0}, True, 3, "multi_speaker"),
        ({"speech": 0.3, "singing": 0.6, "music": 0.9}, True, 1, "singing"),
        ({"speech": 0.1, "singing": 0.1, "music": 0.5}, True, 1, "music"),
        ({"speech": 0.0, "singing": 0.0, "music": 0.1}, True, 0, "ambience"),
        ({"speech": 0.0, "singing": 0.0, "music": 0.0}, False, 0, "silence"),
    ],
)
def test_classes(shares: dict[str, float], is_audible: bool, speakers: int, kind: str) -> None:
    assert kind_of(shares, is_audible, speakers) == kind


def test_two_channels_are_stereo_only_if_they_differ() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(0, 0.1, (2, 16_000)).astype(np.float32)
    silent = np.zeros_like(left)
    assert stereo_of(np.stack([left, 0.5 * left], 1))[0] == "dual_mono"
    assert stereo_of(np.stack([left, -left], 1))[0] == "inverted"
    assert stereo_of(np.stack([left, silent], 1)) == ("one_channel", None)
    assert stereo_of(np.stack([silent, silent], 1)) == (None, None)
    assert stereo_of(left[:, None]) == ("mono", None)
    name, unlike = stereo_of(np.stack([left, 0.6 * left + 0.4 * right], 1))
    assert (name, unlike) == ("stereo", pytest.approx(0.31, abs=0.02))


@pytest.mark.slow
def test_a_rating_falls_with_noise_and_clipping() -> None:
    rater, speech = SpeechRater.load(), leveled(np.asarray(resample_poly(SPOKEN, 1, 3), np.float32))
    clean = rater.rate(speech)
    assert clean is not None
    assert all(1 <= value <= 5 for value in clean)
    assert clean.mean == pytest.approx((clean.overall + clean.p808) / 2)
    noisy, flat = rater.rate(with_noise(speech, 5)), rater.rate(clipped(speech, 0.5))
    assert noisy is not None
    assert flat is not None
    assert max(noisy.mean, flat.mean) < clean.mean - 0.3
    assert noisy.background < clean.background - 0.3
    assert rater.rate(speech[: SPEECH_RATE_HZ // 2 - 1]) is None


def test_lost_pieces_are_heard_by_what_rates_their_concealment() -> None:
    spoken = np.asarray(resample_poly(SPOKEN, 1, 3), np.float32)
    speech = leveled(spoken)
    rater = SpeechRater(None, None, one_thread_session(packaged("plcmos")))
    rated = [rater.concealment(with_holes(speech, share)) for share in (0.0, 0.05, 0.3)]
    assert rated == sorted(rated, reverse=True)
    assert rated[0] - rated[2] > 1
    assert rater.concealment(speech) == rated[0], "the same sound has the same rating"
    assert rater.concealment(spoken) == pytest.approx(PACKAGE_PLC, abs=0.05)


def test_missing_treble_is_heard_by_p808_however_loud() -> None:
    session = one_thread_session(packaged("dnsmos_p808"))
    speech = np.resize(leveled(np.asarray(resample_poly(SPOKEN, 1, 3), np.float32)), WINDOW)
    rated = [opinion_of_window(cut_off(speech, top_hz), session) for top_hz in (7500, 3000, 800)]
    assert rated == sorted(rated, reverse=True)
    assert opinion_of_window(0.1 * speech, session) == pytest.approx(opinion_of_window(speech, session), abs=0.02)


def test_spectrograms_of_the_two_networks() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(SPEECH_RATE_HZ) / SPEECH_RATE_HZ).astype(np.float32)
    rows = spectrogram(0.01 * tone)
    assert rows.shape == (100, 120)
    assert (rows.max(), rows.min()) == (1, -1)
    assert np.ptp(rows[5:-5].argmax(1)) == 0
    silence_after = np.concatenate([tone, np.zeros_like(tone)])
    spectrum = plc_spectrum(silence_after)
    assert spectrum.shape == (126, 257)
    assert (spectrum[5:60].argmax(1) == 32).all(), "1 kHz of 8"
    heard = spectrum[:60].min()
    assert spectrum[-10:] == pytest.approx(spectrum.min())
    assert spectrum.min() < heard - 1
    assert plc_spectrum(np.zeros(1000, np.float32)) == pytest.approx(-8 * np.log(10) / 20)


def test_windows_reach_to_the_end() -> None:
    samples = np.arange(WINDOW + 10, dtype=np.float32)
    first, last = windows_of(samples)
    assert (first[0], last[-1], len(first), len(last)) == (0, WINDOW + 9, WINDOW, WINDOW)
    assert [len(window) for window in windows_of(samples[:100])] == [100]


@pytest.mark.slow
def test_speech_over_music_is_heard_as_both(tmp_path: Path, context: Context) -> None:
    bed = 0.5 * music(6.0, seed=2)
    bed[: len(SPOKEN)] += SPOKEN[: len(bed)]
    path = tmp_path / "talk.mp4"
    picture = Still("brick.png", 64, 48).at(0.0, lambda who, at: (0.0, 0.0))
    encode(path, [picture] * 6, np.stack([bed, bed], 1), Encoding(64, 48, Fraction(1)))
    stage = SoundStage(SoundConfig())
    stage.setup(context)
    spoken_s = len(SPOKEN) / SAMPLE_RATE_HZ
    span = span_of_file(context.media.probe(path))
    row = clip_row(path, span, [speech_span("The children", 0.0, spoken_s)])
    row["transcribe"] = {"speech": [{"start_s": 0.0, "end_s": spoken_s}]}
    (told,) = stage.process([row])
    assert isinstance(told, dict)
    assert set(told) == {field.name for field in SOUND}
    assert told["kind"] == "single_speaker"
    assert told["music_ratio"] > 0.6
    assert told["music_under_speech_ratio"] > 0.3
    assert told["stereo"] == "dual_mono"
    assert 1 < told["mos_overall"] < 5
    assert told["mos_mean"] == pytest.approx((told["mos_overall"] + told["mos_p808"]) / 2)
    assert 1 < told["mos_plc"] < 5
    unrated = SoundStage(SoundConfig(rate_speech=False))
    unrated.setup(context)
    opinions = [name for name in told if name.startswith("mos_")]
    assert unrated.process([row]) == [{**told, **dict.fromkeys(opinions)}]
    silent = stage.measure(row | {"probe": {"has_audio": False}})
    assert set(silent.values()) == {None}
    context.media.close()
