"""`timbre`: for each speech span a sample of the same voice saying something else.

A model that is shown the very words it must speak learns to copy them. The reference therefore comes from another utterance
of the speaker, in the same clip if there is one, else in the same asset; only where there is none is it the span itself, and
that is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.fields import f, struct
from schemas.records import TIMBRE, Row
from schemas.spans import SPEECH_RATE_HZ
from stages.base import Context, Measure, Resources, StageConfig
from stages.diarize.stage import alone
from stages.engines.speakers import MIN_SPEECH_S, SpeakerEncoder, similarity
from stages.engines.voice import Stretch, covered_s, merge

CLIPPED_AT = 0.999
"""Absolute sample value, full scale 1, from which a sample counts as clipped."""

F32 = NDArray[np.float32]


class TimbreConfig(StageConfig):
    """How long a reference is and how far from its span."""

    min_s: float = Field(default=1.5, ge=MIN_SPEECH_S)
    """Shortest reference: one window of the speaker encoder is 1.6 s."""
    max_s: float = Field(default=10.0, gt=0)
    """Longest reference; of a longer stretch the first part is taken."""
    enough_s: float = Field(default=4.0, gt=0)
    """Length beyond which longer is no better; between shorter ones length counts as much as cleanliness."""
    guard_s: float = Field(default=0.25, ge=0)
    """Distance kept from the span and from other speakers: word and turn times are off by up to 0.2 s."""
    max_pause_s: float = Field(default=0.6, ge=0)
    """Pauses up to this long may lie inside a reference."""

    @model_validator(mode="after")
    def _ordered(self) -> TimbreConfig:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s:g}) must not be smaller than min_s ({self.min_s:g})")
        return self


class Timbre(Measure[TimbreConfig]):
    """One reference per speech span with a known speaker."""

    name = "timbre"
    version = "2"
    level = "clip"
    reads = ("clip", "diarize.turns", "transcribe.speech", "download.path", "probe.has_audio")
    adds = struct(
        f("references", pa.list_(TIMBRE), doc="at most one per span, in the order of the spans"),
        f("num_cross_utterance", pa.int32(), unit="count", doc="references taken from another utterance"),
        f("num_same_span", pa.int32(), unit="count", doc="references that are the span itself, for want of another"),
        f("num_missing", pa.int32(), unit="count", doc="spans without reference: speaker unknown or never heard alone"),
        f(
            "min_similarity",
            pa.float64(),
            unit="cosine",
            doc="least similarity of a cross-utterance reference to its span",
        ),
    )
    Config = TimbreConfig
    resources = Resources(memory_gb=0.3, timeout_s=600.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.encoder = SpeakerEncoder.load()

    def measure(self, row: Row) -> dict[str, Any]:
        spans = row["clip"]["spans"] or []
        references: list[dict[str, Any]] = []
        if spans and row["probe"]["has_audio"]:
            sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
            turns = (row["diarize"] or {}).get("turns") or []
            speech = merge(Stretch(s["start_s"], s["end_s"]) for s in (row["transcribe"] or {}).get("speech") or [])
            clip = Stretch(row["clip"]["asset_start_s"], row["clip"]["asset_end_s"])
            for index, span in enumerate(spans):
                found = choose_reference(span, clip, turns, speech, sound, self.config)
                if found is not None:
                    references.append(self._describe(index, span, clip, found, turns, sound))
        crossed = [r for r in references if not r["is_same_span"]]
        return {
            "references": references,
            "num_cross_utterance": len(crossed),
            "num_same_span": len(references) - len(crossed),
            "num_missing": len(spans) - len(references),
            "min_similarity": min((r["similarity"] for r in crossed if r["similarity"] is not None), default=None),
        }

    def _describe(
        self,
        index: int,
        span: Mapping[str, Any],
        clip: Stretch,
        found: tuple[Stretch, str, float],
        turns: Sequence[Mapping[str, Any]],
        sound: Any,
    ) -> dict[str, Any]:
        where, origin, cleanliness = found
        embedding = self.encoder.embed(cut(sound, where))
        own = alone_in(on_asset(span, clip), span["speaker"], turns, 0.0)
        parts = [cut(sound, stretch) for stretch in own]
        own_voice = self.encoder.embed(np.concatenate(parts)) if parts else None
        return {
            "span_index": index,
            "speaker": span["speaker"],
            "origin": origin,
            "is_same_span": origin == "same_span",
            "asset_start_s": where.start_s,
            "asset_end_s": where.end_s,
            "similarity": None if embedding is None or own_voice is None else similarity(embedding, own_voice),
            "cleanliness": cleanliness,
            "embedding": None if embedding is None else embedding.tolist(),
        }


def choose_reference(
    span: Mapping[str, Any],
    clip: Stretch,
    turns: Sequence[Mapping[str, Any]],
    speech: list[Stretch],
    sound: Any,
    config: TimbreConfig,
) -> tuple[Stretch, str, float] | None:
    """(where on the asset clock, origin, cleanliness) of the best reference for `span`, or None.

    Another utterance in the clip beats another utterance in the asset, which beats the span itself; within each, what is
    clean and long wins. No reference touches another speaker's turn.
    """
    if span["speaker"] is None:
        return None
    own = on_asset(span, clip)
    heard = Stretch(float(sound.start), float(sound.end))
    voiced = [
        piece
        for turn in turns
        if turn["speaker"] == span["speaker"]
        for piece in alone_in(Stretch(turn["start_s"], turn["end_s"]), span["speaker"], turns, config.guard_s)
    ]
    away = Stretch(own.start_s - config.guard_s, own.end_s + config.guard_s)
    elsewhere = [rest for piece in voiced for rest in alone(piece, [away])]
    for origin, inside, pieces in (
        ("same_clip", clip, elsewhere),
        ("same_asset", heard, elsewhere),
        ("same_span", own, alone_in(own, span["speaker"], turns, 0.0)),
    ):
        least_s = MIN_SPEECH_S if origin == "same_span" else config.min_s
        candidates = utterances(pieces, speech, inside, config)
        rated = [(c, cleanliness(c, speech, cut(sound, c))) for c in candidates if c.duration_s >= least_s]
        if rated:
            best, clean = max(rated, key=lambda r: r[1] * min(1.0, r[0].duration_s / config.enough_s))
            return best, origin, clean
    return None


def on_asset(span: Mapping[str, Any], clip: Stretch) -> Stretch:
    """Where a clip's span lies on the asset clock."""
    return Stretch(clip.start_s + span["start_s"], min(clip.end_s, clip.start_s + span["end_s"]))


