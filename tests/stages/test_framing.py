"""Where heads are turned, on meshes that are turned by known angles; how near and how many on a face that is drawn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.clips import talking_clip
from pipeline.demo.write import Encoding
from schemas.stretches import Stretch
from stages.base import Context
from stages.engines.face_tracks import KEPT_POINTS
from stages.framing import CHIN, FOREHEAD, LEFT_SIDE, RIGHT_SIDE, Framing, FramingConfig, head_angles, most_at_once
from tests.rows import clip_row, span_of_file, struct_of


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """A mesh [1, 69, 3] whose head turns right, then nods up, then tilts clockwise, as a viewer sees it."""
    mesh = np.zeros((len(KEPT_POINTS), 3))
    mesh[FOREHEAD], mesh[CHIN] = (0, -80, 0), (0, 90, 0)
    mesh[RIGHT_SIDE], mesh[LEFT_SIDE] = (-75, 0, 60), (75, 0, 60)
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.asarray((mesh @ (about_z @ about_x @ about_y).T)[None], np.float32)


@pytest.mark.parametrize("angles", [(0, 0, 0), (40, 0, 0), (-25, 0, 0), (0, 20, 0), (0, -30, 0), (0, 0, 15)])
def test_a_turned_mesh_has_its_angles(angles: tuple[float, float, float]) -> None:
    assert head_angles(turned(*angles))[0] == pytest.approx(angles, abs=0.01)


def test_people_are_counted_where_most_are_seen() -> None:
    assert most_at_once([Stretch(0, 2), Stretch(1, 3), Stretch(2, 4)]) == 2
    assert most_at_once([]) == 0


def test_a_talking_face_is_near_and_looks_ahead(tmp_path: Path, context: Context) -> None:
    path = tmp_path / "talk.mp4"
    talking_clip(path, duration_s=3.0, encoding=Encoding(320, 240, Fraction(10)), seed=4)
    stage = Framing(FramingConfig())
    stage.setup(context)
    span = span_of_file(context.media.probe(path))
    track = {"track": 0, "start_s": 0.0, "end_s": 3.0}
    (found,) = stage.process([clip_row(path, span, faces=struct_of("faces", num_faces=1, tracks=[track]))])
    assert isinstance(found, dict)
    assert (found["num_people"], found["frontal_ratio"]) == (1, 1.0)
    assert found["shot_size"] in ("close_up", "medium_close_up")
    assert abs(found["roll_deg"]) < 15
    context.media.close()
