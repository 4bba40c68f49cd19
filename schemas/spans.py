"""Who said what when: frozen views over the speech structs of `schemas.records`, on the clock their column names.

`of` reads a row and `row` writes one: between the two, modules hand each other these records and no mappings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

from schemas.stretches import Stretch, Timed, merge, outside

SPEECH_RATE_HZ = 16_000
"""Rate of all sound that is listened to for speech: what Silero, the diarizer, the speaker encoder, pocketsphinx, whisper
and SyncNet were trained on."""

LanguageFrom = Literal["detected", "stated", "engine"]
"""How a language is known: measured from the sound, told by the manifest or a file's name, or the only one the engine knows."""
WordsFrom = Literal["pocketsphinx", "wav2vec2", "attention", "peaks", "letters"]
"""What told when words are spoken: a forced aligner, the recogniser's attention, where it is surest of each character, or
nothing but how long they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """How something was heard: in what language, and how well. None is what nobody measured or knows."""

    language: str | None = None
    """ISO 639-1 code."""
    language_confidence: float | None = None
    """The recogniser's probability of it."""
    language_from: LanguageFrom | None = None
    words_from: WordsFrom | None = None
    no_speech_prob: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """What the HEARING columns of `row` say."""
        return cls(**{each.name: row.get(each.name) for each in fields(cls)})

    def row(self) -> dict[str, Any]:
        """The HEARING columns."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


UNKNOWN = Hearing()
"""Nothing is known of how something was heard."""


@dataclass(frozen=True, slots=True)
class Passage(Timed):
    """A stretch of speech that was written down at once."""

    start_s: float
    end_s: float
    hearing: Hearing = UNKNOWN

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The PASSAGE held in `row`."""
        return cls(row["start_s"], row["end_s"], Hearing.of(row))

    def row(self) -> dict[str, Any]:
        """The PASSAGE struct."""
        return {"start_s": self.start_s, "end_s": self.end_s, **self.hearing.row()}


@dataclass(frozen=True, slots=True)
class Word(Timed):
    """A word as spoken."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None
    """The engine's probability of the word; None where it gives none."""
    speaker: str | None = None
    """Who says it, where turns tell; the span that holds the word stores it, the word's own row does not."""
    hearing: Hearing = UNKNOWN
    """How it was heard; stored as the speaker is."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["text"], row["start_s"], row["end_s"], row.get("confidence"))

    def row(self) -> dict[str, Any]:
        """The WORD struct."""
        return {"text": self.text, "start_s": self.start_s, "end_s": self.end_s, "confidence": self.confidence}


@dataclass(frozen=True, slots=True)
class Turn(Timed):
    """Somebody speaks."""

    speaker: str
    start_s: float
    end_s: float
    confidence: float | None = None
    """Mean activation of the speaker over the turn; None where the engine gives none."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["speaker"], row["start_s"], row["end_s"], row.get("confidence"))

    def row(self) -> dict[str, Any]:
        """The TURN struct."""
        return {"speaker": self.speaker, "start_s": self.start_s, "end_s": self.end_s, "confidence": self.confidence}


@dataclass(frozen=True, slots=True)
class Speaker:
    """One voice of an asset."""

    speaker: str
    speech_s: float
    embedding: Sequence[float] | None
    """Mean over clean speech, unit length; None with too little of it."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The SPEAKER held in `row`."""
        return cls(row["speaker"], row["speech_s"], row["embedding"])

    def row(self) -> dict[str, Any]:
        """The SPEAKER struct."""
        return {"speaker": self.speaker, "speech_s": self.speech_s, "embedding": self.embedding}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSpan(Timed):
    """What one speaker says without a pause, within one clip. (`schemas.timing.Span` is exact time.)"""

    start_s: float
    end_s: float
    text: str
    speaker: str | None = None
    hearing: Hearing = UNKNOWN
    is_overlap: bool = False
    confidence: float | None = None
    words: tuple[Word, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            start_s=row["start_s"],
            end_s=row["end_s"],
            text=row.get("text") or "",
            speaker=row.get("speaker"),
            hearing=Hearing.of(row),
            is_overlap=bool(row.get("is_overlap")),
            confidence=row.get("confidence"),
            words=tuple(Word.all_of(row.get("words"))),
        )

    def row(self) -> dict[str, Any]:
        """The SPEECH_SPAN struct."""
        return {
            "text": self.text,
            "speaker": self.speaker,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "is_overlap": self.is_overlap,
            "confidence": self.confidence,
            "words": [word.row() for word in self.words],
            **self.hearing.row(),
        }

    def moved(self, by_s: float) -> Self:
        """The same, words included, `by_s` later."""
        words = tuple(word.moved(by_s) for word in self.words)
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s, words=words)

    def heard_in(self, start_s: float, end_s: float) -> Self | None:
        """What of the span is heard in the window [start_s, end_s), on the window's clock; None if nothing is.

        A span that lies inside as a whole stays as it is. Else the words that `words_in` says are kept, and text and times
        follow them; a span without word times is not heard then, because nobody knows which of its words are.
        """
        length_s = end_s - start_s
        is_inside = start_s <= self.start_s and self.end_s <= end_s
        heard = self.words if is_inside else words_in(self.words, start_s, end_s)
        if not heard and not is_inside:
            return None
        words = tuple(word.moved(-start_s).within(0.0, length_s) for word in heard)
        first_s, last_s = (
            (self.start_s - start_s, self.end_s - start_s) if is_inside else (words[0].start_s, words[-1].end_s)
        )
        text = self.text if len(heard) == len(self.words) else joined(word.text for word in heard)
        return replace(self, start_s=first_s, end_s=last_s, text=text, words=words)


