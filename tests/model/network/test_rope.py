"""Rotary positions: the ratio follows the rates, the axes are apart, rotation keeps lengths and depends on distance."""

from __future__ import annotations

import pytest
import torch

from model.network import rope
from model.network.config import NavaConfig
from schemas.errors import ModelError


@pytest.mark.parametrize(
    ("rates", "ratio"),
    [
        ({}, 0.24),
        ({"video_fps": 25.0}, 0.25),
        ({"video_fps": 23.976}, 24000 / 1001 / 4 / 25),
        ({"video_stride_frames": 8}, 0.12),
        ({"audio_sample_rate_hz": 48000, "audio_hop_samples": 512, "audio_stride_hops": 2}, 6 / 46.875),
    ],
)
def test_the_ratio_is_derived_from_frame_rate_and_codecs(rates: dict[str, float], ratio: float) -> None:
    assert NavaConfig(**rates).rope_ratio == pytest.approx(ratio, rel=1e-5)


def test_an_official_factor_is_recovered_as_rates() -> None:
    official = {
        "dim": 64, "ffn_dim": 160, "num_heads": 2, "num_double_layers": 1, "num_single_layers": 1, "vid_in_dim": 6,
        "vid_out_dim": 6, "audio_in_dim": 10, "audio_out_dim": 10, "patch_size": [1, 2, 2], "text_len": 16,
        "text_dim": 48, "freq_dim": 32, "eps": 1e-6,
    }  # fmt: skip
    config = NavaConfig.from_official({**official, "temporal_rope_scaling_factor": 0.3})
    assert config.rope_ratio == pytest.approx(0.3, rel=1e-12)
    assert config.video_fps == pytest.approx(30)
    assert NavaConfig.from_official(official).rope_ratio == 1


def test_audio_and_video_of_one_instant_turn_alike() -> None:
    """Latent frame m and audio latent n with m/6 s = n/25 s: after 6 frames, 25 audio latents."""
    config = NavaConfig()
    num_temporal = 22
    video = rope.video_table(config, (13, 1, 1))[:, :, :num_temporal]
    audio = rope.audio_table(config, 51)[:, :, :num_temporal]
    torch.testing.assert_close(video[:, 6], audio[:, 25], atol=1e-12, rtol=0)
    torch.testing.assert_close(video[:, 12], audio[:, 50], atol=1e-12, rtol=0)


def test_axes_are_44_42_42_channels_of_128_and_width_is_fastest() -> None:
    config = NavaConfig()
    table = rope.video_table(config, (2, 3, 4)).view(2, 2, 3, 4, 64)
    for axis, (first, last) in enumerate(((0, 22), (22, 43), (43, 64))):
        own = table[..., first:last].movedim(1 + axis, 1)
        assert torch.equal(own, own[:, :, :1, :1].expand_as(own))
        assert not torch.equal(own[:, 0], own[:, 1])
    assert torch.equal(rope.audio_table(config, 3)[0, :, 22:], torch.ones(3, 42, dtype=torch.float64))


def test_rotation_keeps_lengths_and_products_depend_on_distance_only() -> None:
    config = NavaConfig.preset("nava_tiny")
    table = rope.audio_table(config, 30)
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, config.head_dim, dtype=torch.float64).expand(2, 30, -1, -1)
    turned_q, turned_k = rope.rotate(q, table), rope.rotate(k, table)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    products = torch.einsum("qhd,khd->hqk", turned_q, turned_k)
    torch.testing.assert_close(
        products[:, 3:, 1:-2].diagonal(dim1=1, dim2=2), products[:, 2:-1, :-3].diagonal(dim1=1, dim2=2)
    )
    assert not torch.allclose(products[:, 0, 0], products[:, 0, 9])


def test_positions_beyond_the_tables_are_refused() -> None:
    with pytest.raises(ModelError, match="1025 positions along time, at most 1024"):
        rope.audio_table(NavaConfig(), 1025)
