"""Whether a sample says what it was to say: word and character errors, with the text rules of each protocol."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from model.evaluate.metric import Metric, has_text
from model.evaluate.records import EvalCase, EvalItem, Reading

RECOGNISER = "Whisper base from its packages, or what stages.transcribe names instead"
BY_CHARACTER = ("zh", "ja", "th", "yue", "lo", "my", "km")
"""Languages written without spaces, of which every character counts as a word."""
ENGLISH = "en"
IN_HANZI = ("zh", "yue")
"""Languages that one writes in traditional characters and another in simplified ones."""
CONVERTER = "OpenCC's t2s of opencc-python-reimplemented 0.1.7"
"""What makes characters simplified: Apache-2.0, dictionaries included. The release is pinned, for its dictionaries are part of
the figure."""
Normalise = Callable[[str, str], str]
"""(text, language) -> the text whose words are compared."""


def own_text(text: str, language: str) -> str:
    """Whisper's own normaliser: case, punctuation, in English contractions and numbers, in Chinese the script do not count."""
    return " ".join(_normaliser(language == ENGLISH)(simplified(text, language)).split())


def simplified(text: str, language: str) -> str:
    """Chinese in simplified characters, other languages as they are; what is simplified already stays so.

    Words of one region are not exchanged for those of another. Taiwan's 著 in the place of 着 stays: the tables that know it
    spoil simplified text.
    """
    return str(_converter().convert(text)) if language in IN_HANZI else text


def as_heard(text: str, language: str) -> str:
    """The text as the recogniser writes it."""
    return text


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


def seedtts_text(text: str, language: str) -> str:
    """Seed-TTS-eval: punctuation but the apostrophe taken out, double spaces made one in one go, lower case but in Chinese."""
    kept = "".join(each for each in text if each == "'" or not _is_punctuation(each)).replace("  ", " ")
    return kept.strip() if language == "zh" else kept.lower().strip()


def versebench_text(text: str, language: str) -> str:
    """Verse-Bench: ends stripped and lower case, nothing else; a comma that is not heard makes its word wrong."""
    return text.strip().lower()


@cache
def _normaliser(is_english: bool) -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if is_english else BasicTextNormalizer()


def _is_punctuation(character: str) -> bool:
    """What `string.punctuation` and zhon's Chinese list name, and all other punctuation of Unicode."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def word_errors(wanted: str, heard: str, language: str, normalise: Normalise) -> tuple[int, int]:
    """(wrong, missing and added words, words that were wanted); of languages without spaces, characters."""
    import jiwer

    wanted, heard = (_tokens(normalise(text, language), language) for text in (wanted, heard))
    if not wanted:
        return 0, 0
    found = jiwer.process_words(wanted, heard)
    return found.substitutions + found.deletions + found.insertions, len(wanted.split())


def character_errors(wanted: str, heard: str, language: str, normalise: Normalise) -> tuple[int, int]:
    """(wrong, missing and added characters, characters that were wanted), spaces between words included where there are any."""
    import jiwer

    wanted, heard = (characters(normalise(text, language), language) for text in (wanted, heard))
    if not wanted:
        return 0, 0
    found = jiwer.process_characters(wanted, heard)
    return found.substitutions + found.deletions + found.insertions, len(wanted)


def characters(text: str, language: str) -> str:
    """The characters that count: without spaces in languages without them, where a normaliser puts them for punctuation."""
    return text.replace(" ", "") if language in BY_CHARACTER else text


def _tokens(text: str, language: str) -> str:
    return " ".join(characters(text, language)) if language in BY_CHARACTER else text


Count = Callable[[str, str, str, Normalise], tuple[int, int]]


def word_metric(
    count: Count,
    normalise: Normalise,
    *,
    is_pooled: bool,
    name: str,
    doc: str,
    by: str = "jiwer",
    hear: Normalise = as_heard,
) -> Metric:
    """A rate of errors. Pooled, every word counts alike; otherwise every item does, which is what Seed-TTS publishes.

    `hear` changes what was heard, and not what was to be said. `by` names what counts, behind the recogniser.
    """

    def read(case: EvalCase) -> Reading:
        heard = (case.made.asset.get("transcribe") or {}) if case.made is not None else {}
        if case.item.text is None or heard.get("engine") is None:
            return Reading(None, why="it has no sound to listen to")
        language = language_of(case.item)
        errors, num = count(case.item.text, hear(heard.get("text") or "", language), language, normalise)
        if not num:
            return Reading(None, why="the text to say has no word in it")
        return Reading(errors / num, float(num) if is_pooled else 1.0)

    return Metric(
        name=name, doc=doc, unit="ratio", better="lower", read=read, applies=has_text, model=f"{RECOGNISER}; {by}",
        stage="transcribe", crop="the whole sound",
    )  # fmt: skip


def up_to(read: Callable[[EvalCase], Reading], most: float) -> Callable[[EvalCase], Reading]:
    """Reads the same where it is at most `most`, and nothing elsewhere."""

    def held(case: EvalCase) -> Reading:
        found = read(case)
        if found.value is None or found.value <= most:
            return found
        return Reading(None, why=f"it is above {most:g}")

    return held


def language_of(item: EvalItem) -> str:
    """The language of what is to be said, told by its letters where nobody says so."""
    if item.language:
        return item.language
    return "zh" if any("\u4e00" <= each <= "\u9fff" for each in item.text or "") else ENGLISH


OWN_BY = f"jiwer; Chinese simplified by {CONVERTER}"
OWN_WORDS = (
    word_metric(
        word_errors,
        own_text,
        is_pooled=True,
        name="wer",
        doc="words wrong of all to say; spelling made alike",
        by=OWN_BY,
    ),
    word_metric(
        character_errors, own_text, is_pooled=True, name="cer", doc="characters wrong of all to say", by=OWN_BY
    ),
)
SEEDTTS_WER = word_metric(
    word_errors, seedtts_text, is_pooled=False, name="wer", doc="mean of the utterances' word errors",
    by=f"jiwer; Chinese that is heard simplified by {CONVERTER}, not by zhconv", hear=simplified,
)  # fmt: skip
SEEDTTS_WORDS = (
    SEEDTTS_WER,
    replace(
        SEEDTTS_WER, name="wer_50", doc="the same of utterances of which no more than half is wrong",
        read=up_to(SEEDTTS_WER.read, 0.5),
    ),
)  # fmt: skip
VERSEBENCH_WORDS = (
    word_metric(word_errors, versebench_text, is_pooled=False, name="wer", doc="the same, commas part of their words"),
)
