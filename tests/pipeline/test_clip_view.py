"""What is drawn over a clip: faces where they are in the picture that is shown, and text that is no face."""

from __future__ import annotations

from typing import Any

from pipeline.ask.find import Chain
from pipeline.config import load_recipe
from pipeline.plan import make_plan
from pipeline.show.clip_view import clip_view
from schemas.cut_file import RESTATED
from stages.ocr.stage import OCR_LINE
from tests.rows import clip, struct_of


def test_lines_of_text_are_no_faces_and_faces_follow_a_crop() -> None:
    recipe = load_recipe("quickstart")
    stages: dict[str, Any] = {
        "download": {},
        "probe": {},
        "shot_split": {},
        "transcribe": {},
        "diarize": {},
        "clip": {},
    }
    plan = make_plan(recipe.model_copy(update={"stages": {**stages, "ocr": {}, "faces": {}, "cut": {}}, "gates": {}}))
    line = dict.fromkeys(OCR_LINE.names, 0.5) | {"kind": "subtitle", "text": "Hi", "start_s": 0.0, "end_s": 2.0}
    face = {"track": 0, "start_s": 0.0, "end_s": 2.0, "x": 0.1, "y": 0.2, "width": 0.2, "height": 0.4}
    faces = struct_of("faces", num_faces=1, tracks=[face])
    structs = {"ocr": struct_of("ocr", lines=[line]), "faces": faces}
    seen = clip_view(Chain((clip(structs=structs),), ()), plan)
    assert seen["boxes"] == [face]
    assert {"ocr lines", "face 0"} <= {lane["name"] for lane in seen["lanes"]}
    moved = face | {"y": 0.25, "height": 0.5}
    cut = {"cut": struct_of("cut", **{RESTATED: [{"faces": {**faces, "tracks": [moved]}, "sync": None}]})}
    assert clip_view(Chain((clip(structs=structs | cut),), ()), plan)["boxes"] == [moved]
