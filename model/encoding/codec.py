"""The frozen networks around NAVA: pictures, sound, text and voices to what the transformer reads, and back.

C channels, T frames or latent frames, H and W pixels or latent pixels, S samples, L latents or text rows, D width.

    part      class (library)                                 folder                    release weights
    picture   AutoencoderKLWan (diffusers)                    video_vae/                Wan2.2-TI2V-5B, 48 x (4, 16, 16)
    sound     AutoencoderKLLTX2Audio (diffusers)              audio_vae/                LTX-2.3, 128 values at 25 Hz
    waveform  LTX2VocoderWithBWE or LTX2Vocoder (diffusers)   vocoder/                  LTX-2.3, 48 kHz
    text      UMT5EncoderModel, AutoTokenizer (transformers)  text_encoder/ tokenizer/  umT5-xxl
    voice     TorchScript, [1, S] at 16 kHz -> [1, D]         speaker.pt                ReDimNet-M, in no library

`open_codecs` reads whatever of these a directory holds, in the libraries' own formats, never from the network.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.network.conditioning import PLACEHOLDER, find_placeholders, mark_spans
from model.network.config import NavaConfig
from schemas.errors import ModelError
from schemas.spans import SPEECH_RATE_HZ

MAX_VOICE_S = 30.0
"""The release embeds the first 30 s of a reference."""
MEL_FFT_SAMPLES = 1024
"""Window and transform of the spectrograms that the LTX audio autoencoder was trained on, 64 ms, as in the release."""
MEL_FLOOR = 1e-5
"""Least magnitude before the logarithm, as in the release."""
LOCAL_ONLY = {"local_files_only": True, "low_cpu_mem_usage": False}
"""low_cpu_mem_usage needs the accelerate package, which nothing else here needs."""


class VideoCodec:
    """Wan2.2 video autoencoder: pixels in [-1, 1] and latents normalised per channel with the published statistics."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.channels = int(vae.config.z_dim)
        self.stride_frames = int(vae.config.scale_factor_temporal)
        self.stride_px = int(vae.config.scale_factor_spatial)
        self._mean_C111 = torch.tensor(vae.config.latents_mean).view(-1, 1, 1, 1)
        self._std_C111 = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1)

    def encode(self, pixels_CTHW: Tensor) -> Tensor:
        """Latent_CTHW, fp32: the posterior mean of 4n+1 RGB frames whose sides divide by the stride. Deterministic."""
        _, T, H, W = pixels_CTHW.shape
        if (T - 1) % self.stride_frames or H % self.stride_px or W % self.stride_px:
            raise ModelError(
                f"video VAE: {T} frames of {W}x{H} px; needs {self.stride_frames}n+1 frames and sides divisible "
                f"by {self.stride_px}.",
                remedy="Crop the clip; padding would be trained on.",
            )
        posterior = self.vae.encode(pixels_CTHW[None].to(self.vae.device, self.vae.dtype)).latent_dist
        latent_CTHW = posterior.mode()[0].float()
        return (latent_CTHW - self._mean_C111.to(latent_CTHW)) / self._std_C111.to(latent_CTHW)

    def decode(self, latent_CTHW: Tensor) -> Tensor:
        """Pixels_CTHW in [-1, 1], fp32."""
        latent_CTHW = latent_CTHW.to(self.vae.device).float()
        latent_CTHW = latent_CTHW * self._std_C111.to(latent_CTHW) + self._mean_C111.to(latent_CTHW)
        pixels: Tensor = self.vae.decode(latent_CTHW[None].to(self.vae.dtype)).sample
        return pixels[0].float()


