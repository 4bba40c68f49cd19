"""What a model has to answer, as forms: their fields tell it what to write, and what they turn down is asked for again."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from schemas.lines import LINE_END, LINE_START, lines_in, with_lines
from stages.caption.server import AskAgainError

T = TypeVar("T", bound=BaseModel)
SCRIPTS = {
    **dict.fromkeys(("zh", "yue"), ("CJK",)),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "he": ("HEBREW",),
    "el": ("GREEK",),
    "th": ("THAI",),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "cs", "tr", "vi", "id"), ("LATIN",)),
}
"""Language -> how the Unicode names of its letters begin; of languages that are not here no letters are asked for."""
MOST_FOREIGN = 0.5
"""Share of letters of other scripts up to which a field is in its language: names and brands keep their own."""


def _filled(text: str) -> str:
    """`text` in one line. Raises ValueError for none."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("nothing is written")
    return text


Written = Annotated[str, AfterValidator(_filled)]


class AnswerForm(BaseModel):
    """A JSON object of exactly these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SightCaption(AnswerForm):
    """What is seen."""

    picture: Written = Field(
        description="the picture as a whole: style, mood, subject and looks, clothes, background, light"
    )
    change: Written = Field(description="what changes in time: how it begins, actions, how they are done, how it ends")
    camera: Written = Field(description="the camera: angle, shot size, framing, movement")


class SoundCaption(AnswerForm):
    """What is heard."""

    speech: str = Field(
        description="who says what and how the voices sound, with every spoken line; empty if nobody speaks"
    )
    sound: Written = Field(description="what is heard besides: noises, music, ambience, or that it is silent")


class StructuredCaption(SoundCaption, SightCaption):
    """All of a clip, in the order in which it is read: picture, change, camera, speech, sound."""

    @property
    def text(self) -> str:
        """One paragraph."""
        parts = (self.picture, self.change, self.camera, " ".join(self.speech.split()), self.sound)
        return " ".join(part for part in parts if part)


class CaptionClaim(AnswerForm):
    """One thing that a caption says."""

    claim: Written = Field(description="the claim, in a few words")
    is_true: bool = Field(description="whether pictures and sound show it")


class CaptionCheck(AnswerForm):
    """A caption held against its clip."""

    claims: list[CaptionClaim] = Field(description="every claim of the caption that can be seen or heard")


def read_answer(text: str, form: type[T]) -> T:
    """The object in an answer, which may stand between thoughts or code fences. Raises AskAgainError where it is none."""
    said = text.rpartition("</think>")[2]
    first, last = said.find("{"), said.rfind("}")
    try:
        return form.model_validate(json.loads(said[first : last + 1]))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) or "all of it" for each in error.errors()[:4])
        trouble = f"fields that do not fit: {wrong}"
    except ValueError:
        trouble = "no JSON object"
    raise AskAgainError(
        f"The answer has {trouble}; expected an object with {', '.join(form.model_fields)}.",
        reason="caption_not_structured",
        remedy="Use a stronger model, or another stages.caption.openai.answer_format.",
    )


def check_lines(caption: AnswerForm, lines: Sequence[str]) -> None:
    """Raises AskAgainError unless `lines` are in the caption's speech, in order and exactly, and nowhere else."""
    said = caption.model_dump()
    found = lines_in(said.pop("speech", ""))
    is_elsewhere = any(mark in text for text in said.values() for mark in (LINE_START, LINE_END))
    if "speech" in type(caption).model_fields and (found is None or [line.strip() for line in found] != list(lines)):
        trouble = f"{len(found or [])} spoken lines, not exactly the {len(lines)} given"
    elif is_elsewhere:
        trouble = "spoken lines in fields other than speech"
    else:
        return
    raise AskAgainError(
        f"The answer holds {trouble}.",
        reason="caption_spans_lost",
        remedy="Use a stronger model, raise stages.caption.openai.tries, or use engine: template.",
    )


def check_language(caption: AnswerForm, language: str) -> None:
    """Raises AskAgainError where most letters of a field, spoken lines aside, are not of its language's script."""
    if (scripts := SCRIPTS.get(language)) is None:
        return
    for name, text in caption.model_dump().items():
        own = with_lines(text, [None] * len(lines_in(text) or ()))
        letters = [letter for letter in own if letter.isalpha()]
        foreign = sum(not unicodedata.name(letter, "").startswith(scripts) for letter in letters)
        if foreign > MOST_FOREIGN * len(letters):
            raise AskAgainError(
                f"{foreign} of {len(letters)} letters of {name} are not of a script of language '{language}'.",
                reason="caption_wrong_language",
                remedy="Use a model that writes stages.caption.openai.language.",
            )
