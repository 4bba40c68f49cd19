"""`timbre`: for each speech span a sample of the same voice saying something else.

A model that is shown the very words it must speak learns to copy them. The reference therefore comes from another utterance
of the speaker, in the same clip if there is one, else in the same asset; only where there is none is it the span itself, and
that is flagged. It lies where exactly one voice is heard, and sounds like the span and like no other speaker: a reference of
which that cannot be said is left out.
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
from schemas.spans import SPEECH_RATE_HZ, Origin, Reference, Speaker, SpeechSpan, Turn, Word, alone
from schemas.stretches import Stretch, Timed, covered_s, inside, merge, outside
from stages.base import Context, Measure, Resources, StageConfig
from stages.diarize.cluster import VoiceCluster, likeness
from stages.engines.speakers import EMBEDDER, EMBEDDING_SIZE, MIN_SPEECH_S, similarity
from stages.engines.voice_memory import MIN_INSIDE, VoiceMemory
from stages.media.waveform import Waveform

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
    guard_s: float = Field(default=0.5, ge=0)
    """Distance kept from the span and from other speakers; docs/quality.md says what chose it."""
    max_pause_s: float = Field(default=0.6, ge=0)
    """Shorter pauses may lie inside a reference."""
    min_known_s: float = Field(default=0.8, ge=MIN_SPEECH_S)
    """A span in which its speaker is heard alone for less than this has no reference: nobody knows whose voice it is."""
    min_likeness: float = Field(default=0.8, ge=-1)
    """Least likeness of a reference to its span, as `stages.diarize.cluster` measures it; docs/quality.md says what chose it."""

    @model_validator(mode="after")
    def _ordered(self) -> TimbreConfig:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s:g}) must not be smaller than min_s ({self.min_s:g})")
        return self


class Timbre(Measure[TimbreConfig]):
    """One reference per speech span with a known speaker."""

    name = "timbre"
    version = "5"
    level = "clip"
    reads = (
        "clip",
        "diarize.turns",
        "diarize.alone",
        "diarize.speakers",
        "transcribe.speech",
        "transcribe.words",
        "download.path",
        "probe.has_audio",
    )
    adds = struct(
        f("references", pa.list_(TIMBRE), doc="at most one per span, in the order of the spans"),
        f("num_cross_utterance", pa.int32(), unit="count", doc="references taken from another utterance"),
        f("num_same_span", pa.int32(), unit="count", doc="references that are the span itself, for want of another"),
        f(
            "num_missing",
            pa.int32(),
            unit="count",
            doc="spans without reference: speaker unknown, never heard alone, or not told from others",
        ),
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
            heard = Dialogue.of(row)
            judge = VoiceJudge(self.memory, sound, heard.alone, heard.speakers, self.config)
            clip = Stretch(row["clip"]["asset_start_s"], row["clip"]["asset_end_s"])
            for index, span in enumerate(spans):
                own = on_asset(span, clip)
                found = judge.first(own, heard.turns, choices(own, clip, heard, sound, self.config))
                if found is not None:
                    references.append(describe(index, own, *found))
        return reference_fields(references, len(spans))


@dataclass(frozen=True)
class Dialogue:
    """What is known of the speech of an asset, on its clock."""

    turns: Sequence[Turn]
    speech: Sequence[Stretch]
    """Where anybody speaks."""
    alone: Sequence[Stretch]
    """Pieces in which one voice alone is heard."""
    words: Sequence[Word] = ()
    speakers: Sequence[Speaker] = ()

    @classmethod
    def of(cls, row: Row) -> Dialogue:
        """What the row of a clip holds of its asset."""
        diarized, transcribed = row["diarize"] or {}, row["transcribe"] or {}
        return cls(
            turns=Turn.all_of(diarized.get("turns")),
            speech=merge(Stretch.all_of(transcribed.get("speech"))),
            alone=Stretch.all_of(diarized.get("alone")),
            words=Word.all_of(transcribed.get("words")),
            speakers=[Speaker.of(each) for each in diarized.get("speakers") or ()],
        )


@dataclass(frozen=True)
class VoiceJudge:
    """Tells whether a stretch of `sound` holds the voice that it should."""

    memory: VoiceMemory
    sound: Waveform
    pieces: Sequence[Stretch]
    speakers: Sequence[Speaker]
    config: TimbreConfig

    def first(self, span: SpeechSpan, turns: Sequence[Turn], found: Sequence[Choice]) -> tuple[Choice, F32, F32] | None:
        """The first of `found` that holds the voice of `span`, with its embedding and that of the span.

        None too where the span's own voice is not known well enough, or is nearer to another speaker's than to that of the one
        it is given to: no voice would surely be the right one.
        """
        single = merge(self.pieces)
        known = [part for whole in alone(span, span.speaker, turns) for part in inside(whole, single)]
        if sum(part.duration_s for part in known) < self.config.min_known_s:
            return None
        own = self.memory.voice(self.sound, known, self.pieces)
        if own is None or self.margin(own, span.speaker) < 0:
            return None
        for each in found:
            voice = self.memory.voice(self.sound, [each.where], self.pieces)
            if voice is None or not self.is_one_voice(each.where, voice, span.speaker):
                continue
            if likeness(cluster(own, known), cluster(voice, [each.where])) >= self.config.min_likeness:
                return each, voice, own
        return None

    def is_one_voice(self, where: Stretch, voice: F32, speaker: str | None) -> bool:
        """Whether what is heard in `where` is nearest to `speaker`, as a whole and in each of its pieces."""
        pieces = [(piece,) for piece in self.pieces if piece.overlap_s(where) >= MIN_INSIDE * piece.duration_s]
        heard = [voice, *(one for one in self.memory.embed(self.sound, pieces) if one is not None)]
        return all(self.margin(one, speaker) >= 0 for one in heard)

    def margin(self, voice: F32, speaker: str | None) -> float:
        """How much nearer `voice` is to `speaker` than to the nearest other; below 0 for a speaker of unknown voice."""
        near = {
            each.speaker: similarity(voice, np.asarray(each.embedding, np.float32))
            for each in self.speakers
            if each.embedding is not None
        }
        own = near.pop(speaker or "", -2.0)
        return own - max(near.values(), default=-1.0)


def cluster(voice: F32, heard: Sequence[Stretch]) -> VoiceCluster:
    """A voice as the diarizer compares it: with the seconds from which it is known."""
    return VoiceCluster([], voice, sum(part.duration_s for part in heard))


def describe(index: int, span: SpeechSpan, found: Choice, voice: F32, own_voice: F32) -> Reference:
    """The reference `found` for the span of that index, what is heard in it, and what is heard in the span."""
    assert span.speaker is not None, "a reference is chosen for a known speaker"
    return Reference(
        span_index=index,
        speaker=span.speaker,
        origin=found.origin,
        asset_start_s=found.where.start_s,
        asset_end_s=found.where.end_s,
        similarity=similarity(voice, own_voice),
        cleanliness=found.cleanliness,
        embedding=voice.tolist(),
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


def choices(own: SpeechSpan, clip: Stretch, heard: Dialogue, sound: Waveform, config: TimbreConfig) -> list[Choice]:
    """The stretches that may be the reference of a span on the asset clock, best first; none for an unknown speaker.

    Another utterance in the clip beats another utterance in the asset, which beats the span itself; within each, what is
    clean and long wins. None touches another speaker's turn, leaves where one voice alone is heard, or begins inside a word.
    """
    if own.speaker is None:
        return []
    whole = Stretch(float(sound.start), float(sound.end))
    single = merge(heard.alone, config.max_pause_s)
    voiced = [
        part
        for turn in heard.turns
        if turn.speaker == own.speaker
        for piece in alone(turn, own.speaker, heard.turns, config.guard_s)
        for part in inside(piece, single)
    ]
    away = Stretch(own.start_s - config.guard_s, own.end_s + config.guard_s)
    elsewhere = [rest for piece in voiced for rest in outside(piece, [away])]
    itself = [part for piece in voiced for part in inside(own, [piece])]
    places: tuple[tuple[Origin, Timed, list[Stretch]], ...] = (
        ("same_clip", clip, elsewhere),
        ("same_asset", whole, elsewhere),
        ("same_span", own, itself),
    )
    found: list[Choice] = []
    for origin, where, pieces in places:
        least_s = MIN_SPEECH_S if origin == "same_span" else config.min_s
        cuts = [whole_words(c, heard.words) for c in utterances(pieces, heard.speech, where, config)]
        rated = [
            Choice(c, origin, cleanliness(c, heard.speech, cut(sound, c))) for c in cuts if c.duration_s >= least_s
        ]
        found += sorted(
            rated, key=lambda r: r.cleanliness * min(1.0, r.where.duration_s / config.enough_s), reverse=True
        )
    return found


def whole_words(where: Stretch, words: Sequence[Word]) -> Stretch:
    """`where` without the parts of words that its ends cut through."""
    start_s = max((w.end_s for w in words if w.start_s < where.start_s < w.end_s), default=where.start_s)
    end_s = min((w.start_s for w in words if w.start_s < where.end_s < w.end_s), default=where.end_s)
    return Stretch(start_s, max(start_s, end_s))


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
