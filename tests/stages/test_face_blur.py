"""Whoever is seen in a clip is not to be recognised in what is written of it, and nothing else of it is changed."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.config import load_recipe
from pipeline.demo import ball_clip, talking_clip
from pipeline.plan import make_plan
from schemas.cut_file import CutMedia, cut_file
from schemas.errors import MediaError, PlanError
from schemas.records import span_fields
from stages.base import Context
from stages.cut import CutConfig
from stages.engines.face_networks import NUM_POINTS, FaceDetector, FaceMesh
from stages.face_blur import check_hidden, faces_to_hide
from stages.faces import Faces, FacesConfig
from stages.media.blur import CELLS, GREY, HOLD_S, REACH, boxes_at, hide_faces
from tests.rows import span_of_file
from tests.stages.cut_rows import cut_stage, whole_clip

WHOLE = ((64, 48), (0, 0, 64, 48))
FACE = [[0.0, 0.4, 0.3, 0.6, 0.7]]
"""Seen once: (time, left, top, right, bottom)."""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of one speaker."""
    return talking_clip(tmp_path_factory.mktemp("talk") / "talk.mp4", who="ann", duration_s=4.0, seed=3).path


def cut_of(row: dict[str, Any], context: Context, folder: Path, how: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is said of the clip cut with its faces blurred so, and its members."""
    found = cut_stage(context, folder, {"blur_faces": how}).measure(row)
    return found, CutMedia.of(found).members((folder / "cuts" / cut_file("c0123", "made")).read_bytes())


def pictures(mp4: bytes) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def noise(width: int, height: int) -> Any:
    planes = np.random.default_rng(0).integers(16, 120, (height * 3 // 2, width), np.uint8)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


@pytest.mark.slow
def test_a_face_is_found_in_the_source_and_none_in_what_is_written(
    talk: Path, tmp_path: Path, make_row: Any, context: Context
) -> None:
    faces = Faces(FacesConfig(identity="none"))
    faces.setup(context)
    row = whole_clip(talk, make_row)
    row["clip"] |= span_fields(span_of_file(row["probe"], 0, 1))
    row["faces"] = faces.measure(row)
    (track,) = row["faces"]["tracks"]
    plain, members = cut_of(row, context, tmp_path, "none")
    shown, detector = pictures(members["mp4"]), FaceDetector()
    assert plain["num_faces_blurred"] is None
    assert all(detector.detect(picture) for picture in shown[::8])
    height, width = shown.shape[1:3]
    away = np.ones((height, width), bool)
    box = np.array([track["x"], track["y"], track["x"] + track["width"], track["y"] + track["height"]])
    margin = (REACH - 0.9) / 2 * (box[2:] - box[:2])
    low, high = ((box[:2] - margin) * (width, height)).astype(int), ((box[2:] + margin) * (width, height)).astype(int)
    away[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = False
    assert away.mean() > 0.2
    for how in ("gaussian", "fill"):
        found, hidden = cut_of(row, context, tmp_path, how)
        written = pictures(hidden["mp4"])
        assert (found["num_faces_blurred"], found["mode"], len(written)) == (1, "encode", len(shown))
        assert not any(detector.detect(picture) for picture in written[::8])
        assert np.abs(written.astype(int) - shown)[:, away].mean() < 2, "as far as encoding goes"
        assert np.abs(written.astype(int) - shown)[:, ~away].mean() > 4
        assert (hidden["flac"], hidden["refs.flac"]) == (members["flac"], members["refs.flac"])
        same = ("num_frames", "width_px", "height_px", "duration_error_us", "sound_error_samples", "start_error_us")
        assert {name: found[name] for name in same} == {name: plain[name] for name in same}
    with pytest.raises(MediaError, match=r"a face is left at 0\.00 s of the written clip") as caught:
        check_hidden(context, talk)
    assert caught.value.reason == "face_left"
    context.media.close()


@pytest.mark.slow
def test_what_is_soft_and_still_looks_like_a_face_is_hidden_under_grey(
    media_dir: Path, tmp_path: Path, make_row: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = Faces(FacesConfig(identity="none"))
    faces.setup(context)
    row = whole_clip(media_dir / "awkward" / "pillarboxed_in_16x9.mp4", make_row)
    row["clip"] |= span_fields(span_of_file(row["probe"], 0, Fraction(2, 5)))
    row["faces"] = faces.measure(row)
    grey = cut_of(row, context, tmp_path / "grey", "fill")[1]
    answers: list[str | None] = []

    def look(ctx: Context, written: Path) -> None:
        try:
            check_hidden(ctx, written)
            answers.append(None)
        except MediaError as error:
            answers.append(error.reason)
            raise

    monkeypatch.setattr("stages.cut.check_hidden", look)
    found, members = cut_of(row, context, tmp_path / "soft", "gaussian")
    assert answers == ["face_left", None]
    assert found["num_faces_blurred"] == 1
    np.testing.assert_array_equal(pictures(members["mp4"]), pictures(grey["mp4"]))


@pytest.mark.slow
def test_a_face_that_nobody_follows_is_hidden_where_the_detector_sees_it(
    talk: Path, make_row: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaceMesh, "fit", lambda *_: (0.0, np.zeros((NUM_POINTS, 3), np.float32)))
    row = whole_clip(talk, make_row) | {"faces": {"num_faces": 0, "tracks": []}}
    row["clip"] |= span_fields(span_of_file(row["probe"], 0, 1))
    faces, num_faces = faces_to_hide(context, talk, row)
    assert (num_faces, [face[0][0] for face in faces]) == (1, pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8]))
    (frame,) = next(context.media.iter_frames(talk, chunk=1, format="rgb24")).images
    seen = FaceDetector().detect(frame)[0].box / (frame.shape[1], frame.shape[0], frame.shape[1], frame.shape[0])
    assert faces[0][0][1:] == pytest.approx(seen, abs=0.03)
    context.media.close()


def test_a_clip_without_faces_is_cut_as_ever_and_one_whose_faces_are_lost_is_not_written(
    tmp_path: Path, make_row: Any, context: Context
) -> None:
    ball_clip(tmp_path / "ball.mp4", duration_s=1.0, seed=1)
    row = whole_clip(tmp_path / "ball.mp4", make_row) | {"faces": {"num_faces": 0, "tracks": []}}
    plain, members = cut_of(row, context, tmp_path, "none")
    found, hidden = cut_of(row, context, tmp_path, "gaussian")
    assert hidden == members
    assert found == plain | {"num_faces_blurred": 0}
    with pytest.raises(MediaError, match="none could be followed") as caught:
        cut_of(row | {"faces": {"num_faces": 1, "tracks": []}}, context, tmp_path, "gaussian")
    assert caught.value.reason == "faces_not_followed"
    context.media.close()


def test_a_face_is_where_it_was_between_two_looks_and_is_held_around_them() -> None:
    moving = [[1.0, 0.0, 0.2, 0.2, 0.4], [2.0, 0.4, 0.2, 0.6, 0.4]]
    assert [box.tolist() for box in boxes_at(1.5, [moving])] == [pytest.approx([0.2, 0.2, 0.4, 0.4])]
    (before,), (behind,) = boxes_at(1.0 - HOLD_S, [moving]), boxes_at(2.0 + HOLD_S, [moving])
    assert (before.tolist(), behind.tolist()) == (moving[0][1:], moving[1][1:])
    assert not [*boxes_at(0.99 - HOLD_S, [moving]), *boxes_at(2.01 + HOLD_S, [moving])]


def test_all_of_the_box_is_hidden_and_nothing_beyond_the_ellipse() -> None:
    before, frame = noise(64, 48).to_ndarray(), noise(64, 48)
    hide_faces(frame, 0.0, [FACE], "fill", WHOLE)
    luma = frame.to_ndarray()[:48]
    box = luma[round(0.3 * 48) : round(0.7 * 48), round(0.4 * 64) : round(0.6 * 64)]
    assert (box == GREY[0]).all()
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    is_beyond = ((x - 32) / (REACH * 0.1 * 64)) ** 2 + ((y - 24) / (REACH * 0.2 * 48)) ** 2 > 1
    np.testing.assert_array_equal(luma[is_beyond], before[:48][is_beyond])
    part = noise(32, 24)
    hide_faces(part, 0.0, [FACE], "fill", ((64, 48), (16, 12, 32, 24)))
    np.testing.assert_array_equal(part.to_ndarray()[:24] == GREY[0], (luma == GREY[0])[12:36, 16:48])


def test_no_more_than_a_few_brightnesses_are_left_of_a_face() -> None:
    """The face's box holds 256 x 256 pixels of noise; what is left varies as few means do, in every plane."""
    frame, flat = noise(512, 512), av.VideoFrame(64, 48, "yuv420p")
    hide_faces(frame, 0.0, [[[0.0, 0.25, 0.25, 0.75, 0.75]]], "gaussian", ((512, 512), (0, 0, 512, 512)))
    for pixels in (frame.to_ndarray()[:512], frame.to_ndarray()[512:].reshape(2, 256, 256)[0]):
        quarter = len(pixels) // 4
        values = np.linalg.svd(pixels[quarter:-quarter, quarter:-quarter].astype(float), compute_uv=False)
        assert values[CELLS] < 0.01 * values[0], "the rest is rounding"
    for plane, level in zip(flat.planes, (90, 100, 140), strict=True):
        plane.update(bytes([level]) * plane.buffer_size)
    hide_faces(flat, 0.0, [[[0.0, -0.2, -0.1, 0.3, 0.4]]], "gaussian", WHOLE)
    assert set(np.unique(flat.to_ndarray())) == {90, 100, 140}, "also at the picture's edge"


def test_without_the_setting_cuts_are_the_same_and_with_it_faces_are_needed() -> None:
    assert "blur_faces" not in CutConfig().model_dump()
    assert CutConfig.model_validate(CutConfig(blur_faces="fill").model_dump()).blur_faces == "fill"
    recipe = load_recipe("quickstart", ["stages.cut.blur_faces=gaussian"])
    named = load_recipe("quickstart", ["stages.cut.blur_faces=none"])
    plain, none, blurred = (make_plan(each).cutter for each in (load_recipe("quickstart"), named, recipe))
    assert plain is not None
    assert none is not None
    assert blurred is not None
    assert plain.hash == none.hash != blurred.hash
    blind = {name: config for name, config in recipe.stages.items() if name not in ("faces", "sync", "caption")}
    with pytest.raises(PlanError, match="stage 'cut' reads faces, which no earlier stage adds") as caught:
        make_plan(recipe.model_copy(update={"stages": blind, "gates": {}}))
    assert "Add stage 'faces' before it." in str(caught.value)
