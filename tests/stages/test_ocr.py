"""Text that was drawn over pictures: found, named by place and time, read, and cut around."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.demo.face import photograph
from pipeline.demo.write import Encoding, encode
from stages.base import Context
from stages.ocr.kinds import FoundText, Kind, TextSample, agreement, followed, freed, joined, named
from stages.ocr.networks import TextLine, lines_of, spelled
from stages.ocr.stage import OCR, Ocr, OcrConfig, shares
from tests.rows import clip_row, span_of_file, speech_span

Edges = tuple[float, float, float, float]
SUBTITLE = (0.3, 0.86, 0.7, 0.92)
MARK = (0.85, 0.04, 0.96, 0.09)


def found(edges: Edges, says: int) -> FoundText:
    """A line at (left, top, right, bottom) that looks as nothing else that `says` another number."""
    thumb = np.random.default_rng(says).normal(size=768)
    return FoundText(TextLine(*edges, 0.9), (thumb / np.linalg.norm(thumb)).astype(np.float16), None)


def moved(edges: Edges, right: float, down: float = 0.0) -> Edges:
    return (edges[0] + right, edges[1] + down, edges[2] + right, edges[3] + down)


def kinds(samples: list[list[FoundText]]) -> list[Kind]:
    items = followed([TextSample(float(at), tuple(each)) for at, each in enumerate(samples)])
    named(items, len(samples))
    return [item.kind for item in items]


def test_one_text_after_another_in_the_lower_middle_are_subtitles_and_one_that_stays_in_a_corner_is_a_mark() -> None:
    mark = found(MARK, 1)
    samples = [[mark], [found(SUBTITLE, 2), mark], [found(SUBTITLE, 2), mark], [found(SUBTITLE, 3), mark], [mark]]
    assert kinds(samples) == ["mark", "subtitle", "subtitle"]


def test_what_moves_with_the_picture_is_of_the_scene() -> None:
    assert kinds([[found(moved(SUBTITLE, 0.04 * at, -0.2), 1)] for at in range(4)]) == ["scene"]
    assert kinds([[found(moved(SUBTITLE, 0.04 * at), 1)] for at in range(4)]) == ["ticker"], "where tickers run"
    assert kinds([[found(moved(SUBTITLE, 0, -0.03 * at), 1)] for at in range(3)]) == ["scene"]


def test_a_band_that_says_something_else_every_second_is_a_ticker_and_quick_subtitles_are_none() -> None:
    band = (0.0, 0.92, 1.0, 0.98)
    assert kinds([[found(band, at)] for at in range(4)]) == ["ticker"] * 4
    assert kinds([[found(SUBTITLE, at)] for at in range(4)]) == ["subtitle"] * 4


def test_what_fills_the_width_at_the_border_is_a_ticker_and_what_moves_on_is_of_the_scene() -> None:
    assert kinds([[found((0.0, 0.9, 1.0, 0.97), 1)]] * 3) == ["ticker"]
    sign = (0.43, 0.75, 0.57, 0.82)
    assert kinds([[found(moved(sign, 0.06 * at), at)] for at in range(3)]) == ["scene"] * 3


def test_a_line_that_reads_the_same_is_one_whatever_moves_behind_it() -> None:
    samples = [TextSample(float(at), (found(MARK, at),)) for at in range(4)]
    items = followed(samples)
    for item, text in zip(items, ("NEWS24", "NEWS24", "NEWS2A", "NEWS24"), strict=True):
        item.text = text
    (mark,) = joined(items)
    assert (mark.first, mark.end, mark.text) == (0, 4, "NEWS24")
    named([mark], 4)
    assert mark.kind == "mark"
    items[1].text = "TODAY"
    assert len(joined(items)) == 3, "what says something else between parts them"


def test_large_letters_in_the_middle_are_a_title() -> None:
    assert kinds([[], [found((0.2, 0.4, 0.8, 0.55), 1)], [found((0.2, 0.4, 0.8, 0.55), 1)], []]) == ["title"]


def test_shares_add_up() -> None:
    samples = [TextSample(0.0, ()), TextSample(1.0, (found(SUBTITLE, 1),))]
    items = followed(samples)
    named(items, 2)
    assert shares(2, items) == {
        "area_ratio": pytest.approx(0.012),
        "overlaid_area_ratio": pytest.approx(0.012),
        "frames_ratio": 0.5,
        "has_subtitles": True,
        "subtitle_ratio": 0.5,
        "has_mark": False,
    }


def test_the_largest_free_part_lies_between_what_was_laid_over() -> None:
    assert freed([]) == (0.0, 0.0, 1.0, 1.0)
    assert freed([TextLine(*SUBTITLE, 1)]) == (0.0, 0.0, 1.0, 0.86)
    assert freed([TextLine(*SUBTITLE, 1), TextLine(*MARK, 1)]) == (0.0, 0.09, 1.0, 0.86)


def test_agreement_is_the_share_of_letters_that_are_said() -> None:
    assert agreement("Hello, World!", "hello world") == 1
    assert agreement("abcd", "ab") == 0.5
    assert agreement("...", "hello") is None


def test_lines_are_widened_and_faint_ones_left_out() -> None:
    ink = np.zeros((64, 128), np.float32)
    ink[20:30, 20:100], ink[50:60, 20:100] = 0.9, 0.4
    (line,) = lines_of(ink)
    assert line.top * 64 == pytest.approx(20 - 1.6 * 800 / 180)
    assert line.right * 128 == pytest.approx(100 + 1.6 * 800 / 180)


def test_letters_stand_once_unless_a_gap_parts_them() -> None:
    steps = np.eye(4, dtype=np.float32)[[0, 1, 1, 0, 1, 3, 2, 0]]
    assert spelled(steps, ("", "a", "b", " ")) == ("aa b", 1.0)
    assert spelled(np.eye(2, dtype=np.float32)[[0, 0]], ("", "a")) == ("", 0.0)


def test_a_drawn_subtitle_is_found_read_and_held_against_what_is_said(tmp_path: Path, context: Context) -> None:
    picture = cv2.resize(photograph("brick.png"), (640, 360))
    shown = picture.copy()
    for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.putText(
            shown, "We can meet on Monday", (120, 330), cv2.FONT_HERSHEY_SIMPLEX, 1.0, colour, width, cv2.LINE_AA
        )
    path = tmp_path / "subtitle.mp4"
    encode(path, [picture, shown, shown], None, Encoding(640, 360, Fraction(1)))
    stage = Ocr(OcrConfig())
    stage.setup(context)
    span = span_of_file(context.media.probe(path))
    (told,) = stage.process([clip_row(path, span, [speech_span("we can meet on Monday", 1.0, 2.5)])])
    assert isinstance(told, dict)
    assert set(told) == {field.name for field in OCR}
    assert (told["has_subtitles"], told["subtitle_ratio"], told["has_mark"]) == (True, pytest.approx(2 / 3), False)
    assert told["subtitles"] == "We can meet on Monday"
    assert told["agreement"] == 1
    (line,) = (each for each in told["lines"] if each["kind"] == "subtitle")
    assert (line["start_s"], line["end_s"]) == (1.0, 3.0)
    assert 0.75 < told["crop_y"] + told["crop_height"] < 0.9
    context.media.close()
