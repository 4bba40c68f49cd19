"""`faces`: who is seen in a clip, where and when, each face followed from frame to frame.

Faces are followed through the whole asset while it is decoded (`stages.asset_pass`), and a clip is given its part of what was
seen. Other stages look at the same: `sync` at the mouths, splits at who is who.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.errors import MediaError
from schemas.fields import f, struct
from schemas.records import FACE_TRACK, Row, span_of
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.face_identity import FaceEncoder
from stages.engines.face_networks import FaceDetector, FaceMesh
from stages.engines.face_tracks import FaceTracker, Tracks, with_crops
from stages.media.decoder import Frames, Look


class FacesConfig(StageConfig):
    """How closely faces are looked for."""

    long_side_px: int = Field(default=640, ge=160)
    """Pictures are looked at at most this large; raise it where faces are smaller than a twentieth of the picture."""
    max_fps: float = Field(default=30.0, ge=10.0)
    """Faster video is looked at on a grid of this rate."""
    detect_every_s: float = Field(default=0.5, gt=0)
    """Time between two runs of the face detector."""
    max_faces: int = Field(default=4, ge=1)
    """Faces followed at a time, largest first."""
    identity: Literal["dlib", "none"] = "dlib"
    """What tells whether two faces are one person, for splits that share none; 0.1 s a face and shot. none: nobody asks."""


class FaceWatch:
    """Follows the faces of an asset, see `FaceTracker`."""

    def __init__(self, ctx: Context, config: FacesConfig) -> None:
        self.look = Look(long_side_px=config.long_side_px, max_fps=config.max_fps, format="yuv420p")
        self._tracker = FaceTracker(
            ctx.model(FaceDetector),
            ctx.model(FaceMesh),
            detect_every_s=config.detect_every_s,
            max_faces=config.max_faces,
        )

    def see(self, run: Frames) -> None:
        """The next pictures."""
        self._tracker.see(run)

    def tracks(self, span: Span | None = None, encoder: FaceEncoder | None = None) -> Tracks:
        """The faces of a clip, or of all; with an encoder, who they are. Raises MediaError if none of its frames was decoded."""
        start_s, end_s = (-np.inf, np.inf) if span is None else (float(span.start), float(span.end))
        seen = self._tracker.tracks(start_s, end_s, encoder)
        if not len(seen.times_s):
            raise MediaError("No frame of the clip could be decoded.", reason="no_frames")
        return seen


def load_networks(ctx: Context) -> None:
    """Loads what every watch needs, for stages that ask one. Raises what its packages raise where they are missing."""
    ctx.model(FaceDetector)
    ctx.model(FaceMesh)


def watched_faces(ctx: Context) -> Wish:
    """The watch that all stages look at, set as the recipe sets stage `faces`."""
    return FaceWatch, ctx.configs.get("faces") or FacesConfig()


def faces_of(ctx: Context, path: Path, span: Span, *, crop_px: int = 0) -> Tracks:
    """The faces of the clip `span` of `path`, with crops of that side if wanted, for which the clip is decoded once more.

    Crops are no business of the asset pass: SyncNet's take 150 kB a face and frame.
    """
    watch: FaceWatch = ctx.asset_pass.look(path, *watched_faces(ctx))
    seen = watch.tracks(span)
    if not crop_px:
        return seen
    look: Look = {**watch.look, "start": span.start, "end": span.end}
    return with_crops(seen, ctx.media.iter_frames(path, **look), crop_px)


class Faces(Measure[FacesConfig]):
    """Faces of a clip: where each is seen, from when to when, and who it is."""

    name = "faces"
    version = "2"
    level = "clip"
    reads = ("clip", "download.path")
    adds = struct(
        f("num_faces", pa.int32(), unit="count", doc="face tracks of at least half a second"),
        f("tracks", pa.list_(FACE_TRACK), doc="the face tracks, longest first", show="lane"),
    )
    Config = FacesConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.7, timeout_s=900.0)

    @classmethod
    def watches(cls, config: FacesConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return FaceWatch, config

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        load_networks(ctx)
        self.encoder = ctx.model(FaceEncoder.load) if self.config.identity == "dlib" else None

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip; a clip without faces has none, not null."""
        watch = self.ctx.asset_pass.look(self.ctx.asset_path(row), FaceWatch, self.config)
        tracks = track_rows(watch.tracks(span_of(row["clip"]), self.encoder))
        return {"num_faces": len(tracks), "tracks": tracks}


def track_rows(seen: Tracks) -> list[dict[str, Any]]:
    """The `FACE_TRACK` rows of a clip's lasting faces, on the clip clock, which begins with the first frame."""
    start_s = float(seen.times_s[0])
    frame_s = float(np.median(np.diff(seen.times_s))) if len(seen.times_s) > 1 else 0.0
    scale = np.array([seen.width_px, seen.height_px] * 2)
    rows = []
    for number, track in enumerate(seen.lasting):
        left, top, right, bottom = np.median(track.boxes, axis=0) / scale
        rows.append(
            {
                "track": number,
                "start_s": float(track.times_s[0]) - start_s,
                "end_s": min(float(track.times_s[-1]) + frame_s, seen.end_s) - start_s,
                "x": float(left),
                "y": float(top),
                "width": float(right - left),
                "height": float(bottom - top),
                "confidence": track.score,
                "embedding": None if track.embedding is None else track.embedding.tolist(),
            }
        )
    return rows
