"""The probe measures what a file holds by reading it: against known-truth files and a manifest of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.clips import flash_and_click, variable_rate
from pipeline.demo.write import Encoding
from schemas.errors import MediaError
from stages.base import Context
from stages.media.probe import is_variable
from stages.probe import ADDS, Probe, ProbeConfig

SMALL = Encoding(width_px=192, height_px=96)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Probes a file, with one decoder for all tests."""
    context = Context(tmp_path_factory.mktemp("scratch"))

    def ask(path: Path, **options: Any) -> dict[str, Any]:
        stage = Probe(ProbeConfig(**options))
        stage.setup(context)
        (result,) = stage.process([{"download": {"path": str(path)}}])
        if isinstance(result, Exception):
            raise result
        return result

    yield ask
    context.media.close()


@pytest.fixture(scope="module")
def probed(probe: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """Of a file that nobody writes to: probed once."""
    return cache(probe)


def test_fields_are_those_declared(probe: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    flash_and_click(path, 1.0, SMALL)
    found = probe(path)
    assert set(found) == {field.name for field in ADDS}
    assert {name for name, value in found.items() if value is None} == {
        "color_transfer",
        "audio_language",
        "audio_title",
    }


@pytest.mark.parametrize("decode", [True, False])
def test_known_truth(probe: Any, tmp_path: Path, decode: bool) -> None:
    path = tmp_path / "ntsc.mp4"
    encoding = replace(SMALL, fps=Fraction(30000, 1001), sound_start_s=0.25)
    flash_and_click(path, 2.0, encoding)
    found = probe(path, decode=decode)
    assert (found["container"], found["video_codec"], found["audio_codec"]) == ("mov", "h264", "aac")
    assert (found["width_px"], found["height_px"], found["sar"], found["rotation_deg"]) == (192, 96, 1.0, 0)
    assert found["fps"] == pytest.approx(30000 / 1001, abs=1e-9)
    assert found["num_frames"] == encoding.frames_in(2.0)
    assert not found["is_vfr"]
    base = Fraction(found["tb_num"], found["tb_den"])
    length = (found["video_end_pts"] - found["video_start_pts"]) * base
    assert length == found["num_frames"] / encoding.fps
    assert found["duration_us"] == round(length * 1_000_000)
    assert found["audio_start_s"] == pytest.approx(0.25, abs=1025 / 48_000)
    assert found["damaged_packets"] == 0


def test_variable_rate_and_late_start(probe: Any, tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    encoding = variable_rate(2.0, 1, SMALL)
    flash_and_click(path, 2.0, encoding)
    found = probe(path)
    assert found["is_vfr"]
    assert found["num_frames"] == encoding.frames_in(2.0)
    assert found["fps"] == pytest.approx(found["num_frames"] / (found["duration_us"] / 1e6))


def test_rounding_of_the_clock_is_no_variable_rate() -> None:
    assert not is_variable([0, 33, 67, 100, 133, 167])
    assert not is_variable([0, 1, 2, 3])
    assert not is_variable([7])
    assert is_variable([0, 33, 67, 133, 167])
    assert is_variable([0, 3000, 6000, 7500, 10500])


def test_damage_is_counted_not_raised(probe: Any, tmp_path: Path) -> None:
    path, hurt = tmp_path / "a.mkv", tmp_path / "hurt.mkv"
    flash_and_click(path, 3.0, SMALL)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data), 701):
        data[at] ^= 0x5A
    hurt.write_bytes(data)
    assert probe(path)["damaged_packets"] == 0
    found = probe(hurt)
    assert found["damaged_packets"] > 0
    assert 0 < found["num_frames"] <= 75


def test_a_truncated_file_ends_where_its_bytes_end(probe: Any, tmp_path: Path) -> None:
    path, half = tmp_path / "a.mkv", tmp_path / "half.mkv"
    flash_and_click(path, 3.0, SMALL)
    data = path.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    found = probe(half)
    assert 0.5e6 < found["duration_us"] < 2.5e6
    assert found["num_frames"] == pytest.approx(found["duration_us"] / 40_000, abs=1)


def test_a_file_that_holds_nothing_is_an_error(probe: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.mp4"
    path.write_text("<html><body>not found</body></html>")
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert caught.value.reason == "web_page"


# --- real media


def _items(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "manifest.json").read_text())["items"])


