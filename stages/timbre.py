"""`timbre`: for each speech span a sample of the same voice saying something else.

A model that is shown the very words it must speak learns to copy them. The reference therefore comes from another utterance
of the speaker, in the same clip if there is one, else in the same asset; only where there is none is it the span itself, and
that is flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.fields import f, struct
from schemas.records import TIMBRE, Row
from schemas.spans import SPEECH_RATE_HZ, Origin, Reference, SpeechSpan, Turn, alone
from schemas.stretches import Stretch, Timed, covered_s, inside, merge, outside
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.speakers import EMBEDDER, EMBEDDING_SIZE, MIN_SPEECH_S, similarity
from stages.engines.voice_memory import VoiceMemory
from stages.media.decoder import Waveform

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
    """Shorter pauses may lie inside a reference."""

    @model_validator(mode="after")
    def _ordered(self) -> TimbreConfig:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s:g}) must not be smaller than min_s ({self.min_s:g})")
        return self


class Timbre(Measure[TimbreConfig]):
    """One reference per speech span with a known speaker."""

    name = "timbre"
    version = "4"
    level = "clip"
    reads = ("clip", "diarize.turns", "diarize.alone", "transcribe.speech", "download.path", "probe.has_audio")
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
        f("embedder", pa.string(), doc="network whose embeddings the references have", means="embedder"),
        f("embedding_dim", pa.int32(), unit="count", doc="width of its embeddings"),
    )
    Config = TimbreConfig
    resources = Resources(memory_gb=0.3, timeout_s=600.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.memory = VoiceMemory.of(ctx)

    def measure(self, row: Row) -> dict[str, Any]:
        spans = SpeechSpan.all_of(row["clip"]["spans"])
        references: list[Reference] = []
        if spans and row["probe"]["has_audio"]:
            sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
            diarized = row["diarize"] or {}
            turns, pieces = Turn.all_of(diarized.get("turns")), Stretch.all_of(diarized.get("alone"))
            speech = merge(Stretch.all_of((row["transcribe"] or {}).get("speech")))
            clip = Stretch(row["clip"]["asset_start_s"], row["clip"]["asset_end_s"])
            for index, span in enumerate(spans):
                found = choose_reference(span, clip, turns, speech, sound, self.config)
                if found is not None:
                    own = on_asset(span, clip)
                    voices = [
                        self.memory.voice(sound, parts, pieces)
                        for parts in ([found.where], alone(own, own.speaker, turns))
                    ]
                    references.append(describe(index, own, found, *voices))
        return reference_fields(references, len(spans))


def describe(index: int, span: SpeechSpan, found: Choice, voice: F32 | None, own_voice: F32 | None) -> Reference:
    """The reference `found` for the span of that index, what is heard in it, and what is heard in the span."""
    assert span.speaker is not None, "a reference is chosen for a known speaker"
    return Reference(
        span_index=index,
        speaker=span.speaker,
        origin=found.origin,
        asset_start_s=found.where.start_s,
        asset_end_s=found.where.end_s,
        similarity=None if voice is None or own_voice is None else similarity(voice, own_voice),
        cleanliness=found.cleanliness,
        embedding=None if voice is None else voice.tolist(),
    )


def references_of(row: Row) -> list[Reference]:
    """The references of a clip's row; none where the stage was not run."""
    return [Reference.of(each) for each in (row.get("timbre") or {}).get("references") or ()]


def reference_fields(references: Sequence[Reference], num_spans: int) -> dict[str, Any]:
    """The struct of a clip of `num_spans` spans with these references."""
    crossed = [r for r in references if not r.is_same_span]
    return {
        "references": [r.row() for r in references],
        "num_cross_utterance": len(crossed),
        "num_same_span": len(references) - len(crossed),
        "num_missing": num_spans - len(references),
        "min_similarity": min((r.similarity for r in crossed if r.similarity is not None), default=None),
        "embedder": EMBEDDER,
        "embedding_dim": EMBEDDING_SIZE,
    }


@dataclass(frozen=True, slots=True)
class Choice:
    """The stretch of the asset clock that is to be the reference of a span."""

    where: Stretch
    origin: Origin
    cleanliness: float


def choose_reference(
    span: SpeechSpan,
    clip: Stretch,
    turns: Sequence[Turn],
    speech: Sequence[Stretch],
    sound: Waveform,
    config: TimbreConfig,
) -> Choice | None:
    """The best reference for `span`, which is on the clock of `clip`; None where the speaker is unknown or never alone.

    Another utterance in the clip beats another utterance in the asset, which beats the span itself; within each, what is
    clean and long wins. No reference touches another speaker's turn.
    """
    if span.speaker is None:
        return None
    own = on_asset(span, clip)
    heard = Stretch(float(sound.start), float(sound.end))
    voiced = [
        piece
        for turn in turns
        if turn.speaker == span.speaker
        for piece in alone(turn, span.speaker, turns, config.guard_s)
    ]
    away = Stretch(own.start_s - config.guard_s, own.end_s + config.guard_s)
    elsewhere = [rest for piece in voiced for rest in outside(piece, [away])]
    places: tuple[tuple[Origin, Timed, list[Stretch]], ...] = (
        ("same_clip", clip, elsewhere),
        ("same_asset", heard, elsewhere),
        ("same_span", own, alone(own, span.speaker, turns)),
    )
    for origin, where, pieces in places:
        least_s = MIN_SPEECH_S if origin == "same_span" else config.min_s
        candidates = utterances(pieces, speech, where, config)
        rated = [
            Choice(c, origin, cleanliness(c, speech, cut(sound, c))) for c in candidates if c.duration_s >= least_s
        ]
        if rated:
            return max(rated, key=lambda r: r.cleanliness * min(1.0, r.where.duration_s / config.enough_s))
    return None


def on_asset(span: SpeechSpan, clip: Stretch) -> SpeechSpan:
    """A clip's span on the asset clock."""
    return span.moved(clip.start_s).within(clip.start_s, clip.end_s)


def utterances(
    pieces: Sequence[Stretch], speech: Sequence[Stretch], where: Timed, config: TimbreConfig
) -> list[Stretch]:
    """Runs of speech within `pieces` and `where`, with pauses shorter than `max_pause_s`, none longer than `max_s`."""
    return [
        run.within(run.start_s, run.start_s + config.max_s)
        for piece in inside(where, merge(pieces))
        for run in merge(inside(piece, speech), config.max_pause_s)
    ]


def cleanliness(where: Stretch, speech: Sequence[Stretch], samples: F32) -> float:
    """Share of `where` that is speech, times the share of its 10 ms frames without a clipped sample."""
    frame = SPEECH_RATE_HZ // 100
    whole = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame)
    unclipped = float((whole.max(axis=1) < CLIPPED_AT).mean()) if len(whole) else 0.0
    return unclipped * min(1.0, covered_s(where, speech) / max(where.duration_s, 1e-9))


def cut(sound: Waveform, where: Stretch) -> F32:
    """The samples between two instants of the asset clock."""
    samples: F32 = sound.cut(Fraction(where.start_s), Fraction(where.end_s))
    return samples
