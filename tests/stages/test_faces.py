"""Faces are looked at once, whoever asks; what is remembered is what would be seen again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.demo import ball_clip, talking_clip
from schemas.errors import ItemError
from schemas.timing import Span
from stages import faces as faces_module
from stages.base import Context
from stages.engines.face_tracks import FaceTracker, Tracks
from stages.faces import Faces, FacesConfig, FaceWatch
from tests.rows import clip_row, span_of_file


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of one speaker, 25 pictures a second."""
    return talking_clip(tmp_path_factory.mktemp("talk") / "talk.mp4", who="ann", duration_s=4.0, seed=3).path


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every look at a clip; the looks themselves are real."""
    counted: list[int] = []
    follow = FaceTracker.follow

    def counting(self: FaceTracker, *arguments: Any, **options: Any) -> Tracks:
        counted.append(1)
        return follow(self, *arguments, **options)

    monkeypatch.setattr(FaceTracker, "follow", counting)
    return counted


def part_of(context: Context, path: Path, start_s: float = 0.0, end_s: float | None = None) -> Span:
    return span_of_file(context.media.probe(path), start_s, end_s)


def test_faces_and_whose_they_are(talk: Path, tmp_path: Path, context: Context) -> None:
    stage = Faces(FacesConfig())
    stage.setup(context)
    ball = ball_clip(tmp_path / "ball.mp4").path
    gone = clip_row(tmp_path / "gone.mp4", Span(0, 10, 1, 25))
    found, nobody, missing = stage.process(
        [clip_row(talk, part_of(context, talk)), clip_row(ball, part_of(context, ball)), gone]
    )
    assert isinstance(found, dict)
    pa.array([found], type=Faces.adds)
    (track,) = found["tracks"]
    assert (found["num_faces"], track["track"], track["start_s"]) == (1, 0, 0.0)
    assert track["end_s"] == pytest.approx(4.0, abs=0.05)
    assert 0 < track["x"] < track["x"] + track["width"] < 1
    assert len(track["embedding"]) == 128
    assert nobody == {"num_faces": 0, "tracks": []}
    assert isinstance(missing, ItemError)
    context.media.close()


def test_a_worker_looks_at_a_clip_once(talk: Path, context: Context, looks: list[int]) -> None:
    stage = Faces(FacesConfig(identity="none"))
    context.configs = {"faces": stage.config}
    stage.setup(context)
    watch = FaceWatch.of(context)
    first, second = part_of(context, talk, 0.0, 2.0), part_of(context, talk, 2.0, 4.0)
    stage.process([clip_row(talk, first), clip_row(talk, second)])
    for span in (first, second):
        remembered = watch.recall(talk, span)
        assert len(looks) == 2, "both clips of the asset are remembered"
        again = FaceWatch(context, FacesConfig()).look(talk, span)
        looks.pop()
        np.testing.assert_array_equal(remembered.faces[0].points, again.faces[0].points)
        np.testing.assert_array_equal(remembered.change, again.change)
    assert watch.recall(talk, first, crop_px=64).faces[0].crops.shape[1:] == (64, 64, 3)
    assert len(looks) == 3, "crops are not remembered"
    context.media.close()


def test_a_watch_forgets_the_asset_before_and_what_is_too_much(
    talk: Path, tmp_path: Path, context: Context, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, copy = FaceWatch(context, FacesConfig()), tmp_path / "copy.mp4"
    copy.write_bytes(talk.read_bytes())
    span = part_of(context, talk, end_s=1.0)
    for path in (talk, copy, copy, talk):
        watch.recall(path, span)
    assert len(looks) == 3
    monkeypatch.setattr(faces_module, "KEPT_BYTES", 1000)
    tight = FaceWatch(context, FacesConfig())
    tight.recall(talk, span)
    tight.recall(talk, span)
    assert len(looks) == 5
    context.media.close()


def test_a_stage_that_looks_alone_is_set_as_the_recipe_sets_faces(talk: Path, tmp_path: Path) -> None:
    context = Context(tmp_path / "scratch", configs={"faces": FacesConfig(long_side_px=160)})
    seen = FaceWatch.of(context).recall(talk, part_of(context, talk, end_s=1.0))
    assert max(seen.width_px, seen.height_px) == 160
    context.media.close()
