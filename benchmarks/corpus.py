"""The synthetic corpus of the batching benchmark: an index as packing would write it, without media.

Shot lengths are log-normal (median 4.5 s, sigma 0.8, 1 ... 60 s); 50 % 704x1280, 22 % 1280x704, 8 % 960x960, 14 % 480x832,
6 % 832x480; 30 % are audio only. The regime says what is done to long shots:

    S1   official caps: 121 frames, shots under 33 or over 400 frames dropped, audio at most 10 s
    S2   native length: shots cut into pieces of at most 241 frames, audio at most 15 s
    S3   native length, uncut
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.data.index import ShardIndex

Regime = Literal["S1", "S2", "S3"]
SIZES = (((704, 1280), 0.50), ((1280, 704), 0.22), ((960, 960), 0.08), ((480, 832), 0.14), ((832, 480), 0.06))
TOKENS_PER_LATENT = np.array([(h // 32) * (w // 32) for (h, w), _ in SIZES])
AUDIO_SHARE = 0.30
AUDIO_CAP_S = {"S1": 10, "S2": 15, "S3": 60}
SAMPLES_PER_SHARD = 1000


def synthetic_index(num_shots: int, regime: Regime, seed: int = 0) -> tuple[ShardIndex, float]:
    """(index of the samples that `num_shots` shots give, share of the corpus tokens that the regime drops)."""
    rng = np.random.default_rng(seed)
    duration_s = _shot_lengths(num_shots, rng)
    is_audio = rng.random(num_shots) < AUDIO_SHARE
    size = rng.choice(len(SIZES), num_shots, p=[share for _, share in SIZES])
    sound_tokens = np.ceil(duration_s[is_audio] * 25).astype(np.int64)
    kept = [np.zeros((len(sound_tokens), 3), np.int64)]
    kept[0][:, 1] = np.minimum(sound_tokens, AUDIO_CAP_S[regime] * 25)
    for frames, picture_size in _picture_samples(duration_s[~is_audio], size[~is_audio], regime):
        latents = (frames - 1) // 4 + 1
        sound = -(-((latents - 1) * 4 + 1) * 25 // 24)
        kept.append(np.stack([latents * TOKENS_PER_LATENT[picture_size], sound, picture_size], axis=1))
    samples = rng.permutation(np.concatenate(kept))
    all_frames = (duration_s[~is_audio] * 24).astype(np.int64)
    total = int(sound_tokens.sum() + (((all_frames - 1) // 4 + 1) * TOKENS_PER_LATENT[size[~is_audio]]).sum())
    left = int(samples[:, 0].sum() + kept[0][:, 1].sum())
    return index_of(samples[:, 0], samples[:, 1], samples[:, 2]), 1 - left / total


def index_of(
    video_tokens: NDArray[np.int64],
    audio_tokens: NDArray[np.int64],
    size: NDArray[np.int64] | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> ShardIndex:
    """Index with these token counts and numbers of picture size, 512 text tokens each, in shards of equal length."""
    num_rows = len(video_tokens)
    rows, has_video = np.arange(num_rows), video_tokens > 0
    height_px, width_px = np.array([pixels for pixels, _ in SIZES])[np.zeros_like(rows) if size is None else size].T
    shard_names = pa.array([f"{i:05d}.tar" for i in range(-(-num_rows // samples_per_shard))], pa.string())
    columns = {
        "clip_id": pa.array([f"clip{i:08d}" for i in range(num_rows)]),
        "shard": shard_names.take(pa.array(rows // samples_per_shard)),
        "duration_s": pa.array(audio_tokens / 25),
        "height_px": pa.array(np.where(has_video, height_px, 0).astype(np.int32)),
        "width_px": pa.array(np.where(has_video, width_px, 0).astype(np.int32)),
        "has_video": pa.array(has_video),
        "has_audio": pa.array(audio_tokens > 0),
        "source": pa.array(np.where(has_video, "film", "radio")),
        "video_tokens": pa.array(video_tokens.astype(np.int32)),
        "audio_tokens": pa.array(audio_tokens.astype(np.int32)),
        "text_tokens": pa.array(np.full(num_rows, 512, np.int32)),
        "sample_offset": pa.array(np.zeros(num_rows, np.int64)),
        "sample_bytes": pa.array(np.zeros(num_rows, np.int64)),
        "crc32": pa.array(np.zeros(num_rows, np.int64)),
    }
    return ShardIndex.from_table(pa.table(columns))


def _shot_lengths(num_shots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    kept = np.zeros(0)
    while len(kept) < num_shots:
        drawn = np.exp(rng.normal(np.log(4.5), 0.8, 2 * num_shots))
        kept = np.concatenate([kept, drawn[(drawn >= 1) & (drawn <= 60)]])
    return kept[:num_shots]


def _picture_samples(
    duration_s: NDArray[np.float64], size: NDArray[np.int64], regime: Regime
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(frames, number of picture size) of the samples, in groups."""
    frames = (duration_s * 24).astype(np.int64)
    if regime == "S1":
        kept = (frames >= 33) & (frames <= 400)
        return [(np.minimum(frames[kept], 121), size[kept])]
    if regime == "S3":
        return [(frames, size)]
    pieces = []
    while (long_enough := frames >= 25).any():
        frames, size = frames[long_enough], size[long_enough]
        pieces.append((np.minimum(frames, 241), size))
        frames = frames - 241
    return pieces
