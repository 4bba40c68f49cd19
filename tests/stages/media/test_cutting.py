"""Exact cutting, on flash-and-click files: the error of every cut is 0, and a wrong one is not believed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.demo.clips import CUT_ENCODINGS, flash_and_click, frame_number
from schemas.errors import MediaError
from schemas.shard import SOUND_RATE_HZ
from schemas.timing import Span
from stages.child import Child, Message
from stages.media.cut_copy import decode_times
from stages.media.cutting import CutOptions, cut_clip, cut_sound, shifted, sound_lag, verify_clip
from stages.media.decoder import Decoder, DecoderConfig, Frames
from stages.media.waveform import Waveform


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    media = Decoder(tmp_path_factory.mktemp("scratch"), DecoderConfig(timeout_s=120.0))
    yield media
    media.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> dict[str, tuple[Path, Frames]]:
    folder = tmp_path_factory.mktemp("known")
    for name, encoding in CUT_ENCODINGS.items():
        flash_and_click(folder / name, 4.0, encoding, seed=3)
    _pre_roll(folder / "plain.mp4", folder / "edit_list.mov")
    paths = [folder / name for name in (*CUT_ENCODINGS, "edit_list.mov") if (folder / name).exists()]
    return {path.name: (path, decoder.frames(path, size=(96, 48))) for path in paths}


def _pre_roll(source: Path, out: Path) -> None:
    """A stream copy from the middle of a frame, whose pre-roll an edit list hides; only where ffmpeg is installed."""
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "error", "-y", "-ss", "1.29", "-i", str(source), "-c", "copy", str(out)]
        subprocess.run(command, check=True, timeout=60)


def span_between(frames: Frames, first: int, last: int) -> Span:
    """The span of frames first ... last - 1."""
    ends = [*frames.pts.tolist(), frames.end_pts]
    return Span(ends[first], ends[last], frames.num, frames.den)


def clicks_and_flashes(path: Path, decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """Onsets of clicks and times of flashes in seconds, as a reader of the written clip meets them."""
    frames = decoder.frames(path, size=(48, 24), format="gray")
    flashes = frames.times_s[frames.images[:, 12:].mean(axis=(1, 2)) > 160]
    sound = decoder.audio(path, rate_hz=SOUND_RATE_HZ)
    loud = np.flatnonzero(np.abs(sound.samples) > 0.35)
    onsets = loud[np.insert(np.diff(loud) > 1000, 0, True)] if len(loud) else loud
    return onsets / SOUND_RATE_HZ + float(sound.start), flashes


@pytest.mark.parametrize("name", [*CUT_ENCODINGS, "edit_list.mov"])
def test_random_cuts_are_exact(files: Any, decoder: Decoder, tmp_path: Path, name: str) -> None:
    if name not in files:
        pytest.skip("ffmpeg is not installed")
    path, frames = files[name]
    numbers = [frame_number(image) for image in frames.images]
    rng = random.Random(name)
    num = len(frames.pts)
    cuts = [(0, num)] + [(i, rng.randint(i + 1, num)) for i in (rng.randrange(num - 3) for _ in range(5))]
    for first, last in cuts:
        span, out = span_between(frames, first, last), tmp_path / "clip.mp4"
        report = verify_clip(out, cut_clip(path, span, out, decoder=decoder), decoder=decoder)
        errors = (report.start_error_us, report.frame_error_us, report.duration_error_us, report.sound_error_samples)
        assert errors == (0, 0, 0, 0)
        written = decoder.frames(out, size=(96, 48))
        assert [frame_number(image) for image in written.images] == numbers[first:last]
        base = Fraction(written.num, written.den)
        times = [int(pts) * base for pts in written.pts]
        assert times == [int(pts) * span.time_base - span.start for pts in frames.pts[first:last]]


@pytest.mark.parametrize("name", ["plain.mp4", "ntsc.mov", "vfr.mp4", "intra.mp4"])
def test_click_meets_flash_in_the_written_clip(files: Any, decoder: Decoder, tmp_path: Path, name: str) -> None:
    path, frames = files[name]
    out = tmp_path / "clip.mp4"
    for first, last in ((3, 70), (20, 80)):
        cut_clip(path, span_between(frames, first, last), out, decoder=decoder)
        clicks, flashes = clicks_and_flashes(out, decoder)
        clicks, flashes = (times[(times > 0.03) & (times < 1.9)] for times in (clicks, flashes))
        assert len(flashes) >= 2
        # Two AAC generations smear the click's edge by some samples; a frame would be 20 ms or more.
        np.testing.assert_allclose(clicks, flashes, atol=3e-4)


def test_players_outside_this_project_see_the_same(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    path, frames = files["vfr.mp4"]
    out = tmp_path / "clip.mp4"
    report = cut_clip(path, span_between(frames, 7, 60), out, decoder=decoder)
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(out), "-vn", "-f", "f32le", "-ac", "2", "-"],
        check=True, capture_output=True, timeout=60,
    ).stdout  # fmt: skip
    heard = np.frombuffer(raw, np.float32).reshape(-1, 2)
    assert report.sound is not None
    assert abs(len(heard) - report.num_samples) < 1024  # an older ffmpeg may keep the last packet's padding
    assert sound_lag(report.sound[:, 0], heard[:, 0]) == 0
    shown = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=pts_time", "-of", "csv=p=0", str(out)],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.replace(",", " ").split()  # fmt: skip
    np.testing.assert_allclose([float(t) for t in shown], [float(t) for t in report.frame_times], atol=2e-6)


def test_packets_are_copied_only_where_that_is_exact(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"

    def mode(name: str, first: int, last: int, **options: Any) -> str:
        path, frames = files[name]
        report = cut_clip(path, span_between(frames, first, last), out, options=CutOptions(**options), decoder=decoder)
        return verify_clip(out, report, decoder=decoder).mode

    assert mode("intra.mp4", 13, 29) == "copy"
    assert mode("intra.mp4", 13, 29, allow_copy=False) == "encode"
    assert mode("plain.mp4", 0, 100) == "copy"
    assert mode("plain.mp4", 1, 100) == "encode"
    assert mode("open_gop.mp4", 25, 50) == "encode"
    assert mode("vp8.webm", 0, 20) == "encode"


def test_copied_packets_are_unchanged(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    path, frames = files["intra.mp4"]
    out = tmp_path / "clip.mp4"
    report = verify_clip(out, cut_clip(path, span_between(frames, 10, 30), out, decoder=decoder), decoder=decoder)
    assert report.picture_error == 0
    np.testing.assert_array_equal(decoder.frames(out).images, decoder.frames(path).images[10:30])


def test_equal_input_gives_equal_bytes(files: Any, tmp_path: Path) -> None:
    written = []
    for number in range(2):
        media = Decoder(tmp_path / f"scratch{number}")
        for name in ("vfr.mp4", "intra.mp4"):
            path, frames = files[name]
            out = tmp_path / f"{number}.mp4"
            cut_clip(path, span_between(frames, 5, 40), out, decoder=media)
            written.append(out.read_bytes())
        media.close()
    assert written[:2] == written[2:]


def test_a_cut_whose_child_is_killed_is_made_by_another(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames = files["plain.mp4"]
    media, request, killed = Decoder(tmp_path), Child.request, list[int]()

    def killing(child: Child, operation: str, *arguments: Any) -> Iterator[Message]:
        if operation == "cut" and not killed:
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        yield from request(child, operation, *arguments)

    monkeypatch.setattr(Child, "request", killing)
    out = tmp_path / "clip.mp4"
    report = verify_clip(out, cut_clip(path, span_between(frames, 10, 40), out, decoder=media), decoder=media)
    assert (len(killed), report.num_frames, report.sound_error_samples) == (1, 30, 0)
    assert list(tmp_path.iterdir()) == [out]
    media.close()


def test_verification_does_not_believe_a_wrong_clip(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    path, frames = files["plain.mp4"]
    out, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
    options = CutOptions(allow_copy=False)
    plan = cut_clip(path, span_between(frames, 10, 50), out, options=options, decoder=decoder)
    cut_clip(path, span_between(frames, 11, 51), other, options=options, decoder=decoder)
    late = CutOptions(allow_copy=False, shift_ms=40.0)
    wrong = [
        (other, plan, "sound"),
        (out, replace(plan, thumbs=np.roll(plan.thumbs, 1, axis=0)), "frames"),
        (out, replace(plan, frame_times=tuple(t + Fraction(1, 100) for t in plan.frame_times)), "times"),
        (out, replace(plan, duration=plan.duration + Fraction(1, 25)), "length"),
        (out, cut_clip(path, span_between(frames, 10, 50), other, options=late, decoder=decoder), "sound"),
        (out, replace(plan, num_frames=41), "41"),
    ]
    for (file, report, word), is_whole in product(wrong, (True, False)):
        with pytest.raises(MediaError) as caught:
            verify_clip(file, report, is_whole=is_whole, decoder=decoder)
        assert caught.value.reason == "cut_mismatch"
        assert word in str(caught.value)
    last_wrong = plan.thumbs.copy()
    last_wrong[-1] = 255 - last_wrong[-1]
    report = replace(plan, thumbs=last_wrong)
    with pytest.raises(MediaError, match="planned frames"):
        verify_clip(out, report, decoder=decoder)
    decoded = decoder.frames_decoded
    assert verify_clip(out, report, is_whole=False, decoder=decoder).frame_error_us == 0
    assert decoder.frames_decoded - decoded < 15


@pytest.mark.parametrize("name", ["plain.mp4", "ntsc.mov", "vfr.mp4"])
@pytest.mark.slow
def test_clips_cut_in_order_decode_a_frame_once_and_are_the_same(
    files: Any, decoder: Decoder, tmp_path: Path, name: str
) -> None:
    path, frames = files[name]
    options, decoded, alone = CutOptions(allow_copy=False), decoder.frames_decoded, Decoder(tmp_path / "alone")
    for first, last in ((0, 20), (20, 41), (47, 60)):
        span, out, other = span_between(frames, first, last), tmp_path / "clip.mp4", tmp_path / "other.mp4"
        cut_clip(path, span, out, options=options, decoder=decoder)
        cut_clip(path, span, other, options=options, decoder=alone)
        alone.close()
        assert out.read_bytes() == other.read_bytes()
    assert 60 <= decoder.frames_decoded - decoded <= 62


def test_a_span_of_another_clock_is_refused(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    path, _ = files["plain.mp4"]
    for span, reason in (
        (Span(0, 90_000, 1, 90_000), "cut_mismatch"),
        (Span(10**9, 10**9 + 12_800, 1, 12_800), "no_frames"),
    ):
        with pytest.raises(MediaError) as caught:
            cut_clip(path, span, tmp_path / "clip.mp4", decoder=decoder)
        assert caught.value.reason == reason


def test_late_sound_begins_with_silence(files: Any, decoder: Decoder) -> None:
    path, frames = files["late.mp4"]
    sound = cut_sound(path, span_between(frames, 0, 25), decoder=decoder)
    assert sound.shape == (48_000, 2)
    assert not sound[:22_900].any()  # one AAC packet of priming before the stated start is decoded too
    assert np.abs(sound[24_100:]).max() > 0


# --- repair of sync


def _tone(rate_hz: int = 8000, seconds: float = 4.0) -> Waveform:
    from scipy.signal import butter, sosfilt

    noise = np.random.default_rng(0).standard_normal(round(rate_hz * seconds))
    # Interpolation is exact below its transition band only.
    return Waveform(sosfilt(butter(8, 0.7, output="sos"), noise).astype(np.float32), rate_hz, Fraction(0))


def test_shift_moves_sound_by_whole_samples() -> None:
    waveform, span = _tone(), Span(1, 3, 1, 1)
    plain = shifted(waveform, span, CutOptions())
    np.testing.assert_array_equal(plain, waveform.samples[8000:24000])
    late = shifted(waveform, span, CutOptions(shift_ms=120.0))
    np.testing.assert_array_equal(late, waveform.samples[8960:24960])
    early = shifted(waveform, span, CutOptions(shift_ms=-1500.0))
    assert not early[:4000].any()
    np.testing.assert_array_equal(early[4000:], waveform.samples[:12000])


@pytest.mark.slow
def test_drift_is_taken_out_around_the_middle() -> None:
    waveform, span, drift = _tone(), Span(1, 3, 1, 1), 5e-3
    at = np.arange(len(waveform.samples))
    # Sound whose lag grows by 5 ms per second and is 30 ms at the span's middle, 2 s.
    middle = 2 * waveform.rate_hz
    source_at = middle + (at - middle - 0.03 * waveform.rate_hz) / (1 + drift)
    spectrum_exact = _interpolate(waveform.samples, source_at)
    drifted = Waveform(spectrum_exact.astype(np.float32), waveform.rate_hz, Fraction(0))
    repaired = shifted(drifted, span, CutOptions(shift_ms=30.0, drift_ppm=drift * 1e6))
    wanted = waveform.samples[8000:24000]
    error = np.sqrt(np.mean((repaired - wanted)[200:-200] ** 2) / np.mean(wanted**2))
    assert error < 0.02
    unrepaired = shifted(drifted, span, CutOptions(shift_ms=30.0))
    assert np.sqrt(np.mean((unrepaired - wanted) ** 2) / np.mean(wanted**2)) > 0.5


def _interpolate(samples: np.ndarray, at: np.ndarray, taps: int = 128) -> np.ndarray:
    """An independent, longer windowed-sinc interpolator (Kaiser)."""
    whole = np.floor(at).astype(int)
    places = whole[:, None] + np.arange(-taps // 2 + 1, taps // 2 + 1)
    distance = at[:, None] - places
    window = np.i0(10 * np.sqrt(np.clip(1 - (distance / (taps / 2)) ** 2, 0, 1))) / np.i0(10)
    inside = (places >= 0) & (places < len(samples))
    return np.asarray((samples[np.where(inside, places, 0)] * inside * np.sinc(distance) * window).sum(1))


def test_shift_reaches_the_file(files: Any, decoder: Decoder, tmp_path: Path) -> None:
    path, frames = files["plain.mp4"]
    out = tmp_path / "clip.mp4"
    options = CutOptions(shift_ms=-200.0)
    report = cut_clip(path, span_between(frames, 10, 75), out, options=options, decoder=decoder)
    report = verify_clip(out, report, decoder=decoder)
    assert report.applied_shift_ms == -200.0
    clicks, flashes = clicks_and_flashes(out, decoder)
    clicks, flashes = clicks[clicks > 0.25], flashes[flashes < 2.3]
    matched = [min(clicks - flash, key=lambda d: abs(d - 0.2)) for flash in flashes if flash > 0.1]
    np.testing.assert_allclose(matched, 0.2, atol=3e-4)


# --- pieces


def test_decode_times() -> None:
    assert decode_times([0, 3, 1, 2], 1) == [-1, 0, 1, 2]
    assert decode_times([0, 1, 2], 1) == [0, 1, 2]
    assert decode_times([0, 40, 20, 10, 30], 10) == [-20, -10, 0, 10, 20]
    for pts in ([0, 3, 1, 2, 6, 4, 5], [0, 8, 4, 2, 1, 3, 6, 5, 7]):
        times = decode_times(pts, 1)
        assert all(dts <= at for dts, at in zip(times, pts, strict=True))
        assert times == sorted(set(times))


def test_sound_lag() -> None:
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    assert sound_lag(noise, noise) == 0
    assert sound_lag(noise, np.concatenate([np.zeros(7, np.float32), noise])) == 7
    assert sound_lag(noise, noise[30:]) == -30
    assert sound_lag(noise, np.zeros(20_000, np.float32)) == 0
    tone = np.sin(np.arange(20_000) * 2 * np.pi / 50).astype(np.float32)
    assert sound_lag(tone, tone) == 0


# --- real media


@pytest.mark.parametrize(
    "name",
    [
        "rotate90_metadata_phone_portrait.mp4",
        "real_sar_2_3.mp4",
        "odd_size_175x143_yuv444.mkv",
        "interlaced_tff_mpeg2.mpg",
        "hevc_main10_hdr10_pq.mp4",
        "animated_picture.gif",
        "audio_starts_late_and_has_hole.mkv",
        "mpegts_timestamp_wrap.ts",
        "speech_only_in_centre_of_5.1.mp4",
        "mjpeg_pcm_ulaw_8k.avi",
        "edit_list_preroll_trim_copy.mov",
        "resolution_changes_mid_stream.ts",
        "real_one_pixel_video_name_with_dashes.mp4",
    ],
)
def test_awkward_sources_are_cut_exactly(media_dir: Path, decoder: Decoder, tmp_path: Path, name: str) -> None:
    path, out = media_dir / "awkward" / name, tmp_path / "clip.mp4"
    if not path.exists():
        pytest.skip("awkward files are not here")
    frames = decoder.frames(path, size=(16, 16), format="gray")
    first, last = min(4, len(frames.pts) - 1), min(30, len(frames.pts))
    plan = cut_clip(path, span_between(frames, first, last), out, decoder=decoder)
    report = verify_clip(out, plan, decoder=decoder)
    assert (report.frame_error_us, report.duration_error_us) == (0, 0)
    assert report.sound_error_samples in (0, None)
    probe = decoder.probe(path)
    assert abs(report.width_px - probe["width_px"]) <= 1
    assert abs(report.height_px - probe["height_px"]) <= 1
    written = decoder.probe(out)
    assert (written["rotation_deg"], written["sar"], written["damaged_packets"]) == (0, 1.0, 0)
    assert not written["is_interlaced"]
