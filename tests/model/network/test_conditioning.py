"""Voices land on their own rows or nowhere; what is not heard in a window is not in its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.network.conditioning import PLACEHOLDER, cut_spans, find_placeholders, mark_spans
from model.network.nava import Nava, Sample, pack
from schemas.errors import ModelError
from schemas.spans import SpeechSpan, Word


def context(model: Nava, samples: list[Sample]) -> list[torch.Tensor]:
    packed = pack(samples, model.config)
    return list(model.context(packed, torch.float32).split(packed.layout.context_segments.key_lengths))


def test_each_voice_overwrites_exactly_its_row(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    one = make_sample("one", text=9, placeholders=[2, 6])
    none = make_sample("none", text=4)
    two = make_sample("two", text=16, placeholders=[0])
    bound = context(tiny_nava, [one, none, two])
    plain = context(tiny_nava, [replace(s, speakers=None) for s in (one, none, two)])
    voices = tiny_nava.speaker_embedding(torch.stack([*one.speakers, *two.speakers]))
    expected = [x.clone() for x in plain]
    expected[0][2], expected[0][6], expected[2][0] = voices
    for ours, theirs in zip(bound, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [len(rows) for rows in bound] == [10, 5, 16]  # one row more for the zero padding, unless there is none


def test_no_reference_is_the_null_token_and_differs_from_withheld(
    tiny_nava: Nava, make_sample: Callable[..., Sample]
) -> None:
    sample = make_sample("x", text=5, placeholders=[3])
    zero = replace(sample, speakers=[torch.zeros(192)])
    missing = replace(sample, speakers=[None])
    withheld = replace(sample, speakers=None)
    rows = [context(tiny_nava, [s])[0][3] for s in (zero, missing, withheld)]
    assert torch.equal(rows[0], tiny_nava.speaker_embedding.null_token[0])
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])


def test_another_voice_changes_the_sound_and_an_unbound_sample_does_not_notice(
    tiny_nava: Nava, make_sample: Callable[..., Sample]
) -> None:
    speaking, silent = make_sample("speaking", placeholders=[2]), make_sample("silent")
    other = replace(speaking, speakers=[speaking.speakers[0].flip(0)])
    t = torch.tensor([600.0, 600.0])
    before, after = (tiny_nava(pack([s, silent], tiny_nava.config), t) for s in (speaking, other))
    assert (before.audio[0] - after.audio[0]).abs().max() > 1e-3
    assert torch.equal(before.audio[1], after.audio[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placeholders": [1, 4], "speakers": [torch.ones(192)]}, "2 speech placeholders but 1 voices"),
        ({"placeholders": [1], "speakers": [torch.ones(192)] * 2}, "1 speech placeholders but 2 voices"),
        ({"placeholders": [1], "speakers": ()}, "1 speech placeholders but 0 voices"),
        ({"placeholders": [7], "speakers": [torch.ones(192)]}, "row 7 lies beyond its 7 text rows"),
        ({"placeholders": [7], "speakers": None}, "row 7 lies beyond its 7 text rows"),
        ({"placeholders": [4, 1], "speakers": [torch.ones(192)] * 2}, "ascending and distinct"),
        ({"placeholders": [1, 1], "speakers": [torch.ones(192)] * 2}, "ascending and distinct"),
        ({"placeholders": [-1], "speakers": [torch.ones(192)]}, "ascending and distinct"),
        ({"placeholders": [1], "speakers": [torch.ones(256)]}, r"voice 0 has shape \(256,\), expected \[192\]"),
    ],
)
def test_a_mismatch_names_the_sample_and_never_shifts(
    make_sample: Callable[..., Sample], tiny_nava: Nava, fields: dict[str, Any], message: str
) -> None:
    bad = replace(make_sample("clip 42"), **fields)
    with pytest.raises(ModelError, match=f"'clip 42'.*{message}"):
        pack([make_sample("other", placeholders=[0]), bad], tiny_nava.config)


def test_placeholders_follow_every_span_start() -> None:
    assert mark_spans("A <S>hi<E> B <S>yo<E>") == f"A <S>{PLACEHOLDER}hi<E> B <S>{PLACEHOLDER}yo<E>"
    assert mark_spans("no speech") == "no speech"
    assert find_placeholders([5, 32097, 8, 32097], 32097) == [1, 3]


@pytest.mark.parametrize("caption", ["<S>open", "close<E>", "<S>a<S>b<E>", "<E>a<S>"])
def test_unpaired_tags_are_refused(caption: str) -> None:
    with pytest.raises(ModelError, match="unpaired"):
        mark_spans(caption)


def span(text: str, start_s: float, end_s: float, *, has_words: bool = True) -> SpeechSpan:
    """A span whose words share its time evenly."""
    words, pieces = [], text.split()
    step = (end_s - start_s) / len(pieces)
    for i, piece in enumerate(pieces if has_words else ()):
        words.append(Word(piece, start_s + i * step, start_s + (i + 1) * step))
    return SpeechSpan(text=text, speaker="A", start_s=start_s, end_s=end_s, words=tuple(words))


CAPTION = "She pleads: <S>please help me<E> he answers: <S>no chance at all<E> music"
SPANS = [span("please help me", 0.5, 2.0), span("no chance at all", 4.0, 6.0)]


def test_a_window_keeps_the_words_that_are_heard_in_it() -> None:
    caption, spans, kept = cut_spans(CAPTION, SPANS, 1.0, 5.0)
    assert caption == "She pleads: <S>help me<E> he answers: <S>no chance<E> music"
    assert kept == [0, 1]
    assert [(s.start_s, s.end_s) for s in spans] == [(0.0, 1.0), (3.0, 4.0)]
    assert [w.text for w in spans[1].words] == ["no", "chance"]
    assert all(0 <= w.start_s < w.end_s <= 4.0 for s in spans for w in s.words)


def test_a_line_outside_the_window_leaves_with_its_tags_and_its_index() -> None:
    caption, spans, kept = cut_spans(CAPTION, SPANS, 3.0, 6.5)
    assert caption == "She pleads: he answers: <S>no chance at all<E> music"
    assert kept == [1]
    assert (spans[0].start_s, spans[0].end_s, spans[0].speaker) == (1.0, 3.0, "A")


def test_the_whole_clip_keeps_everything_and_unknown_words_are_all_or_nothing() -> None:
    assert cut_spans(CAPTION, SPANS, 0.0, 8.0)[0] == CAPTION
    wordless = [span("please help me", 0.5, 2.0, has_words=False), SPANS[1]]
    assert cut_spans(CAPTION, wordless, 0.0, 8.0)[0] == CAPTION
    assert cut_spans(CAPTION, wordless, 1.0, 8.0)[2] == [1]


def test_lines_and_spans_must_pair_up() -> None:
    with pytest.raises(ModelError, match="2 spoken lines but 1 speech spans"):
        cut_spans(CAPTION, SPANS[:1], 0.0, 8.0)
