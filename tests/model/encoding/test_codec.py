"""The frozen codecs: tiny networks of the libraries' own classes, and the published shapes on the meta device."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoding.codec import (
    AudioCodec,
    Codecs,
    ResemblyzerSpeaker,
    VideoCodec,
    clean_caption,
    open_codecs,
)
from model.encoding.tiny_codec import write_tiny_codecs
from model.network.conditioning import PLACEHOLDER, mark_spans
from model.network.config import NavaConfig
from schemas.errors import ModelError

pytestmark = pytest.mark.xdist_group("codecs")  # whoever has imported their libraries once
CPU = torch.device("cpu")
CONFIG = NavaConfig.preset("nava_tiny", max_text_tokens=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("codecs")
    write_tiny_codecs(directory, CONFIG)
    return directory


@pytest.fixture(scope="module")
def codecs(folder: Path) -> Codecs:
    return open_codecs(folder, CONFIG, CPU, torch.float32)


@pytest.mark.slow
def test_video_latents_are_the_normalised_posterior_mean(codecs: Codecs) -> None:
    assert codecs.video is not None
    pixels = torch.rand(3, 9, 32, 48) * 2 - 1
    latent = codecs.video.encode(pixels)
    raw = codecs.video.vae.encode(pixels[None]).latent_dist.mean[0]
    assert latent.shape == (6, 3, 2, 3)
    torch.testing.assert_close(latent, (raw - 0.1) / 0.5)
    assert torch.equal(latent, codecs.video.encode(pixels))
    decoded = codecs.video.decode(latent)
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(decoded, codecs.video.vae.decode(raw[None]).sample[0])


@pytest.mark.parametrize("shape", [(3, 8, 32, 48), (3, 9, 40, 48), (3, 9, 32, 40)])
def test_video_refuses_what_would_need_padding(codecs: Codecs, shape: tuple[int, ...]) -> None:
    assert codecs.video is not None
    with pytest.raises(ModelError, match=f"{shape[1]} frames of {shape[3]}x{shape[2]}"):
        codecs.video.encode(torch.zeros(shape))


@pytest.mark.slow
def test_mel_is_that_of_an_independent_library(codecs: Codecs) -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    assert codecs.audio is not None
    wave = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)) * 0.1
    ours = codecs.audio.mel(wave)
    mel, window = mel_filter_bank(513, 8, 0, 8000, 16000, norm="slaney", mel_scale="slaney"), window_function(1024)
    theirs = np.stack([spectrogram(row, window, 1024, 160, power=1.0, mel_filters=mel) for row in wave.numpy()])
    assert ours.shape == (2, 101, 8)
    np.testing.assert_allclose(ours.exp().transpose(1, 2).numpy(), np.maximum(theirs, 1e-5), rtol=1e-4)


@pytest.mark.parametrize(("num_samples", "num_latents"), [(640, 1), (641, 2), (80640, 126), (81000, 127)])
def test_sound_gives_one_latent_per_40_ms(codecs: Codecs, num_samples: int, num_latents: int) -> None:
    assert codecs.audio is not None
    wave = torch.randn(1, num_samples) * 0.1
    latent = codecs.audio.encode(wave)
    assert latent.shape == (num_latents, 10)
    torch.testing.assert_close(latent, codecs.audio.encode(wave.repeat(2, 1)))
    decoded, rate_hz = codecs.audio.decode(latent)
    assert rate_hz == 48000
    assert decoded.shape == (2, (4 * num_latents - 3) * 480)  # the causal decoder yields 4L - 3 frames of 10 ms
    assert decoded.abs().max() <= 1


def test_sound_is_encoded_causally(codecs: Codecs) -> None:
    """A change in the last second leaves the first latents alone: the layout [latent, channel x band] is kept."""
    assert codecs.audio is not None
    wave = torch.randn(2, 32000) * 0.1
    changed = wave.clone()
    changed[:, 16000:] *= -0.3
    before, after = codecs.audio.encode(wave), codecs.audio.encode(changed)
    torch.testing.assert_close(before[:23], after[:23])
    assert (before[26:] - after[26:]).abs().max() > 1e-3


def test_text_rows_name_the_voice_placeholders(codecs: Codecs) -> None:
    assert codecs.text is not None
    captions = ["a man <S>hi<E>\n then <S>bye<E>", "rain"]
    both = codecs.text.encode(captions)
    ids = codecs.text.tokenizer(mark_spans(clean_caption(captions[0])))["input_ids"]
    placeholder = codecs.text.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    assert both[0].voice_rows == tuple(i for i, token in enumerate(ids) if token == placeholder)
    assert len(both[0].voice_rows) == 2
    assert both[1].voice_rows == ()
    assert both[1].rows.shape == (5, 48)  # four bytes and the end mark: padding rows are gone
    alone = codecs.text.encode(captions[1:])[0]
    torch.testing.assert_close(both[1].rows, alone.rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("x" * 80 + "<S>late<E>", "1 spoken lines, but only 0"),
        ("<S>one <S>two<E>", "unpaired <S> and <E>"),
        ("open <S>line", "unpaired <S> and <E>"),
        ("<S><extra_id_2>hi<E>", "contains <extra_id_2>"),
    ],
)
def test_speech_that_cannot_be_bound_is_an_error(codecs: Codecs, caption: str, message: str) -> None:
    assert codecs.text is not None
    with pytest.raises(ModelError, match=message):
        codecs.text.encode([caption])


def test_captions_are_cleaned_as_the_release_does() -> None:
    assert clean_caption(" a&amp;lt;b\n\tＡ，１ ") == "a<b A,1"


def test_speaker_tells_voices_apart(codecs: Codecs) -> None:
    assert codecs.speaker is not None
    time_s = torch.arange(16000) / 16000
    low, high = torch.sin(2 * torch.pi * 120 * time_s), torch.sin(2 * torch.pi * 1200 * time_s)
    assert codecs.speaker.embed(low).shape == (192,)
    assert (codecs.speaker.embed(low) - codecs.speaker.embed(high)).abs().max() > 0.1
    long = low.repeat(40)
    assert torch.equal(codecs.speaker.embed(long), codecs.speaker.embed(long[: 30 * 16000]))


def test_codecs_that_do_not_fit_the_network_are_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="audio_vae values per latent is 10, the network expects 12"):
        open_codecs(folder, CONFIG.model_copy(update={"audio_channels": 12}), CPU, torch.float32)


def test_parts_that_are_absent_are_none(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "audio_vae", tmp_path / "audio_vae")
    codecs = open_codecs(tmp_path, CONFIG, CPU, torch.float32)
    assert codecs.video is codecs.text is codecs.speaker is None
    assert codecs.audio is not None
    with pytest.raises(ModelError, match="No vocoder"):
        codecs.audio.decode(torch.zeros(3, 10))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no codec"):
        open_codecs(tmp_path / "empty", CONFIG, CPU, torch.float32)
    (tmp_path / "empty" / "speaker.pt").write_bytes(b"not a module")
    with pytest.raises(ModelError, match="not a TorchScript module"):
        open_codecs(tmp_path / "empty", CONFIG, CPU, torch.float32)


@pytest.mark.slow
def test_resemblyzer_serves_only_networks_of_its_width(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"speaker_dim": 256})
    speaker = open_codecs(tmp_path, config, CPU, torch.float32).speaker
    assert isinstance(speaker, ResemblyzerSpeaker)
    embedding = speaker.embed(torch.randn(32000) * 0.1)
    assert embedding.shape == (256,)
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))


def test_published_codecs_fit_the_released_network() -> None:
    """Shapes only (meta device): the published configurations give the channels and strides NavaConfig() expects."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLWan
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    config = NavaConfig()
    with torch.device("meta"):
        video_vae = AutoencoderKLWan(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        )
        audio_vae, vocoder = AutoencoderKLLTX2Audio(), LTX2VocoderWithBWE()
    video, audio = VideoCodec(video_vae), AudioCodec(audio_vae, vocoder)
    assert (video.channels, video.stride_frames) == (config.video_channels, config.video_stride_frames)
    assert audio.channels == config.audio_channels
    assert audio.samples_per_latent == config.audio_hop_samples * config.audio_stride_hops
    assert vocoder.config.output_sampling_rate == 48000
