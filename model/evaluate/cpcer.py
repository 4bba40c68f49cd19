"""cpCER: how many characters of what each speaker was to say are wrong, speakers and voices paired so that they are fewest.

The concatenated minimum-permutation error rate of CHiME-6 (Watanabe et al. 2020, arXiv 2004.09249), of characters: all that one
speaker says is one text, and whoever is left over when speakers and voices are paired has said too much or nothing. Who says what
in a sample is told by the words of stage `transcribe` in the turns of stage `diarize`, as stage `clip` joins them. MOVA's toolkit
asks a service over the network instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model.evaluate.metric import Metric
from model.evaluate.records import EvalCase, EvalItem, Reading
from model.evaluate.words import CONVERTER, RECOGNISER, characters, language_of, own_text
from schemas.spans import joined


def speaker_errors(wanted: Sequence[str], heard: Sequence[str]) -> tuple[int, int]:
    """(wrong, missing and added characters, characters that were wanted) of the texts of speakers, in whatever order.

    Of all pairings the one with the fewest errors counts (Kuhn-Munkres). Spaces at the ends of a text do not count.
    """
    from scipy.optimize import linear_sum_assignment

    num = max(len(wanted), len(heard))
    rows, columns = ([*texts, *[""] * (num - len(texts))] for texts in (wanted, heard))
    errors = np.array([[_edits(one, other) for other in columns] for one in rows]).reshape(num, num)
    return int(errors[linear_sum_assignment(errors)].sum()), sum(map(len, wanted))


def _edits(wanted: str, heard: str) -> int:
    import jiwer

    if not wanted or not heard:
        return len(wanted) + len(heard)
    found = jiwer.process_characters(wanted, heard)
    return found.substitutions + found.deletions + found.insertions


def texts_by_speaker(said: Iterable[tuple[str, str]], language: str) -> list[str]:
    """What each says, of (speaker, text) in order of time, as Whisper's normaliser writes it; those who say nothing left out."""
    found: dict[str, list[str]] = {}
    for speaker, text in said:
        found.setdefault(speaker, []).append(text)
    texts = (characters(own_text(joined(each), language), language) for each in found.values())
    return [text for text in texts if text]


def read_cpcer(case: EvalCase) -> Reading:
    """The rate of one sample, weighted by the characters to say. A voice that nobody could name counts as one of its own."""
    made, language = case.made, language_of(case.item)
    if made is None or (made.asset.get("transcribe") or {}).get("engine") is None:
        return Reading(None, why="it has no sound to listen to")
    if not made.clips:
        return Reading(None, why="it has no clip")
    wanted = texts_by_speaker(((turn.speaker, turn.text) for turn in case.item.turns), language)
    spans = [span for clip in made.clips for span in (clip.get("clip") or {}).get("spans") or ()]
    heard = texts_by_speaker(((span["speaker"] or "", span["text"] or "") for span in spans), language)
    errors, num = speaker_errors(wanted, heard)
    return Reading(errors / num, float(num)) if num else Reading(None, why="the turns have no word in them")


def has_several_speakers(item: EvalItem) -> bool:
    """It is known who says what, and that they are two or more."""
    return len({turn.speaker for turn in item.turns}) > 1


CPCER = Metric(
    name="cpcer", doc="characters wrong of all that each speaker is to say, speakers paired so that they are fewest",
    unit="ratio", better="lower", read=read_cpcer, applies=has_several_speakers, stage="clip",
    model=f"{RECOGNISER}; own diarizer; jiwer, scipy; Chinese simplified by {CONVERTER}", crop="what is said in all shots",
)  # fmt: skip
