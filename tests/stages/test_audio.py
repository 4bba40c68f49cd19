"""Sound measures on signals whose level, noise, clipping and band are known by construction."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.stretches import Stretch
from schemas.timing import Span
from stages.audio import (
    AUDIO,
    Audio,
    AudioConfig,
    bandwidth,
    clipping,
    held_tones,
    loudness,
    measure,
    stands_out,
)
from stages.base import Context
from tests.rows import clip_row, struct_of

RATE = 48000


def tone(frequency_hz: float, seconds: float, level_db: float = 0.0, rate: int = RATE) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def voiced(seconds: float, rate: int = RATE) -> np.ndarray:
    """Something like speech: gliding harmonics in syllables of 0.25 s."""
    times = np.arange(round(seconds * rate)) / rate
    pitch = 140 + 50 * np.sin(2 * np.pi * 2.3 * times) + 25 * np.sin(2 * np.pi * 5.1 * times)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.1 * harmonics * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * times))).astype(np.float32)


def test_loudness_is_that_of_the_standards_reference_tone() -> None:
    reference = tone(997, 5)[:, None]
    assert loudness(reference, RATE) == pytest.approx(-3.01, abs=0.1)  # ITU-R BS.1770-4, one channel at 0 dBFS
    assert loudness(np.repeat(reference, 2, 1), RATE) == pytest.approx(0.0, abs=0.1)
    surround = np.zeros((len(reference), 6), np.float32)
    surround[:, 3] = 1.0 * reference[:, 0]
    assert loudness(surround, RATE) == -70.0, "the LFE channel does not count"
    surround[:, 4] = reference[:, 0]
    assert loudness(surround, RATE) == pytest.approx(-3.01 + 1.5, abs=0.1)
    assert loudness(reference[: RATE // 4], RATE) is None
    assert loudness(0 * reference, RATE) == -70.0


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_snr_is_speech_power_over_pause_power(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    speech = voiced(6.0)
    speech[2 * RATE : 4 * RATE] = 0
    active = np.concatenate([speech[: 2 * RATE], speech[4 * RATE :]])
    power = float((active**2).mean()) / 10 ** (snr_db / 10)
    noisy = speech + rng.normal(0, np.sqrt(power), len(speech)).astype(np.float32)
    found = measure(noisy[:, None], RATE, [Stretch(0.0, 2.0), Stretch(4.0, 6.0)])
    assert found["snr_db"] == pytest.approx(snr_db, abs=0.7)
    assert found["is_snr_from_pauses"]
    without = measure(noisy[: 2 * RATE, None], RATE, [Stretch(0.0, 2.0)])
    assert not without["is_snr_from_pauses"]
    assert measure(noisy[:, None], RATE, [])["snr_db"] is None


def test_clipping_counts_flat_tops_only() -> None:
    clean = voiced(3.0)
    clean = clean / np.abs(clean).max() * np.float32(0.95)
    assert clipping(clean) < 0.002
    hard = (3 * clean).clip(-1, 1)
    assert clipping(hard) > 0.02
    assert clipping(0.6 * hard) > 0.02, "clipped first, turned down later"
    assert clipping(8 * clean) > 0.05, "beyond full scale, as lossy decoders give it"
    assert clipping(0.1 * clean) == 0


def test_bandwidth_finds_the_low_pass() -> None:
    from scipy.signal import resample

    rng = np.random.default_rng(1)
    telephone = resample(rng.normal(0, 0.1, 16000), 6 * 16000).astype(np.float32)
    assert bandwidth(telephone, RATE) == pytest.approx(4000, abs=300)
    wide = rng.normal(0, 0.1, RATE).astype(np.float32)
    assert bandwidth(wide, RATE) == pytest.approx(RATE / 2, abs=100)
    assert bandwidth(np.zeros(RATE, np.float32), RATE) is None


def test_channels_are_compared() -> None:
    left = voiced(2.0)
    inverted = measure(np.stack([left, -left], 1), RATE, [Stretch(0.0, 2.0)])
    assert inverted["channel_correlation"] == pytest.approx(-1.0)
    assert inverted["snr_db"] is not None
    half_dead = measure(np.stack([left, 0 * left], 1), RATE, [])
    assert half_dead["num_silent_channels"] == 1
    assert half_dead["channel_correlation"] is None
    assert measure(left[:, None], RATE, [])["channel_correlation"] is None


def test_silence_offset_and_peak() -> None:
    samples = np.zeros((4 * RATE, 1), np.float32)
    samples[:RATE, 0] = tone(440, 1.0, -6.0)
    found = measure(samples, RATE, [])
    assert found["silence_ratio"] == found["gap_ratio"] == pytest.approx(0.75)
    noise = np.random.default_rng(3).normal(0, 1e-3, samples.shape).astype(np.float32)
    assert measure(samples + noise, RATE, [])["gap_ratio"] == 0
    assert found["peak_db"] == pytest.approx(-6.0, abs=0.01)
    assert measure(samples + 0.05, RATE, [])["dc_offset"] == pytest.approx(0.05, abs=1e-3)
    silent = measure(0 * samples, RATE, [])
    assert silent["peak_db"] == -120.0


def test_notes_are_held_and_voices_glide() -> None:
    chords = sum(np.concatenate([tone(f * s, 0.5, -20) for s in (1.0, 1.19, 1.33, 1.5)]) for f in (220.0, 277.2, 329.6))
    tonality = held_tones(chords, RATE)
    gliding = held_tones(voiced(2.0), RATE)
    assert tonality is not None
    assert gliding is not None
    assert tonality > 0.3
    assert gliding < 0.1


def test_a_tone_stands_out_where_a_median_says_so() -> None:
    from scipy.ndimage import median_filter

    level = np.random.default_rng(4).normal(-60, 9, (40, 200)).round(1).astype(np.float32)
    around = median_filter(level, size=(15, 1), mode="nearest")
    assert (stands_out(level) == (level > around + 10)).all()
    assert stands_out(level).any()


def test_of_a_short_sound_tones_are_not_told_from_noise() -> None:
    short = tone(440, 0.2, -6.0)[:, None]
    assert measure(short, RATE, [])["tonality"] is None
    assert measure(short, RATE, [Stretch(0.0, 0.2)])["speech_ratio"] == 1


def row_of(path: Path, context: Context, start_s: float, end_s: float) -> dict[str, Any]:
    """A clip of `path`, in whose first second somebody speaks."""
    span = Span(round(start_s * 1000), round(end_s * 1000), 1, 1000)
    speech = struct_of("transcribe", speech=[Stretch(0.0, 1.0).row()])
    return clip_row(path, span, probe=context.media.probe(path, decode=False), transcribe=speech)


def test_stage_measures_its_clip_alone(tmp_path: Path, context: Context) -> None:
    path = tmp_path / "tone_then_silence.wav"
    samples = np.concatenate([tone(500, 1.0, -12.0), np.zeros(RATE, np.float32)])
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    stage = Audio(AudioConfig())
    stage.setup(context)
    loud, longer, mute = stage.process(
        [
            row_of(path, context, 0.5, 1.0),
            row_of(path, context, 0.5, 2.5),
            {**row_of(path, context, 0.5, 1.0), "probe": struct_of("probe", has_audio=False)},
        ]
    )
    assert isinstance(loud, dict)
    assert isinstance(longer, dict)
    assert set(loud) == {field.name for field in AUDIO} == set(mute)
    assert loud["silence_ratio"] == 0
    assert loud["speech_ratio"] == 1
    assert loud["covered_ratio"] == 1
    assert longer["covered_ratio"] == pytest.approx(0.75)
    assert longer["silence_ratio"] == pytest.approx(0.75)
    assert longer["speech_ratio"] == pytest.approx(0.25)
    assert set(mute.values()) == {None}


@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [
        ("awkward/clipped_audio.mp4", "clipping_ratio", 0.005, 1),
        ("talking/talking_woman_red_jacket_glasses.mp4", "clipping_ratio", 0, 0.001),
        ("awkward/digital_silence_track.mp4", "silence_ratio", 1, 1),
        ("awkward/audio_starts_late_and_has_hole.mkv", "gap_ratio", 0.45, 0.55),
        ("talking/talking_woman_red_jacket_glasses.mp4", "gap_ratio", 0, 0),
        ("awkward/stereo_phase_inverted.mov", "channel_correlation", -1, -0.99),
        ("awkward/stereo_right_channel_silent.mp4", "num_silent_channels", 1, 1),
        ("awkward/speech_only_in_centre_of_5.1.mp4", "num_silent_channels", 5, 5),
        ("awkward/mjpeg_pcm_ulaw_8k.avi", "bandwidth_hz", 3000, 4000),
    ],
)
def test_real_files(media_dir: Path, context: Context, name: str, key: str, low: float, high: float) -> None:
    stage = Audio(AudioConfig())
    stage.setup(context)
    (found,) = stage.process([row_of(media_dir / name, context, 0.0, 2.0)])
    assert isinstance(found, dict)
    assert low <= found[key] <= high
