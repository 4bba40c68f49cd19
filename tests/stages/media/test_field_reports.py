"""What other people's files are like: each is read right, or refused with a sentence (docs/reliability.md, field reports)."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.demo.clips import flash_and_click
from pipeline.demo.write import Encoding
from schemas.errors import MediaError
from schemas.timing import Span
from stages.asset_pass import Seen
from stages.media.cutting import cut_clip, verify_clip
from stages.media.decoder import Decoder, DecoderConfig
from stages.media.probe import check_lengths
from stages.shot_split.content import Boundary
from stages.shot_split.stage import with_new_shapes
from tests.stages.media.awkward_media import (
    Film,
    Track,
    animated_png,
    frequency_of,
    multiplex,
    scrambled,
    wave_file,
    write,
)

ORIGINAL, DEFAULT, COMMENT = (av.stream.Disposition[name] for name in ("original", "default", "comment"))
AAC = Track(440, codec="aac")
MP2 = Track(440, codec="mp2")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    media = Decoder(tmp_path_factory.mktemp("scratch"), DecoderConfig(timeout_s=120.0))
    yield media
    media.close()


def heard_hz(decoder: Decoder, path: Path) -> float:
    return frequency_of(decoder.audio(path).samples, 16_000)


def refused(decoder: Decoder, path: Path) -> MediaError:
    """Why probing refuses it; asked without decoding first, as the stage asks."""
    try:
        decoder.probe(path, decode=False)
        decoder.probe(path)
    except MediaError as error:
        return error
    pytest.fail(f"{path.name} was not refused")


# --- programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Program 1 has the better sound (more samples, 300 Hz), program 2 the larger picture (800 Hz)."""
    folder = tmp_path_factory.mktemp("programs")
    one = write(
        folder / "one.ts", [Film((96, 64), level=60)], [Track(300, codec="mp2")],
        mpegts_start_pid="256", mpegts_pmt_start_pid="4096",
    )  # fmt: skip
    two = write(
        folder / "two.ts", [Film((128, 96), level=180)], [Track(800, 32_000, codec="mp2")],
        mpegts_start_pid="512", mpegts_pmt_start_pid="4128",
    )  # fmt: skip
    return [one, two]


def test_picture_and_sound_are_of_one_program(programs: list[Path], tmp_path: Path, decoder: Decoder) -> None:
    both = multiplex(tmp_path / "both.ts", programs)
    found = decoder.probe(both)
    assert (found["width_px"], found["audio_rate_hz"]) == (128, 32_000)
    assert heard_hz(decoder, both) == pytest.approx(800, abs=10)
    assert len(found["audio_ignored"]) == 1
    assert "mp2" in found["audio_ignored"][0]
    assert decoder.frames(both, format="gray").images.mean() > 120


def test_a_program_that_is_scrambled_is_left_for_one_that_is_not(
    programs: list[Path], tmp_path: Path, decoder: Decoder
) -> None:
    both = scrambled(multiplex(tmp_path / "both.ts", programs), [512, 513])
    assert decoder.probe(both)["width_px"] == 96
    assert heard_hz(decoder, both) == pytest.approx(300, abs=10)


