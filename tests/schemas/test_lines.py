"""Spoken lines: whatever is said, a caption holds as many marks as lines, and gives them back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.lines import UNHEARD, caption_or_lines, lines_in, marked, plain_line, with_lines

TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(["<S>", "a<E>b", "<extra_id_2>", ""]), max_size=6)


@given(TEXTS)
def test_lines_come_back_in_order(texts: list[str]) -> None:
    caption = caption_or_lines(None, texts)
    assert lines_in(caption) == [plain_line(text) for text in texts]
    assert caption_or_lines("written", texts) == "written"


@given(TEXTS, st.data())
def test_lines_are_replaced_and_removed_by_place(texts: list[str], data: st.DataObject) -> None:
    caption = "so " + " then ".join(marked(plain_line(text)) for text in texts) + "\n end"
    wanted = [data.draw(st.none() | st.sampled_from(["one", "two two"])) for _ in texts]
    assert lines_in(with_lines(caption, wanted)) == [line for line in wanted if line is not None]


def test_what_surrounds_a_line_stays() -> None:
    assert with_lines("He: <S>a b<E>  she: <S>c<E>\nrain", ["b", None]) == "He: <S>b<E> she: rain"
    assert plain_line("  ") == plain_line("<>") == UNHEARD


@pytest.mark.parametrize(
    "caption", ["<S>open", "close<E>", "<S>a<S>b<E>", "<E>a<S>", "<S>a<E> <S>b", "<S>a <S>b<E><E>"]
)
def test_unpaired_marks_are_told(caption: str) -> None:
    assert lines_in(caption) is None
