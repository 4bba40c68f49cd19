"""`framing`: how people are taken: how many, how near, and where their heads are turned. Of the faces that `faces` followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.stretches import Stretch
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.face_tracks import FaceTrack, at
from stages.faces import faces_of, load_networks, watched_faces

F64 = NDArray[np.float64]

SIZES = (
    (0.70, "extreme_close_up"),
    (0.38, "close_up"),
    (0.24, "medium_close_up"),
    (0.16, "medium"),
    (0.12, "medium_long"),
    (0.0, "long"),
)
"""Height of a face, hairline to chin, as a share of the picture's from which a shot is called so. A body is nine such faces
high, so that the picture holds head and shoulders at 0.38, a chest at 0.24, a waist at 0.16, knees at 0.12."""
FRONTAL_DEG = 30.0
"""Turn of a head up to which both eyes and the whole mouth are seen."""
FOREHEAD, CHIN, RIGHT_SIDE, LEFT_SIDE = at(10, 152, 234, 454)
"""Points of the mesh on the midline and at the ears; right is the person's right. In MediaPipe's own face that looks ahead
the first two are equally deep, and so are the last two."""


class FramingConfig(StageConfig):
    """Nothing to choose."""


class Framing(Measure[FramingConfig]):
    """People of a clip as far as their faces are seen.

    Who turns away, or is smaller than 32 px where `faces` looks, is not counted. Angles are of the largest face; 0 looks into
    the camera. Costs next to nothing where `faces` is in the recipe, which it needs.
    """

    name = "framing"
    version = "1"
    level = "clip"
    reads = ("clip", "download.path", "faces.tracks")
    adds = struct(
        f("num_people", pa.int32(), unit="count", doc="most faces seen at one time", show="histogram"),
        f("shot_size", pa.string(), doc="extreme_close_up, close_up, medium_close_up, medium, medium_long or long, by the "
          "largest face; "
          "null without one", show="label"),
        f("face_height_ratio", pa.float64(), unit="ratio", doc="height of the largest face, hairline to chin, of the "
          "picture's; median"),
        f("yaw_deg", pa.float64(), unit="deg", doc="median turn of the largest face, positive to the viewer's right"),
        f("pitch_deg", pa.float64(), unit="deg", doc="median nod of it, positive upwards"),
        f("roll_deg", pa.float64(), unit="deg", doc="median tilt of it, positive clockwise"),
        f("frontal_ratio", pa.float64(), unit="ratio", doc="share of its frames turned or nodded by 30 degrees at most",
          show="histogram"),
    )  # fmt: skip
    Config = FramingConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=900.0)

    @classmethod
    def watches(cls, config: FramingConfig, ctx: Context) -> Wish:
        """The watch of stage `faces`."""
        return watched_faces(ctx)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        load_networks(ctx)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        tracks = row["faces"]["tracks"]
        fields = {"num_people": most_at_once(Stretch.all_of(tracks))}
        seen = faces_of(self.ctx, self.ctx.asset_path(row), span_of(row["clip"]))
        if not seen.lasting:
            return dict.fromkeys((field.name for field in self.adds), None) | fields
        largest = max(seen.lasting, key=face_height_px)
        height_ratio = face_height_px(largest) / seen.height_px
        angles = head_angles(largest.points)
        yaw, pitch, roll = np.median(angles, axis=0).tolist()
        is_frontal = (np.abs(angles[:, :2]) <= FRONTAL_DEG).all(1)
        return fields | {
            "shot_size": shot_size(height_ratio),
            "face_height_ratio": height_ratio,
            "yaw_deg": yaw,
            "pitch_deg": pitch,
            "roll_deg": roll,
            "frontal_ratio": float(is_frontal.mean()),
        }


def shot_size(face_height_ratio: float) -> str:
    """What a shot is called whose largest face is this high, of the picture's height."""
    return next(name for least, name in SIZES if face_height_ratio >= least)


def most_at_once(stretches: list[Stretch]) -> int:
    """How many of `stretches` hold one instant, at most."""
    return max((sum(s.start_s <= each.start_s < s.end_s for s in stretches) for each in stretches), default=0)


def face_height_px(track: FaceTrack) -> float:
    """Median distance from hairline to chin, in the round, so that a nod does not shorten it."""
    return float(np.median(np.linalg.norm(track.points[:, FOREHEAD] - track.points[:, CHIN], axis=1)))


def head_angles(points: NDArray[np.float32]) -> F64:
    """(yaw, pitch, roll) in degrees [n, 3] of meshes [n, 69, 3], whose x goes right, y down and z away from the viewer.

    0 looks into the camera; yaw is positive to the viewer's right, pitch upwards, roll clockwise as it is seen.
    """
    across = points[:, LEFT_SIDE].astype(np.float64) - points[:, RIGHT_SIDE]
    down = points[:, CHIN].astype(np.float64) - points[:, FOREHEAD]
    roll = np.arctan2(across[:, 1], across[:, 0])
    yaw = np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1]))
    pitch = np.arctan2(-down[:, 2], np.hypot(down[:, 0], down[:, 1]))
    return np.asarray(np.degrees(np.stack([yaw, pitch, roll], 1)))
