"""`caption`: one text per clip in the form NAVA trains on, each spoken line as `<S>line<E>` in speaking order.

The number of `<S>` always equals the number of speech spans: a model binds the n-th voice to the n-th line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from schemas.errors import ItemError
from schemas.fields import f, struct
from schemas.lines import marked, plain_line
from schemas.records import Row
from schemas.spans import SpeechSpan
from stages.base import Context, Measure, Resources, StageConfig
from stages.caption.openai import CaptionJob, OpenaiConfig, OpenaiEngine, WrittenCaption

CAPTION = struct(
    f("engine", pa.string(), doc="engine that wrote the caption"),
    f("model", pa.string(), doc="model that was asked; null for engine template"),
    f("language", pa.string(), doc="language it is written in, spoken lines aside", show="label"),
    f("text", pa.string(), doc="the caption, spoken lines as <S>line<E> in speaking order", means="text"),
    f("num_lines", pa.int32(), unit="count", doc="spoken lines, always the number of the clip's spans"),
    f("picture", pa.string(), doc="what it says of the picture as a whole; null for engine template, as all that follow"),
    f("change", pa.string(), doc="what it says of changes in time"),
    f("camera", pa.string(), doc="what it says of the camera"),
    f("speech", pa.string(), doc="what it says of speech, with the spoken lines"),
    f("sound", pa.string(), doc="what it says of other sound"),
    f("check_model", pa.string(), doc="model that held it against the clip"),
    f("num_claims", pa.int32(), unit="count", doc="claims that model found in it"),
    f("agreement", pa.float64(), unit="ratio", doc="share of the claims that pictures and sound show", show="histogram"),
    f("untrue", pa.list_(pa.string()), doc="claims that they do not show"),
    f("requests", pa.int32(), unit="count", doc="requests sent, repeated ones included", in_shard=False),
    f("prompt_tokens", pa.int64(), unit="tokens", doc="tokens of all questions, as servers count them", in_shard=False),
    f("completion_tokens", pa.int64(), unit="tokens", doc="tokens of all answers", in_shard=False),
    f("cost_usd", pa.float64(), unit="usd", doc="their cost at the recipe's prices", show="histogram", in_shard=False),
)  # fmt: skip
NOBODY_ASKED: dict[str, Any] = dict.fromkeys(field.name for field in CAPTION) | {"language": "en"}
"""What is said where no model is."""


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
    version = "3"
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
    adds = CAPTION
    Config = CaptionConfig
    resources = Resources(memory_gb=0.1, timeout_s=600.0, batch=16)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if self.config.engine == "openai":
            self.engine = OpenaiEngine(self.config.openai, ctx)

    def process(self, batch: Sequence[Row]) -> Sequence[dict[str, Any] | ItemError]:
        """The captions of `batch`; engine openai asks about several clips at once."""
        if self.config.engine == "template":
            return super().process(batch)
        written = self.engine.write_all(self._jobs(batch))
        return [
            found if isinstance(found, ItemError) else self._told(found, row)
            for found, row in zip(written, batch, strict=True)
        ]

    def measure(self, row: Row) -> dict[str, Any]:
        """The caption of engine template."""
        spans = SpeechSpan.all_of(row["clip"]["spans"])
        return NOBODY_ASKED | {"engine": "template", "text": self._draft(row, spans), "num_lines": len(spans)}

    def _draft(self, row: Row, spans: Sequence[SpeechSpan]) -> str:
        return describe(spans, measures_in_words(row, self.config), faces_of(row, len(spans)))

    def _jobs(self, batch: Sequence[Row]) -> Iterator[CaptionJob | ItemError]:
        for row in batch:
            spans = SpeechSpan.all_of(row["clip"]["spans"])
            try:
                yield self.engine.job_of(row, spans, self._draft(row, spans))
            except ItemError as error:
                yield error

    def _told(self, found: WrittenCaption, row: Row) -> dict[str, Any]:
        openai, check = self.config.openai, found.check
        claims = [] if check is None else check.claims
        untrue = [each.claim for each in claims if not each.is_true]
        return {
            "engine": "openai",
            "model": openai.model,
            "language": openai.language,
            "text": found.caption.text,
            "num_lines": len(row["clip"]["spans"]),
            **found.caption.model_dump(),
            **found.bill.row(),
            "check_model": openai.checking and openai.checking.model,
            "num_claims": None if check is None else len(claims),
            "agreement": 1 - len(untrue) / len(claims) if claims else None,
            "untrue": None if check is None else untrue,
        }


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