KNOWN_DIFFERENCES: dict[str, dict[str, float]] = {
    # Its manifest's reader moves the picture forward to the edit's start; the container says 20 ms later.
    "edit_list_preroll_trim_copy.mov": {"start_s": 0.02},
    # B-frames in AVI have no stored times: the first frame out of the decoder is one frame late.
    "mpeg4_xvid_mp3.avi": {"start_s": 0.04},
    # The first whole frame comes after the manifest's first packet.
    "mpegts_starts_mid_gop.ts": {"start_s": 4.48},
    # Two recordings joined with overlapping times: two frames do not move time forward.
    "resolution_changes_mid_stream.ts": {"frames": 98},
    # The manifest counts the first of two video streams.
    "real_two_video_two_audio_two_subtitle_streams_8k_16k.mp4": {"frames": 390},
}


@pytest.mark.slow
def test_awkward_files_are_as_their_manifest_says(media_dir: Path, probed: Any) -> None:
    """Frame counts, starts and streams of every small awkward file; the known differences are listed above."""
    num_read = 0
    for item in _items(media_dir):
        path, truth = media_dir / item["path"], item["probe"]
        if "awkward" not in item["path"] or item["bytes"] > 800_000:
            continue
        if not truth["readable_by_ffprobe"]:
            with pytest.raises(MediaError) as caught:
                probed(path)
            assert caught.value.reason in ("empty_file", "web_page", "no_index", "not_decodable")
            continue
        num_read += 1
        found, known = probed(path), KNOWN_DIFFERENCES.get(path.name, {})
        streams = {stream["index"]: stream for stream in truth["streams"]}
        assert found["has_audio"] == any(s["type"] == "audio" for s in streams.values()), path.name
        if found["has_video"]:
            stream = streams[found["video_stream"]]
            frames = known.get("frames", truth.get("decoded_video_frames"))
            assert found["num_frames"] == frames, path.name
            start_s = known.get("start_s", stream["start_s"] or 0)
            assert found["video_start_s"] == pytest.approx(start_s, abs=2e-3), path.name
            assert stream["codec"] == found["video_codec"], path.name
        if found["has_audio"]:
            stream = streams[found["audio_stream"]]
            assert found["audio_rate_hz"] == stream["sample_rate"], path.name
            assert found["audio_channels"] == stream["channels"], path.name
    assert num_read > 40


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotate90_metadata_phone_portrait.mp4", {"rotation_deg": 90, "width_px": 360, "height_px": 640}),
        ("real_upside_down_phone_vfr_rotation180.mp4", {"rotation_deg": 180, "num_frames": 25}),
        ("anamorphic_sar_64_45.mp4", {"width_px": 256, "coded_width_px": 240}),
        ("real_sar_2_3.mp4", {"width_px": 427, "height_px": 360}),
        ("hevc_main10_hdr10_pq.mp4", {"is_hdr": True, "color_transfer": "smpte2084"}),
        ("interlaced_tff_mpeg2.mpg", {"is_interlaced": True}),
        ("real_cover_picture_as_second_video_stream.mp4", {"video_stream": 0, "num_video_streams": 2}),
        ("chapters_subtitles_cover.mkv", {"video_stream": 0, "num_video_streams": 2}),
        ("three_audio_tracks_second_is_default.mkv", {"audio_stream": 2, "num_audio_streams": 3}),
        ("real_audio_stream_listed_first_timecode_track.mov", {"video_stream": 1, "audio_stream": 0}),
        ("real_two_video_two_audio_two_subtitle_streams_8k_16k.mp4", {"video_stream": 3, "audio_stream": 4}),
        ("audio_only.m4a", {"has_video": False, "has_audio": True, "num_frames": 0}),
        ("video_only_no_audio.mp4", {"has_audio": False}),
        ("vfr_dropped_frames_and_stall.mp4", {"is_vfr": True, "num_frames": 115}),
        ("webm_with_wrong_extension.mp4", {"container": "matroska", "video_codec": "vp9"}),
    ],
)
def test_what_is_special_is_seen(media_dir: Path, probed: Any, name: str, expected: dict[str, Any]) -> None:
    path = media_dir / "awkward" / name
    if not path.exists():
        pytest.skip("awkward files are not here")
    found = probed(path)
    assert {key: found[key] for key in expected} == expected


def test_damage_in_real_files(media_dir: Path, probed: Any) -> None:
    folder = media_dir / "awkward"
    for name in ("bit_flips_in_mdat.mp4", "mpegts_starts_mid_gop.ts", "truncated_tail.mp4"):
        assert probed(folder / name)["damaged_packets"] > 0, name
    gap = probed(folder / "audio_starts_late_and_has_hole.mkv")
    assert gap["audio_gap_s"] == pytest.approx(0.7, abs=0.03)
    assert gap["audio_start_s"] == pytest.approx(1.022, abs=1e-3)
    assert probed(folder / "real_vp9_opus_no_duration.webm")["duration_us"] == pytest.approx(4.94e6, rel=0.01)
    assert probed(folder / "truncated_tail.mp4")["duration_us"] == pytest.approx(3.48e6, rel=0.02)
