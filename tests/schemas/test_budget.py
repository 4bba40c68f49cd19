"""The budget arithmetic against published figures: golden bucket tables, parameter count, cost table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.budget import (
    NAVA_6B,
    RESOLUTIONS,
    ModelShape,
    aspect_label,
    audio_tokens,
    clip_budget,
    estimated_text_tokens,
    forward_flops,
    length_bucket,
    native_resolution,
    num_parameters,
    paired_audio_tokens,
    pixel_bucket,
    snap_frames,
    training_flops,
    video_tokens,
)

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "nava_tiny" / "buckets.json"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.exists():
        pytest.skip(f"golden vectors not present at {GOLDEN}")
    return json.loads(GOLDEN.read_text())


def test_buckets_equal_the_official_release(golden: dict[str, Any]) -> None:
    for row in golden["aspect_ratio_table"]:
        height, width = row["height"], row["width"]
        assert aspect_label(height, width) == row["ratio_label"], (height, width)
        for resolution in RESOLUTIONS:
            assert list(pixel_bucket(height, width, resolution)) == row[f"target_hw_{resolution}"], (height, width)


def test_length_buckets_and_audio_rule_equal_the_official_release(golden: dict[str, Any]) -> None:
    for table in golden["length_buckets"]:
        lengths = [int(k) for k in table["table"]]
        got = length_bucket(lengths, table["min_len"], table["max_len"], table["num_buckets"])
        assert got.tolist() == list(table["table"].values())
    for row in golden["av_length_rule"]:
        assert paired_audio_tokens(row["pixel_frames"]) == row["audio_tokens"]


def test_the_two_official_bucket_rules_disagree_where_they_should() -> None:
    assert aspect_label(895, 1000) == "1/1"
    assert pixel_bucket(895, 1000) == (864, 1056)


def test_parameters_equal_the_release() -> None:
    assert num_parameters(NAVA_6B) == 6_296_995_520
    split = ModelShape.from_config({**_fields(NAVA_6B), "is_ffn_shared": False})
    assert num_parameters(split) == 7_178_034_880


def _fields(shape: ModelShape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in ModelShape.__slots__}


@pytest.mark.parametrize(
    ("clip", "video", "audio", "forward_tflop"),
    [
        ((121, 704, 1280), 27_280, 127, 521),
        ((121, 960, 960), 27_900, 127, 539),
        ((121, 480, 832), 12_090, 127, 164),
        ((25, 704, 1280), 6_160, 27, 70),
        ((241, 704, 1280), 53_680, 252, 1_552),
        ((1441, 704, 1280), 317_680, 1_502, 40_391),
    ],
)
def test_cost_table_of_known_clips(clip: tuple[int, int, int], video: int, audio: int, forward_tflop: int) -> None:
    frames, height, width = clip
    assert video_tokens(frames, height, width) == video
    assert paired_audio_tokens(frames) == audio
    assert round(float(forward_flops(NAVA_6B, video, audio).total) / 1e12) == forward_tflop
    assert float(training_flops(NAVA_6B, video, audio)) == pytest.approx(3e12 * forward_tflop, rel=0.01)


def test_quadratic_cost_meets_linear_cost_at_23552_tokens() -> None:
    flops = forward_flops(NAVA_6B, 23_552, 0)
    assert float(flops.self_attention) == float(flops.blocks)


def test_text_is_a_third_of_a_short_sound_and_nothing_of_a_long_clip() -> None:
    sound, clip = forward_flops(NAVA_6B, 0, 125), forward_flops(NAVA_6B, 53_680, 252)
    assert 0.30 < float((sound.text + sound.cross_attention) / sound.total) < 0.40
    assert float(clip.text / clip.total) < 0.001
    short_text = forward_flops(NAVA_6B, 0, 125, 40)
    assert float(short_text.total) < 0.75 * float(sound.total)


def test_arrays_and_numbers_agree_and_padding_only_adds() -> None:
    video, audio, text = np.array([0, 27_280, 6_160]), np.array([125, 127, 0]), np.array([10, 512, 300])
    together = forward_flops(NAVA_6B, video, audio, text).total
    alone = [
        float(forward_flops(NAVA_6B, int(v), int(a), int(t)).total) for v, a, t in zip(video, audio, text, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-15)
    padded = forward_flops(NAVA_6B, video, audio, text, num_query_tokens=np.full(3, 27_407)).total
    assert (padded >= together).all()
    assert padded[1] == together[1]


def test_analytic_flops_equal_a_counted_matmul_chain() -> None:
    """One tiny joint block stack counted product by product, independently of the formula's grouping."""
    shape = ModelShape(
        dim=64,
        ffn_dim=160,
        num_heads=2,
        num_double_layers=2,
        num_single_layers=3,
        text_len=16,
        text_dim=48,
        video_channels=6,
        audio_channels=10,
        frequency_dim=32,
    )
    video, audio, text, d = 12, 5, 16, 64

    def product(m: int, k: int, n: int) -> int:
        return 2 * m * k * n

    total = product(video, 24, d) + product(video, d, 24)
    total += product(audio, 7 * 10, d) + 3 * product(audio, 7 * d, shape.audio_stem_dim) + product(audio, d, 10)
    total += product(text, 48, d) + product(text, d, d)
    total += product(1, 32, d) + product(1, d, d) + product(1, d, 6 * d)
    for layer in range(5):
        streams = [video, audio] if layer < 2 else [video + audio]
        for rows in streams:
            total += 4 * product(rows, d, d) + 2 * product(rows, d, d) + 2 * product(text, d, d)
            total += 2 * product(rows, d, text) + product(rows, d, 160) + product(rows, 160, d)
        total += 2 * product(video + audio, d, video + audio)
    assert float(forward_flops(shape, video, audio).total) == total


