"""Samples laid end to end as tokens. B samples, N video + M audio = L tokens, P rope pairs, R context rows, S voices.

Two orders of the same L tokens are used. Alignment blocks keep the modalities apart ("by modality": all video tokens,
then all audio tokens), because their projections differ. Attention and fusion blocks want every sample in one piece
("by sample": video then audio of the first sample, then of the second). `to_samples` and `to_modalities` convert.
No token is padding: absent modalities are simply zero tokens long. Ranks that share a sample keep a run of its tokens in
by-sample order each (context_parallel.py); then N, M and L are what this rank keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import rope
from model.network.attention import Segments, Share
from model.network.conditioning import check_binding
from model.network.config import NavaConfig
from model.network.rows import TableRows
from schemas.errors import ModelError

Shape = tuple[int, int, int, int]
_T = TypeVar("_T", "Layout", "Packed")

AUDIO_CONV_REACH = 3
"""Rows that a 7-tap convolution sees on each side; samples are kept this far apart in the audio front-end."""


@dataclass(frozen=True)
class Sample:
    """One clip as the network sees it. Text and speakers are frozen-encoder outputs; latents are normalised."""

    clip_id: str
    text: Tensor  # [n <= max_text_tokens, text_dim], no padding; zero rows long means no caption
    video: Tensor | None = None  # [C, T, H, W]
    audio: Tensor | None = None  # [L, C]
    speakers: Sequence[Tensor | None] | None = ()  # one [speaker_dim] per placeholder; an entry None: no reference
    placeholders: Sequence[int] = ()  # text rows to overwrite, ascending; with speakers=None they stay text
    is_first_frame_clean: bool = False  # latent frame 0 is given (timestep 0), not denoised
    is_cross_modal_masked: bool = False  # video and audio tokens do not attend to each other


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a pack are and what they may attend to: all that a block needs besides the tokens."""

    to_samples: Tensor  # int64 [L]: by-sample order takes these rows of by-modality order
    to_modalities: Tensor  # int64 [L], its inverse
    rope_table: Tensor  # float32 [2, L, P], by sample
    time_rows: TableRows  # of L tokens, by sample: row of the timestep table, B for "clean"
    video_time_rows: TableRows  # of N tokens
    audio_time_rows: TableRows  # of M tokens
    self_segments: Segments  # by sample; two segments for a sample whose modalities are masked from each other
    context_segments: Segments  # by sample -> context rows
    video_context_segments: Segments  # video tokens -> context rows
    audio_context_segments: Segments
    share: Share | None = None  # with it, `self_segments` are those of this rank's own samples, which come last

    def prepare(self, backend: str) -> Layout:
        """The same with the attention backend's work per pack done."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        prepared: dict[str, Any] = {n: v.prepare(backend) for n, v in values if isinstance(v, (Segments, Share))}
        return replace(self, **prepared)


@dataclass(frozen=True)
class Packed:
    """A batch. Everything derived from the shapes is in it, so that the network loops over nothing."""

    config: NavaConfig
    clip_ids: tuple[str, ...]
    video_shapes: tuple[Shape | None, ...]
    audio_lengths: tuple[int, ...]
    video_patches: Tensor  # [N, patch_dim], inner order (channel, time, height, width)
    audio_latents: Tensor  # [A >= M, audio_channels], of whole samples: the front-end sees what other ranks keep, too
    audio_slots: Tensor  # int64 [A]: row of every audio latent in the front-end's buffer, samples kept apart
    num_audio_slots: int
    text: Tensor  # [sum n, text_dim]
    context_rows: Tensor  # int64 [R]: per sample its text rows, then one from `sum n` on, which stand for zero padding
    speakers: Tensor  # [S, speaker_dim]; a zero vector selects the null token
    speaker_rows: Tensor  # int64 [S]: rows of `text` they overwrite
    layout: Layout
    video_rows: Tensor | None = None  # int64 [N]: which of the samples' video tokens are here; None: all of them
    audio_rows: Tensor | None = None  # int64 [M]

    @property
    def num_samples(self) -> int:
        """Samples in the pack."""
        return len(self.clip_ids)

    @property
    def num_video_tokens(self) -> int:
        """Video tokens of this rank."""
        return len(self.video_patches)

    @property
    def num_audio_tokens(self) -> int:
        """Audio tokens of this rank."""
        return len(self.audio_latents if self.audio_rows is None else self.audio_rows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Packed:
        """The same on `device`."""
        return _move(self, device, non_blocking)

    def split_video(self, tokens_NP: Tensor) -> list[Tensor | None]:
        """Per sample the [C, T, H, W] latent whose patches (inner order time, height, width, channel) are the tokens.

        Rows and columns that were added to make the latent divisible into patches are cut off again. Zero where another
        rank has the token.
        """
        lengths = [num_patches(self.config, shape) for shape in self.video_shapes if shape]
        pieces = iter(_spread(tokens_NP, self.video_rows, sum(lengths)).split(lengths))
        return [_unpatchify(self.config, next(pieces), shape) if shape else None for shape in self.video_shapes]

    def split_audio(self, tokens_MC: Tensor) -> list[Tensor | None]:
        """Per sample its [L, C] rows; zero where another rank has the token."""
        tokens_MC = _spread(tokens_MC, self.audio_rows, sum(self.audio_lengths))
        pieces = iter(tokens_MC.split([n for n in self.audio_lengths if n]))
        return [next(pieces) if n else None for n in self.audio_lengths]


class Velocity(NamedTuple):
    """Predicted noise - x0 per sample; None where the sample lacks the modality."""

    video: list[Tensor | None]  # [C, T, H, W]
    audio: list[Tensor | None]  # [L, C]


def pack(samples: Sequence[Sample], config: NavaConfig) -> Packed:
    """The samples as one batch, on the device of their latents. Raises ModelError naming the sample that does not fit.

    Cost: copies of the latents and O(L) index arithmetic, no network weights; safe in a loader process.
    """
    if not samples:
        raise ModelError("a pack needs at least one sample.")
    for sample in samples:
        check_sample(sample, config)
    first = samples[0].video if samples[0].video is not None else samples[0].audio
    assert first is not None
    shapes = [_shape(s) for s in samples]
    num_audio = [len(s.audio) if s.audio is not None else 0 for s in samples]
    rows, voices = _bound_voices(samples, config)
    no_patch, no_latent = first.new_zeros(0, config.patch_dim), first.new_zeros(0, config.audio_channels)
    return Packed(
        config=config,
        clip_ids=tuple(s.clip_id for s in samples),
        video_shapes=tuple(shapes),
        audio_lengths=tuple(num_audio),
        video_patches=torch.cat([no_patch, *(_patchify(config, s.video) for s in samples if s.video is not None)]),
        audio_latents=torch.cat([no_latent, *(s.audio for s in samples if s.audio is not None)]),
        audio_slots=_audio_slots(num_audio),
        num_audio_slots=1 + sum(n + AUDIO_CONV_REACH for n in num_audio if n),
        text=torch.cat([s.text for s in samples]),
        context_rows=_context_rows([len(s.text) for s in samples], config.max_text_tokens),
        speakers=voices,
        speaker_rows=rows,
        layout=_layout(samples, shapes, num_audio, config),
    ).to(first.device)


def check_sample(sample: Sample, config: NavaConfig) -> None:
    """Raise ModelError, naming the clip, unless every shape of the sample fits the network."""

    def need(is_met: bool, what: str, remedy: str = "") -> None:
        if not is_met:
            raise ModelError(f"sample {sample.clip_id!r}: {what}.", remedy=remedy)

    video, audio, text = sample.video, sample.audio, sample.text
    need(video is not None or audio is not None, "has neither video nor audio latents")
    if video is not None:
        need(
            video.dim() == 4 and video.shape[0] == config.video_channels and video.numel() > 0,
            f"video latents are {tuple(video.shape)}, expected [{config.video_channels}, T, H, W]",
        )
    if audio is not None:
        need(
            audio.dim() == 2 and audio.shape[1] == config.audio_channels and audio.numel() > 0,
            f"audio latents are {tuple(audio.shape)}, expected [L, {config.audio_channels}]",
        )
    need(
        text.dim() == 2 and text.shape[1] == config.text_dim and len(text) <= config.max_text_tokens,
        f"text states are {tuple(text.shape)}, expected [n <= {config.max_text_tokens}, {config.text_dim}]",
        "Encode the caption with the text encoder of this network, without padding.",
    )
    need(not sample.is_first_frame_clean or video is not None, "has a clean first frame but no video")
    check_binding(sample.clip_id, len(text), sample.placeholders, sample.speakers, config.speaker_dim)


def num_patches(config: NavaConfig, shape: Shape) -> int:
    """Tokens of a [C, T, H, W] latent."""
    T, H, W = _grid(config, shape)
    return T * H * W


def _layout(
    samples: Sequence[Sample], shapes: Sequence[Shape | None], num_audio: list[int], config: NavaConfig
) -> Layout:
    num_video = [num_patches(config, shape) if shape else 0 for shape in shapes]
    num_both = [v + a for v, a in zip(num_video, num_audio, strict=True)]
    by_sample = torch.arange(sum(num_both)).split([*num_video, *num_audio])
    to_samples = torch.cat([by_sample[i + j] for i in range(len(samples)) for j in (0, len(samples))])
    video_rows = torch.repeat_interleave(torch.tensor(num_video)).split(num_video)
    tables, self_lengths = [], []
    for i, (sample, shape) in enumerate(zip(samples, shapes, strict=True)):
        latents = sample.video if sample.video is not None else sample.audio
        device = latents.device if latents is not None else None
        if shape:
            T, H, W = _grid(config, shape)
            tables.append(rope.video_table(config, (T, H, W), device).to(torch.float32))
            if sample.is_first_frame_clean:
                video_rows[i][: H * W] = len(samples)
        if num_audio[i]:
            tables.append(rope.audio_table(config, num_audio[i], device).to(torch.float32))
        self_lengths += [num_video[i], num_audio[i]] if sample.is_cross_modal_masked else [num_both[i]]
    video_time_rows, audio_time_rows = torch.cat(video_rows), torch.repeat_interleave(torch.tensor(num_audio))
    num_text = [len(s.text) for s in samples]
    num_zeros = [config.max_text_tokens - n for n in num_text]
    counts = [count for n, z in zip(num_text, num_zeros, strict=True) for count in [1] * n + [z] * (z > 0)]
    num_keys = [n + (z > 0) for n, z in zip(num_text, num_zeros, strict=True)]
    return Layout(
        to_samples=to_samples,
        to_modalities=torch.argsort(to_samples),
        rope_table=torch.cat(tables, dim=1),
        time_rows=TableRows.of(torch.cat([video_time_rows, audio_time_rows])[to_samples]),
        video_time_rows=TableRows.of(video_time_rows),
        audio_time_rows=TableRows.of(audio_time_rows),
        self_segments=Segments.of(self_lengths, self_lengths),
        context_segments=Segments.of(num_both, num_keys, counts),
        video_context_segments=Segments.of(num_video, num_keys, counts),
        audio_context_segments=Segments.of(num_audio, num_keys, counts),
    )


def _bound_voices(samples: Sequence[Sample], config: NavaConfig) -> tuple[Tensor, Tensor]:
    starts = accumulate((len(s.text) for s in samples), initial=0)
    rows, voices = [], []
    for sample, start in zip(samples, starts, strict=False):
        for row, voice in zip(sample.placeholders, sample.speakers or (), strict=sample.speakers is not None):
            rows.append(start + row)
            voices.append(sample.text.new_zeros(config.speaker_dim) if voice is None else voice.reshape(-1))
    no_voice = torch.zeros(0, config.speaker_dim, device=samples[0].text.device)
    return torch.tensor(rows, dtype=torch.int64), torch.cat([no_voice, *(v[None].float() for v in voices)])


def _context_rows(num_text: list[int], max_text_tokens: int) -> Tensor:
    zero_rows = iter(torch.arange(sum(num_text), sum(num_text) + len(num_text))[:, None])
    rows = torch.arange(sum(num_text)).split(num_text)
    return torch.cat([r if len(r) == max_text_tokens else torch.cat([r, next(zero_rows)]) for r in rows])


def _audio_slots(num_audio: list[int]) -> Tensor:
    lengths = [n for n in num_audio if n]
    return torch.arange(sum(lengths)) + AUDIO_CONV_REACH * torch.repeat_interleave(torch.tensor(lengths).long())


def _shape(sample: Sample) -> Shape | None:
    if sample.video is None:
        return None
    C, T, H, W = sample.video.shape
    return C, T, H, W


def _grid(config: NavaConfig, shape: Sequence[int]) -> tuple[int, int, int]:
    t, h, w = (-(-n // p) for n, p in zip(shape[1:], config.patch_size, strict=True))
    return t, h, w


def _patchify(config: NavaConfig, video: Tensor) -> Tensor:
    (T, H, W), (t, h, w) = _grid(config, video.shape), config.patch_size
    video = F.pad(video, (0, W * w - video.shape[3], 0, H * h - video.shape[2]))
    return video.view(-1, T, t, H, h, W, w).permute(1, 3, 5, 0, 2, 4, 6).reshape(T * H * W, -1)


def _unpatchify(config: NavaConfig, tokens: Tensor, shape: Shape) -> Tensor:
    (T, H, W), (t, h, w) = _grid(config, shape), config.patch_size
    video = tokens.view(T, H, W, t, h, w, -1).permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, T * t, H * h, W * w)
    return video[:, :, : shape[2], : shape[3]]


def _spread(tokens: Tensor, rows: Tensor | None, num_rows: int) -> Tensor:
    return tokens if rows is None else tokens.new_zeros(num_rows, tokens.shape[1]).index_copy(0, rows, tokens)


def _move(batch: _T, device: torch.device | str, non_blocking: bool) -> _T:
    moved: dict[str, Any] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, Layout):
            moved[f.name] = _move(value, device, non_blocking)
        elif isinstance(value, (Tensor, TableRows, Segments, Share)):
            moved[f.name] = value.to(device, non_blocking=non_blocking)
    return replace(batch, **moved)
