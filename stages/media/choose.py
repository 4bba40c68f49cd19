"""Which streams of a file are used. Runs inside the decoder's child process.

Picture and sound are of one program. Of the sound that is left the language asked for comes first, then what is no commentary
or dub, what is flagged original, what is flagged default, the highest rate, the most channels, the first. Mono tracks that differ
in nothing of that but rate and flags are the microphones of one recording and are heard together (`stages.media.tracks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import av

from schemas.errors import MediaError
from stages.media.marks import marks_of

SECONDARY_AUDIO = ("comment", "hearing_impaired", "visual_impaired", "dub", "karaoke", "clean_effects", "non_diegetic")
SECONDARY_TITLE = re.compile(
    r"comment|kommentar|descri(?:ption|ptive|bed|zione)|descripci|audiodes[ck]ri|visually|hearing.impaired|\bDVS\b|\bDAS\b"
    r"|\bdub(?:bed|s)?\b|voice.?over|karaoke|sing.?along|isolated.score|music.(?:and|&).effects|\bM&E\b",
    re.IGNORECASE,
)
"""Titles of tracks that are not what was heard where the film was made: commentary, description, dub, voice-over."""
UNTITLED = ("SoundHandler", "VideoHandler")
"""What muxers write where a track has no title."""
UNKNOWN = ("", "und", "mis", "mul", "zxx", "qaa")
"""Language tags that name none."""


@dataclass(frozen=True)
class Chosen:
    """The streams of a file that are used."""

    video: Any
    """None without a picture."""
    audio: tuple[tuple[Any, ...], ...]
    """Which sound to use, best first: one stream, or mono tracks that are heard together. Others follow only where
    there is nothing to hear in those before."""
    others: tuple[Any, ...]
    """Streams of sound that are none of these."""


def has_decoder(stream: Any) -> bool:
    """Whether this build of libav can decode `stream`."""
    return stream.codec_context is not None and stream.codec_context.codec is not None


def choose(container: Any, languages: Sequence[str] = ()) -> Chosen:
    """The streams to use; `languages` are tags of the sound that is wanted, as files have them, best first."""
    marks = marks_of(container)
    readable = [s for s in container.streams if has_decoder(s) and s.index not in marks.encrypted]
    sounds = [s for s in readable if s.type == "audio"]
    video = _video([s for s in readable if s.type == "video"], sounds, marks.programs)
    beside = {id(s) for s in sounds if video is None or are_together(video, s, marks.programs)}
    ranked = sorted((s for s in sounds if id(s) in beside), key=lambda s: _rank(s, languages), reverse=True)
    audio: list[tuple[Any, ...]] = []
    while ranked:
        first = ranked[0]
        taken = (first,)
        if first.channels == 1:
            beside_it = [s for s in ranked if s is first or _is_beside(first, s, languages, marks.programs)]
            taken = tuple(sorted(beside_it, key=lambda s: s.index))
        if audio and _class(taken[0], languages) != _class(audio[0][0], languages):
            break
        audio.append(taken)
        ranked = [s for s in ranked if s not in taken]
    used = {s.index for group in audio[:1] for s in group}
    return Chosen(video, tuple(audio), tuple(s for s in container.streams.audio if s.index not in used))


def _video(streams: Iterable[Any], sounds: Sequence[Any], programs: Sequence[frozenset[int]]) -> Any:
    """Never a cover picture; one that moves, of a program with sound, the largest, the one flagged default, the first."""
    flags = av.stream.Disposition
    covers = flags.attached_pic | flags.still_image | flags.timed_thumbnails

    def rank(s: Any) -> tuple[bool, bool, int, bool, int]:
        has_sound = any(are_together(s, sound, programs) for sound in sounds)
        return s.frames != 1, has_sound, s.width * s.height, bool(s.disposition & flags.default), -s.index

    return max((s for s in streams if not s.disposition & covers), key=rank, default=None)


def are_together(a: Any, b: Any, programs: Sequence[frozenset[int]]) -> bool:
    """Whether two streams are of one program; where neither is of any, they are."""
    of_a, of_b = ({n for n, pids in enumerate(programs) if s.id in pids} for s in (a, b))
    return bool(of_a & of_b) or not (of_a or of_b)


def language_of(stream: Any) -> str | None:
    """The language a stream is tagged with; None where it is not."""
    tag = stream.metadata.get("language", "").strip().lower()
    return None if tag in UNKNOWN else tag


def title_of(stream: Any) -> str | None:
    """What a stream is called; None where it has no title."""
    title = stream.metadata.get("title") or stream.metadata.get("handler_name", "")
    return None if not title.strip() or title in UNTITLED else title.strip()


def described(stream: Any) -> str:
    """A stream of sound in words, for people who look for what was left out."""
    title = title_of(stream)
    what = [stream.codec_context.name, f"{stream.channels} channels"] if stream.codec_context else ["unknown codec"]
    words = [language_of(stream), None if title is None else f"'{title}'", *what]
    return f"stream {stream.index}: {', '.join(word for word in words if word)}"


def _class(s: Any, languages: Sequence[str]) -> tuple[int, bool, bool]:
    """(language wanted, primary, original): tracks that differ in this say different things."""
    flags = av.stream.Disposition
    aside = flags(0)
    for name in SECONDARY_AUDIO:
        aside |= getattr(flags, name)
    language = language_of(s)
    wanted = -languages.index(language) if language in languages else -len(languages)
    is_primary = not s.disposition & aside and not SECONDARY_TITLE.search(title_of(s) or "")
    return wanted, is_primary, bool(s.disposition & flags.original)


def _rank(s: Any, languages: Sequence[str]) -> tuple[int, bool, bool, bool, int, int, int]:
    is_default = bool(s.disposition & av.stream.Disposition.default)
    return (*_class(s, languages), is_default, s.rate or 0, s.channels or 0, -s.index)


def _is_beside(first: Any, s: Any, languages: Sequence[str], programs: Sequence[frozenset[int]]) -> bool:
    """Whether the mono track `s` is another microphone of what `first` recorded."""
    return bool(
        s.channels == 1
        and _class(s, languages) == _class(first, languages)
        and language_of(s) == language_of(first)
        and are_together(first, s, programs)
    )


def pick(container: Any, kind: str, index: int | None) -> Any:
    """The stream with `index`, or the one of `kind` ("video" or "audio") to use. Raises MediaError if there is none."""
    if index is None:
        chosen = choose(container)
        stream = chosen.video if kind == "video" else next((group[0] for group in chosen.audio), None)
    else:
        found = [s for s in container.streams if s.index == index and s.type == kind and has_decoder(s)]
        stream = found[0] if found else None
    if stream is None:
        word = "picture" if kind == "video" else "sound"
        which = "" if index is None else f" in stream {index}"
        raise MediaError(f"There is no {word} that can be decoded{which}.", reason=f"no_{kind}")
    stream.codec_context.thread_count = 1
    return stream
