"""The shape of one NAVA network and the presets: everything needed to build it, nothing about training it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from schemas.errors import ModelError
from schemas.recipe import RecipePart


class NavaConfig(RecipePart):
    """The network. Defaults are the official 6.3B release (`NAVA_6B.json` with `add_spk_emb` and `no_split_norm_ffn`).

    The three groups of rates at the end belong to the frozen codecs. They are here because RoPE needs them: the ratio
    between video and audio positions is computed from them (`rope_ratio`), so that another frame rate or codec cannot
    silently keep the old ratio.
    """

    dim: int = 3072
    ffn_dim: int = 14336
    num_heads: int = 24
    num_align_layers: int = 10
    num_fusion_layers: int = 20

    video_channels: int = 48
    audio_channels: int = 128
    patch_size: tuple[int, int, int] = (1, 2, 2)
    max_text_tokens: int = 512
    text_dim: int = 4096
    speaker_dim: int = 192
    timestep_freq_dim: int = 256

    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_positions: int = 1024

    video_fps: float = 24.0
    video_stride_frames: int = 4
    audio_sample_rate_hz: int = 16000
    audio_hop_samples: int = 160
    audio_stride_hops: int = 4

    reference_numerics: bool = False
    """True repeats the official bfloat16 casts (residual stream, norms, modulation). For parity checks only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be divisible by num_heads {self.num_heads}")
        if self.head_dim % 2 or self.head_dim < 12:
            raise ValueError(f"head_dim {self.head_dim} must be even and at least 12 for three-axis RoPE")
        if self.timestep_freq_dim % 2:
            raise ValueError(f"timestep_freq_dim {self.timestep_freq_dim} must be even")
        if self.patch_size[0] != 1:
            raise ValueError(
                f"patch_size {self.patch_size}: patches span one latent frame, so that a first frame can be clean"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in one video token."""
        t, h, w = self.patch_size
        return self.video_channels * t * h * w

    @property
    def audio_ffn_dim(self) -> int:
        """Hidden width of the audio front-end: 8/3 dim, rounded up to a multiple of 256 (8192 for the release)."""
        return -(-(8 * self.dim // 3) // 256) * 256

    @property
    def video_latent_hz(self) -> Fraction:
        """Video latent frames per second."""
        return Fraction(self.video_fps).limit_denominator(1001) / self.video_stride_frames

    @property
    def audio_latent_hz(self) -> Fraction:
        """Audio latents per second."""
        return Fraction(self.audio_sample_rate_hz, self.audio_hop_samples * self.audio_stride_hops)

    @property
    def rope_ratio(self) -> float:
        """Video latent rate over audio latent rate: audio latent n turns as far as the video frame of the same instant.

        (24 / 4) / (16000 / 160 / 4) = 0.24 for the release, the value its config file carries as a literal.
        """
        return float(self.video_latent_hz / self.audio_latent_hz)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> NavaConfig:
        """The named preset with `changes` applied and validated. Raises ModelError for an unknown name."""
        if name not in PRESETS:
            raise ModelError(f"unknown model preset {name!r}.", remedy=f"Use one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_official(cls, official: dict[str, Any], *, reference_numerics: bool = False) -> NavaConfig:
        """The config that an official json file (`NAVA_6B.json` and its like) describes.

        The file states the RoPE factor and no frame rate; the frame rate is recovered from it with the release's codecs,
        so the factor itself stays derived. Raises ModelError for a layout that is not NAVA's.
        """
        expected = {"model_type": "ti2v", "qk_norm": True, "cross_attn_norm": True, "window_size": [-1, -1]}
        for key, value in expected.items():
            if official.get(key, value) != value:
                raise ModelError(f"official config: {key} is {official[key]!r}, this network is built for {value!r}.")
        if official.get("num_double_final_layers", 0):
            raise ModelError("official config: num_double_final_layers must be 0, as in every released NAVA.")
        for there, here in (("vid_in_dim", "vid_out_dim"), ("audio_in_dim", "audio_out_dim")):
            if official[there] != official[here]:
                raise ModelError(f"official config: {there} {official[there]} and {here} {official[here]} must agree.")
        release = cls()
        audio_per_video = Fraction(str(official.get("temporal_rope_scaling_factor", 1))) * release.audio_latent_hz
        return cls(
            dim=official["dim"],
            ffn_dim=official["ffn_dim"],
            num_heads=official["num_heads"],
            num_align_layers=official["num_double_layers"],
            num_fusion_layers=official["num_single_layers"],
            video_channels=official["vid_in_dim"],
            audio_channels=official["audio_in_dim"],
            patch_size=tuple(official["patch_size"]),
            max_text_tokens=official["text_len"],
            text_dim=official["text_dim"],
            timestep_freq_dim=official["freq_dim"],
            norm_eps=official["eps"],
            video_fps=float(audio_per_video * release.video_stride_frames),
            reference_numerics=reference_numerics,
        )


def read_config(name: str) -> NavaConfig:
    """The network's shape: a preset by name, or a json file of NavaConfig's fields or of the release. Raises ModelError."""
    path = Path(name)
    if path.suffix != ".json":
        return NavaConfig.preset(name)
    try:
        fields = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not a readable json file: {error}") from error
    if "vid_in_dim" in fields:
        return NavaConfig.from_official(fields)
    try:
        return NavaConfig(**fields)
    except ValueError as error:
        raise ModelError(f"{path} does not describe a network: {error}") from error


def network_of(checkpoint: Path, named: str | None = None) -> NavaConfig:
    """The network of weights: the one that is named, or what a training checkpoint says of itself, or the release's.

    Raises ModelError for a name or a description that is none.
    """
    if named is not None:
        return read_config(named)
    notes = checkpoint / "state.json"
    if not notes.is_file():
        return NavaConfig()
    try:
        described = json.loads(notes.read_bytes())["recipe"]["network"]
        return NavaConfig.preset(described["preset"], **described["changes"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{notes} does not say which network it belongs to.", remedy="Name it (--model, or network= of a sample)."
        ) from error


PRESETS: dict[str, dict[str, Any]] = {
    "nava_6b": {},
    "nava_1b": {"dim": 1536, "ffn_dim": 7168, "num_heads": 12, "num_align_layers": 8, "num_fusion_layers": 16},
    "nava_300m": {"dim": 768, "ffn_dim": 3584, "num_heads": 6, "num_align_layers": 7, "num_fusion_layers": 14},
    "nava_tiny": {
        "dim": 64,
        "ffn_dim": 160,
        "num_heads": 2,
        "num_align_layers": 2,
        "num_fusion_layers": 2,
        "video_channels": 6,
        "audio_channels": 10,
        "max_text_tokens": 16,
        "text_dim": 48,
        "timestep_freq_dim": 32,
    },
}
"""nava_6b is the release. The two middle sizes keep its proportions (head width 128, ffn 14/3 dim, one alignment block to
two fusion blocks) and the same codecs. nava_tiny is the network of the golden data."""
