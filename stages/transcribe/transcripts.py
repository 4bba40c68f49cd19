"""Transcripts that are given: by a manifest column `transcript`, or by files beside the source.

Files are called as the source, with the ending .srt, .vtt or .txt, and may say their language as yt-dlp's do: beside
`talk.mp4` those are `talk.srt`, `talk.en.vtt`, `talk.en-GB.srt`, `talk.zh-Hans.vtt`. Subtitles bring times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from schemas.spans import Hearing
from schemas.stretches import Stretch

SIDECARS = (".srt", ".vtt", ".txt")
ALIASES = {"iw": "he", "in": "id", "jv": "jw", "ji": "yi", "nb": "no", "fil": "tl", "cmn": "zh", "mo": "ro"}
"""Codes of files (old ones of YouTube's among them) -> codes of Whisper."""


@dataclass(frozen=True)
class Cue:
    """Given words, with the time they were given for (None = somewhere in the sound)."""

    text: str
    window: Stretch | None = None


@dataclass
class Transcript:
    """The cues of a source, and the language if the manifest or the file's name states it."""

    cues: list[Cue]
    language: str | None = None

    @property
    def words(self) -> list[str]:
        """Every word given, in order of the cues."""
        return [word for cue in self.cues for word in cue.text.split()]

    @property
    def stated(self) -> Hearing:
        """What it says of how it was heard."""
        return Hearing(language=self.language, language_from=None if self.language is None else "stated")


def find_transcripts(uri: str, metadata: Mapping[str, Any]) -> list[Transcript]:
    """The transcripts given for a source, best first. A manifest column stands alone.

    Of files those in the language that the manifest states come first, then those that say no language, then all others by
    name. A stated language holds for files that say none.
    """
    told = metadata.get("language")
    stated = code_of(told) if isinstance(told, str) else None
    given = metadata.get("transcript")
    if isinstance(given, str) and given.strip():
        return [Transcript([Cue(_clean(given))], stated)]
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return []
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    found = []
    for sidecar, language in _sidecars(path):
        text = sidecar.read_text("utf-8-sig", errors="replace")
        cues = [Cue(_clean(text))] if sidecar.suffix.lower() == ".txt" else read_cues(text)
        if any(cue.text for cue in cues):
            found.append(Transcript(cues, language or stated))
    return sorted(found, key=lambda each: each.language != stated)


def in_language(given: Sequence[Transcript], language: str | None) -> Transcript | None:
    """The first of `given` that is in the `language` that is spoken or does not say; any where nobody knows what is spoken."""
    return next((t for t in given if None in (language, t.language) or t.language == language), None)


def code_of(tag: str) -> str | None:
    """The code that Whisper has for the language of a tag such as `en-GB`, `zh-Hans` or `iw`; None if it knows none."""
    from whisperx.utils import LANGUAGES

    first = re.split("[-_]", tag.strip().lower())[0]
    code = ALIASES.get(first, first)
    return code if code in LANGUAGES else None


def _sidecars(path: Path) -> list[tuple[Path, str | None]]:
    """The files beside `path` that may hold its transcript, with the language in their name: plain names first."""
    try:
        version = path.parent.stat().st_mtime_ns
    except OSError:
        return []
    found = _transcripts_in(path.parent, version).get(path.stem, [])
    return [(path.parent / name, language) for _, name, language in sorted(found) if name != path.name]


_TAGGED = re.compile(r"(.+)\.([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})*)", re.DOTALL)


@lru_cache(maxsize=8)
def _transcripts_in(folder: Path, version: int) -> dict[str, list[tuple[int, str, str | None]]]:
    """Name of a source without its ending -> (rank, name, language) of the files in `folder` that may be its transcript.

    The folder is listed again when its `version` is another.
    """
    found: dict[str, list[tuple[int, str, str | None]]] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in SIDECARS and path.is_file():
            found.setdefault(path.stem, []).append((SIDECARS.index(path.suffix.lower()), path.name, None))
            tagged = _TAGGED.fullmatch(path.stem)
            if tagged and (language := code_of(tagged[2])):
                found.setdefault(tagged[1], []).append((len(SIDECARS), path.name, language))
    return found


_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_ARROW = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_INLINE_TIME = re.compile(rf"<{_TIME}>")


def read_cues(text: str) -> list[Cue]:
    """The cues of SubRip or WebVTT `text`, in order of time; markup, sound descriptions and speaker names removed.

    Captions that roll, as YouTube's own do, show each line again in the next cue: what is only shown again is left out.
    """
    is_rolling = bool(_INLINE_TIME.search(text))
    cues: list[Cue] = []
    window: Stretch | None = None
    lines: list[str] = []
    shown: list[str] = []

    def finish() -> None:
        nonlocal shown
        if window is None:
            return
        said = [line for line in map(_clean, lines) if line]
        new = [line for line in said if line not in shown] if is_rolling else said
        shown = said
        if new:
            cues.append(Cue(" ".join(new), window))

    for line in [*text.splitlines(), ""]:
        match = _ARROW.match(line)
        if match:
            finish()
            numbers = match.groups()
            window, lines = Stretch(_seconds(numbers[:4]), _seconds(numbers[4:])), []
        elif not (line if is_rolling else line.strip()):
            finish()
            window, lines = None, []
        elif window is not None:
            lines.append(line)
    return sorted(cues, key=lambda cue: cue.window or Stretch(0.0, 0.0))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")


def _clean(text: str) -> str:
    """`text` without tags, [sounds], (sounds), music notes and leading dashes, spaces collapsed."""
    text = re.sub(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[♪♫]", " ", text)
    return " ".join(word for word in text.split() if any(c.isalnum() for c in word))
