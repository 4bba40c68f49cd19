"""Golden data and small random packs for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.network.config import NavaConfig
from model.network.nava import Nava, Sample

OWN_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nava_tiny"
SHARED_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "nava_tiny"


@pytest.fixture(scope="session", params=["own", "shared"])
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """The project's reduced copy of the golden data, and the full set where it is present."""
    folder = OWN_GOLDEN if request.param == "own" else SHARED_GOLDEN
    if not folder.is_dir():
        pytest.skip(f"the full golden set is not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> NavaConfig:
    """The network of the golden data."""
    return NavaConfig.preset("nava_tiny")


@pytest.fixture(scope="session")
def tiny_nava(tiny_config: NavaConfig) -> Nava:
    """A tiny network in which no weight is zero, so that every path has an effect."""
    model = Nava(tiny_config)
    generator = torch.Generator().manual_seed(11)
    model.init_weights(generator)
    with torch.no_grad():
        for name in ("head.head.weight", "speaker_embedding.null_token"):
            model.get_parameter(name).normal_(std=0.1, generator=generator)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture
def make_sample(tiny_config: NavaConfig) -> Callable[..., Sample]:
    """Makes a random sample: make_sample("id", grid=(T, H, W) or None, audio=tokens, text=rows, seed=..., **fields)."""

    def make(
        clip_id: str,
        grid: tuple[int, int, int] | None = (3, 4, 6),
        audio: int = 9,
        text: int = 7,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **fields: Any,
    ) -> Sample:
        generator = torch.Generator().manual_seed(seed * 1000 + sum(map(ord, clip_id)))

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        voices = [draw(tiny_config.speaker_dim) for _ in fields.get("placeholders", ())]
        return Sample(
            clip_id,
            text=draw(text, tiny_config.text_dim),
            video=draw(tiny_config.video_channels, *grid) if grid else None,
            audio=draw(audio, tiny_config.audio_channels) if audio else None,
            **{"speakers": voices, **fields},
        )

    return make


@pytest.fixture
def mixed_samples(make_sample: Callable[..., Sample]) -> list[Sample]:
    """Every mode in one batch: joint, audio-only, video-only, first frame, masked, odd size, full text, no text."""
    return [
        make_sample("joint", placeholders=[1, 4]),
        make_sample("audio only", grid=None, audio=11, text=16, placeholders=[2]),
        make_sample("video only", grid=(2, 4, 4), audio=0, text=0),
        make_sample("first frame", grid=(3, 4, 4), audio=8, is_first_frame_clean=True),
        make_sample("masked", grid=(2, 6, 4), audio=5, is_cross_modal_masked=True, placeholders=[0]),
        make_sample("odd", grid=(2, 5, 3), audio=1, is_first_frame_clean=True, is_cross_modal_masked=True),
        make_sample("one voice unknown", grid=None, audio=3, text=5, placeholders=[3], speakers=[None]),
    ]