def alone_in(where: Stretch, speaker: str | None, turns: Sequence[Mapping[str, Any]], guard_s: float) -> list[Stretch]:
    """The parts of `where` at least `guard_s` away from every other speaker's turns."""
    others = [
        Stretch(t["start_s"] - guard_s, t["end_s"] + guard_s)
        for t in turns
        if speaker is None or t["speaker"] != speaker
    ]
    return alone(where, merge(others))


def utterances(pieces: list[Stretch], speech: list[Stretch], inside: Stretch, config: TimbreConfig) -> list[Stretch]:
    """Runs of speech within `pieces` and `inside`, with pauses up to `max_pause_s`, none longer than `max_s`."""
    found: list[Stretch] = []
    for piece in merge(pieces):
        low, high = max(piece.start_s, inside.start_s), min(piece.end_s, inside.end_s)
        voiced = [Stretch(max(low, s.start_s), min(high, s.end_s)) for s in speech]
        for run in merge((v for v in voiced if v.duration_s > 0), config.max_pause_s):
            found.append(Stretch(run.start_s, min(run.end_s, run.start_s + config.max_s)))
    return found


def cleanliness(where: Stretch, speech: list[Stretch], samples: F32) -> float:
    """Share of `where` that is speech, times the share of its 10 ms frames without a clipped sample."""
    frame = SPEECH_RATE_HZ // 100
    whole = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame)
    unclipped = float((whole.max(axis=1) < CLIPPED_AT).mean()) if len(whole) else 0.0
    return unclipped * min(1.0, covered_s(where, speech) / max(where.duration_s, 1e-9))


def cut(sound: Any, where: Stretch) -> F32:
    """The samples of a `Waveform` between two instants of the asset clock."""
    samples: F32 = sound.cut(Fraction(where.start_s), Fraction(where.end_s))
    return samples
