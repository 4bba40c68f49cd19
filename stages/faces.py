"""`faces`: who is seen in a clip, where and when, each face followed from frame to frame.

Other stages look at what this one saw: `sync` at the mouths, splits at who is who. What was seen stays with the worker
(`FaceWatch`) until it turns to another asset, so that nobody in it decodes or follows a face a second time.
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
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.face_identity import FaceEncoder
from stages.engines.face_tracks import FaceDetector, FaceMesh, FaceTracker, Tracks

KEPT_BYTES = 256_000_000
"""What a watch remembers of one asset: nearly three hours of one face at 30 frames per second."""
CHUNK = 64
"""Frames decoded at a time: 44 MB at 640 x 360."""


class FacesConfig(StageConfig):
    """How closely faces are looked for."""

    long_side_px: int = Field(default=640, ge=160)
    """Pictures are decoded at most this large; raise it where faces are smaller than a twentieth of the picture."""
    max_fps: float = Field(default=30.0, ge=10.0)
    """Faster video is looked at on a grid of this rate."""
    detect_every_s: float = Field(default=0.5, gt=0)
    """Time between two runs of the face detector."""
    max_faces: int = Field(default=4, ge=1)
    """Faces followed at a time, largest first."""
    identity: Literal["dlib", "none"] = "dlib"
    """What tells whether two faces are one person, for splits that share none; 0.3 s a face. none: nobody asks."""


class FaceWatch:
    """Follows the faces of clips, and remembers those of the asset it looked at last.

    One per worker (`Context.model`). A stage in another worker than `faces`, say because it has a GPU to itself, has a
    watch of its own that looks again, to the same result.
    """

    def __init__(self, context: Context, config: FacesConfig) -> None:
        self._context, self._config = context, config
        self._tracker = FaceTracker(
            context.model(FaceDetector),
            context.model(FaceMesh),
            detect_every_s=config.detect_every_s,
            max_faces=config.max_faces,
        )
        self._path = Path()
        self._kept: dict[Span, Tracks] = {}
        self._num_bytes = 0

    @classmethod
    def of(cls, context: Context) -> FaceWatch:
        """The worker's watch, set as the recipe sets stage `faces`."""
        config = context.configs.get("faces") or FacesConfig()
        assert isinstance(config, FacesConfig)
        return context.model(cls, context, config)

    def look(self, path: Path, span: Span, *, crop_px: int = 0, encoder: FaceEncoder | None = None) -> Tracks:
        """Decodes the clip `span` of `path` and follows its faces. Raises MediaError if no frame can be decoded.

        With `crop_px` every track has square crops of its face, with an encoder its embedding.
        """
        frames = self._context.media.iter_frames(
            path,
            start=span.start,
            end=span.end,
            long_side_px=self._config.long_side_px,
            max_fps=self._config.max_fps,
            chunk=CHUNK,
        )
        seen = self._tracker.follow(frames, crop_px=crop_px, encoder=encoder)
        if not len(seen.times_s):
            raise MediaError("No frame of the clip could be decoded.", reason="no_frames")
        if not crop_px:  # 150 kB a frame at SyncNet's size: too much for all clips of an asset
            self._keep(path, span, seen)
        return seen

    def recall(self, path: Path, span: Span, *, crop_px: int = 0) -> Tracks:
        """What was seen in the clip, looked at again only if it is not remembered, which crops never are."""
        if not crop_px and path == self._path and span in self._kept:
            return self._kept[span]
        return self.look(path, span, crop_px=crop_px)

    def _keep(self, path: Path, span: Span, seen: Tracks) -> None:
        if path != self._path:
            self._path, self._kept, self._num_bytes = path, {}, 0
        size = sum(face.num_bytes for face in seen.faces) + seen.times_s.nbytes + seen.change.nbytes
        if span not in self._kept and self._num_bytes + size <= KEPT_BYTES:
            self._kept[span] = seen
            self._num_bytes += size


class Faces(Measure[FacesConfig]):
    """Faces of a clip: where each is seen, from when to when, and who it is."""

    name = "faces"
    version = "1"
    level = "clip"
    reads = ("clip", "download.path")
    adds = struct(
        f("num_faces", pa.int32(), unit="count", doc="face tracks of at least half a second"),
        f("tracks", pa.list_(FACE_TRACK), doc="the face tracks, longest first", show="lane"),
    )
    Config = FacesConfig
    resources = Resources(cpus=1.0, memory_gb=0.7, timeout_s=900.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.watch = ctx.model(FaceWatch, ctx, self.config)
        self.encoder = ctx.model(FaceEncoder.load) if self.config.identity == "dlib" else None

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip; a clip without faces has none, not null."""
        seen = self.watch.look(self.ctx.asset_path(row), span_of(row["clip"]), encoder=self.encoder)
        tracks = track_rows(seen)
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
