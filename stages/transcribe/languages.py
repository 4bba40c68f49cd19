"""Which language is spoken where: speech packed into windows, and windows parted where the language changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch

LONGEST_PAUSE_S = 3.0
"""A pause from which a window ends before it is full: silence costs as much as speech and holds no context."""
PIECE_S = 3.0
"""Least speech by which a language is told."""
SWITCH_COST = 3.0
"""What a change of language has to gain, in natural logarithms: one piece of speech in twenty begins another language."""
QUIETEST_S = 0.1
"""Speech without a pause is cut where so much of it is quietest."""

Window = tuple[Stretch, ...]
"""Stretches of speech that are heard at once, in order."""


def limits(window: Sequence[Stretch]) -> Stretch:
    """From the first to the last of it."""
    return Stretch(window[0].start_s, window[-1].end_s)


def pack(speech: Sequence[Stretch], samples: NDArray[np.float32], longest_s: float) -> list[Window]:
    """Stretches of `speech` in as few windows of up to `longest_s` as one after the other fills them.

    None spans a pause of LONGEST_PAUSE_S. A stretch that is too long is cut where mono `samples` at 16 kHz are quietest.
    """
    windows: list[list[Stretch]] = []
    for stretch in (part for whole in speech for part in _parted(whole, samples, longest_s)):
        last = windows[-1] if windows else None
        is_near = last is not None and stretch.start_s - last[-1].end_s < LONGEST_PAUSE_S
        if last is not None and is_near and stretch.end_s - last[0].start_s <= longest_s:
            last.append(stretch)
        else:
            windows.append([stretch])
    return [tuple(window) for window in windows]


def _parted(stretch: Stretch, samples: NDArray[np.float32], longest_s: float) -> list[Stretch]:
    """`stretch` in parts of up to `longest_s`, each at least two thirds as long but the last."""
    parts = []
    while stretch.duration_s > longest_s:
        low, high = (round((stretch.start_s + share * longest_s) * SPEECH_RATE_HZ) for share in (2 / 3, 1))
        width = round(QUIETEST_S * SPEECH_RATE_HZ)
        power = np.convolve(np.square(samples[low:high], dtype=np.float64), np.ones(width), "same")
        cut_s = (low + int(np.argmin(power))) / SPEECH_RATE_HZ
        parts.append(Stretch(stretch.start_s, cut_s))
        stretch = Stretch(cut_s, stretch.end_s)
    return [*parts, stretch]


def pieces_of(window: Window) -> list[Window]:
    """`window` in pieces that hold PIECE_S of speech or more, or in one piece if it holds less."""
    pieces: list[list[Stretch]] = [[]]
    for stretch in window:
        if sum(each.duration_s for each in pieces[-1]) >= PIECE_S:
            pieces.append([])
        pieces[-1].append(stretch)
    if len(pieces) > 1 and sum(each.duration_s for each in pieces[-1]) < PIECE_S:
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return [tuple(piece) for piece in pieces]


def likeliest(pieces: Sequence[Mapping[str, float]], first: str | None = None) -> list[str]:
    """The likeliest language of each of `pieces`, given the probabilities of each, where changing costs SWITCH_COST.

    `first` is what was spoken before them. Every piece knows the same languages. Viterbi, time O(pieces x languages).
    """
    names = sorted(pieces[0])
    logs = np.log(np.array([[piece[name] for name in names] for piece in pieces]) + 1e-9)
    score = np.array([0.0 if first in (None, name) else -SWITCH_COST for name in names]) + logs[0]
    came_from = []
    for log in logs[1:]:
        best = int(np.argmax(score))
        stays = score >= score[best] - SWITCH_COST
        came_from.append(np.where(stays, np.arange(len(names)), best))
        score = np.where(stays, score, score[best] - SWITCH_COST) + log
    at = int(np.argmax(score))
    path = [at]
    for step in reversed(came_from):
        at = int(step[at])
        path.append(at)
    return [names[index] for index in reversed(path)]


def runs_of(languages: Sequence[str]) -> list[tuple[str, int, int]]:
    """(language, first, one past the last) of the runs of equal `languages`."""
    changes = [0, *(i for i in range(1, len(languages)) if languages[i] != languages[i - 1]), len(languages)]
    return [(languages[low], low, high) for low, high in pairwise(changes)]
