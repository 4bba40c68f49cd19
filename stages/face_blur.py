"""Which faces are hidden in a clip that is cut, and whether any is left: what cut asks where a recipe wants nobody recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.base import Context
from stages.engines.face_networks import FaceDetector, overlap
from stages.engines.face_tracks import TOLERANCE_S, Planes, Tracks
from stages.faces import FacesConfig, FaceWatch
from stages.media.blur import FacePath, boxes_at
from stages.media.decoder import Look

F64 = NDArray[np.float64]

CLOSER_PX, CLOSER_S, CROWD = 1280, 0.2, 32
"""How pictures are looked at whatever `faces` is set to, unless it looks closer: their long side, the time between two runs of
the detector, and faces at a time. What no gate asks for, somebody small at the edge, is somebody to be hidden."""
SAME = 0.3
"""Overlap (intersection over union) from which a detection is of a face that is followed: boxes of detector and mesh differ."""
AGAIN_PX, AGAIN_FPS = 640, 5.0
"""How the written clip is looked at."""


def faces_to_hide(ctx: Context, path: Path, row: Row) -> tuple[list[FacePath], int]:
    """(every face seen in the clip, how many they are at least): those that are followed, and where the detector sees others.

    The clip is decoded once more. Raises MediaError("faces_not_followed") where `faces` has seen some and none is found now.
    """
    given = ctx.configs.get("faces")
    config = given if isinstance(given, FacesConfig) else FacesConfig()
    closer = config.model_copy(
        update={
            "long_side_px": max(config.long_side_px, CLOSER_PX),
            "detect_every_s": min(config.detect_every_s, CLOSER_S),
            "max_faces": max(config.max_faces, CROWD),
        }
    )
    span, watch, detector = span_of(row["clip"]), FaceWatch(ctx, closer), ctx.model(FaceDetector)
    look: Look = {**watch.look, "start": span.start, "end": span.end}
    found: list[tuple[float, F64]] = []
    looked_s = -np.inf
    for run in ctx.media.iter_frames(path, **look):
        watch.see(run)
        for planes, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            if time_s - looked_s >= CLOSER_S - TOLERANCE_S:
                looked_s = time_s
                found += [(time_s, face.box) for face in detector.detect(Planes(planes).rgb)]
    seen = watch.tracks(span)
    followed = [_path(face.times_s, face.boxes, seen, span) for face in seen.faces]
    single = [_path(np.array([time_s]), box[None], seen, span) for time_s, box in found]
    others = [sighting for sighting in single if not _is_followed(sighting[0], followed)]
    told = row["faces"]["num_faces"]
    if told and not followed and not others:
        raise MediaError(
            f"'{path}', clip {row['clip']['clip_id']}: faces to hide: expected {told}, which stage faces has seen, but none "
            "could be followed.",
            reason="faces_not_followed",
            remedy="Gate on the number of faces, or set stages.cut.blur_faces=none.",
        )
    at_once = Counter(sighting[0][0] for sighting in others).values()
    return followed + others, len(followed) + max(at_once, default=0)


def _path(times_s: F64, boxes: F64, seen: Tracks, span: Span) -> FacePath:
    """Boxes [n, 4] in pixels of the pictures looked at, seen at `times_s` [n] on the asset clock."""
    shares = boxes / np.array([seen.width_px, seen.height_px] * 2)
    path: FacePath = np.round(np.column_stack([times_s - float(span.start), shares]), 6).tolist()
    return path


def _is_followed(sighting: Sequence[float], followed: Sequence[FacePath]) -> bool:
    """Whether a face seen so is one of the `followed`."""
    time_s, *box = sighting
    return any(overlap(np.array(box), there) > SAME for there in boxes_at(time_s, followed))


def check_hidden(ctx: Context, written: Path) -> None:
    """Raises MediaError("face_left") if the detector finds a face in the written clip, looked at five times a second."""
    detector = ctx.model(FaceDetector)
    for run in ctx.media.iter_frames(written, long_side_px=AGAIN_PX, max_fps=AGAIN_FPS, format="yuv420p"):
        for planes, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            if found := detector.detect(Planes(planes).rgb):
                raise MediaError(
                    f"{written.stem}: a face is left at {time_s:.2f} s of the written clip, with score {found[0].score:.2f}; "
                    "expected none, as stages.cut.blur_faces is set.",
                    reason="face_left",
                    remedy="Look closer with stages.faces.long_side_px, or leave the clip out if it is no face.",
                )
