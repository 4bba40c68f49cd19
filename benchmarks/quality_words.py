"""Scores recognisers and aligners against given transcripts: word error, and when each word is spoken.

    python -m benchmarks.quality_words MEDIA_DIR [--engines pocketsphinx,align]

MEDIA_DIR holds manifest.json in the form of the project's test media: `items[].path` and `items[].ground_truth` with
`transcript`, `language`, `words`, `speech_interval_s`. Nothing is fitted here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.words import Heard, keep_spoken


def score_words(media_dir: Path | str, engines: Sequence[str] = ("pocketsphinx", "align")) -> dict[str, Any]:
    """Figures per engine; every `interval` is a 95 % bootstrap over files. Takes about the media's length times `engines`."""
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        voice = context.model(VoiceActivity.load)
        result = score_transcription(items, Sounds(media_dir, context), voice, Path(scratch), engines)
        context.media.close()
    return result


def score_transcription(
    items: list[dict[str, Any]], sounds: Sounds, voice: VoiceActivity, scratch: Path, engines: Sequence[str]
) -> dict[str, Any]:
    """Word error of recognisers, and times of words against the truth where the manifest has it.

    Word-time truth: `words` with `word`, `start`, `end` (generated media); else the ends of `speech_interval_s`.
    """
    result: dict[str, Any] = {}
    for name in engines:
        rows: list[tuple[str, int, int]] = []
        time_errors: list[float] = []
        refused: dict[str, str] = {}
        num_dropped = 0
        wall_s = sound_s = 0.0
        for item, text in _with_transcript(items):
            samples, start_s = sounds.of(item)
            speech = voice.stretches(samples, VoiceConfig())
            began = time.perf_counter()
            try:
                heard = _heard(name, scratch, text, samples, speech, start_s)
            except EngineError as error:
                refused[item["path"]] = str(error)
                heard = Heard([], None, None)
            wall_s += time.perf_counter() - began
            sound_s += len(samples) / SPEECH_RATE_HZ
            kept = keep_spoken(heard.words, speech, len(samples) / SPEECH_RATE_HZ, 0.3, 3)
            num_dropped += kept.num_dropped
            truth, found = text.split(), [w.text for w in kept.words]
            rows.append((item["path"], word_errors(truth, found), len(truth)))
            time_errors += _time_errors(item["ground_truth"], kept.words, start_s)
        result[name] = {
            "word_error": pooled_ratio([(e, n) for _, e, n in rows]),
            "files": {path: [errors, total] for path, errors, total in rows},
            "refused": refused,
            "num_dropped": num_dropped,
            "median_abs_time_error_s": float(np.median(np.abs(time_errors))) if time_errors else None,
            "share_within_0.1_s": float(np.mean(np.abs(time_errors) <= 0.1)) if time_errors else None,
            "num_times": len(time_errors),
            "times_real_time": round(sound_s / wall_s, 1) if wall_s else None,
        }
    return result


def _heard(name: str, scratch: Path, text: str, samples: F32, speech: list[Stretch], start_s: float) -> Heard:
    if name == "align":
        return AlignEngine(scratch).align(Transcript([Cue(text)]), samples, speech, start_s)
    return PocketsphinxEngine(scratch, states=6000).hear(samples, speech)


def _with_transcript(items: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    for item in items:
        truth = item["ground_truth"]
        text = truth.get("transcript")
        if isinstance(text, str) and truth.get("language", "en") == "en":
            yield item, text


def _time_errors(truth: dict[str, Any], words: list[Word], start_s: float) -> list[float]:
    given = truth.get("words")
    if given:
        wanted, found = [spoken_form(w["word"]) for w in given], [spoken_form(w.text) for w in words]
        pairs = _matches(wanted, found)
        starts = [start_s + words[j].start_s - given[i]["start"] for i, j in pairs]
        return starts + [start_s + words[j].end_s - given[i]["end"] for i, j in pairs]
    interval = truth.get("speech_interval_s")
    if interval and words:
        return [start_s + words[0].start_s - interval[0], start_s + words[-1].end_s - interval[1]]
    return []


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


def _matches(truth: Sequence[str], found: Sequence[str]) -> list[tuple[int, int]]:
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
    parser.add_argument("--engines", default="pocketsphinx,align", help="transcribers to score")
    chosen = parser.parse_args(argv)
    json.dump(score_words(chosen.media_dir, chosen.engines.split(",")), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
