"""Scores in which language speech is heard, what is heard in it and when, on generated speech and on clips of other languages.

    python -m benchmarks.quality_languages MEDIA_DIR

Generated speech (`benchmarks.generated_speech`) has five languages, alone and mixed, and all times. Of MEDIA_DIR the items
count whose `ground_truth` has `transcript_segments` or `subtitle_turns` with a `language`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated_speech import Spoken, long_ones, mixed_ones, short_ones
from benchmarks.intervals import pooled_ratio
from benchmarks.quality_words import matches, word_errors
from benchmarks.sounds import Sounds
from schemas.spans import SPEECH_RATE_HZ, Passage, Word, is_unspaced
from schemas.stretches import Stretch
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import spoken_form
from stages.transcribe.whisperx import WhisperxConfig, WhisperxEngine
from stages.transcribe.words import Heard, keep_spoken

SURE = 0.5
"""Probability from which the shipped recipes believe a language."""


def score_languages(media_dir: Path | str) -> dict[str, Any]:
    """Figures of generated speech by language, of mixtures, and of the media in other languages than English."""
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        engine = WhisperxEngine.load(WhisperxConfig(), context)
        result = {
            "generated, a sentence": score_spoken(short_ones(), engine, context),
            "generated, six sentences": score_spoken(long_ones(), engine, context),
            "generated, mixed": score_spoken(mixed_ones(), engine, context),
            "media": score_media(items, Sounds(media_dir, context), engine, context),
        }
        context.media.close()
    return result


def score_spoken(sounds: Iterable[Spoken], engine: WhisperxEngine, context: Context) -> dict[str, Any]:
    """By language: sentences heard in it, those of others that a sure detection named, errors, and errors of word times.

    Errors are of characters where the script has no spaces, else of words.
    """
    scores: dict[str, _Score] = defaultdict(_Score)
    for sound in sounds:
        heard = _heard(sound.samples, engine, context)
        for where, language, text in sound.passages:
            words = [word for word in heard.words if where.start_s - 0.3 <= word.middle_s < where.end_s + 0.3]
            score = scores[language]
            score.add(passage_at(heard.passages, where), language, text, words)
            truth = [word for word in sound.words if where.start_s <= word.middle_s < where.end_s]
            score.add_times(truth, words)
    return {language: score.figures() for language, score in scores.items()}


def score_media(
    items: Sequence[dict[str, Any]], sounds: Sounds, engine: WhisperxEngine, context: Context
) -> dict[str, Any]:
    """The same of media, without times: subtitles are off by a third of a second."""
    result = {}
    for item in items:
        truth = item["ground_truth"]
        given = truth.get("transcript_segments") or truth.get("subtitle_turns") or []
        if not given or not (truth.get("language") or given[0].get("language")):
            continue
        samples, start_s = sounds.of(item)
        heard = _heard(samples, engine, context)
        scores: dict[str, _Score] = defaultdict(_Score)
        for cue in given:
            where = Stretch(cue["start"], cue["end"]).moved(-start_s)
            words = [word for word in heard.words if where.start_s <= word.middle_s < where.end_s]
            language = cue.get("language") or truth["language"]
            scores[language].add(passage_at(heard.passages, where), language, cue["text"], words)
        result[item["path"]] = {language: score.figures() for language, score in scores.items()}
    return result


def _heard(samples: Any, engine: WhisperxEngine, context: Context) -> Heard:
    speech = context.model(VoiceActivity.load).stretches(samples, VoiceConfig())
    heard = engine.hear(samples, speech)
    kept = keep_spoken(heard.words, speech, len(samples) / SPEECH_RATE_HZ, 0.3, 3)
    return Heard(kept.words, heard.passages)


def passage_at(passages: Sequence[Passage], where: Stretch) -> Passage | None:
    """The one of `passages` that shares most time with `where`; None if none does."""
    best = max(passages, key=where.overlap_s, default=None)
    return best if best is not None and where.overlap_s(best) > 0 else None


class _Score:
    """What adds up over the sentences of one language."""

    def __init__(self) -> None:
        self.languages: Counter[str] = Counter()
        self.surely_wrong = 0
        self.probabilities: list[float] = []
        self.errors: list[tuple[int, int]] = []
        self.times: dict[str, list[float]] = defaultdict(list)

    def add(self, passage: Passage | None, language: str, text: str, words: Sequence[Word]) -> None:
        """One sentence: what was heard in its place, and what is true."""
        hearing = None if passage is None else passage.hearing
        found = "nothing" if hearing is None else str(hearing.language)
        probability = 0.0 if hearing is None else hearing.language_confidence or 0.0
        self.languages[found] += 1
        self.surely_wrong += found not in (language, "nothing") and probability >= SURE
        if found == language:
            self.probabilities.append(probability)
        wanted = units(text.split())
        self.errors.append((word_errors(wanted, units([word.text for word in words])), len(wanted)))

    def add_times(self, truth: Sequence[Word], words: Sequence[Word]) -> None:
        """Errors of where words end that were heard rightly, by who timed them."""
        pairs = matches([spoken_form(word.text) for word in truth], [spoken_form(word.text) for word in words])
        for at, found in pairs:
            source = str(words[found].hearing.words_from)
            self.times[source].append(words[found].end_s - truth[at].end_s)

    def figures(self) -> dict[str, Any]:
        """As they are published."""
        return {
            "sentences": sum(self.languages.values()),
            "heard_as": dict(self.languages.most_common()),
            "surely_wrong": self.surely_wrong,
            "median_probability": float(np.median(self.probabilities)) if self.probabilities else None,
            "errors": pooled_ratio(self.errors),
            "word_ends": {
                source: {
                    "median_abs_s": float(np.median(np.abs(errors))),
                    "within_0.1_s": float(np.mean(np.abs(errors) <= 0.1)),
                    "words": len(errors),
                }
                for source, errors in self.times.items()
            },
        }


def units(texts: Sequence[str]) -> list[str]:
    """What errors are counted in: characters of scripts without spaces, else words; nothing of punctuation."""
    found: list[str] = []
    for form in map(spoken_form, texts):
        found += list(form) if any(map(is_unspaced, form)) else [form] if form else []
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media_dir", help="folder with manifest.json")
    json.dump(score_languages(parser.parse_args(argv).media_dir), sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
