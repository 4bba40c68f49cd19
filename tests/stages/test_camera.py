"""Camera movement on pictures through a camera whose movement is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.demo.face import photograph
from schemas.timing import Span
from stages.camera import Box, CameraWatch, corners_between, describe, person_of
from stages.media.decoder import Frames

FPS, NUM = 8, 17
PICTURE = cv2.cvtColor(photograph("coffee.png"), cv2.COLOR_RGB2GRAY)


def seen(
    right: float = 0.0, down: float = 0.0, growth: float = 0.0, turn: float = 0.0, shake: float = 0.0
) -> list[np.ndarray]:
    """Pictures of a camera that goes so many picture widths, e-folds and radians a second."""
    rng, pictures = np.random.default_rng(1), []
    for number in range(NUM):
        t = number / FPS - 1
        move = 256 * (np.array([right, down]) * t + shake * rng.normal(size=2))
        matrix = cv2.getRotationMatrix2D((128.0, 72.0), np.degrees(turn * t), float(np.exp(-growth * t)))
        matrix[:, 2] += move + np.array([172.0, 128.0])
        pictures.append(cv2.warpAffine(PICTURE, matrix, (256, 144), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))
    return pictures


def measured(pictures: list[np.ndarray], people: Sequence[Box] = ()) -> dict[str, Any]:
    watch = CameraWatch()
    for low, high in ((0, 5), (5, NUM)):
        images = np.stack(pictures[low:high])
        watch.see(Frames(images, np.arange(low, high), high, 1, FPS, np.zeros(high - low, bool)))
    return watch.of(Span(0, NUM, 1, FPS), people)


@pytest.mark.parametrize(
    ("move", "field", "value", "name"),
    [
        ({"right": 0.1}, "pan", 0.1, "pan_right"),
        ({"right": -0.2}, "pan", -0.2, "pan_left"),
        ({"down": 0.08}, "tilt", -0.08, "tilt_down"),
        ({"down": -0.1}, "tilt", 0.1, "tilt_up"),
        ({"growth": 0.15}, "zoom", 0.15, "zoom_in"),
        ({"growth": -0.15}, "zoom", -0.15, "zoom_out"),
        ({"turn": 0.3}, "roll_deg_per_s", np.degrees(0.3), "roll"),
    ],
)
def test_a_movement_has_its_speed_and_its_name(move: dict[str, float], field: str, value: float, name: str) -> None:
    found = measured(seen(**move))
    assert abs(found[field]) == pytest.approx(abs(value), rel=0.05)
    assert name == "roll" or np.sign(found[field]) == np.sign(value)
    assert found["move"] == name
    assert found["steadiness"] == 0
    assert found["subject_speed"] < 0.015


def test_a_hand_shakes_and_a_tripod_does_not() -> None:
    still, shaken = measured(seen()), measured(seen(shake=0.008))
    assert (still["move"], still["shake"], still["camera_speed"], still["steadiness"]) == ("still", 0, 0, 1)
    assert shaken["move"] == "shaken"
    assert 0.004 < shaken["shake"] < 0.016


def test_what_moves_before_a_camera_that_stands_is_the_subject() -> None:
    pictures = seen()
    for number, picture in enumerate(pictures):
        picture[30:110, 40 + 4 * number : 100 + 4 * number] = PICTURE[200:280, 300:360]
    found = measured(pictures)
    assert found["move"] == "still"
    assert found["camera_speed"] == 0
    assert found["subject_speed"] > 0.01


def test_people_who_fill_the_picture_are_not_the_camera() -> None:
    pictures = seen()
    for number, picture in enumerate(pictures):
        picture[10:144, 56:200] = PICTURE[150 + number : 284 + number, 200 - 2 * number : 344 - 2 * number]
        picture[:, :30], picture[:, 226:] = PICTURE[:144, :30], PICTURE[:144, 100:130]
    face = {"x": 0.4, "y": 0.3, "width": 0.2, "height": 0.4}
    assert person_of(face) == pytest.approx((0.25, 0.0, 0.75, 1.0))
    found = measured(pictures, [(0.15, 0.0, 0.85, 1.0)])
    assert (found["move"], found["camera_speed"]) == ("still", 0)
    assert found["subject_speed"] > 0.03
    alone = measured([picture[:, 60:196] for picture in seen(right=0.1)], [(0.0, 0.0, 1.0, 1.0)])
    assert alone["move"] == "pan_right", "where nothing else can be followed, people are"


def test_where_nothing_can_be_followed_nothing_is_said() -> None:
    plain = [np.full((144, 256), 90, np.uint8)] * NUM
    found = measured(plain)
    assert (found["move"], found["shake"], found["followed_ratio"]) == (None, None, 0)
    assert describe([])["followed_ratio"] is None
    assert measured([np.full((1, 1), number, np.uint8) for number in range(NUM)])["move"] is None
    assert corners_between(plain[0], seen()[0], 0.1) is None
