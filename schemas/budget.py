"""Pixels and seconds -> tokens -> FLOPs -> bucket: one arithmetic to pack, plan, train and inspect with.

    clip (height_px, width_px, duration_s)
      -> pixel bucket (height, width)         official table, arithmetic mid-points between ratios
      -> frames 4n+1 at 24 Hz                 the video autoencoder takes 4n+1 frames
      -> video, audio, text tokens            1 token = 4 frames x 32 x 32 px, 1/25 s of sound, one text piece
      -> forward and training FLOPs           2*m*n*k for every matrix product

Every function is pure. Those that take token counts accept numbers or arrays and cost one pass over them.
Sources: the published NAVA-6.3B configuration (ernie-research/NAVA, NAVA_6B.json) and its module shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FRAME_RATE_HZ = 24
AUDIO_RATE_HZ = 25
FRAMES_PER_LATENT = 4
PX_PER_LATENT = 16
PX_PER_TOKEN = 32
BYTES_PER_TEXT_PIECE = 4

# Short and long side of each aspect bucket in units of 16 px, one column per resolution; the published bucket table.
_RATIOS = (1.0, 4 / 5, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 2 / 5)
_RATIO_NAMES = ((1, 1), (4, 5), (3, 4), (2, 3), (9, 16), (1, 2), (2, 5))
_BUCKET_UNITS: dict[int, tuple[tuple[int, int], ...]] = {
    256: ((16, 16), (13, 17), (12, 17), (12, 19), (12, 21), (10, 22), (9, 25)),
    512: ((32, 32), (28, 35), (27, 36), (25, 39), (24, 42), (22, 45), (20, 51)),
    640: ((40, 40), (36, 44), (34, 45), (31, 49), (30, 52), (28, 56), (25, 64)),
    960: ((60, 60), (54, 66), (52, 68), (46, 74), (44, 80), (42, 84), (38, 96)),
}
RESOLUTIONS = tuple(_BUCKET_UNITS)

Recompute = Literal["full", "attention", "attention_qkv", "none"]
Modality = Literal["audio_video", "video", "audio"]
Use = Literal[Modality, "image"]
"""What of a clip is trained on; an image is its first latent frame."""


# ------------------------------------------------------------------------------------------------------- buckets


def aspect_label(height_px: int, width_px: int) -> str:
    """Official aspect label, width/height for portrait and long/short for landscape, for example "16/9" or "9/16".

    Uses geometric mid-points between neighbouring ratios, so it can disagree with `pixel_bucket` (895x1000: "1/1"
    beside 864x1056); both are kept because the official loader computes both.
    """
    short, long = _RATIO_NAMES[_nearest_ratio(height_px, width_px, geometric=True)]
    return f"{short}/{long}" if height_px > width_px else f"{long}/{short}"


def pixel_bucket(height_px: int, width_px: int, resolution: int = 960) -> tuple[int, int]:
    """(height_px, width_px) a clip is cover-scaled and centre-cropped to, by arithmetic mid-points between ratios."""
    if resolution not in _BUCKET_UNITS:
        raise ValueError(f"resolution {resolution} has no bucket table; choose one of {RESOLUTIONS}")
    short, long = _BUCKET_UNITS[resolution][_nearest_ratio(height_px, width_px, geometric=False)]
    short_px, long_px = short * PX_PER_LATENT, long * PX_PER_LATENT
    return (long_px, short_px) if height_px > width_px else (short_px, long_px)


def native_resolution(height_px: int, width_px: int, largest: int = 960) -> int:
    """Largest bucket table (at most `largest`) that asks for no more than 15 % more pixels than the clip has.

    Upscaled pixels cost FLOPs and teach blur; 15 % (7 % per side) keeps 640x360 in the 512 table. Never below 256.
    """
    if largest not in _BUCKET_UNITS:
        raise ValueError(f"resolution {largest} has no bucket table; choose one of {RESOLUTIONS}")
    allowed_px = 1.15 * height_px * width_px
    fitting = [r for r in RESOLUTIONS if r <= largest and np.prod(pixel_bucket(height_px, width_px, r)) <= allowed_px]
    return max(fitting, default=RESOLUTIONS[0])


def _nearest_ratio(height_px: int, width_px: int, *, geometric: bool) -> int:
    if height_px <= 0 or width_px <= 0:
        raise ValueError(f"a picture of {width_px}x{height_px} px has no aspect ratio")
    ratio = min(height_px, width_px) / max(height_px, width_px)
    for i, (wide, narrow) in enumerate(pairwise(_RATIOS)):
        middle = sqrt(wide * narrow) if geometric else (wide + narrow) / 2
        if ratio >= middle:
            return i
    return len(_RATIOS) - 1


def length_bucket(length: ArrayLike, min_length: int, max_length: int, num_buckets: int) -> NDArray[np.int64]:
    """Official equal-width length bucket of each length, clamped to 0 ... num_buckets - 1.

    Kept to reproduce and to benchmark the published batching; our own batching has no buckets.
    """
    edges = np.linspace(min_length, max_length, num_buckets + 1)
    return np.clip(np.searchsorted(edges, np.asarray(length), side="right") - 1, 0, num_buckets - 1)


# -------------------------------------------------------------------------------------------------------- tokens


def snap_frames(num_frames: int) -> int:
    """Largest 4n+1 that does not exceed `num_frames`, at least 1: frames are cropped, never repeated."""
    return max(1, (num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)


def latent_frames(num_frames: int) -> int:
    """Latent time steps of `num_frames` frames."""
    return (num_frames - 1) // FRAMES_PER_LATENT + 1


def video_tokens(num_frames: int, height_px: int, width_px: int) -> int:
    """Video tokens of a clip; an odd latent height or width is zero-padded to even before it is patched."""
    return latent_frames(num_frames) * ceil(height_px / PX_PER_TOKEN) * ceil(width_px / PX_PER_TOKEN)


def audio_tokens(duration_s: float) -> int:
    """Audio tokens of a sound without picture: 25 per second, rounded up."""
    return ceil(round(duration_s * AUDIO_RATE_HZ, 6))


def paired_audio_tokens(num_frames: int) -> int:
    """Audio tokens beside `num_frames` video frames: ceil(((T-1)*4+1)/24*25) over T latent frames, in integers."""
    frames = (latent_frames(num_frames) - 1) * FRAMES_PER_LATENT + 1
    return -(-frames * AUDIO_RATE_HZ // FRAME_RATE_HZ)


def estimated_text_tokens(text: str, text_len: int = 512) -> int:
    """Rough number of text pieces of a caption, at most `text_len`: one per 4 UTF-8 bytes plus the end mark.

    Latin text takes about 4 characters and CJK about 1.4 characters (of 3 bytes) per piece in a 250k-piece
    vocabulary. Text is under 1 % of a video clip's FLOPs; `nava-train encode` replaces the estimate by the count.
    """
    return min(text_len, ceil(len(text.encode()) / BYTES_PER_TEXT_PIECE) + 1)


# --------------------------------------------------------------------------------------------------------- FLOPs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Widths and depths that decide parameters, FLOPs and memory. Defaults are those every NAVA size shares."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_double_layers: int
    num_single_layers: int
    text_len: int = 512
    text_dim: int = 4096
    video_channels: int = 48
    video_patch_area: int = 4
    audio_channels: int = 128
    audio_kernel: int = 7
    audio_stem_dim: int = 0
    frequency_dim: int = 256
    speaker_dim: int = 192
    is_ffn_shared: bool = True

    def __post_init__(self) -> None:
        if not self.audio_stem_dim:  # round-up-to-256(int(2*4*dim/3)), the published gated convolution
            object.__setattr__(self, "audio_stem_dim", -(-int(8 * self.dim / 3) // 256) * 256)

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Shape of a network configuration, given as an object or a mapping; fields it lacks keep their defaults.

        Reads these field names, the names of `model.network.config.NavaConfig` and those of the official json files.
        """
        given = config if isinstance(config, Mapping) else {n: getattr(config, n) for n in _NAMES if hasattr(config, n)}
        known: dict[str, Any] = {_NAMES[name]: given[name] for name in _NAMES if given.get(name) is not None}
        if given.get("patch_size") is not None:
            _, patch_height, patch_width = given["patch_size"]
            known["video_patch_area"] = patch_height * patch_width
        return cls(**known)

    @property
    def num_layers(self) -> int:
        """Transformer blocks of both kinds."""
        return self.num_double_layers + self.num_single_layers


