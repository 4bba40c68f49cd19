"""`caption`: one text per clip in the form NAVA trains on, each spoken line as `<S>line<E>` in speaking order.

The number of `<S>` always equals the number of speech spans: a model binds the n-th voice to the n-th line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from schemas.errors import RecipeError
from schemas.fields import f, struct
from schemas.lines import marked, plain_line
from schemas.records import Row
from schemas.spans import SpeechSpan
from stages.base import Context, Measure, Resources, StageConfig
from stages.caption.openai import OpenaiConfig, OpenaiEngine


class CaptionConfig(StageConfig):
    """Which engine writes, and its settings."""

    engine: Literal["template", "openai"] = "template"
    """template: from transcript and measures, no model. openai: asks an OpenAI-compatible endpoint."""
    openai: OpenaiConfig = OpenaiConfig()
    """Settings of engine openai."""
    dark_below: float = Field(default=0.25, ge=0, le=1)
    """Mean brightness below which a picture is called dark."""
    bright_above: float = Field(default=0.6, ge=0, le=1)
    """Mean brightness above which a picture is called bright."""
    quiet_below_lufs: float = -32.0
    """Loudness below which sound is called quiet; broadcast speech is at -23 (EBU R 128)."""
    loud_above_lufs: float = -14.0
    """Loudness above which sound is called loud; streaming services turn down what is above -14."""


class Caption(Measure[CaptionConfig]):
    """A caption with every spoken line in it."""

    name = "caption"
    version = "2"
    level = "clip"
    reads = (
        "clip",
        "picture.brightness",
        "picture.motion",
        "audio.loudness_lufs",
        "sync.active",
        "download.path",
        "probe.has_audio",
    )
    adds = struct(
        f("engine", pa.string(), doc="engine that wrote the caption"),
        f("model", pa.string(), doc="model that was asked; null for engine template"),
        f("text", pa.string(), doc="the caption, spoken lines as <S>line<E> in speaking order", means="text"),
        f("num_lines", pa.int32(), unit="count", doc="spoken lines, always the number of the clip's spans"),
    )
    Config = CaptionConfig
    resources = Resources(memory_gb=0.1, timeout_s=600.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if self.config.engine == "openai":
            name = self.config.openai.api_key_env
            if name and not os.environ.get(name):
                raise RecipeError(
                    f"caption.openai.api_key_env names {name}, which is not set.",
                    remedy=f"Export {name} on every worker, or leave api_key_env empty for a server without keys.",
                )
            self.engine = OpenaiEngine(self.config.openai, os.environ.get(name, "") if name else "")

    def measure(self, row: Row) -> dict[str, Any]:
        spans = SpeechSpan.all_of(row["clip"]["spans"])
        draft = describe(spans, measures_in_words(row, self.config), faces_of(row, len(spans)))
        if self.config.engine == "template":
            return {"engine": "template", "model": None, "text": draft, "num_lines": len(spans)}
        text = self.engine.write(row, [plain_line(span.text) for span in spans], draft, self.ctx)
        return {"engine": "openai", "model": self.config.openai.model, "text": text, "num_lines": len(spans)}


def describe(spans: Sequence[SpeechSpan], scene: Mapping[str, str], faces: Sequence[str | None]) -> str:
    """The caption in plain English: the picture, who speaks and says what, the sound.

    `scene` may hold `picture` and `sound`, a phrase each; `faces` holds each span's on_screen, off_screen or None.
    """
    parts = [f"{scene['picture']}."] if scene.get("picture") else []
    names = [span.speaker for span in spans]
    known = list(dict.fromkeys(name for name in names if name is not None))
    if not spans:
        parts.append("Nobody speaks.")
    elif len(known) > 1:
        parts.append(f"{_COUNTS.get(len(known), str(len(known)))} people speak.")
    before: str | None = None
    for index, (span, face) in enumerate(zip(spans, faces, strict=True)):
        who = _who(span.speaker, known)
        place = _PLACES.get(face or "", "")
        is_same = index > 0 and span.speaker is not None and span.speaker == before
        says = "goes on" if is_same else "says over the other voice" if span.is_overlap else "says"
        parts.append(f"{who}{place} {says}{_tongue(span.hearing.language)}: {marked(plain_line(span.text))}")
        before = span.speaker
    if scene.get("sound"):
        parts.append(f"{scene['sound']}.")
    return " ".join(parts)


def _tongue(language: str | None) -> str:
    """ " in Spanish", of a language that the caption itself is not in."""
    from whisperx.utils import LANGUAGES

    return "" if language in (None, "en") or language not in LANGUAGES else f" in {LANGUAGES[language].title()}"


_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_PLACES = {"on_screen": ", on screen,", "off_screen": ", off screen,"}


def _who(speaker: str | None, known: Sequence[str]) -> str:
    if speaker is None:
        return "Somebody"
    if len(known) == 1:
        return "The speaker"
    index = known.index(speaker)
    return f"The {_ORDINALS[index]} speaker" if index < len(_ORDINALS) else f"Speaker {index + 1}"


def faces_of(row: Row, num_spans: int) -> list[str | None]:
    """Per span whether its speaker is on screen, as the sync stage found; None where it cannot say."""
    found: list[str | None] = [None] * num_spans
    for face in (row["sync"] or {}).get("active") or []:
        index = face["span_index"]
        if 0 <= index < num_spans and face["status"] in _PLACES:
            found[index] = face["status"]
    return found


def measures_in_words(row: Row, config: CaptionConfig) -> dict[str, str]:
    """Phrases for `picture` and `sound` from their measures; what was not measured is not said."""
    picture, audio = row["picture"] or {}, row["audio"] or {}
    words = []
    brightness, motion = picture.get("brightness"), picture.get("motion")
    if motion is not None:
        words.append("still" if motion < STILL_BELOW else "moving" if motion > MOVING_ABOVE else "calm")
    if brightness is not None:
        words.append("dark" if brightness < config.dark_below else "bright" if brightness > config.bright_above else "")
    scene = {}
    adjectives = ", ".join(word for word in words if word)
    if adjectives:
        scene["picture"] = f"A {adjectives} shot"
    loudness = audio.get("loudness_lufs")
    if loudness is not None:
        level = "quiet" if loudness < config.quiet_below_lufs else "loud" if loudness > config.loud_above_lufs else ""
        scene["sound"] = f"The sound is {level or 'of normal loudness'}"
    return scene


STILL_BELOW = 0.002
MOVING_ABOVE = 0.03
"""Change of luma over 0.2 s, share of full scale (`picture.motion`): noise stays below the first, a pan lies above the second."""