Origin = Literal["same_clip", "same_asset", "same_span"]
"""Where a voice reference was taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A timbre reference: a stretch of the asset in which the speaker of a span is heard."""

    span_index: int
    speaker: str
    origin: Origin
    asset_start_s: float
    asset_end_s: float
    similarity: float | None
    cleanliness: float
    embedding: Sequence[float] | None

    @property
    def is_same_span(self) -> bool:
        """It contains the very span it will voice: a content leak."""
        return self.origin == "same_span"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The TIMBRE held in `row`."""
        return cls(
            span_index=row["span_index"],
            speaker=row["speaker"],
            origin=row["origin"],
            asset_start_s=row["asset_start_s"],
            asset_end_s=row["asset_end_s"],
            similarity=row["similarity"],
            cleanliness=row["cleanliness"],
            embedding=row["embedding"],
        )

    def row(self) -> dict[str, Any]:
        """The TIMBRE struct."""
        return {
            "span_index": self.span_index,
            "speaker": self.speaker,
            "origin": self.origin,
            "is_same_span": self.is_same_span,
            "asset_start_s": self.asset_start_s,
            "asset_end_s": self.asset_end_s,
            "similarity": self.similarity,
            "cleanliness": self.cleanliness,
            "embedding": self.embedding,
        }


_UNSPACED = (
    "CJK ",
    "HIRAGANA ",
    "KATAKANA",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
    "IDEOGRAPHIC ",
    "FULLWIDTH ",
)
"""How Unicode's names begin of characters that are written without spaces between words."""


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


def joined(texts: Iterable[str]) -> str:
    """Words as one text: a space between two of them, but where either side is of a script without spaces."""
    whole = ""
    for text in texts:
        is_tight = not whole or not text or is_unspaced(whole[-1]) or is_unspaced(text[0])
        whole += text if is_tight else f" {text}"
    return whole


W = TypeVar("W", bound=Timed)


def words_in(words: Iterable[W], start_s: float, end_s: float) -> tuple[W, ...]:
    """The words that belong to the window [start_s, end_s): those whose middle lies in it, whole and unmoved.

    So every word belongs to exactly one of two adjoining windows, and a window that cuts through a word (a repaired or
    cropped clip) keeps it if it holds most of it. No planned clip begins or ends inside a word
    (`stages.clip.plan_windows`): for it, these are the words that lie wholly inside.
    """
    return tuple(word for word in words if start_s <= word.middle_s < end_s)


def overlaps(turns: Sequence[Turn]) -> list[Stretch]:
    """Stretches in which turns of at least two speakers overlap, merged, in order; `turns` are in order of start."""
    found = []
    for index, one in enumerate(turns):
        for other in turns[index + 1 :]:
            if other.start_s >= one.end_s:
                break
            if other.speaker != one.speaker:
                found.append(Stretch(other.start_s, min(one.end_s, other.end_s)))
    return merge(found)


def alone(where: Timed, speaker: str | None, turns: Iterable[Turn], guard_s: float = 0.0) -> list[Stretch]:
    """The parts of `where` at least `guard_s` away from the turns of everybody but `speaker`."""
    others = (Stretch(t.start_s - guard_s, t.end_s + guard_s) for t in turns if speaker is None or t.speaker != speaker)
    return outside(where, merge(others))
