"""Assets into shots: every frame belongs to exactly one shot, and transitions are shots of their own kind."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from schemas.errors import MediaError
from schemas.ids import shot_id
from schemas.records import SHOT, Row, span_fields
from schemas.timing import Span
from stages.asset_pass import Seen, Wish
from stages.base import Context, Resources, Split, StageConfig
from stages.media.decoder import Frames, Look
from stages.shot_split.content import Boundary
from stages.shot_split.thumbs import Thumbs

OVERSAMPLING = 2
"""Frames are decoded at twice an engine's size and then averaged, which keeps fine patterns from flickering."""


class ShotSplitConfig(StageConfig):
    """Which engine finds the boundaries, and where it runs."""

    engine: Literal["hybrid", "content", "transnetv2", "scenedetect_adaptive", "scenedetect_content"] = "hybrid"
    """`hybrid`: content, and where it is in doubt what TransNetV2 says is added. `content`: no network. `transnetv2`: the
    network on every frame. `scenedetect_*`: PySceneDetect with its defaults, hard cuts only."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network of `hybrid` and `transnetv2` runs."""


class Detector(Protocol):
    """What an engine is: it sees all pictures of an asset, small, and names the boundaries."""

    frame_size: tuple[int, int]
    """(width, height) of the pictures it wants."""

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, height, width, 3] RGB, in order and without overlap."""


def make_detector(config: ShotSplitConfig) -> Detector:
    """The engine that `config` names, its weights loaded."""
    if config.engine == "content":
        from stages.shot_split.content import ContentDetector

        return ContentDetector()
    if config.engine.startswith("scenedetect"):
        from stages.shot_split.peers import SceneDetectDetector

        return SceneDetectDetector("adaptive" if config.engine == "scenedetect_adaptive" else "content")
    from stages.shot_split.transnet import HybridDetector, TransNetDetector

    return HybridDetector(config.device) if config.engine == "hybrid" else TransNetDetector(config.device)


class ShotSplit(Split[ShotSplitConfig]):
    """Shots of an asset by its picture. They adjoin exactly and span the whole timeline; sound without a picture is one shot."""

    name = "shot_split"
    version = "5"
    level = "asset"
    children = "shot"
    reads = (
        "download.asset_id",
        "download.path",
        "probe.has_video",
        "probe.has_audio",
        "probe.audio_start_s",
        "probe.duration_us",
        "probe.video_start_pts",
        "probe.video_end_pts",
        "probe.reshaped_pts",
    )
    adds = SHOT
    Config = ShotSplitConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.7, scratch_gb_per_h=1.0, timeout_s=3600.0)
    """Scratch: every frame of 48 x 27, 3.9 kB, 60 a second."""

    def setup(self, ctx: Context) -> None:
        """Loads the engine."""
        super().setup(ctx)
        self.detector = ctx.model(make_detector, self.config)

    @classmethod
    def watches(cls, config: ShotSplitConfig, ctx: Context) -> Wish:
        """A reel of the size that the engine wants."""
        return (Reel, *ctx.model(make_detector, config).frame_size)

    def split(self, row: Row) -> Sequence[dict[str, Any]]:
        """The shots of one asset, in order."""
        if not row["probe"]["has_video"]:
            return sound_alone(row["probe"], row["download"]["asset_id"])
        path = self.ctx.asset_path(row)
        reel, seen = self.ctx.asset_pass.look(path, Reel, *self.detector.frame_size), self.ctx.asset_pass.seen(path)
        if not len(seen.pts):
            raise MediaError("No picture could be decoded.", reason="no_frames")
        found = with_new_shapes(self.detector.detect(reel.thumbs(), seen.fps), seen, row["probe"]["reshaped_pts"] or [])
        return partition(seen, found, row["download"]["asset_id"], _ends(row, seen))


def sound_alone(probe: Row, asset: str) -> list[dict[str, Any]]:
    """The one shot of an asset without a picture, in microseconds of its clock; none where nothing is heard either."""
    if not probe["has_audio"] or not probe["duration_us"]:
        return []
    start_us = round(1e6 * (probe["audio_start_s"] or 0.0))
    span = Span(start_us, start_us + probe["duration_us"], 1, 1_000_000)
    own = {"shot_id": shot_id(asset, span), "parent_id": asset, "index": 0, **span_fields(span)}
    ends = {"is_transition": False, "start_kind": "start", "start_confidence": None, "end_kind": "end"}
    return [own | {"num_frames": 0} | ends]


class Reel:
    """All pictures of an asset, small, in a file: three hours at 60 fps need 2.5 GB of disk, not of memory."""

    def __init__(self, ctx: Context, width_px: int, height_px: int) -> None:
        self._file = tempfile.TemporaryFile(dir=ctx.scratch_dir)  # noqa: SIM115 lives as long as the reel
        self._size, self._num = (width_px, height_px), 0
        self.look = Look(size=(width_px * OVERSAMPLING, height_px * OVERSAMPLING))

    def see(self, run: Frames) -> None:
        """Keeps the pictures."""
        import cv2

        for image in run.images:
            self._file.write(cv2.resize(image, self._size, interpolation=cv2.INTER_AREA).tobytes())
        self._num += len(run.images)

    def thumbs(self) -> Thumbs:
        """[n, height, width, 3], mapped from the file."""
        self._file.flush()
        return np.memmap(self._file, np.uint8, "r", shape=(self._num, self._size[1], self._size[0], 3))


def with_new_shapes(found: Sequence[Boundary], seen: Seen, reshaped_pts: Sequence[int]) -> list[Boundary]:
    """`found` and a cut wherever the picture takes another size, turn or pixel aspect, unless there is one."""
    frames = {int(frame) for frame in np.searchsorted(seen.pts, reshaped_pts)}
    new = [Boundary(n, n, "hard", 1.0) for n in frames if not any(b.start <= n <= b.end for b in found)]
    return sorted([*found, *new], key=lambda boundary: boundary.start)


def _ends(row: Row, clock: Seen) -> tuple[int, int]:
    """First and last pts of the timeline: as probed, widened to what was decoded."""
    start, end = row["probe"]["video_start_pts"], row["probe"]["video_end_pts"]
    first, last = int(clock.pts[0]), clock.end_pts
    return (first if start is None else min(start, first)), (last if end is None else max(end, last))


def partition(clock: Seen, boundaries: Sequence[Boundary], asset: str, ends: tuple[int, int]) -> list[dict[str, Any]]:
    """`SHOT` rows that cover [ends) without gap or overlap, cut at `boundaries` (ordered, disjoint frame ranges)."""
    num = len(clock.pts)
    marks: list[tuple[int, bool, str, float | None]] = [(0, False, "start", None)]
    for b in boundaries:
        if b.kind == "gradual":
            marks.append((b.start, True, "gradual", b.confidence))
        marks.append((b.end, False, b.kind, b.confidence))
    by_frame: dict[int, tuple[bool, str, float | None]] = {}
    for frame, is_transition, kind, confidence in marks:
        if frame < num:
            by_frame[max(frame, 0)] = (
                is_transition,
                "start" if frame <= 0 else kind,
                None if frame <= 0 else confidence,
            )
    frames = sorted(by_frame)
    shots: list[dict[str, Any]] = []
    for index, frame in enumerate(frames):
        after = frames[index + 1] if index + 1 < len(frames) else num
        is_transition, kind, confidence = by_frame[frame]
        span = Span(
            ends[0] if index == 0 else int(clock.pts[frame]),
            ends[1] if after == num else int(clock.pts[after]),
            clock.num,
            clock.den,
        )
        shots.append(
            {
                "shot_id": shot_id(asset, span),
                "parent_id": asset,
                "index": index,
                **span_fields(span),
                "num_frames": after - frame,
                "is_transition": is_transition,
                "start_kind": kind,
                "start_confidence": confidence,
                "end_kind": "end" if after == num else by_frame[after][1],
            }
        )
    return shots
