"""Faces are followed through the whole asset once; each clip has its part of what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.demo import ball_clip, talking_clip
from schemas.errors import ItemError
from schemas.timing import Span
from stages.base import Context
from stages.engines.face_identity import FaceEncoder, Portrait
from stages.faces import Faces, FacesConfig, faces_of
from tests.rows import clip_row, span_of_file


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of one speaker, 25 pictures a second."""
    return talking_clip(tmp_path_factory.mktemp("talk") / "talk.mp4", who="ann", duration_s=4.0, seed=3).path


def part_of(context: Context, path: Path, start_s: float = 0.0, end_s: float | None = None) -> Span:
    return span_of_file(context.media.probe(path), start_s, end_s)


@pytest.mark.slow
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


def test_a_clip_has_its_part_of_what_was_seen_of_the_asset(talk: Path, context: Context) -> None:
    context.configs = {"faces": FacesConfig(identity="none")}
    first, second = part_of(context, talk, 0.0, 2.0), part_of(context, talk, 2.0, 4.0)
    decoded = context.media.frames_decoded
    one, other = (faces_of(context, talk, span) for span in (first, second))
    assert context.media.frames_decoded - decoded == 100, "decoded once for both"
    for seen, start_s in ((one, 0.0), (other, 2.0)):
        (face,) = seen.faces
        assert (seen.times_s[0], seen.end_s, seen.change[0]) == (start_s, start_s + 2.0, 0.0)
        assert len(face.times_s) == 50
        assert start_s <= face.times_s[0] < face.times_s[-1] < start_s + 2.0
    context.media.close()


def test_crops_are_made_of_the_clip_alone(talk: Path, context: Context) -> None:
    span = part_of(context, talk, 1.0, 2.0)
    bare = faces_of(context, talk, span).faces[0]
    cropped = faces_of(context, talk, span, crop_px=64).faces[0]
    np.testing.assert_array_equal(bare.points, cropped.points)
    assert cropped.crops.shape == (25, 64, 64, 3)
    np.testing.assert_allclose(cropped.crop_times_s, 1 + np.arange(25) / 25, atol=1e-9)
    context.media.close()


def test_who_it_is_is_asked_once_a_face_and_shot(talk: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Portrait] = []
    embed = FaceEncoder.embed

    def counting(self: FaceEncoder, portrait: Portrait) -> Any:
        asked.append(portrait)
        return embed(self, portrait)

    monkeypatch.setattr(FaceEncoder, "embed", counting)
    stage = Faces(FacesConfig())
    stage.setup(context)
    rows = [clip_row(talk, part_of(context, talk, start_s, start_s + 1.0)) for start_s in (0.0, 1.0, 2.0)]
    found = [result for result in stage.process(rows) if isinstance(result, dict)]
    who = [result["tracks"][0]["embedding"] for result in found]
    assert len(asked) == 1
    assert who[0] == who[1] == who[2]
    context.media.close()


def test_all_look_as_the_recipe_sets_faces(talk: Path, tmp_path: Path) -> None:
    context = Context(tmp_path / "scratch", configs={"faces": FacesConfig(long_side_px=160)})
    seen = faces_of(context, talk, part_of(context, talk, end_s=1.0))
    assert max(seen.width_px, seen.height_px) == 160
    context.media.close()
