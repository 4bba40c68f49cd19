"""When each word of a given transcript is spoken: forced alignment with pocketsphinx.

Each cue of a subtitle file is aligned within its own window.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import EngineError
from schemas.spans import SPEECH_RATE_HZ, Hearing, Word
from schemas.stretches import Stretch, inside
from stages.transcribe.pocketsphinx import FRAME_S, Recogniser, recogniser
from stages.transcribe.pronounce import guess_phones
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.words import Heard, spread, spread_within

ENGLISH = "en"
"""The one language whose sounds pocketsphinx has."""
CUE_SLACK_S = 0.5
"""Subtitles lead and lag the voice by this much; a cue's window is widened so, but not into its neighbours."""


def spoken_form(word: str) -> str:
    """`word` as the dictionary spells it: lower case, letters with their marks, digits, and apostrophes inside."""
    plain = word.lower().replace("’", "'")
    return "".join(c for c in plain if c == "'" or unicodedata.category(c)[0] in "LMN").strip("'")


@dataclass
class AlignEngine:
    """Times for words that are already known; about 40 times real time on one core.

    English sounds only. Words the dictionary lacks are spelled out by rule; words that cannot be (other alphabets) are
    laid between their neighbours. No confidence is given: an alignment says where a word would be, not whether it was said,
    so a wrong transcript is noticed only when it is far too long for the sound.
    A cue that does not fit its sound at all is spread over the speech in its window.
    """

    scratch_dir: Path

    def align(
        self,
        transcript: Transcript,
        samples: NDArray[np.float32],
        speech: list[Stretch],
        start_s: float,
        hearing: Hearing | None = None,
    ) -> Heard:
        """The transcript's words in seconds from the start of mono `samples` at 16 kHz.

        `start_s` is that start on the asset clock, which cue times refer to. `hearing` tells the language where others than the
        transcript know it. Without `speech` the words lie on silence, where their cues are; those of other languages than
        English are spread over the speech there. Raises EngineError when nothing fits.
        """
        windows = cue_windows(transcript.cues, start_s, len(samples) / SPEECH_RATE_HZ)
        hearing = hearing or transcript.stated
        is_alignable = bool(speech) and hearing.language in (None, ENGLISH)
        found = self.times(transcript.cues, windows, samples, speech) if is_alignable else [None] * len(windows)
        if is_alignable and not any(found):
            raise EngineError(
                f"The given transcript ({len(transcript.words)} words) does not fit the sound "
                f"({len(samples) / SPEECH_RATE_HZ:.1f} s).",
                reason="transcript_mismatch",
                remedy="Check that the transcript belongs to this file and is English, or use another engine.",
            )
        heard = Heard([], [], sum(words is None for words in found) if is_alignable else 0)
        for cue, window, words in zip(transcript.cues, windows, found, strict=True):
            told = replace(hearing, words_from="letters" if words is None else "pocketsphinx")
            heard.add(words or spread_within(cue.text.split(), window, speech), told)
        return heard

    def times(
        self, cues: Sequence[Cue], windows: Sequence[Stretch], samples: NDArray[np.float32], speech: list[Stretch]
    ) -> list[list[Word] | None]:
        """The words of each cue, looked for in its window; None where they do not fit the sound.

        Raises EngineError when the aligner cannot work at all.
        """
        spoken = {word: spoken_form(word) for cue in cues for word in cue.text.split()}
        found: list[list[Word] | None] = []
        with recogniser(samples, self.scratch_dir) as worker:
            extra = pronunciations(worker, set(spoken.values()))
            for cue, window in zip(cues, windows, strict=True):
                texts = cue.text.split()
                times = align_cue(worker, [spoken[text] for text in texts], extra, window)
                words = None if times is None else [trim(word, speech) for word in fill_gaps(texts, times, window)]
                found.append(words)
        return found


def pronunciations(worker: Recogniser, forms: set[str]) -> dict[str, str | None]:
    """Guessed phones of the `forms` that the dictionary lacks; None for those that cannot be guessed.

    Raises EngineError when the recogniser cannot say.
    """
    answer = worker.ask("known", words=sorted(forms))
    if answer is None:
        raise EngineError(
            f"pocketsphinx could not load its dictionary: it {worker.failure}.", reason="recogniser_crashed"
        )
    return {form: guess_phones(form) for form in answer["unknown"]}


def trim(word: Word, speech: list[Stretch]) -> Word:
    """`word` cut to the stretch of speech that holds most of it: an aligner lets words reach into pauses."""
    longest = max(inside(word, speech), key=lambda part: part.duration_s, default=None)
    return word if longest is None else word.within(longest.start_s, longest.end_s)


def cue_windows(cues: list[Cue], start_s: float, duration_s: float) -> list[Stretch]:
    """Where to look for each cue, in seconds from the start of the sound: its time widened, not into its neighbours."""
    windows = []
    given = [cue.window for cue in cues]
    for index, window in enumerate(given):
        if window is None:
            windows.append(Stretch(0.0, duration_s))
            continue
        before = given[index - 1] if index else None
        after = given[index + 1] if index + 1 < len(given) else None
        low = max(window.start_s - CUE_SLACK_S, min(before.end_s, window.start_s) if before else -1e9)
        high = min(window.end_s + CUE_SLACK_S, max(after.start_s, window.end_s) if after else 1e9)
        low, high = max(0.0, low - start_s), min(duration_s, high - start_s)
        windows.append(Stretch(low, max(low, high)))
    return windows


def align_cue(
    worker: Recogniser, forms: list[str], extra: dict[str, str | None], window: Stretch
) -> list[tuple[float, float] | None] | None:
    """(start, end) per word in seconds, None for words that have no sound form; None when the words do not fit."""
    alignable = [i for i, form in enumerate(forms) if form and extra.get(form, "known")]
    if not alignable or window.duration_s <= 0:
        return None
    job = {
        "low": round(window.start_s * SPEECH_RATE_HZ),
        "high": round(window.end_s * SPEECH_RATE_HZ),
        "text": " ".join(forms[i] for i in alignable),
        "extra": {forms[i]: extra[forms[i]] for i in alignable if forms[i] in extra},
    }
    answer = worker.ask("align", **job)
    if answer is None or answer["words"] is None or len(answer["words"]) != len(alignable):
        return None
    times: list[tuple[float, float] | None] = [None] * len(forms)
    for i, (_, first, end, _) in zip(alignable, answer["words"], strict=True):
        times[i] = (window.start_s + first * FRAME_S, min(window.end_s, window.start_s + end * FRAME_S))
    return times


def fill_gaps(texts: list[str], times: list[tuple[float, float] | None], window: Stretch) -> list[Word]:
    """Words with their times; those without are laid between their neighbours, or share the nearest one's time."""
    words: list[Word] = []
    index = 0
    while index < len(texts):
        found = times[index]
        if found is not None:
            words.append(Word(texts[index], *found, None))
            index += 1
            continue
        end = next((i for i in range(index, len(texts)) if times[i] is not None), len(texts))
        low = words[-1].end_s if words else window.start_s
        high = (times[end] or (window.end_s, 0.0))[0] if end < len(texts) else window.end_s
        words += spread(texts[index:end], [Stretch(low, max(high, low + 0.02 * (end - index)))])
        index = end
    return words
