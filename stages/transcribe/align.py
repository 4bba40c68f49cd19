"""When each word of a given transcript is spoken: forced alignment with pocketsphinx.

Each cue of a subtitle file is aligned within its own window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import EngineError
from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch, inside
from stages.transcribe.pocketsphinx import FRAME_S, Recogniser, recogniser
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.words import Heard, spread, spread_within

CUE_SLACK_S = 0.5
"""Subtitles lead and lag the voice by this much; a cue's window is widened so, but not into its neighbours."""


_SOUNDS = (
    ("tion", "SH AH N"), ("ough", "AO"), ("igh", "AY"), ("tch", "CH"), ("sch", "SH"), ("eau", "OW"),
    ("th", "TH"), ("sh", "SH"), ("ch", "CH"), ("ph", "F"), ("wh", "W"), ("ck", "K"), ("ng", "NG"), ("qu", "K W"),
    ("ee", "IY"), ("ea", "IY"), ("oo", "UW"), ("ou", "AW"), ("ow", "OW"), ("ai", "EY"), ("ay", "EY"), ("ei", "AY"),
    ("ie", "IY"), ("oa", "OW"), ("oi", "OY"), ("oy", "OY"), ("au", "AO"), ("aw", "AO"), ("er", "ER"), ("ar", "AA R"),
    ("or", "AO R"), ("ll", "L"), ("ss", "S"), ("tt", "T"), ("nn", "N"), ("mm", "M"), ("pp", "P"), ("rr", "R"),
    ("a", "AE"), ("b", "B"), ("c", "K"), ("d", "D"), ("e", "EH"), ("f", "F"), ("g", "G"), ("h", "HH"), ("i", "IH"),
    ("j", "JH"), ("k", "K"), ("l", "L"), ("m", "M"), ("n", "N"), ("o", "OW"), ("p", "P"), ("q", "K"), ("r", "R"),
    ("s", "S"), ("t", "T"), ("u", "AH"), ("v", "V"), ("w", "W"), ("x", "K S"), ("y", "IY"), ("z", "Z"), ("'", ""),
    ("0", "Z IH R OW"), ("1", "W AH N"), ("2", "T UW"), ("3", "TH R IY"), ("4", "F AO R"), ("5", "F AY V"),
    ("6", "S IH K S"), ("7", "S EH V AH N"), ("8", "EY T"), ("9", "N AY N"),
)  # fmt: skip
"""Spelling to ARPAbet, longest first: crude, but a wrong phone or two hardly moves the ends of a word in an alignment."""


def guess_phones(word: str) -> str | None:
    """ARPAbet for an English-looking `word` that no dictionary holds, digit by digit for numbers; None if not Latin."""
    phones: list[str] = []
    rest = re.sub(r"(?<=[^aeiou])e$", "", word) if len(word) > 3 else word
    while rest:
        for letters, sound in _SOUNDS:
            if rest.startswith(letters):
                phones += sound.split()
                rest = rest[len(letters) :]
                break
        else:
            return None
    return " ".join(phones) or None


def spoken_form(word: str) -> str:
    """`word` as the dictionary spells it: lower case, no punctuation but apostrophes inside."""
    return re.sub(r"[^\w']|_", "", word.lower().replace("’", "'")).strip("'")


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
        self, transcript: Transcript, samples: NDArray[np.float32], speech: list[Stretch], start_s: float
    ) -> Heard:
        """The transcript's words in seconds from the start of mono `samples` at 16 kHz.

        `start_s` is that start on the asset clock, which cue times refer to. Without `speech` the words lie on silence, where
        their cues are. Raises EngineError when nothing fits.
        """
        duration_s = len(samples) / SPEECH_RATE_HZ
        windows = list(zip(transcript.cues, cue_windows(transcript.cues, start_s, duration_s), strict=True))
        if not speech:
            laid = [spread_within(cue.text.split(), window, speech) for cue, window in windows]
            return Heard([word for words in laid for word in words], transcript.language, None)
        spoken = {w: spoken_form(w) for w in transcript.words}
        with recogniser(samples, self.scratch_dir) as worker:
            extra = pronunciations(worker, set(spoken.values()))
            words: list[Word] = []
            num_failed = 0
            for cue, window in windows:
                texts = cue.text.split()
                found = align_cue(worker, [spoken[t] for t in texts], extra, window)
                if found is None:
                    num_failed += 1
                    words += spread_within(texts, window, speech)
                else:
                    words += [trim(word, speech) for word in fill_gaps(texts, found, window)]
        if num_failed == len(transcript.cues):
            raise EngineError(
                f"The given transcript ({len(transcript.words)} words) does not fit the sound ({duration_s:.1f} s).",
                reason="transcript_mismatch",
                remedy="Check that the transcript belongs to this file and is English, or use another engine.",
            )
        return Heard(words, transcript.language or "en", None, num_failed)


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