_NAMES: dict[str, str] = {name: name for name in ModelShape.__slots__} | {
    "num_align_layers": "num_double_layers",
    "num_fusion_layers": "num_single_layers",
    "max_text_tokens": "text_len",
    "timestep_freq_dim": "frequency_dim",
    "audio_ffn_dim": "audio_stem_dim",
    "vid_in_dim": "video_channels",
    "audio_in_dim": "audio_channels",
    "freq_dim": "frequency_dim",
    "patch_size": "video_patch_area",
}

NAVA_6B = ModelShape(dim=3072, ffn_dim=14336, num_heads=24, num_double_layers=10, num_single_layers=20)


@dataclass(frozen=True, slots=True)
class Flops:
    """Forward FLOPs of each sample by what they are spent on; arrays of one common shape."""

    blocks: NDArray[np.float64]
    self_attention: NDArray[np.float64]
    cross_attention: NDArray[np.float64]
    text: NDArray[np.float64]
    stems_and_heads: NDArray[np.float64]
    conditioning: float

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of all parts."""
        matmuls = self.blocks + self.self_attention + self.cross_attention + self.text + self.stems_and_heads
        return matmuls + self.conditioning


def forward_flops(
    shape: ModelShape,
    num_video_tokens: ArrayLike,
    num_audio_tokens: ArrayLike,
    num_text_tokens: ArrayLike | None = None,
    num_query_tokens: ArrayLike | None = None,
) -> Flops:
    """Forward FLOPs of samples that attend over their own video and audio tokens together.

    `num_text_tokens` are the text rows attended to (None: all `text_len` rows, as the released weights expect).
    `num_query_tokens` are the rows computed when a batch is padded (None: no padding); pads are keys to nobody.
    Norms, softmax and rotary embedding are not counted, as usual for MFU. One distinct timestep per sample.
    """
    video, audio = np.asarray(num_video_tokens, dtype=np.float64), np.asarray(num_audio_tokens, dtype=np.float64)
    text = np.asarray(shape.text_len if num_text_tokens is None else num_text_tokens, dtype=np.float64)
    keys = video + audio
    rows = keys if num_query_tokens is None else np.asarray(num_query_tokens, dtype=np.float64)
    d, layers = shape.dim, shape.num_layers
    # per row and layer: self q, k, v, o and cross q, o (2*d*d each) and the two feed-forward products (2*d*f each)
    per_row = 12 * d * d + 4 * d * shape.ffn_dim
    num_streams = (video > 0).astype(np.float64) + (audio > 0)
    text_kv = 4 * d * d * (shape.num_double_layers * num_streams + shape.num_single_layers)
    video_io = 4 * shape.video_channels * shape.video_patch_area * d
    gated_convolution = 3 * d * shape.audio_stem_dim
    audio_io = 2 * shape.audio_kernel * (shape.audio_channels * d + gated_convolution) + 2 * d * shape.audio_channels
    return Flops(
        blocks=rows * float(per_row * layers),
        self_attention=rows * keys * float(4 * d * layers),
        cross_attention=rows * text * float(4 * d * layers),
        text=text * text_kv + text * float(2 * d * (shape.text_dim + d)),
        stems_and_heads=video * float(video_io) + audio * float(audio_io),
        conditioning=float(2 * d * (shape.frequency_dim + d + 6 * d)),
    )


def training_flops(
    shape: ModelShape,
    num_video_tokens: ArrayLike,
    num_audio_tokens: ArrayLike,
    num_text_tokens: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """FLOPs of one training step on each sample without recomputation: three times forward, the MFU convention."""
    return 3.0 * forward_flops(shape, num_video_tokens, num_audio_tokens, num_text_tokens).total


# ---------------------------------------------------------------------------------------------------- whole clips


@dataclass(frozen=True, slots=True)
class ClipBudget:
    """What one clip costs the trainer."""

    modality: Modality
    num_frames: int
    height_px: int
    width_px: int
    aspect: str
    video_tokens: int
    audio_tokens: int
    text_tokens: int
    forward_flops: float
    train_flops: float

    @property
    def bucket(self) -> str:
        """Readable name: "704x1280x121" (height x width x frames), or "audio"."""
        return f"{self.height_px}x{self.width_px}x{self.num_frames}" if self.video_tokens else "audio"


def clip_budget(
    *,
    duration_s: float,
    height_px: int = 0,
    width_px: int = 0,
    has_audio: bool = True,
    text_tokens: int | None = None,
    max_frames: int | None = None,
    resolution: int | None = None,
    shape: ModelShape = NAVA_6B,
) -> ClipBudget:
    """Budget of one clip; a clip without picture has height_px = width_px = 0.

    `resolution` None takes the largest table that does not upscale; `max_frames` None keeps the whole length.
    Cost: microseconds. Raises ValueError for a clip with neither picture nor sound, or with no duration.
    """
    has_video = height_px > 0 and width_px > 0
    if duration_s <= 0 or not (has_video or has_audio):
        raise ValueError(f"nothing to budget: {duration_s} s, {width_px}x{height_px} px, has_audio={has_audio}")
    if has_video:
        table = resolution or native_resolution(height_px, width_px)
        aspect, (tall, wide) = aspect_label(height_px, width_px), pixel_bucket(height_px, width_px, table)
        available = max(1, int(round(duration_s * FRAME_RATE_HZ, 6)))
        num_frames = snap_frames(min(available, max_frames or available))
        video, audio = video_tokens(num_frames, tall, wide), paired_audio_tokens(num_frames) if has_audio else 0
    else:
        aspect, tall, wide, num_frames, video, audio = "", 0, 0, 0, 0, audio_tokens(duration_s)
    forward = float(forward_flops(shape, video, audio, text_tokens).total)
    return ClipBudget(
        modality="audio" if not has_video else "audio_video" if has_audio else "video",
        num_frames=num_frames,
        height_px=tall,
        width_px=wide,
        aspect=aspect,
        video_tokens=video,
        audio_tokens=audio,
        text_tokens=shape.text_len if text_tokens is None else text_tokens,
        forward_flops=forward,
        train_flops=3.0 * forward,
    )


# ------------------------------------------------------------------------------------------------------ parameters


def num_parameters(shape: ModelShape) -> int:
    """Trained parameters of the backbone with its speaker branch; 6,296,995,520 for NAVA_6B."""
    d, f = shape.dim, shape.ffn_dim
    attention = 4 * (d * d + d) + 2 * d
    ffn = d * f + f + f * d + d
    norm3, offsets = 2 * d, 6 * d
    double = 4 * attention + (ffn + norm3) * (1 if shape.is_ffn_shared else 2) + 2 * offsets
    single = 2 * attention + ffn + norm3 + offsets
    patch_dim = shape.video_channels * shape.video_patch_area
    stems = patch_dim * d + d + (shape.audio_channels * d + 3 * d * shape.audio_stem_dim) * shape.audio_kernel + d
    text = shape.text_dim * d + d + d * d + d
    time = shape.frequency_dim * d + d + d * d + d + 6 * d * d + 6 * d
    speaker = 2 * shape.speaker_dim + shape.speaker_dim * d + d + d * d + d + 2 * d + d
    heads = (d + 1) * patch_dim + (d + 1) * shape.audio_channels + 4 * d
    return shape.num_double_layers * double + shape.num_single_layers * single + stems + text + time + speaker + heads