class AudioCodec:
    """LTX audio autoencoder on log-mel spectrograms, and the vocoder that turns them into sound."""

    def __init__(self, vae: Any, vocoder: Any | None) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.vocoder = vocoder.eval().requires_grad_(False) if vocoder is not None else None
        self.sample_rate_hz = int(vae.config.sample_rate)
        self.num_sound_channels = int(vae.config.in_channels)
        self.hop_samples = int(vae.config.mel_hop_length)
        self.samples_per_latent = self.hop_samples * int(vae.temporal_compression_ratio)
        self._num_mels = int(vae.config.mel_bins)
        self.channels = int(vae.config.latent_channels) * self._num_mels // int(vae.mel_compression_ratio)
        if vae.latents_mean.numel() != self.channels:
            raise ModelError(
                f"audio VAE: {vae.latents_mean.numel()} latent statistics for {self.channels} values per latent."
            )
        self._mel_basis_FM = _mel_basis(self.sample_rate_hz, self._num_mels)

    def mel(self, wave_CS: Tensor) -> Tensor:
        """Log-mel_CTM, S // hop + 1 frames: magnitude (not power), 64 slaney bands, floor 1e-5, natural logarithm."""
        window = torch.hann_window(MEL_FFT_SAMPLES, device=wave_CS.device)
        spectrum_CFT = torch.stft(
            wave_CS.float(), MEL_FFT_SAMPLES, self.hop_samples, window=window, center=True, return_complex=True
        ).abs()
        mel_CTM = spectrum_CFT.transpose(1, 2) @ self._mel_basis_FM.to(wave_CS.device)
        return mel_CTM.clamp(min=MEL_FLOOR).log()

    def encode(self, wave_CS: Tensor) -> Tensor:
        """Latent_LD, fp32, L = ceil(S / samples_per_latent): the posterior mean; mono is doubled to stereo.

        The wave is zero-padded to whole latents; the one surplus latent that the centred spectrogram yields is dropped.
        """
        if wave_CS.shape[0] == 1:
            wave_CS = wave_CS.expand(self.num_sound_channels, -1)
        if wave_CS.shape[0] != self.num_sound_channels or wave_CS.shape[1] == 0:
            raise ModelError(
                f"audio VAE: sound is {list(wave_CS.shape)}, expected [{self.num_sound_channels}, samples]."
            )
        num_latents = -(-wave_CS.shape[1] // self.samples_per_latent)
        padding = num_latents * self.samples_per_latent - wave_CS.shape[1]
        mel_CTM = self.mel(torch.nn.functional.pad(wave_CS.to(self.vae.device), (0, padding)))
        latent_KLM = self.vae.encode(mel_CTM[None].to(self.vae.dtype)).latent_dist.mode()[0].float()
        latent_LD = latent_KLM.permute(1, 0, 2).flatten(1)
        return ((latent_LD - self.vae.latents_mean.float()) / self.vae.latents_std.float())[:num_latents]

    def decode(self, latent_LD: Tensor) -> tuple[Tensor, int]:
        """(wave_CS in [-1, 1], its rate in Hz). Raises ModelError without a vocoder."""
        if self.vocoder is None:
            raise ModelError("No vocoder: spectrograms cannot become sound.", remedy="Add vocoder/ beside audio_vae/.")
        latent_LD = latent_LD.to(self.vae.device).float() * self.vae.latents_std.float() + self.vae.latents_mean.float()
        latent_KLM = latent_LD.unflatten(1, (int(self.vae.config.latent_channels), -1)).permute(1, 0, 2)
        mel_1CTM = self.vae.decode(latent_KLM[None].to(self.vae.dtype)).sample
        wave_CS: Tensor = self.vocoder(mel_1CTM.to(self.vocoder.dtype))[0].float()
        return wave_CS.clamp(-1, 1), int(self.vocoder.config.output_sampling_rate)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One caption: text rows [L, D] without padding, and the row of each spoken line's placeholder, in order."""

    rows: Tensor
    voice_rows: tuple[int, ...]


class TextEncoder:
    """umT5 encoder over cleaned captions; each `<S>` of a spoken line is followed by the voice placeholder."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.dim = int(model.config.d_model)
        self._placeholder_id = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
        if self._placeholder_id == tokenizer.unk_token_id:
            raise ModelError(f"The tokenizer has no {PLACEHOLDER}: voices cannot be bound to lines.")

    def encode(self, captions: Sequence[str]) -> list[EncodedText]:
        """One EncodedText per caption. Raises ModelError when a spoken line falls beyond the text window."""
        marked = [mark_spans(clean_caption(caption)) for caption in captions]
        if any(PLACEHOLDER in caption for caption in captions):
            raise ModelError(f"A caption contains {PLACEHOLDER}, which the encoder sets itself.", remedy="Remove it.")
        tokens = self.tokenizer(
            marked,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=True,
            return_tensors="pt",
        )
        ids_BL, mask_BL = tokens["input_ids"], tokens["attention_mask"]
        device = self.model.device
        rows_BLD = self.model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).last_hidden_state
        encoded = []
        for index, caption in enumerate(marked):
            num_rows = int(mask_BL[index].sum())
            rows = tuple(find_placeholders(ids_BL[index, :num_rows].tolist(), self._placeholder_id))
            num_lines = caption.count(PLACEHOLDER)
            if len(rows) != num_lines:
                raise ModelError(
                    f"Caption {index} has {num_lines} spoken lines, but only {len(rows)} begin within its first "
                    f"{self.max_tokens} text tokens: '{caption[:60]}...'.",
                    remedy="Shorten the caption or move the speech forward.",
                )
            encoded.append(EncodedText(rows_BLD[index, :num_rows].float(), rows))
        return encoded


def clean_caption(caption: str) -> str:
    """The caption as the release cleans it: text repaired (full-width forms folded), entities undone, one line."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


class SpeakerNetwork(Protocol):
    """Anything that turns a voice into a vector."""

    dim: int

    def embed(self, wave_S: Tensor) -> Tensor:
        """Embedding_D, fp32, of mono sound at 16 kHz."""
        ...


class TorchScriptSpeaker:
    """A speaker network exported to TorchScript, [1, S] at 16 kHz -> [1, D].

    ReDimNet is in no library: docs/checkpoints.md shows the export from its own repository. Its embeddings are what the
    released weights were trained with; another network of 192 values loads here too but means nothing to them.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            self._module = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            first_line = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{path} is not a TorchScript module: {first_line}", remedy="Export it with torch.jit.trace."
            ) from error
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        self._device = device
        self.dim = int(self.embed(torch.zeros(SPEECH_RATE_HZ)).numel())

    def embed(self, wave_S: Tensor) -> Tensor:
        """Embedding_D of the first 30 s."""
        wave_1S = wave_S[None, : int(MAX_VOICE_S * SPEECH_RATE_HZ)].to(self._device)
        embedding: Tensor = self._module(wave_1S)
        return embedding.float().flatten()


class ResemblyzerSpeaker:
    """The speaker network inside the `resemblyzer` package: 256 values, runs offline, unrelated to ReDimNet.

    Only for networks built with `speaker_dim: 256` and trained with it. Released weights cannot read it.
    """

    dim = 256

    def __init__(self, device: torch.device) -> None:
        from resemblyzer import VoiceEncoder

        self._encoder = VoiceEncoder(device, verbose=False)

    def embed(self, wave_S: Tensor) -> Tensor:
        """Embedding_D of the first 30 s."""
        voice = wave_S[: int(MAX_VOICE_S * SPEECH_RATE_HZ)].cpu().numpy()
        return torch.from_numpy(self._encoder.embed_utterance(voice)).float()


@dataclass(frozen=True, slots=True)
class Codecs:
    """The frozen networks at hand; a part that is not there is None."""

    video: VideoCodec | None = None
    audio: AudioCodec | None = None
    text: TextEncoder | None = None
    speaker: SpeakerNetwork | None = None


def open_codecs(directory: Path, config: NavaConfig, device: torch.device, dtype: torch.dtype) -> Codecs:
    """The codecs under `directory`, checked against the network's channels and rates.

    `dtype` is that of the video, sound and text networks; the vocoder and the speaker network stay fp32. Reads local
    files only. Raises ModelError if a part does not fit `config`, or if the directory holds none.
    """
    if not directory.is_dir():
        raise ModelError(f"No codecs at {directory}.", remedy="See docs/checkpoints.md for the expected folders.")
    codecs = Codecs(
        video=_open_video(directory / "video_vae", device, dtype),
        audio=_open_audio(directory, device, dtype),
        text=_open_text(directory, config.max_text_tokens, device, dtype),
        speaker=_open_speaker(directory / "speaker.pt", config, device),
    )
    if codecs == Codecs():
        raise ModelError(f"{directory} holds no codec.", remedy="See docs/checkpoints.md for the expected folders.")
    _check_codecs(codecs, config, directory)
    return codecs


def open_decoders(directory: Path, config: NavaConfig, device: torch.device, dtype: torch.dtype) -> Codecs:
    """The codecs of picture and sound under `directory`, as `open_codecs` has them, without what reads texts and voices.

    Raises ModelError where there is neither, or one does not fit `config`.
    """
    codecs = Codecs(
        video=_open_video(directory / "video_vae", device, dtype), audio=_open_audio(directory, device, dtype)
    )
    if codecs == Codecs():
        raise ModelError(
            f"{directory} has neither video_vae/ nor audio_vae/.",
            remedy="See docs/checkpoints.md for the expected folders.",
        )
    _check_codecs(codecs, config, directory)
    return codecs


def _open_video(folder: Path, device: torch.device, dtype: torch.dtype) -> VideoCodec | None:
    if not folder.is_dir():
        return None
    from diffusers import AutoencoderKLWan

    return VideoCodec(AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype, **LOCAL_ONLY).to(device))


def _open_audio(directory: Path, device: torch.device, dtype: torch.dtype) -> AudioCodec | None:
    if not (directory / "audio_vae").is_dir():
        return None
    from diffusers import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    vae = AutoencoderKLLTX2Audio.from_pretrained(directory / "audio_vae", torch_dtype=dtype, **LOCAL_ONLY)
    vocoder = None
    folder = directory / "vocoder"
    if folder.is_dir():
        classes = {kind.__name__: kind for kind in (LTX2Vocoder, LTX2VocoderWithBWE)}
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
        if kind not in classes:
            raise ModelError(f"{folder} is a {kind}; this reads {' and '.join(classes)}.")
        vocoder = classes[kind].from_pretrained(folder, **LOCAL_ONLY).to(device)
    return AudioCodec(vae.to(device), vocoder)


def _open_text(directory: Path, max_tokens: int, device: torch.device, dtype: torch.dtype) -> TextEncoder | None:
    if not (directory / "text_encoder").is_dir():
        return None
    from transformers import AutoTokenizer, UMT5EncoderModel

    model = UMT5EncoderModel.from_pretrained(directory / "text_encoder", dtype=dtype, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer", local_files_only=True)
    return TextEncoder(model.to(device), tokenizer, max_tokens)


def _open_speaker(path: Path, config: NavaConfig, device: torch.device) -> SpeakerNetwork | None:
    if path.is_file():
        return TorchScriptSpeaker(path, device)
    return ResemblyzerSpeaker(device) if config.speaker_dim == ResemblyzerSpeaker.dim else None


def _check_codecs(codecs: Codecs, config: NavaConfig, directory: Path) -> None:
    wanted: list[tuple[str, object, object]] = []
    if codecs.video is not None:
        wanted += [
            ("video_vae channels", codecs.video.channels, config.video_channels),
            ("video_vae frames per latent", codecs.video.stride_frames, config.video_stride_frames),
        ]
    if codecs.audio is not None:
        wanted += [
            ("audio_vae values per latent", codecs.audio.channels, config.audio_channels),
            ("audio_vae sample rate", codecs.audio.sample_rate_hz, config.audio_sample_rate_hz),
            (
                "audio_vae samples per latent",
                codecs.audio.samples_per_latent,
                config.audio_hop_samples * config.audio_stride_hops,
            ),
        ]
    if codecs.text is not None:
        wanted.append(("text_encoder width", codecs.text.dim, config.text_dim))
    if codecs.speaker is not None:
        wanted.append(("speaker values", codecs.speaker.dim, config.speaker_dim))
    wrong = [
        f"{what} is {found}, the network expects {expected}" for what, found, expected in wanted if found != expected
    ]
    if wrong:
        raise ModelError(f"{directory}: {'; '.join(wrong)}.", remedy="Use the codecs the network was trained with.")


def _mel_basis(sample_rate_hz: int, num_mels: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    basis_FM = mel_filter_bank(
        num_frequency_bins=MEL_FFT_SAMPLES // 2 + 1,
        num_mel_filters=num_mels,
        min_frequency=0.0,
        max_frequency=sample_rate_hz / 2,
        sampling_rate=sample_rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(basis_FM).float()
