"""Turns in the light of words: nobody takes over inside a word, and one word amid a sentence is not somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from schemas.spans import Turn, Word
from schemas.stretches import Stretch

MAX_MOVE_S = 0.3
"""Furthest that a change of speaker is moved: turn and word times together are off by less."""
MAX_ISLAND_S = 0.6
"""Longest turn taken for a slip of the clustering: its voice is told by less than one window of the speaker encoder."""
MAX_GAP_S = 0.3
"""Words further apart than this are not of one sentence, whatever the punctuation says."""
ENDS = tuple(".?!\u3002\uff1f\uff01\u0964")
"""What a word ends with that ends a sentence."""


def heed_words(turns: Sequence[Turn], words: Sequence[Word]) -> list[Turn]:
    """`turns` with changes of speaker between words, and without somebody else's word amid a sentence of one speaker.

    Speech of several at once is left as it is: words are one recogniser's, which follows one of them. Both in order of start.
    """
    return at_word_edges(without_islands(turns, sentences(words)), words)


def sentences(words: Sequence[Word]) -> list[Stretch]:
    """Where sentences are said: words up to one that ends with a mark, or before a pause."""
    found: list[Stretch] = []
    is_open = False
    for word in words:
        if is_open and word.start_s - found[-1].end_s < MAX_GAP_S:
            found[-1] = Stretch(found[-1].start_s, max(found[-1].end_s, word.end_s))
        else:
            found.append(Stretch(word.start_s, word.end_s))
        is_open = not word.text.rstrip("\"')\u201d").endswith(ENDS)
    return found


def without_islands(turns: Sequence[Turn], said: Sequence[Stretch]) -> list[Turn]:
    """`turns`, short ones amid a sentence given to the speaker who has the word just before and just after."""
    left = list(turns)
    for island in turns:
        if island.duration_s > MAX_ISLAND_S or island not in left:
            continue
        around = [s for s in said if s.start_s < island.start_s and s.end_s > island.end_s]
        others = [turn for turn in left if turn.speaker != island.speaker]
        if not around or any(turn.overlap_s(island) for turn in others):
            continue
        before = next((turn for turn in reversed(others) if turn.end_s <= island.start_s), None)
        after = next((turn for turn in others if turn.start_s >= island.end_s), None)
        if before is None or after is None or before.speaker != after.speaker:
            continue
        if max(island.start_s - before.end_s, after.start_s - island.end_s) < MAX_GAP_S:
            whole = replace(before, end_s=after.end_s)
            left = sorted(
                [turn for turn in left if turn not in (before, island, after)] + [whole],
                key=lambda turn: (turn.start_s, turn.end_s),
            )
    return left


def at_word_edges(turns: Sequence[Turn], words: Sequence[Word]) -> list[Turn]:
    """`turns`, each change of speaker that falls inside a word moved to that end of it which is nearer."""
    moved = list(turns)
    for at in range(len(turns) - 1):
        last, first = moved[at : at + 2]
        if last.speaker == first.speaker or abs(first.start_s - last.end_s) > MAX_MOVE_S:
            continue
        change_s = (last.end_s + first.start_s) / 2
        word = next((word for word in words if word.start_s < change_s < word.end_s), None)
        if word is None:
            continue
        to_s = word.end_s if word.end_s - change_s < change_s - word.start_s else word.start_s
        if abs(to_s - change_s) <= MAX_MOVE_S and last.start_s < to_s < first.end_s:
            moved[at], moved[at + 1] = replace(last, end_s=to_s), replace(first, start_s=to_s)
    return sorted(moved, key=lambda turn: (turn.start_s, turn.end_s))