def test_streams_that_begin_in_the_middle_stop_nothing(programs: list[Path], tmp_path: Path, decoder: Decoder) -> None:
    """A broadcast whose table changes, further on than libav looks before it begins (5 MB)."""
    one, two = (path.read_bytes() for path in programs)
    padding = (b"\x47\x1f\xff\x10" + bytes(184)) * (6_000_000 // 188)
    path = tmp_path / "changes.ts"
    path.write_bytes(one + padding + two + one)
    found = decoder.probe(path)
    assert (found["num_frames"], found["clock_restarts"]) == (50, 1)


# --- which sound


@pytest.mark.parametrize(
    ("first", "second", "is_second"),
    [
        ({"flags": DEFAULT}, {"flags": ORIGINAL}, True),
        ({"flags": DEFAULT | ORIGINAL}, {}, False),
        ({"flags": DEFAULT, "tags": {"title": "Director's commentary"}}, {}, True),
        ({"flags": DEFAULT, "tags": {"title": "Audio Description (English)"}}, {}, True),
        ({"flags": DEFAULT, "tags": {"title": "Kommentar der Regie"}}, {"tags": {"title": "Deutsch"}}, True),
        ({"flags": COMMENT}, {"channels": 1}, True),
        ({"flags": DEFAULT}, {"channels": 2}, False),
        ({"tone_hz": 0.0, "flags": DEFAULT}, {}, True),
        ({"tone_hz": 0.0, "flags": DEFAULT}, {"tags": {"title": "Commentary"}}, False),
    ],
)
def test_the_sound_of_the_place_is_chosen(
    tmp_path: Path, decoder: Decoder, first: dict[str, Any], second: dict[str, Any], is_second: bool
) -> None:
    one = {"tone_hz": 300.0, "channels": 2, "seconds": 0.5} | first
    two = {"tone_hz": 800.0, "channels": 2, "seconds": 0.5} | second
    path = write(tmp_path / "two.mkv", [], [Track(**one), Track(**two)])
    found = decoder.probe(path)
    assert found["audio_streams"] == [int(is_second)]
    assert len(found["audio_ignored"]) == 1
    assert str((first if is_second else second).get("tags", {}).get("title", "")) in found["audio_ignored"][0]


def test_a_recipe_names_the_language(tmp_path: Path) -> None:
    tracks = [
        Track(300, flags=DEFAULT, tags={"language": "eng"}),
        Track(800, tags={"language": "ger", "title": "Originalton"}),
    ]
    path = write(tmp_path / "two.mkv", [], tracks)
    heard = {}
    for wanted in ((), ("deu", "ger"), ("fra",)):
        media = Decoder(tmp_path / "scratch", DecoderConfig(audio_languages=wanted))
        found = media.probe(path)
        heard[wanted] = (round(heard_hz(media, path), -2), found["audio_language"])
        media.close()
    assert heard == {(): (300, "eng"), ("deu", "ger"): (800, "ger"), ("fra",): (300, "eng")}
    assert (found["audio_title"], found["audio_ignored"]) == (
        None,
        ["stream 1: ger, 'Originalton', pcm_s16le, 1 channels"],
    )


@pytest.mark.parametrize(
    ("suffix", "rates"), [(".mov", (48_000, 44_100, 48_000)), (".mkv", (48_000,) * 3), (".mxf", (48_000,) * 3)]
)
def test_mono_tracks_are_heard_together(tmp_path: Path, decoder: Decoder, suffix: str, rates: tuple[int, ...]) -> None:
    """A camera's microphones: the first is not plugged in, the others hear somebody each."""
    tracks = [Track(tone, rate) for tone, rate in zip((0, 300, 800), rates, strict=True)]
    path = write(tmp_path / f"camera{suffix}", [Film(num=25)], tracks)
    found = decoder.probe(path)
    assert found["audio_streams"] == [1, 2, 3]
    assert (found["audio_channels"], found["audio_layout"], found["audio_ignored"]) == (3, "3 x mono", [])
    sound = decoder.audio(path)
    spectrum = np.abs(np.fft.rfft(sound.samples[:16_000]))
    assert set(np.argsort(spectrum)[-2:]) == {300, 800}
    assert np.abs(sound.samples).max() == pytest.approx(0.4, abs=0.03)  # silence takes no part in the mix
    stereo = decoder.audio(path, rate_hz=48_000, channels=2).samples
    assert np.array_equal(stereo[:, 0], stereo[:, 1])
    assert decoder.audio(path, rate_hz=None, mono=False).samples.shape[1] == 3


def test_a_track_of_no_known_codec_is_named_too(tmp_path: Path, decoder: Decoder) -> None:
    path = write(tmp_path / "two.mkv", [], [Track(300, flags=DEFAULT), Track(800, codec="flac")])
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_WHAT"))
    assert decoder.probe(path)["audio_ignored"] == ["stream 1: unknown codec"]


def test_mono_tracks_in_two_languages_are_not(tmp_path: Path, decoder: Decoder) -> None:
    tracks = [Track(300, tags={"language": "eng"}), Track(800, tags={"language": "spa"})]
    path = write(tmp_path / "dub.mkv", [], tracks)
    assert decoder.probe(path)["audio_ignored"] == ["stream 1: spa, pcm_s16le, 1 channels"]
    assert heard_hz(decoder, path) == pytest.approx(300, abs=10)


# --- shapes


def _spans(found: dict[str, Any]) -> list[Span]:
    marks = [found["video_start_pts"], *found["reshaped_pts"], found["video_end_pts"]]
    return [Span(a, b, found["tb_num"], found["tb_den"]) for a, b in pairwise(marks)]


@pytest.mark.parametrize(
    ("films", "sizes"),
    [
        ((Film((176, 144), sar=Fraction(12, 11)), Film((176, 144), sar=Fraction(16, 11), level=160)), [(192, 144), (256, 144)]),
        ((Film((176, 144), sar=Fraction(16, 11)), Film((176, 144), sar=Fraction(12, 11), level=160)), [(256, 144), (192, 144)]),
        ((Film((96, 64)), Film((128, 96), level=160)), [(96, 64), (128, 96)]),
        ((Film((96, 64), "libx264"), Film((96, 64), "libx264", Fraction(4, 3), 160)), [(96, 64), (128, 64)]),
    ],
    ids=["4:3 to 16:9", "16:9 to 4:3", "size", "h264"],
)  # fmt: skip
def test_a_picture_that_changes_its_shape_is_cut_there_and_right_on_both_sides(
    tmp_path: Path, decoder: Decoder, films: tuple[Film, Film], sizes: list[tuple[int, int]]
) -> None:
    parts = [write(tmp_path / f"{n}.ts", [film], [MP2]).read_bytes() for n, film in enumerate(films)]
    path = tmp_path / "switch.ts"
    path.write_bytes(b"".join(parts))
    found = decoder.probe(path)
    assert found["num_frames"] in (49, 50)  # MPEG-2 loses the picture it holds back where the size changes
    assert len(found["reshaped_pts"]) == 1
    for span, size in zip(_spans(found), sizes, strict=True):
        report = cut_clip(path, span, tmp_path / "clip.mp4", decoder=decoder)
        verify_clip(tmp_path / "clip.mp4", report, decoder=decoder)
        assert (report.width_px, report.height_px) == size
        written = decoder.probe(tmp_path / "clip.mp4")
        assert (written["width_px"], written["height_px"]) == size
    assert len(decoder.frames(path, long_side_px=48).images) == found["num_frames"]


def test_the_index_says_what_an_odd_picture_became(tmp_path: Path, decoder: Decoder) -> None:
    path = write(tmp_path / "odd.mkv", [Film((96, 64), "libx264", Fraction(97, 96))], [])
    found = decoder.probe(path)
    assert found["width_px"] == 97
    report = cut_clip(path, _spans(found)[0], tmp_path / "clip.mp4", decoder=decoder)
    assert (report.width_px, report.height_px) == (96, 64)


# --- clocks


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One flash-and-click film of 2 s in containers that people join with `cat`."""
    folder = tmp_path_factory.mktemp("recordings")
    film = folder / "film.mkv"
    flash_and_click(film, 2.0, Encoding(96, 64, extra={"bf": "2"}), seed=3)
    transport = folder / "film.ts"
    with av.open(str(film)) as source, av.open(str(transport), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    mixed = write(folder / "film.mpg", [Film(num=50)], [Track(440, codec="mp2", seconds=2.0)])
    return {path.suffix: path for path in (film, transport, mixed)}


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mpg"])
def test_time_goes_on_where_joined_recordings_begin_anew(
    recordings: dict[str, Path], tmp_path: Path, decoder: Decoder, suffix: str
) -> None:
    once = decoder.probe(recordings[suffix])
    path = tmp_path / f"joined{suffix}"
    num = 2 if suffix == ".mkv" else 3
    path.write_bytes(recordings[suffix].read_bytes() * num)
    found = decoder.probe(path)
    assert (found["num_frames"], found["clock_restarts"]) == (num * once["num_frames"], num - 1)
    assert found["duration_us"] == pytest.approx(num * once["duration_us"], abs=200_000)
    whole = decoder.frames(path, size=(48, 32), format="gray")
    fresh = Decoder(tmp_path / "scratch")  # knows nothing of the file, and is asked for what a seek by time would miss
    base, at = Fraction(whole.num, whole.den), len(whole.pts) - 20
    part = fresh.frames(path, start=int(whole.pts[at]) * base, size=(48, 32), format="gray")
    fresh.close()
    assert np.array_equal(part.images, whole.images[at:])
    if suffix != ".mpg":
        flashes = whole.times_s[whole.images[:, 16:].mean(axis=(1, 2)) > 160]
        sound = decoder.audio(path, rate_hz=48_000)
        loud = np.flatnonzero(np.abs(sound.samples) > 0.3)
        clicks = loud[np.insert(np.diff(loud) > 1000, 0, True)] / 48_000 + float(sound.start)
        assert len(flashes) == len(clicks) >= 3 * num
        assert np.abs(flashes - clicks).max() < 3e-3


def test_clips_behind_a_restart_are_cut_in_step(recordings: dict[str, Path], tmp_path: Path, decoder: Decoder) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(recordings[".ts"].read_bytes() * 2)
    whole = decoder.frames(path, size=(8, 8))
    span = Span(int(whole.pts[60]), int(whole.pts[90]), whole.num, whole.den)
    report = cut_clip(path, span, tmp_path / "clip.mp4", decoder=decoder)
    assert (verify_clip(tmp_path / "clip.mp4", report, decoder=decoder).frame_error_us, report.num_frames) == (0, 30)


def test_a_pause_of_the_recorder_in_a_transport_stream_is_left_out(tmp_path: Path, decoder: Decoder) -> None:
    path = tmp_path / "pause.ts"
    parts = [
        write(tmp_path / f"{at}.ts", [Film(starts=(at,))], [Track(440, codec="mp2", starts=(at,))]) for at in (0, 40)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = decoder.probe(path)
    assert (found["num_frames"], found["clock_restarts"]) == (50, 1)
    assert found["duration_us"] == pytest.approx(2_000_000, abs=100_000)
    assert found["audio_gap_s"] < 0.1


def test_joined_files_of_which_not_all_can_be_read_are_refused(tmp_path: Path, decoder: Decoder) -> None:
    for name, films, tracks, num in (
        ("a.mp4", [Film()], [AAC], 2),
        ("a.wav", [], [Track(440)], 2),
        ("a.mkv", [Film()], [Track(440)], 3),
    ):
        path = write(tmp_path / name, films, tracks)
        path.write_bytes(path.read_bytes() * num)
        error = refused(decoder, path)
        assert error.reason == "joined_files"
        assert f"{num} files" in str(error)


# --- encryption


@pytest.mark.parametrize(
    "movflags", ["faststart", "frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof"]
)
def test_common_encryption_is_recognised(tmp_path: Path, decoder: Decoder, movflags: str) -> None:
    path = write(
        tmp_path / "locked.mp4", [Film(codec="libx264")], [AAC],
        encryption_scheme="cenc-aes-ctr", encryption_key="00112233445566778899aabbccddeeff",
        encryption_kid="0123456789abcdef0123456789abcdef", movflags=movflags,
    )  # fmt: skip
    error = refused(decoder, path)
    assert error.reason == "encrypted"
    assert "without its key" in str(error)


@pytest.mark.parametrize(("pids", "begin"), [((256, 257), 0.0), ((256,), 0.0), ((256, 257), 0.6)])
def test_a_scrambled_transport_stream_is_recognised(
    tmp_path: Path, decoder: Decoder, pids: tuple[int, ...], begin: float
) -> None:
    clear = write(tmp_path / "clear.ts", [Film(num=50)], [Track(440, codec="mp2", seconds=2.0)])
    assert decoder.probe(clear)["num_frames"] == 50
    assert refused(decoder, scrambled(clear, pids, begin)).reason == "encrypted"


# --- words


def test_what_is_no_whole_file_is_called_what_it_is(tmp_path: Path, decoder: Decoder) -> None:
    whole = write(tmp_path / "whole.mp4", [Film(codec="libx264")], [AAC], movflags="frag_keyframe+empty_moov")
    content = whole.read_bytes()
    segment = content[content.index(b"moof") - 4 :]
    webm = write(tmp_path / "whole.mkv", [Film(codec="libx264")], [])
    cases = {
        "segment.m4s": (segment, "no_init_segment", "initialisation segment"),
        "piece.webm": (
            webm.read_bytes()[webm.read_bytes().index(b"\x1f\x43\xb6\x75") :],
            "no_init_segment",
            "beginning",
        ),
        "packed.mp4": (gzip.compress(content), "packed_file", "gzip"),
        "packed.mkv": (b"PK\x03\x04" + bytes(100), "packed_file", "zip"),
        "moves.webp": (b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(90), "animated_picture", "animated WebP"),
        "still.webp": (b"RIFF\x64\0\0\0WEBPVP8 " + bytes(90), "still_picture", "still picture"),
    }
    for name, (data, reason, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        error = refused(decoder, tmp_path / name)
        assert error.reason == reason, name
        assert words in str(error), name


def test_an_animated_avif_moves(tmp_path: Path, decoder: Decoder) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        path = write(tmp_path / "moves.avif", [Film((96, 64), "libsvtav1", num=10)], [])
    finally:
        os.sched_setscheduler(0, *before)  # as root, SVT-AV1 leaves who opens it with the highest real-time priority
    assert decoder.probe(path)["num_frames"] == 10


# --- bombs


def test_bombs_are_refused_before_they_cost_anything(tmp_path: Path, decoder: Decoder) -> None:
    film = Film(num=50)
    bombs = {
        "gaps of sound": (
            write(tmp_path / "gaps.mkv", [film], [Track(440, 8000, seconds=1.3, starts=range(0, 5000, 500))]),
            "broken_timestamps",
        ),
        "one leap of the picture": (
            write(tmp_path / "leap.mp4", [Film(num=50, codec="libx264", starts=(0, 3000))], [AAC]),
            "broken_timestamps",
        ),
        "endless sound": (
            write(tmp_path / "flac.mkv", [film], [Track(0, 8000, codec="flac", seconds=100)]),
            "sound_outlasts_picture",
        ),
        "a sample a second": (wave_file(tmp_path / "slow.wav", 1, 1, 20_000), "broken_sound"),
        "too fast": (wave_file(tmp_path / "fast.wav", 2**31 - 1, 1, 20_000), "broken_sound"),
        "channels": (wave_file(tmp_path / "channels.wav", 8000, 255, 80), "broken_sound"),
        "pixels": (animated_png(tmp_path / "large.apng", 8000, 8000), "too_many_pixels"),
        "pixels in a film": (
            write(tmp_path / "wide.mp4", [Film((16_384, 2160), "mjpeg", num=1)], []),
            "too_many_pixels",
        ),
    }
    for name, (path, reason) in bombs.items():
        before = decoder.cpu_s
        assert refused(decoder, path).reason == reason, name
        assert decoder.cpu_s - before < 2, name
        assert path.stat().st_size < 2_000_000, name


def test_a_pause_of_twenty_minutes_in_matroska_is_left_out_or_kept_in_step(tmp_path: Path, decoder: Decoder) -> None:
    path = write(
        tmp_path / "away.mkv", [Film(num=50, starts=(0, 1200))], [Track(440, 8000, seconds=2.0, starts=(0, 1200))]
    )
    found = decoder.probe(path)
    assert (found["num_frames"], found["clock_restarts"]) == (50, 1)
    assert found["duration_us"] == pytest.approx(2_000_000, abs=100_000)


def test_sound_that_needs_more_scratch_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mkv", [], [Track(0, 8000, codec="flac", seconds=60)])
    media = Decoder(tmp_path / "scratch", DecoderConfig(scratch_gb=0.001))
    with pytest.raises(MediaError, match=r"decoder\.scratch_gb") as caught:
        media.audio(path)
    assert caught.value.reason == "too_long"
    assert not list((tmp_path / "scratch").iterdir())
    assert media.audio(path, rate_hz=4000).samples.nbytes == 960_000
    with pytest.raises(MediaError, match="of scratch"):
        media.audio(path, rate_hz=2000)  # what is kept counts
    media.close()


def test_large_pictures_come_in_shorter_runs(tmp_path: Path, decoder: Decoder) -> None:
    path = write(tmp_path / "large.mp4", [Film((3840, 2160), "mjpeg", num=12)], [])
    runs = [len(run.pts) for run in decoder.iter_frames(path, chunk=64)]
    assert sum(runs) == 12
    assert max(runs) * 3840 * 2160 * 3 <= 256 << 20


def test_words_of_libav_are_no_crash(tmp_path: Path, decoder: Decoder) -> None:
    """A stream whose channels have no layout that a resampler knows."""
    path = wave_file(tmp_path / "channels.wav", 8000, 63, 800)
    assert decoder.probe(path)["audio_channels"] == 63
    assert decoder.audio(path, channels=2).samples.shape[1] == 2


def test_lengths_that_a_file_cannot_have_are_refused() -> None:
    sound = {"start_s": Fraction(0), "end_s": Fraction(40_000), "gap_s": 0.0}
    alone = {"has_video": False, "duration_us": 40_000_000_000}
    check_lengths(alone, 0.0, sound, 40_000 * 350)
    for about, holes_s, num_bytes, reason in (
        (alone, 0.0, 1_000_000, "empty_sound"),
        ({"has_video": True, "duration_us": 4_000_000}, 0.0, 40_000 * 350, "sound_outlasts_picture"),
    ):
        with pytest.raises(MediaError) as caught:
            check_lengths(about, holes_s, sound, num_bytes)
        assert caught.value.reason == reason
    slides = {"has_video": True, "duration_us": 40_000_000_000}
    check_lengths(slides, 39_000.0, sound, 40_000 * 350)  # a lecture: what is said is worth its slides
    with pytest.raises(MediaError, match=r"39000 s without any picture"):
        check_lengths(slides, 39_000.0, None, 40_000 * 350)


def test_a_new_shape_is_a_cut_unless_there_is_one() -> None:
    seen = Seen(pts=np.arange(0, 1000, 10))
    cut, fade = Boundary(20, 20, "hard", 0.9), Boundary(50, 60, "gradual", 0.7)
    found = with_new_shapes([cut, fade], seen, [200, 400, 550])
    assert found == [cut, Boundary(40, 40, "hard", 1.0), fade]
