"""Turns and words of one sound fit each other: nobody takes over inside a word, nobody says one word of another's sentence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.spans import Turn, Word
from schemas.stretches import Stretch, covered_s, merge
from stages.diarize.by_words import MAX_MOVE_S, heed_words, sentences


def words(*spoken: tuple[str, float, float]) -> list[Word]:
    return [Word(text, start_s, end_s) for text, start_s, end_s in spoken]


def test_a_change_inside_a_word_moves_to_its_nearer_end() -> None:
    said = words(("Hello,", 0, 0.5), ("there.", 0.6, 1.2), ("Yes.", 1.3, 1.8))
    assert heed_words([Turn("A", 0, 1.1), Turn("B", 1.1, 2)], said) == [Turn("A", 0, 1.2), Turn("B", 1.2, 2)]
    assert heed_words([Turn("A", 0, 1.4), Turn("B", 1.45, 2)], said) == [Turn("A", 0, 1.3), Turn("B", 1.3, 2)]


def test_a_change_between_words_or_far_from_their_ends_stays() -> None:
    between = [Turn("A", 0, 1.25), Turn("B", 1.25, 2)]
    assert heed_words(between, words(("there.", 0.6, 1.2), ("Yes.", 1.3, 1.8))) == between
    inside = [Turn("A", 0, 1), Turn("B", 1, 2)]
    assert heed_words(inside, words(("sung", 0.2, 1.8))) == inside


def test_one_word_amid_a_sentence_is_not_somebody_elses() -> None:
    said = words(("How", 0, 0.4), ("are", 0.4, 0.8), ("you", 0.8, 1.2), ("now?", 1.2, 1.6))
    turns = [Turn("A", 0, 0.8), Turn("B", 0.8, 1.2), Turn("A", 1.2, 1.6)]
    assert heed_words(turns, said) == [Turn("A", 0, 1.6)]


def test_an_answer_between_two_sentences_and_a_word_thrown_in_stay() -> None:
    turns = [Turn("A", 0, 0.8), Turn("B", 0.8, 1.2), Turn("A", 1.2, 1.6)]
    assert heed_words(turns, words(("Now?", 0, 0.8), ("Yes.", 0.8, 1.2), ("Good.", 1.2, 1.6))) == turns
    at_once = [Turn("A", 0, 3), Turn("B", 1, 1.4)]
    assert heed_words(at_once, words(("as", 0, 1), ("I", 1, 1.5), ("said", 1.5, 3))) == at_once


def test_without_words_turns_stay() -> None:
    turns = [Turn("A", 0, 0.8), Turn("B", 0.8, 1.2), Turn("A", 1.2, 1.6)]
    assert heed_words(turns, []) == turns


def test_sentences_end_with_marks_and_pauses() -> None:
    said = words(("Ja.", 0, 0.3), ("Und", 0.35, 0.6), ("dann?", 0.6, 1.0), ("so", 1.1, 1.3), ("weiter", 2.0, 2.4))
    assert sentences(said) == [Stretch(0, 0.3), Stretch(0.35, 1.0), Stretch(1.1, 1.3), Stretch(2.0, 2.4)]


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.floats(0.1, 3), st.floats(0, 0.5)), max_size=10),
    st.lists(st.tuples(st.sampled_from(["yes", "no."]), st.floats(0.05, 1), st.floats(0, 0.4)), max_size=20),
)
def test_no_speech_is_lost_or_won_beyond_a_move(
    said: list[tuple[str, float, float]], spoken: list[tuple[str, float, float]]
) -> None:
    turns, heard, at_s = [], [], 0.0
    for speaker, length_s, pause_s in said:
        turns.append(Turn(speaker, at_s, at_s + length_s))
        at_s += length_s + pause_s
    at_s = 0.0
    for text, length_s, pause_s in spoken:
        heard.append(Word(text, at_s, at_s + length_s))
        at_s += length_s + pause_s
    found = heed_words(turns, heard)
    assert all(turn.duration_s > 0 for turn in found)
    assert {turn.speaker for turn in found} <= {turn.speaker for turn in turns}
    near = [Stretch(turn.start_s - MAX_MOVE_S, turn.end_s + MAX_MOVE_S) for turn in turns]
    assert all(covered_s(turn, merge(near)) > turn.duration_s - 1e-9 for turn in found)
