"""A clip is written without what was laid over it, and what is said of it follows."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pipeline.demo.face import photograph
from pipeline.demo.write import Encoding, encode
from schemas.cut_file import CutMedia, cut_file
from stages.base import Context
from stages.crop import CropRule, after_crop, crop_of
from stages.cut import Cut
from stages.ocr.stage import Ocr, OcrConfig
from tests.rows import clip_row, struct_of
from tests.stages.cut_rows import cut_stage, whole_clip

TEXT, BARS = CropRule(text=True), CropRule(bars=True)


def line(kind: str, x: float, y: float, width: float, height: float) -> dict[str, Any]:
    return {"kind": kind, "start_s": 0.0, "end_s": 5.0, "x": x, "y": y, "width": width, "height": height}


def row_with(lines: list[dict[str, Any]], *faces: tuple[float, float, float, float]) -> dict[str, Any]:
    """A clip with lines of text and faces at (x, y, width, height)."""
    tracks = [dict(zip(("x", "y", "width", "height"), face, strict=True)) for face in faces]
    ocr = struct_of("ocr", lines=lines, subtitles="Hi", subtitle_ratio=0.5, has_subtitles=True, agreement=1.0)
    return clip_row(ocr=ocr, faces={"num_faces": len(tracks), "tracks": tracks}, quality=None)


SUBTITLE = line("subtitle", 0.2, 0.8, 0.6, 0.1)


def test_what_was_laid_over_is_cut_away_and_text_of_the_scene_is_not() -> None:
    assert crop_of(row_with([SUBTITLE, line("scene", 0.4, 0.4, 0.2, 0.1)]), TEXT) == pytest.approx((0, 0, 1, 0.79))
    assert crop_of(row_with([line("ticker", 0.7, 0.9, 0.3, 0.05)]), TEXT) == pytest.approx((0, 0, 1, 0.89))
    assert crop_of(row_with([SUBTITLE]), CropRule()) is None
    assert crop_of(row_with([]), TEXT) is None


def test_a_clip_of_which_too_little_or_half_a_face_would_be_left_is_written_whole() -> None:
    title = line("title", 0.2, 0.45, 0.6, 0.1)
    assert crop_of(row_with([title]), TEXT) is None
    assert crop_of(row_with([title]), CropRule(text=True, min_kept_ratio=0.4)) is not None
    assert crop_of(row_with([SUBTITLE], (0.4, 0.7, 0.2, 0.2)), TEXT) is None
    mark = line("mark", 0.0, 0.05, 0.1, 0.05)
    beside = crop_of(row_with([mark]), TEXT)
    assert beside == pytest.approx((0, 0.11, 1, 1))
    assert crop_of(row_with([mark], (0.5, 0.02, 0.2, 0.3)), TEXT) == pytest.approx((0.11, 0, 1, 1)), "a face is there"


def test_bars_are_cut_away_and_are_not_there_any_more() -> None:
    bars = {"bars": "letterbox", "crop_x_px": 0, "crop_y_px": 45, "crop_width_px": 640, "crop_height_px": 270}
    quality = struct_of("quality", **bars, crop_ratio=0.75)
    row = row_with([]) | {"quality": quality, "probe": struct_of("probe", width_px=640, height_px=360)}
    assert crop_of(row, BARS) == pytest.approx((0, 0.125, 1, 0.875))
    said = after_crop(row, (0, 46, 640, 268), (640, 360))["quality"]
    assert said == {"bars": "none", "crop_ratio": 1.0} | {
        "crop_x_px": 0, "crop_y_px": 0, "crop_width_px": 640, "crop_height_px": 268,
    }  # fmt: skip
    left = after_crop(row, (20, 0, 600, 360), (640, 360))["quality"]
    assert (left["bars"], left["crop_y_px"], left["crop_height_px"]) == ("letterbox", 45, 270)


def test_places_are_those_in_the_written_picture() -> None:
    row = row_with([SUBTITLE, line("scene", 0.5, 0.4, 0.1, 0.1)], (0.1, 0.2, 0.2, 0.4))
    row["framing"] = struct_of("framing", face_height_ratio=0.36, shot_size="medium_close_up")
    said = after_crop(row, (0, 0, 1000, 400), (1000, 500))
    (face,) = said["faces"]["tracks"]
    assert [face[name] for name in ("x", "y", "width", "height")] == pytest.approx([0.1, 0.25, 0.2, 0.5])
    assert said["framing"] == {"face_height_ratio": pytest.approx(0.45), "shot_size": "close_up"}
    (scene,) = said["ocr"]["lines"]
    assert (scene["y"], scene["height"]) == pytest.approx((0.5, 0.125))
    none_left = {"has_subtitles": False, "subtitle_ratio": 0.0, "subtitles": "", "agreement": None, "area_ratio": None}
    assert {name: said["ocr"][name] for name in none_left} == none_left


@pytest.mark.slow
def test_no_text_is_found_in_what_is_written_and_the_rest_is_as_it_was(
    tmp_path: Path, make_row: Any, context: Context
) -> None:
    picture = cv2.resize(photograph("brick.png"), (640, 360))
    shown = picture.copy()
    for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.putText(shown, "We can meet on Monday", (120, 330), cv2.FONT_HERSHEY_SIMPLEX, 1.0, colour, width)
    path, written = tmp_path / "subtitle.mp4", tmp_path / "written.mp4"
    encode(path, [picture, shown, shown], None, Encoding(640, 360, Fraction(1), quality=12))
    ocr = Ocr(OcrConfig())
    ocr.setup(context)
    row = whole_clip(path, make_row)
    row |= {"ocr": ocr.measure(row), "faces": {"num_faces": 0, "tracks": []}}
    assert row["ocr"]["has_subtitles"]
    found = cut_stage(context, tmp_path, {"crop": {"text": True}}).measure(row)
    data = (tmp_path / "cuts" / cut_file("c0123", "made")).read_bytes()
    written.write_bytes(CutMedia.of(found).members(data)["mp4"])
    crop = found["crop"]
    assert (crop["x_px"], crop["y_px"], crop["width_px"]) == (0, 0, 640)
    assert (found["mode"], found["width_px"], found["height_px"]) == ("encode", 640, crop["height_px"])
    assert 0.7 * 360 < crop["height_px"] < 0.9 * 360
    with av.open(io.BytesIO(written.read_bytes())) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert np.abs(frames[2] - picture[: crop["height_px"]]).mean() < 6
    (said,) = found["restated"]
    assert (said["ocr"]["has_subtitles"], said["ocr"]["lines"]) == (False, [])
    again = ocr.measure(whole_clip(written, make_row))
    assert (again["frames_ratio"], again["lines"]) == (0.0, [])
    assert Cut.adds.field("crop").type.names == list(crop)
    context.media.close()
