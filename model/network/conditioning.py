"""What the network is told: text rows, and voices bound to the places where they speak. R rows, S voices, D = dim.

Timbre-in-Context: every spoken line of a caption is written `<S>line<E>`. `mark_spans` puts one placeholder token behind
each `<S>`; after tokenisation its row is found by index (`find_placeholders`), and the network overwrites exactly that row
of the projected text with the projected voice of that line. The pairing is checked (`check_binding`), never inferred
from order across samples.
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.network.layers import LayerNorm, PreciseLinear
from schemas.errors import ModelError

SPAN_START, SPAN_END = "<S>", "<E>"
PLACEHOLDER = "<extra_id_2>"
"""The umT5 sentinel that the release reserves for a voice."""

NULL_SQUARED_NORM = 1e-6
"""Voices at or below this squared norm mean "no reference" and select the null token, as in the release."""

_SPAN = re.compile(f"{re.escape(SPAN_START)}(.*?){re.escape(SPAN_END)}", re.DOTALL)


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
    """The caption with one placeholder behind every `<S>`. Raises ModelError if the tags do not pair up."""
    if caption.count(SPAN_START) != len(_SPAN.findall(caption)) or caption.count(SPAN_END) != caption.count(SPAN_START):
        raise ModelError(f"caption has unpaired {SPAN_START} and {SPAN_END}: {caption[:120]!r}")
    return caption.replace(SPAN_START, SPAN_START + PLACEHOLDER)


def find_placeholders(token_ids: Sequence[int], placeholder_id: int) -> list[int]:
    """Rows of the placeholder token in a tokenised caption, ascending."""
    return [row for row, token in enumerate(token_ids) if token == placeholder_id]


def cut_spans(
    caption: str, spans: Sequence[Mapping[str, Any]], start_s: float, end_s: float
) -> tuple[str, list[dict[str, Any]], list[int]]:
    """(caption, spans, indices kept) for the window [start_s, end_s) of a clip, spans on the window's clock.

    `spans` are `schemas.records.SPEECH_SPAN` rows in caption order. A word belongs to the window if its middle does; a line
    keeps its words inside the window and vanishes from the caption, tags included, when none is left. A span without word
    times is kept only if it lies inside as a whole, because nobody knows which of its words are heard. The release keeps
    whole lines whatever the window; this is the correction. Raises ModelError if lines and spans do not pair up.
    """
    lines = _SPAN.findall(caption)
    if len(lines) != len(spans):
        raise ModelError(f"caption has {len(lines)} spoken lines but {len(spans)} speech spans: {caption[:120]!r}")
    cut = [_cut_span(span, line, start_s, end_s) for span, line in zip(spans, lines, strict=True)]
    replacements = iter(cut)

    def replacement(_: re.Match[str]) -> str:
        span = next(replacements)
        return f"{SPAN_START}{span['text']}{SPAN_END}" if span else ""

    shortened = re.sub(r"\s+", " ", _SPAN.sub(replacement, caption)).strip()
    kept = [i for i, span in enumerate(cut) if span]
    return shortened, [span for span in cut if span], kept


def _cut_span(span: Mapping[str, Any], line: str, start_s: float, end_s: float) -> dict[str, Any] | None:
    words = span.get("words") or []
    is_inside = start_s <= span["start_s"] and span["end_s"] <= end_s
    heard = [w for w in words if start_s <= (w["start_s"] + w["end_s"]) / 2 < end_s]
    if is_inside:
        text, heard = line, words
    elif heard:
        text = line if len(heard) == len(words) else " ".join(w["text"] for w in heard)
    else:
        return None

    def shifted(row: Mapping[str, Any]) -> dict[str, Any]:
        clipped = {"start_s": max(row["start_s"], start_s) - start_s, "end_s": min(row["end_s"], end_s) - start_s}
        return {**row, **clipped}

    moved_words = [shifted(w) for w in heard]
    moved = {**shifted(span), "text": text, "words": moved_words}
    if heard and not is_inside:
        moved |= {"start_s": moved_words[0]["start_s"], "end_s": moved_words[-1]["end_s"]}
    return moved
