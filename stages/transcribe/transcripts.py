"""Transcripts that are given: by a manifest column `transcript`, or by a file beside the source.

The file has the source's name and the ending .srt, .vtt or .txt. Subtitles bring times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from schemas.stretches import Stretch

SIDECARS = (".srt", ".vtt", ".txt")


@dataclass(frozen=True)
class Cue:
    """Given words, with the time they were given for (None = somewhere in the sound)."""

    text: str
    window: Stretch | None = None


@dataclass
class Transcript:
    """The cues of a source, and the language if the manifest states it."""

    cues: list[Cue]
    language: str | None = None

    @property
    def words(self) -> list[str]:
        """Every word given, in order of the cues."""
        return [word for cue in self.cues for word in cue.text.split()]


def find_transcript(uri: str, metadata: Mapping[str, Any]) -> Transcript | None:
    """The transcript given for a source, or None. A manifest column wins over a file beside the source."""
    language = metadata.get("language")
    stated = language.split("-")[0].lower() if isinstance(language, str) else None
    given = metadata.get("transcript")
    if isinstance(given, str) and given.strip():
        return Transcript([Cue(_clean(given))], stated)
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    for ending in SIDECARS:
        sidecar = path.with_suffix(ending)
        if sidecar != path and sidecar.is_file():
            text = sidecar.read_text("utf-8-sig", errors="replace")
            cues = [Cue(_clean(text))] if ending == ".txt" else read_cues(text)
            if any(cue.text for cue in cues):
                return Transcript(cues, stated)
    return None


_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_ARROW = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")


def read_cues(text: str) -> list[Cue]:
    """The cues of SubRip or WebVTT `text`, in order of time; markup, sound descriptions and speaker names removed."""
    cues: list[Cue] = []
    window: Stretch | None = None
    lines: list[str] = []

    def finish() -> None:
        said = _clean(" ".join(lines))
        if window is not None and said:
            cues.append(Cue(said, window))

    for line in [*text.splitlines(), ""]:
        match = _ARROW.match(line)
        if match:
            finish()
            numbers = match.groups()
            window, lines = Stretch(_seconds(numbers[:4]), _seconds(numbers[4:])), []
        elif not line.strip():
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