@given(height=st.integers(64, 4320), width=st.integers(64, 4320), resolution=st.sampled_from(RESOLUTIONS))
def test_a_bucket_keeps_orientation_and_is_reached_by_symmetry(height: int, width: int, resolution: int) -> None:
    tall, wide = pixel_bucket(height, width, resolution)
    assert (tall > wide) == (height > width) or tall == wide
    if height != width:
        assert pixel_bucket(width, height, resolution) == (wide, tall)
    assert tall % 16 == wide % 16 == 0
    chosen = pixel_bucket(height, width, native_resolution(height, width))
    assert np.prod(chosen) <= 1.15 * height * width or native_resolution(height, width) == 256


@given(
    duration=st.floats(0.05, 120),
    size=st.sampled_from([(0, 0), (720, 1280), (1920, 1080), (360, 640), (480, 480)]),
    has_audio=st.booleans(),
    max_frames=st.sampled_from([None, 121, 241]),
)
def test_a_clip_budget_is_consistent(
    duration: float, size: tuple[int, int], has_audio: bool, max_frames: int | None
) -> None:
    if size == (0, 0) and not has_audio:
        with pytest.raises(ValueError, match="nothing to budget"):
            clip_budget(duration_s=duration, has_audio=False)
        return
    budget = clip_budget(
        duration_s=duration, height_px=size[0], width_px=size[1], has_audio=has_audio, max_frames=max_frames
    )
    assert (budget.video_tokens > 0) == (size != (0, 0))
    assert (budget.audio_tokens > 0) == has_audio
    assert budget.train_flops == 3 * budget.forward_flops > 0
    if budget.video_tokens:
        assert budget.num_frames % 4 == 1
        assert budget.num_frames <= min(max(1, duration * 24 + 1e-6), max_frames or 1e9)
        assert budget.bucket == f"{budget.height_px}x{budget.width_px}x{budget.num_frames}"
    else:
        assert budget.bucket == "audio"
        assert budget.audio_tokens == audio_tokens(duration)


def test_frames_are_cropped_never_repeated() -> None:
    assert [snap_frames(n) for n in (1, 4, 5, 8, 9, 120, 121)] == [1, 1, 5, 5, 9, 117, 121]
    exact = clip_budget(duration_s=121 / 24, height_px=720, width_px=1280)
    assert (exact.num_frames, exact.height_px, exact.width_px) == (121, 704, 1280)


def test_text_estimate_is_bounded_and_grows() -> None:
    assert estimated_text_tokens("") == 1
    assert estimated_text_tokens("a quiet room, two people talking") < estimated_text_tokens("word " * 100)
    assert estimated_text_tokens("x" * 100_000) == 512


def test_shape_from_mapping_and_from_object_agree_and_ignore_the_rest() -> None:
    config = {"dim": 64, "ffn_dim": 160, "num_heads": 2, "num_double_layers": 2, "num_single_layers": 2, "seed": 3}
    assert ModelShape.from_config(config) == ModelShape.from_config(SimpleNamespace(**config))
    assert NAVA_6B.audio_stem_dim == 8192
    official = {
        "dim": 3072,
        "ffn_dim": 14336,
        "num_heads": 24,
        "num_double_layers": 10,
        "num_single_layers": 20,
        "vid_in_dim": 48,
        "audio_in_dim": 128,
        "freq_dim": 256,
        "patch_size": [1, 2, 2],
        "eps": 1e-6,
    }
    ours = SimpleNamespace(
        dim=3072,
        ffn_dim=14336,
        num_heads=24,
        num_align_layers=10,
        num_fusion_layers=20,
        max_text_tokens=512,
        timestep_freq_dim=256,
        audio_ffn_dim=8192,
        patch_size=(1, 2, 2),
    )
    assert ModelShape.from_config(official) == ModelShape.from_config(ours) == NAVA_6B
