"""Scores recognisers and aligners against given transcripts: word error, and when each word is spoken.

    python -m benchmarks.quality_words MEDIA_DIR [--engines whisperx,pocketsphinx,align]

MEDIA_DIR holds manifest.json in the form of the project's test media: `items[].path` and `items[].ground_truth` with
`transcript`, `language`, `words`, `speech_interval_s`. Nothing is fitted here.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import pooled_ratio
from benchmarks.sounds import F32, Sounds
from schemas.errors import EngineError
from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import AlignEngine, spoken_form
from stages.transcribe.pocketsphinx import PocketsphinxEngine
from stages.transcribe.stage import TranscribeConfig
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.whisperx import WhisperxConfig, WhisperxEngine
from stages.transcribe.words import Heard, keep_spoken

ENGINES = ("whisperx", "whisperx:tiny.en", "pocketsphinx", "align")
"""whisperx:WEIGHTS for others than the default."""
LONG_S, SHORT_S = 45.0, 4.0
"""Speech in a file from which, and up to which, its cost is told."""
Hears = Callable[[F32, list[Stretch], str], Heard]


def score_words(media_dir: Path | str, engines: Sequence[str] = ENGINES) -> dict[str, Any]:
    """Figures per engine; every `interval` is a 95 % bootstrap over files. Takes about the media's length times `engines`."""
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        sounds = Sounds(media_dir, context)
        result = {name: score_transcription(items, sounds, _engine(name, context)) for name in engines}
        context.media.close()
    return result


def _engine(name: str, context: Context) -> Hears:
    """What hears a sound, given what is said in it for those who are told."""
    if name == "align":
        aligner = AlignEngine(context.scratch_dir)
        return lambda samples, speech, text: aligner.align(Transcript([Cue(text)], "en"), samples, speech, 0.0)
    if name == "pocketsphinx":
        pocketsphinx = PocketsphinxEngine(context.scratch_dir, states=TranscribeConfig().states)
        return lambda samples, speech, _: pocketsphinx.hear(samples, speech)
    weights = name.partition(":")[2] or WhisperxConfig().weights
    whisperx = WhisperxEngine.load(WhisperxConfig(weights=weights), context)
    return lambda samples, speech, _: whisperx.hear(samples, speech)


def score_transcription(items: Sequence[dict[str, Any]], sounds: Sounds, hears: Hears) -> dict[str, Any]:
    """Word error of an engine, and times of words against the truth where the manifest has it.

    Word-time truth: `words` with `word`, `start`, `end` (generated media); else the ends of `speech_interval_s`.
    """
    voice = sounds.context.model(VoiceActivity.load)
    rows: list[Scored] = []
    refused: dict[str, str] = {}
    for item, text in _with_transcript(items):
        samples, start_s = sounds.of(item)
        before_s = _cpu_s()
        speech = voice.stretches(samples, VoiceConfig())
        try:
            heard = hears(samples, speech, text)
        except EngineError as error:
            refused[item["path"]] = str(error)
            heard = Heard([], [])
        cpu_s = _cpu_s() - before_s
        kept = keep_spoken(heard.words, speech, len(samples) / SPEECH_RATE_HZ, 0.3, 3)
        found = [word.text for word in kept.words]
        rows.append(
            Scored(
                item["path"],
                (word_errors(text.split(), found), len(text.split())),
                normalised_errors(text, " ".join(found)),
                _time_errors(item["ground_truth"], kept.words, start_s),
                cpu_s,
                sum(stretch.duration_s for stretch in speech),
                kept.num_dropped,
            )
        )
    return _figures(rows) | {"refused": refused}


@dataclass(frozen=True)
class Scored:
    """One file as one engine heard it; errors are (wrong, all) words."""

    path: str
    errors: tuple[int, int]
    normalised: tuple[int, int]
    time_errors_s: list[float]
    cpu_s: float
    speech_s: float
    num_dropped: int


def _figures(rows: Sequence[Scored]) -> dict[str, Any]:
    off_s = np.abs([error for row in rows for error in row.time_errors_s])
    long_ones = [row for row in rows if row.speech_s >= LONG_S]
    short_ones = [row.cpu_s for row in rows if row.speech_s <= SHORT_S]
    return {
        "word_error": pooled_ratio([row.errors for row in rows]),
        "word_error_normalised": pooled_ratio([row.normalised for row in rows]),
        "files": {row.path: [*row.errors, *row.normalised] for row in rows},
        "num_dropped": sum(row.num_dropped for row in rows),
        "median_abs_time_error_s": float(np.median(off_s)) if len(off_s) else None,
        "share_within_0.1_s": float(np.mean(off_s <= 0.1)) if len(off_s) else None,
        "num_times": len(off_s),
        "cpu_s_per_minute_of_speech": (
            60 * sum(row.cpu_s for row in long_ones) / sum(row.speech_s for row in long_ones) if long_ones else None
        ),
        "cpu_s_per_short_file": float(np.mean(short_ones)) if short_ones else None,
    }


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def _with_transcript(items: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    for item in items:
        truth = item["ground_truth"]
        text = truth.get("transcript")
        if isinstance(text, str) and truth.get("language", "en") == "en":
            yield item, text


def _time_errors(truth: dict[str, Any], words: list[Word], start_s: float) -> list[float]:
    given = truth.get("words")
    if given:
        wanted, found = [spoken_form(w["word"]) for w in given], [spoken_form(w.text) for w in words]
        pairs = matches(wanted, found)
        starts = [start_s + words[j].start_s - given[i]["start"] for i, j in pairs]
        return starts + [start_s + words[j].end_s - given[i]["end"] for i, j in pairs]
    interval = truth.get("speech_interval_s")
    if interval and words:
        return [start_s + words[0].start_s - interval[0], start_s + words[-1].end_s - interval[1]]
    return []


def normalised_errors(truth: str, found: str) -> tuple[int, int]:
    """(wrong, all) words after Whisper's own English normaliser: numbers in digits, contractions written out, no titles."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise = EnglishTextNormalizer({})
    wanted = normalise(truth).split()
    return word_errors(wanted, normalise(found).split()), len(wanted)


def word_errors(truth: Sequence[str], found: Sequence[str]) -> int:
    """Substitutions, insertions and deletions that turn `found` into `truth`, case and punctuation ignored."""
    return _distances([spoken_form(w) for w in truth], [spoken_form(w) for w in found])[-1][-1]


def _distances(truth: Sequence[str], found: Sequence[str]) -> list[list[int]]:
    table = [list(range(len(found) + 1))]
    for i, word in enumerate(truth, 1):
        row = [i]
        for j, guess in enumerate(found, 1):
            row.append(min(table[-1][j] + 1, row[-1] + 1, table[-1][j - 1] + (word != guess)))
        table.append(row)
    return table


def matches(truth: Sequence[str], found: Sequence[str]) -> list[tuple[int, int]]:
    """Index pairs of the words that are equal in a cheapest alignment."""
    table, pairs = _distances(truth, found), []
    i, j = len(truth), len(found)
    while i and j:
        if truth[i - 1] == found[j - 1] and table[i][j] == table[i - 1][j - 1]:
            pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif table[i][j] == table[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
        elif table[i][j] == table[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the scores of a media folder as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media_dir", help="folder with manifest.json")
    parser.add_argument("--engines", default=",".join(ENGINES), help="transcribers to score")
    chosen = parser.parse_args(argv)
    json.dump(score_words(chosen.media_dir, chosen.engines.split(",")), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
