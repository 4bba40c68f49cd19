"""A folder of tiny, randomly initialised codecs of the real classes, for tests and the demo: they mean nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model.network.config import NavaConfig
from schemas.errors import ModelError

TINY_MEL_BINS = 8
NUM_EXTRA_IDS = 4


class TinySpeaker(nn.Module):  # type: ignore[misc]
    """A linear map of the long-term spectrum: different voices get different vectors of `dim` values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(201, dim)

    def forward(self, wave_BS: Tensor) -> Tensor:
        """Embedding_BD of sound at 16 kHz."""
        frames_BTF = torch.nn.functional.pad(wave_BS, (0, 400)).unfold(1, 400, 160)
        spectrum_BF = torch.fft.rfft(frames_BTF).abs().mean(1)
        return self.project((spectrum_BF + 1e-5).log())


def write_tiny_codecs(directory: Path, config: NavaConfig, seed: int = 0) -> None:
    """Write video_vae, audio_vae, vocoder, text_encoder, tokenizer and speaker.pt that fit `config` (about 3 MB).

    Strides and rates are those of the release; only the widths shrink. Raises ModelError if `config` has other rates.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _video_vae(config).save_pretrained(directory / "video_vae")
        _audio_vae(config).save_pretrained(directory / "audio_vae")
        _vocoder().save_pretrained(directory / "vocoder")
        _write_text(directory, config)
        torch.jit.script(TinySpeaker(config.speaker_dim)).save(directory / "speaker.pt")


def _video_vae(config: NavaConfig) -> nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=config.video_channels,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * config.video_channels,
        latents_std=[0.5] * config.video_channels,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )


def _audio_vae(config: NavaConfig) -> nn.Module:
    """Statistics are one per latent value; the library sizes them by base_channels, so that is the latent width."""
    from diffusers import AutoencoderKLLTX2Audio

    latent_mels = TINY_MEL_BINS // 4
    if config.audio_channels % latent_mels:
        raise ModelError(f"tiny audio VAE: audio_channels {config.audio_channels} must be divisible by {latent_mels}.")
    return AutoencoderKLLTX2Audio(
        base_channels=config.audio_channels,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=config.audio_channels // latent_mels,
        mel_bins=TINY_MEL_BINS,
        sample_rate=config.audio_sample_rate_hz,
        mel_hop_length=config.audio_hop_samples,
    )


def _vocoder() -> nn.Module:
    """The LTX-2.3 class with bandwidth extension, its fixed analysis bases filled in as a checkpoint would."""
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    vocoder = LTX2VocoderWithBWE(
        in_channels=2 * TINY_MEL_BINS,
        hidden_channels=64,
        upsample_kernel_sizes=[11, 4, 4, 4, 4, 4],
        upsample_factors=[5, 2, 2, 2, 2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        bwe_in_channels=2 * TINY_MEL_BINS,
        bwe_hidden_channels=32,
        bwe_upsample_kernel_sizes=[12, 11, 4, 4, 4],
        bwe_upsample_factors=[6, 5, 2, 2, 2],
        bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1]],
        num_mel_channels=TINY_MEL_BINS,
    )
    for buffer in vocoder.mel_stft.buffers():
        buffer.copy_(torch.rand_like(buffer) / buffer.shape[-1])
    return vocoder


def _write_text(directory: Path, config: NavaConfig) -> None:
    """A byte-level tokenizer with T5's special pieces and a two-layer umT5 encoder over it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(NUM_EXTRA_IDS))]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=specials[3:],
    ).save_pretrained(directory / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(pieces),
            d_model=config.text_dim,
            d_kv=12,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
    ).save_pretrained(directory / "text_encoder")
