"""The detector in 8 bits sees what the packaged floats see, and LiteRT starts without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.demo.face import photograph
from stages.engines.face_networks import FaceDetector, FaceMesh, _decode_faces, overlap
from stages.engines.packaged import packaged


@pytest.fixture(scope="module")
def small() -> Any:
    """A public-domain portrait, 320 x 320."""
    import cv2

    return cv2.resize(photograph("astronaut.png"), (320, 320), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("side_px", [320, 160, 96])
def test_eight_bits_find_the_face_that_floats_find(small: Any, side_px: int) -> None:
    import cv2

    image = cv2.resize(small, (side_px, side_px), interpolation=cv2.INTER_AREA)
    floats = cv2.dnn.readNetFromONNX(str(packaged("centerface")))
    floats.setInput(cv2.dnn.blobFromImage(image, 1.0, (side_px, side_px), swapRB=False))
    heat, size, offset, points = (out[0] for out in floats.forward(["537", "538", "539", "540"]))
    (wanted,) = _decode_faces(heat[0], size, offset, points, np.ones(2))
    (found,) = FaceDetector().detect(image)
    assert overlap(found.box, wanted.box) > 0.8
    assert found.score == pytest.approx(wanted.score, abs=0.06)
    side = float(max(wanted.box[2:] - wanted.box[:2]))
    assert np.linalg.norm(found.points - wanted.points, axis=1).max() < 0.08 * side


def test_the_mesh_starts_and_sees_in_silence(small: Any, capfd: pytest.CaptureFixture[str]) -> None:
    presence, points = FaceMesh().fit(small, np.array([154.0, 80.0]), 110.0, 0.0)
    assert presence > 0.9
    assert points.shape == (468, 3)
    assert capfd.readouterr() == ("", "")
