"""The .safetensors member of a latent shard: what `nava-train encode` writes and the trainer reads. No pickle anywhere.

    video_latents   float16   [C, T, H, W]   normalised; absent without a picture
    audio_latents   float16   [L, C]         normalised, 25 per second; absent without sound
    text_states     bfloat16  [n, D]         rows of the text encoder, trimmed to the caption's length
    voice_rows      int32     [S]            rows of `text_states` that voices take the place of, ascending
    voices          float32   [S, V]         speaker vectors in the same order; a zero row where there is no reference

Normalised latents have unit variance, which float16 holds to 0.05 %; the text encoder itself computes in bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from model.data.reader import RawSample, decode_latents
from model.network.tokens import Sample
from schemas.budget import Use
from schemas.errors import DamagedSampleError, ModelError

STORED = {
    "video_latents": (torch.float16, 4),
    "audio_latents": (torch.float16, 2),
    "text_states": (torch.bfloat16, 2),
    "voice_rows": (torch.int32, 1),
    "voices": (torch.float32, 2),
}
"""Name -> (numbers, dimensions)."""


def write_latents(sample: Sample) -> bytes:
    """The member of one encoded sample. Raises ModelError, naming the clip, for numbers that are not finite."""
    from safetensors.torch import save

    voices = [torch.zeros(0) if voice is None else voice for voice in sample.speakers or ()]
    width = max((voice.numel() for voice in voices), default=0)
    given = {
        "video_latents": sample.video,
        "audio_latents": sample.audio,
        "text_states": sample.text,
        "voice_rows": torch.tensor(list(sample.placeholders)),
        "voices": torch.stack([v if v.numel() else torch.zeros(width) for v in voices])
        if voices
        else torch.zeros(0, 0),
    }
    stored: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if tensor is None:
            continue
        stored[name] = tensor.detach().to("cpu", STORED[name][0]).contiguous()
        if not bool(stored[name].isfinite().all()):
            raise ModelError(f"{sample.clip_id}: {name} are not finite in {STORED[name][0]}.")
    data: bytes = save(stored)
    return data


def read_latents(raw: RawSample) -> Sample:
    """The sample of a latent shard, float32. Raises DamagedSampleError when the member is not what the contract says."""
    tensors = decode_latents(raw)
    for name, tensor in tensors.items():
        if name not in STORED or (tensor.dtype, tensor.dim()) != STORED[name]:
            raise DamagedSampleError(f"{raw.clip_id}: member tensor {name} is {tensor.dtype} {list(tensor.shape)}.")
        if not bool(tensor.isfinite().all()):
            raise DamagedSampleError(f"{raw.clip_id}: member tensor {name} holds numbers that are not finite.")
    missing = {"text_states", "voice_rows", "voices"} - set(tensors)
    if missing or not {"video_latents", "audio_latents"} & set(tensors):
        raise DamagedSampleError(f"{raw.clip_id}: the latent member lacks {', '.join(sorted(missing)) or 'latents'}.")
    video, audio = tensors.get("video_latents"), tensors.get("audio_latents")
    return Sample(
        raw.clip_id,
        text=tensors["text_states"].float(),
        video=None if video is None else video.float(),
        audio=None if audio is None else audio.float(),
        speakers=[voice if bool(voice.any()) else None for voice in tensors["voices"]],
        placeholders=tensors["voice_rows"].tolist(),
    )


def restrict(sample: Sample, use: Use) -> Sample:
    """The sample with only what the plan trains on; of an image the first latent frame and the caption."""
    if use == "image" and sample.video is not None:
        return replace(sample, video=sample.video[:, :1], audio=None, speakers=(), placeholders=())
    return replace(
        sample,
        video=None if use == "audio" else sample.video,
        audio=None if use == "video" else sample.audio,
    )


def num_tokens(sample: Sample, patch_area: tuple[int, int]) -> tuple[int, int, int]:
    """(video, audio, text) tokens of a sample; odd heights and widths count as the patches that cover them."""
    video = 0
    if sample.video is not None:
        _, frames, height, width = sample.video.shape
        video = frames * math.ceil(height / patch_area[0]) * math.ceil(width / patch_area[1])
    return video, 0 if sample.audio is None else len(sample.audio), len(sample.text)
