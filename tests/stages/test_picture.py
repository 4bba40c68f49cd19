"""Picture measures on pictures whose sharpness, bars, freezes and repeats are known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.timing import Span
from stages.base import Context
from stages.media.decoder import Frames
from stages.picture import PICTURE, Picture, PictureConfig, Watch, edge_length, freezes, repeats, standstills
from tests.rows import clip_row, span_of_file, struct_of

WIDTH, HEIGHT = 384, 216


def moving(num: int, *, blur: float = 0.0, level: float = 128.0) -> np.ndarray:
    """Grey pictures [num, 216, 384] of a texture that moves by two pixels a frame."""
    import cv2

    rng = np.random.default_rng(3)
    texture = cv2.GaussianBlur(rng.normal(0, 60, (HEIGHT, WIDTH + 2 * num)), (0, 0), 2.0) * 2
    frames = np.stack([texture[:, 2 * t : 2 * t + WIDTH] + level for t in range(num)])
    if blur:
        frames = np.stack([cv2.GaussianBlur(f, (0, 0), blur) for f in frames])
    return frames.clip(0, 255).astype(np.uint8)


def measured(frames: np.ndarray, fps: float = 25.0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict[str, Any]:
    watch, den = Watch(), round(1000 * fps)
    for low, high in ((0, 7), (7, len(frames))):
        pts = 1000 * np.arange(low, high)
        watch.see(Frames(frames[low:high], pts, 1000 * high, 1, den, np.zeros(high - low, np.bool_)))
    return watch.sums(Span(0, 1000 * len(frames), 1, den), *size)


def test_blur_lowers_sharpness_and_darkness_lowers_brightness() -> None:
    clear, blurred = measured(moving(20)), measured(moving(20, blur=4))
    assert clear["sharpness"] > 10 * blurred["sharpness"]
    assert measured(moving(20, level=60))["brightness"] < clear["brightness"] - 0.2
    assert measured((moving(20) // 4 + 96).astype(np.uint8))["contrast"] < clear["contrast"] / 2


def test_motion_does_not_depend_on_the_frame_rate() -> None:
    fast = moving(100)
    at_50, at_25 = measured(fast, 50.0)["motion"], measured(fast[::2], 25.0)["motion"]
    assert at_50 == pytest.approx(at_25, rel=0.02)
    assert measured(np.repeat(fast[:1], 50, 0))["motion"] == 0


def test_bars_are_given_in_display_pixels() -> None:
    frames = moving(20)
    frames[:, :27] = 5
    frames[:, -18:] = 12
    frames[:, :, -48:] = 0
    frames[:, 10:14, 40:44] = 200  # a logo in the bar
    found = measured(frames, size=(1920, 1080))
    assert found["bar_top_px"] == pytest.approx(27 * 5, abs=5)
    assert found["bar_bottom_px"] == pytest.approx(18 * 5, abs=5)
    assert found["bar_right_px"] == pytest.approx(48 * 5, abs=5)
    assert found["bar_left_px"] == 0


def test_black_pictures_have_no_bars_and_no_picture() -> None:
    frames = moving(50)
    frames[20:] = 3
    found = measured(frames)
    assert found["picture_ratio"] == pytest.approx(0.4)
    black = measured(np.full((30, HEIGHT, WIDTH), 2, np.uint8))
    assert black["picture_ratio"] == 0
    assert black["bar_left_px"] is None
    assert black["freeze_ratio"] == 1
    assert black["true_fps"] is None


def test_freeze_and_repeats_are_told_apart() -> None:
    frames = moving(100)
    frozen = frames.copy()
    frozen[40:70] = frozen[40]
    found = measured(frozen)
    assert found["freeze_ratio"] == pytest.approx(0.3, abs=0.011)
    assert found["duplicate_ratio"] == 0
    assert found["true_fps"] == pytest.approx(25.0)
    doubled = measured(np.repeat(frames, 2, 0), 50.0)
    assert doubled["freeze_ratio"] == 0
    assert doubled["duplicate_ratio"] == pytest.approx(0.5)
    assert doubled["true_fps"] == pytest.approx(25.0)


def test_a_noisy_repeat_between_moving_pictures_is_a_repeat() -> None:
    changes = np.array([np.inf, 12.0, 2.4, 11.0, 2.4, 2.4, 2.4, 12.0])
    assert repeats(changes).tolist() == [False, False, True, False, False, False, False, False]


def test_a_stall_of_a_variable_rate_is_a_freeze() -> None:
    times = np.array([0.0, 0.04, 0.08, 1.08, 1.12])
    found = standstills(np.zeros(4, bool), times)
    assert found["freeze_ratio"] == pytest.approx(1.0 / 1.12)
    assert found["true_fps"] == pytest.approx(25.0)


def test_a_freeze_lasts_from_its_picture_to_the_next() -> None:
    is_repeat = np.array([False, True, True, False, False, True, True, True, True])
    times = np.arange(10) / 10
    assert freezes(is_repeat, times) == [(4, 9)]
    assert freezes(is_repeat, times, 0.3) == [(0, 3), (4, 9)]
    assert freezes(np.array([False, False]), np.array([0.0, 0.6, 0.7])) == [(0, 1)], "one picture can be a freeze"


def test_flicker_is_seen_in_brightness_only() -> None:
    steady = np.full((40, HEIGHT, WIDTH), 120, np.uint8)
    pulsing = steady.copy()
    pulsing[::2] += 20
    assert measured(steady)["flicker"] == 0
    assert measured(pulsing)["flicker"] == pytest.approx(40 / 255, rel=0.01)


def test_edge_length() -> None:
    assert edge_length(np.array([True, True, False, True])) == 2
    assert edge_length(np.array([True, True])) == 2


def row_of(context: Context, path: Path, end_s: Fraction | None = None) -> dict[str, Any]:
    probe = context.media.probe(path, decode=False)
    return clip_row(path, span_of_file(probe, end=end_s), probe=probe)


def test_stage_reads_only_its_clip(tmp_path: Path, context: Context) -> None:
    import av

    path = tmp_path / "half_black.mp4"
    frames = moving(50)
    frames[25:] = 0
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.bit_rate = WIDTH, HEIGHT, 4_000_000
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(image[..., None], 3, 2), format="rgb24")))
        out.mux(stream.encode())
    stage = Picture(PictureConfig())
    stage.setup(context)
    whole, first = stage.process([row_of(context, path), row_of(context, path, Fraction(1))])
    assert isinstance(whole, dict)
    assert isinstance(first, dict)
    assert set(whole) == {field.name for field in PICTURE}
    assert whole["picture_ratio"] == pytest.approx(0.5)
    assert first["picture_ratio"] == 1.0
    assert whole["freeze_ratio"] == pytest.approx(0.5, abs=0.03)
    (broken,) = stage.process(
        [{**row_of(context, path), "download": struct_of("download", path=str(tmp_path / "gone.mp4"))}]
    )
    assert isinstance(broken, Exception)


def test_damage_lasts_until_the_next_key_frame(tmp_path: Path, context: Context) -> None:
    """Two groups of 25 pictures; the eleventh packet is overwritten."""
    import av

    path = tmp_path / "damaged.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=25, options={"g": "25", "bf": "0", "x264-params": "scenecut=0:asm=avx2"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in moving(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(image[..., None], 3, 2), format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][10]
    data = bytearray(path.read_bytes())
    data[packet.pos + 12 : packet.pos + packet.size] = bytes(packet.size - 12)
    path.write_bytes(data)
    stage = Picture(PictureConfig())
    stage.setup(context)
    (found,) = stage.process([row_of(context, path)])
    assert isinstance(found, dict)
    assert found["damaged_ratio"] == pytest.approx(14 / 49)  # the broken one itself is not shown


@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [
        ("awkward/duplicate_frames_50fps_from_25.mp4", "true_fps", 22, 29),
        ("awkward/video_freezes_audio_continues.mp4", "freeze_ratio", 0.25, 0.32),
        ("awkward/still_photo_with_speech.mp4", "freeze_ratio", 0.99, 1.0),
        ("awkward/black_picture_with_speech.mp4", "picture_ratio", 0.0, 0.0),
        ("awkward/pillarboxed_in_16x9.mp4", "bar_left_px", 205, 225),
        ("talking/talking_man_world_map.mp4", "freeze_ratio", 0.0, 0.0),
        ("awkward/bit_flips_in_mdat.mp4", "damaged_ratio", 0.3, 1.0),
        ("awkward/bframes_open_gop.mkv", "damaged_ratio", 0.0, 0.0),
        ("awkward/resolution_changes_mid_stream.ts", "damaged_ratio", 0.0, 0.0),
        ("awkward/mpegts_starts_mid_gop.ts", "damaged_ratio", 0.0, 0.0),
    ],
)
def test_real_files(media_dir: Path, context: Context, name: str, key: str, low: float, high: float) -> None:
    stage = Picture(PictureConfig())
    stage.setup(context)
    (found,) = stage.process([row_of(context, media_dir / name)])
    assert isinstance(found, dict)
    assert low <= found[key] <= high
