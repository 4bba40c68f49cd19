"""Words with times: what every transcriber returns, and the rules that remove words nobody said."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace

from schemas.spans import Hearing, Passage, Word, is_unspaced
from schemas.stretches import Stretch, covered_s, inside

MIN_WORD_S = 0.02


@dataclass
class Heard:
    """What an engine heard in a sound, in seconds from its start."""

    words: list[Word]
    passages: list[Passage]
    """What was written down at once; the words in each."""
    num_failed: int = 0
    """Utterances on which the engine crashed or gave up."""

    def add(self, words: list[Word], hearing: Hearing) -> None:
        """One more passage; nothing where there are no words."""
        if words:
            self.passages.append(Passage(min(w.start_s for w in words), max(w.end_s for w in words), hearing))
            self.words += [replace(word, hearing=hearing) for word in words]


@dataclass
class Kept:
    """Words that stand, and how many fell for which reason."""

    words: list[Word]
    num_on_silence: int
    num_repeated: int
    num_outside: int

    @property
    def num_dropped(self) -> int:
        return self.num_on_silence + self.num_repeated + self.num_outside


def keep_spoken(
    words: list[Word], speech: list[Stretch], duration_s: float, min_share: float, max_repeats: int
) -> Kept:
    """`words` inside [0, duration_s], on speech, without loops; reasons are counted in this order.

    outside     lies outside the sound; a word that only sticks out is clipped
    on_silence  less than `min_share` of it lies on speech: text over silence, noise or music is invented
    repeated    beyond `max_repeats` of the same one to four words in a row: recognisers fall into loops
    """
    heard = []
    for word in sorted(words, key=lambda w: (w.start_s, w.end_s)):
        cut = word.within(0.0, duration_s)
        if cut.duration_s >= MIN_WORD_S:
            heard.append(cut)
    spoken = [word for word in heard if covered_s(word, speech) >= min_share * word.duration_s]
    kept = drop_loops(spoken, max_repeats)
    return Kept(kept, len(heard) - len(spoken), len(spoken) - len(kept), len(words) - len(heard))


def drop_loops(words: list[Word], max_repeats: int, longest: int = 4) -> list[Word]:
    """`words` with runs of one to `longest` words that follow each other more than `max_repeats` times cut to one."""
    kept = list(words)
    for size in range(1, longest + 1):
        index = 0
        while index + size <= len(kept):
            pattern = [_plain(w.text) for w in kept[index : index + size]]
            end = index + size
            while [_plain(w.text) for w in kept[end : end + size]] == pattern:
                end += size
            if (end - index) // size > max_repeats:
                del kept[index + size : end]
            index += 1
    return kept


def _plain(text: str) -> str:
    """Letters, their marks and digits: in Hindi and Thai marks are vowels, which tell words apart."""
    return "".join(c for c in text.lower() if unicodedata.category(c)[0] in "LMN")


def continues(word: str, piece: str) -> bool:
    """Whether `piece`, a piece of a recogniser's text, belongs to the `word` before it.

    A word ends at a space, and in scripts without spaces after each character. Punctuation goes with the word it touches.
    """
    if not word.strip() or not piece.strip():
        return True
    if word[-1].isspace() or piece[0].isspace():
        return False
    is_mark = not piece[0].isalnum() or unicodedata.category(piece[0]).startswith("M")
    is_opening = not any(character.isalnum() for character in word)
    return is_mark or is_opening or not (is_unspaced(word[-1]) or is_unspaced(piece[0]))


def spread(texts: list[str], room: list[Stretch]) -> list[Word]:
    """Words laid over `room` in proportion to their letters, for want of better times; confidence null.

    A word that would fall on two stretches of `room` ends with the first one.
    """
    total_s = sum(r.duration_s for r in room)
    letters = [max(1, len(text)) for text in texts]
    if not total_s or not texts:
        return []
    per_letter = total_s / sum(letters)
    words, done_s = [], 0.0
    for text, count in zip(texts, letters, strict=True):
        start_s, end_s = _place(room, done_s, False), _place(room, done_s + count * per_letter, True)
        stretch = next(r for r in room if r.start_s <= start_s < r.end_s)
        words.append(Word(text, start_s, min(end_s, stretch.end_s), None))
        done_s += count * per_letter
    return words


def spread_within(texts: list[str], window: Stretch, speech: list[Stretch]) -> list[Word]:
    """Words given for a `window`, laid over the speech in it; none is lost.

    Where nobody speaks they lie on the window itself, to be dropped and counted as words on silence are.
    """
    shortest = Stretch(window.start_s, max(window.end_s, window.start_s + MIN_WORD_S * len(texts)))
    return spread(texts, inside(window, speech) or [shortest])


def _place(room: list[Stretch], done_s: float, is_end: bool) -> float:
    """The instant at which `done_s` seconds of `room` have passed."""
    for stretch in room:
        if done_s < stretch.duration_s - 1e-9 or (is_end and done_s <= stretch.duration_s + 1e-9):
            return stretch.start_s + max(done_s, 0.0)
        done_s -= stretch.duration_s
    return room[-1].end_s - (0.0 if is_end else 1e-6)
