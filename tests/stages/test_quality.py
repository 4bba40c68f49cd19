"""Picture quality on ladders of known faults, and bars and fields of known sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.demo.face import photograph
from schemas.timing import Span
from stages.base import Context
from stages.media.decoder import Frames
from stages.quality.brisque import Brisque
from stages.quality.faults import bars, blockiness, blur, is_combed, noise
from stages.quality.stage import QUALITY, QualityWatch, centre, most_detailed

GREY = cv2.cvtColor(photograph("chelsea.png"), cv2.COLOR_RGB2GRAY)[:288, :448]


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8) if sigma else picture


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(picture + np.random.default_rng(1).normal(0, sigma, picture.shape), 0, 255).astype(np.uint8)


def squeezed(picture: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0), np.uint8)


@pytest.mark.parametrize(
    ("worsen", "rungs", "fault"),
    [(blurred, (0, 1, 2, 4), blur), (noisy, (0, 5, 15, 40), noise), (squeezed, (95, 30, 15, 6), blockiness)],
)
def test_faults_and_brisque_rise_along_a_ladder(
    worsen: Callable[..., np.ndarray], rungs: tuple[float, ...], fault: Callable[..., float]
) -> None:
    brisque = Brisque.load()
    pictures = [worsen(GREY, rung) for rung in rungs]
    for measure in (fault, brisque.score):
        found = [measure(picture) for picture in pictures]
        assert found == sorted(found), measure
        assert found[-1] > found[0]


def test_brisque_looks_where_most_detail_is() -> None:
    """A person before a wall, lower left, in a picture between bars."""
    soft = blurred(cv2.resize(GREY, (1200, 1000), interpolation=cv2.INTER_CUBIC), 6)
    soft[600:888, 40:488] = GREY
    boxed = np.pad(soft, ((90, 0), (0, 0)))
    place = most_detailed(boxed, (0, 90, 0, 0))
    assert place.shape == (448, 448)
    assert blur(place) < blur(centre(boxed, (0, 90, 0, 0)))
    assert Brisque.load().score(place) < Brisque.load().score(centre(boxed, (0, 90, 0, 0))) - 10
    np.testing.assert_array_equal(most_detailed(GREY, None), GREY)


def test_noise_is_told_in_grey_levels() -> None:
    flat = np.full((256, 256), 120, np.uint8)
    assert noise(noisy(flat, 10)) == pytest.approx(10, rel=0.1)


def test_a_flat_or_tiny_picture_has_no_score() -> None:
    assert Brisque.load().score(np.full((64, 64), 7, np.uint8)) is None
    assert Brisque.load().score(GREY[:20, :20]) is None


def test_fields_of_different_times_are_combed() -> None:
    woven = GREY.copy()
    woven[1::2] = np.roll(GREY, 8, 1)[1::2]
    assert is_combed(woven)
    assert not is_combed(GREY)
    assert not is_combed(np.roll(GREY, 8, 1))


def test_bars_of_any_level_are_cut_off_and_soft_edges_are_not() -> None:
    boxed = np.full((400, 448), 16, np.uint8)
    boxed[60:340] = GREY[:280]
    boxed[5:15, 10:18] = 235  # a logo in the bar
    assert bars(boxed) == (0, 60, 0, 60)
    white = np.full((288, 600), 250, np.uint8)
    white[:, 100:500] = GREY[:, 20:420]
    assert bars(white) == (100, 0, 100, 0)
    assert bars(GREY) == (0, 0, 0, 0)
    assert bars(np.full((50, 50), 9, np.uint8)) is None
    assert bars(np.repeat(np.uint8([[9], [200]]), 50, axis=0).repeat(40, axis=1)) is None, (
        "two bars and nothing between"
    )


def test_a_clip_has_what_was_seen_in_it(tmp_path: Path) -> None:
    watch = QualityWatch(Context(tmp_path))
    boxed = np.pad(GREY, ((36, 36), (0, 0)))
    pictures = np.stack([boxed, boxed, np.zeros_like(boxed)])
    watch.see(Frames(pictures, np.array([0, 25, 50]), 75, 1, 25, np.zeros(3, bool)))
    found = watch.of(Span(0, 60, 1, 25), 896, 720)
    assert set(found) == {field.name for field in QUALITY}
    assert (found["bars"], found["crop_x_px"], found["crop_y_px"]) == ("letterbox", 0, 72)
    assert (found["crop_width_px"], found["crop_height_px"], found["crop_ratio"]) == (896, 576, 0.8)
    black = watch.of(Span(50, 75, 1, 25), 896, 720)
    assert (black["bars"], black["brisque"], black["interlaced_ratio"]) == (None, None, 0)
    assert watch.of(Span(30, 45, 1, 25), 896, 720)["bars"] == "letterbox", "the picture before stands for a short clip"
