"""One person stays near, another far, and what cannot be recognised is not guessed at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Packing
from pipeline.demo.face import photograph
from schemas.errors import RecipeError
from stages.engines.face_identity import CHIP_PX, FaceEncoder, portrait_of
from stages.engines.face_networks import FaceDetector, FaceMesh
from stages.faces import FacesConfig, FaceWatch

SAME_FACE = Packing().same_face or 0.0


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    return FaceEncoder.load()


def look(picture: Any) -> Any:
    """Mesh [468, 3] of the one face in a picture."""
    face = FaceDetector().detect(picture)[0]
    centre = (face.box[:2] + face.box[2:]) / 2
    _, points = FaceMesh().fit(picture, centre, 1.5 * float(max(face.box[2:] - face.box[:2])), 0.0)
    return points


def test_a_person_is_recognised_turned_darker_and_smaller(encoder: FaceEncoder) -> None:
    import cv2

    picture = cv2.resize(photograph("astronaut.png"), (400, 400), interpolation=cv2.INTER_AREA)
    known = portrait_of(picture, look(picture))
    assert known is not None
    assert known.chip.shape == (CHIP_PX, CHIP_PX, 3)
    turn = cv2.getRotationMatrix2D((200, 200), 12, 0.7)
    other = cv2.convertScaleAbs(cv2.warpAffine(picture, turn, (400, 400)), alpha=0.7)
    again = portrait_of(other, look(other))
    assert again is not None
    assert again.quality_px == pytest.approx(0.7 * known.quality_px, rel=0.1)
    one, two = encoder.embed(known), encoder.embed(again)
    assert 0 < float(np.linalg.norm(one - two)) < SAME_FACE
    stranger = encoder.embed(known._replace(chip=known.chip[::-1].copy()))
    assert float(np.linalg.norm(one - stranger)) > SAME_FACE


def test_small_and_averted_faces_have_no_portrait() -> None:
    import cv2

    picture = cv2.resize(photograph("astronaut.png"), (400, 400), interpolation=cv2.INTER_AREA)
    points = look(picture)
    assert portrait_of(picture, points * 0.2) is None
    averted = points.copy()
    averted[2] = points[33]  # the nose below the outer corner of an eye
    assert portrait_of(picture, averted) is None


def test_a_missing_dlib_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(RecipeError, match="pip install dlib-bin"):
        FaceEncoder.load()


@pytest.mark.slow
def test_people_of_real_files(media_dir: Path, context: Any, encoder: FaceEncoder) -> None:
    """Two takes of one man and two strangers."""
    names = (
        "grid_place_white_in_j_three_please__man_dark_shirt.mpg",
        "grid_set_white_with_p_two_soon__man_dark_shirt_take2.mpg",
        "grid_lay_blue_at_x_four_now__man_glasses.mpg",
        "grid_lay_white_by_s_zero_again__woman_grey_curly_hair.mpg",
    )
    config = FacesConfig(detect_every_s=1.0, max_faces=1)
    files = [context.asset_pass.look(media_dir / "talking" / name, FaceWatch, config) for name in names]
    seen = [watch.tracks(encoder=encoder).faces[0] for watch in files]
    rows = np.stack([track.embedding for track in seen if track.embedding is not None])
    assert len(rows) == len(names)
    apart = np.linalg.norm(rows[:, None] - rows, axis=2)
    assert apart[0, 1] < SAME_FACE
    assert min(apart[i, j] for i, j in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]) > SAME_FACE + 0.1
