"""What the network is told: text rows, and voices bound to the places where they speak. R rows, S voices, D = dim.

Timbre-in-Context: every spoken line of a caption is written `<S>line<E>`. `mark_spans` puts one placeholder token behind
each `<S>`; after tokenisation its row is found by index (`find_placeholders`), and the network overwrites exactly that row
of the projected text with the projected voice of that line. The pairing is checked (`check_binding`), never inferred
from order across samples.
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from model.network.layers import LayerNorm, PreciseLinear
from schemas.errors import ModelError
from schemas.lines import LINE_END, LINE_START, lines_in, with_lines
from schemas.spans import SpeechSpan

PLACEHOLDER = "<extra_id_2>"
"""The umT5 sentinel that the release reserves for a voice."""

NULL_SQUARED_NORM = 1e-6
"""Voices at or below this squared norm mean "no reference" and select the null token, as in the release."""


class SpeakerEmbedding(nn.Module):
    """Voices_SV -> tokens_SD. The affine norms use torch's default eps 1e-5, not the network's 1e-6, as in the release."""

    def __init__(self, speaker_dim: int, dim: int) -> None:
        super().__init__()
        self.null_token = nn.Parameter(torch.zeros(1, dim))
        self.net = nn.Sequential(
            LayerNorm(speaker_dim), PreciseLinear(speaker_dim, dim), nn.SiLU(), PreciseLinear(dim, dim)
        )
        self.out_norm = LayerNorm(dim)

    def forward(self, voices_SV: Tensor) -> Tensor:
        is_null = voices_SV.square().sum(-1, keepdim=True) <= NULL_SQUARED_NORM
        return torch.where(is_null, self.null_token.to(voices_SV.dtype), self.out_norm(self.net(voices_SV)))


def check_binding(
    clip_id: str,
    num_text_rows: int,
    placeholders: Sequence[int],
    speakers: Sequence[Tensor | None] | None,
    speaker_dim: int,
) -> None:
    """Raise ModelError, naming the clip, unless every placeholder row exists and has exactly one voice."""
    if list(placeholders) != sorted(set(placeholders)) or any(row < 0 for row in placeholders):
        raise ModelError(f"sample {clip_id!r}: placeholder rows {list(placeholders)} must be ascending and distinct.")
    if placeholders and placeholders[-1] >= num_text_rows:
        raise ModelError(
            f"sample {clip_id!r}: placeholder row {placeholders[-1]} lies beyond its {num_text_rows} text rows.",
            remedy="The caption was cut before its last spoken line: shorten the caption or drop that line and its voice.",
        )
    if speakers is None:
        return
    if len(speakers) != len(placeholders):
        raise ModelError(
            f"sample {clip_id!r}: {len(placeholders)} speech placeholders but {len(speakers)} voices.",
            remedy="Give one voice per <S> line, None where a line has no reference.",
        )
    for i, voice in enumerate(speakers):
        if voice is not None and voice.numel() != speaker_dim:
            raise ModelError(
                f"sample {clip_id!r}: voice {i} has shape {tuple(voice.shape)}, expected [{speaker_dim}].",
                remedy="Use the speaker embedder that this network was trained with.",
            )


def mark_spans(caption: str) -> str:
    """The caption with one placeholder behind every `<S>`. Raises ModelError if the marks do not pair up."""
    _lines(caption)
    return caption.replace(LINE_START, LINE_START + PLACEHOLDER)


def find_placeholders(token_ids: Sequence[int], placeholder_id: int) -> list[int]:
    """Rows of the placeholder token in a tokenised caption, ascending."""
    return [row for row, token in enumerate(token_ids) if token == placeholder_id]


def cut_spans(
    caption: str, spans: Sequence[SpeechSpan], start_s: float, end_s: float
) -> tuple[str, list[SpeechSpan], list[int]]:
    """(caption, spans, indices kept) for the window [start_s, end_s) of a clip, spans on the window's clock.

    `spans` are in caption order. A line keeps what is heard of it in the window (`SpeechSpan.heard_in`) and vanishes from
    the caption, marks included, when nothing is. The release keeps whole lines whatever the window; this is the
    correction. Raises ModelError if lines and spans do not pair up.
    """
    lines = _lines(caption)
    if len(lines) != len(spans):
        raise ModelError(f"caption has {len(lines)} spoken lines but {len(spans)} speech spans: {caption[:120]!r}")
    heard = [replace(span, text=line).heard_in(start_s, end_s) for span, line in zip(spans, lines, strict=True)]
    shortened = with_lines(caption, [None if span is None else span.text for span in heard])
    kept = [i for i, span in enumerate(heard) if span is not None]
    return shortened, [span for span in heard if span is not None], kept


def _lines(caption: str) -> list[str]:
    lines = lines_in(caption)
    if lines is None:
        raise ModelError(f"caption has unpaired {LINE_START} and {LINE_END}: {caption[:120]!r}")
    return lines
