"""`camera`: how the camera moves, and how much moves in front of it. OpenCV alone, no weights.

Corners spread over the picture are followed from one picture to the next, eight times a second. A shift, a zoom and a turn of the
whole picture that explain most of them are the camera's; what is left over is the subject's. A picture whose border stands
still was taken by a camera that did, however large what moves in the middle.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.media.decoder import Frames, Look

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Grey = NDArray[np.uint8]

LONG_SIDE_PX = 256
PICTURES_PER_S = 8.0
"""Enough for a hand's tremble up to 4 Hz; a pan of half a picture a second moves by 16 px between two of them."""
CELL_PX = 16
"""One corner at most in each such square, so that a rich subject does not outvote a plain wall."""
LEAST_CORNER = 2e-4
"""Smaller eigenvalue (OpenCV's, of a picture from 0 to 1) from which a corner can be followed."""
FEWEST_CORNERS = 12
FIT_PX = 0.7
"""How far a corner may end from where the camera's movement would take it."""
STILL_PX = 0.25
"""How far a corner wanders in a picture that stands still, coded as coarsely as is usual."""
BORDER = 0.18
"""Share of each side that is border: people stand within it less often than behind it."""
STILL_SHARE = 0.5
"""Share of the border's corners, or of those that fit a movement, that stand still where the camera does."""
FAR_PX = 24.0
"""Corners that went further were lost."""
SMOOTH_S = 0.75
"""Movements are means over this; what is left of the path is shake."""
PERSON_SIDE, PERSON_ABOVE = 0.75, 0.75
"""How far somebody reaches beside and above a face, in its widths and heights; below, to the end of the picture."""
MOVING = 0.02
"""Picture widths a second at its border from which a movement has a name."""
SHAKING = 0.005
"""Shake from which a camera that goes nowhere is not still, in picture widths. People who gesture before a tripod give up to
0.004."""
MOST_SHARE = 0.4
"""Share of the time that a movement takes which names the clip."""
LEADING = 0.5
"""Share of all movement that one direction has where the clip is named after it."""
BEYOND_SHAKE = 4.0
"""How many times the shake a movement has to lead away to be meant."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, shares of the picture's sides."""


@dataclass(frozen=True, slots=True)
class Corners:
    """What was followed from one picture to the next."""

    length_s: float
    size: tuple[int, int]
    at: NDArray[np.uint16]
    """[k, 2]: x and y of corners in the earlier picture."""
    gone: NDArray[np.float16]
    """[k, 2]: how far they went, in px."""

    def outside(self, people: Sequence[Box]) -> tuple[F32, F32]:
        """Where those corners [k, 2] were and are that do not lie on people; all of them where too few do not."""
        old = self.at.astype(np.float32)
        new = old + self.gone
        x, y = (old / np.array(self.size, np.float32)).T
        is_free = np.ones(len(old), bool)
        for left, top, right, bottom in people:
            is_free &= (x < left) | (x > right) | (y < top) | (y > bottom)
        return (old[is_free], new[is_free]) if is_free.sum() >= FEWEST_CORNERS else (old, new)


@dataclass(frozen=True, slots=True)
class CameraStep:
    """What happened between two pictures, in picture widths, of the scene: a camera that pans right shifts it left."""

    length_s: float
    right: float
    down: float
    growth: float
    """Logarithm of how much larger the scene became."""
    turn: float
    """Radians, clockwise."""
    rest: float
    """Mean distance that corners went besides; those that were lost count as far."""


MOVES = ("right", "down", "growth", "turn")

CAMERA = struct(
    f("move", pa.string(), doc="still, shaken, pan_left, pan_right, tilt_up, tilt_down, zoom_in, zoom_out (or a dolly), roll, "
      "or mixed: moves, but not mainly in one way; null where too little can be followed", show="label"),
    f("camera_speed", pa.float64(), unit="1/s", doc="mean speed of the scene at the picture's border, picture widths a second",
      show="histogram"),
    f("subject_speed", pa.float64(), unit="1/s", doc="mean speed of what moves besides, over all corners, picture widths a "
      "second",
      show="histogram"),
    f("pan", pa.float64(), unit="1/s", doc="mean speed to the right, picture widths a second"),
    f("tilt", pa.float64(), unit="1/s", doc="mean speed upwards, picture widths a second"),
    f("zoom", pa.float64(), unit="1/s", doc="mean growth of the scene a second, natural logarithm; positive = in"),
    f("roll_deg_per_s", pa.float64(), unit="deg/s", doc="mean turn of the camera, clockwise"),
    f("shake", pa.float64(), unit="ratio", doc="standard deviation of the camera's path about its mean over 0.75 s, picture "
      "widths",
      show="histogram"),
    f("steadiness", pa.float64(), unit="ratio", doc="share of the time in which the camera stands still"),
    f("followed_ratio", pa.float64(), unit="ratio", doc="share of the time in which there was enough to follow"),
)  # fmt: skip


class CameraConfig(StageConfig):
    """Nothing to choose."""


class CameraWatch:
    """Follows corners through grey pictures: up to 1 kB for each of eight pictures a second. About 2 ms a picture."""

    look = Look(long_side_px=LONG_SIDE_PX, max_fps=PICTURES_PER_S, format="gray")

    def __init__(self, ctx: Context | None = None) -> None:
        self._times: list[float] = []
        self._followed: list[Corners | None] = []
        self._last: Grey | None = None

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w]."""
        for image, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            if self._last is not None:
                self._followed.append(corners_between(self._last, image, time_s - self._times[-1]))
            self._times.append(time_s)
            self._last = image
        self._last = run.images[-1].copy()

    def of(self, span: Span, people: Sequence[Box] = ()) -> dict[str, Any]:
        """The `CAMERA` struct of a clip in which there are people."""
        low, high = (bisect_left(self._times, float(at) - 1e-6) for at in (span.start, span.end))
        followed = self._followed[low : max(low, high - 1)]
        return describe([None if corners is None else step_of(corners, people) for corners in followed])


class Camera(Measure[CameraConfig]):
    """Camera and subject motion of a clip: its part of what the asset pass saw at 256 px, eight times a second.

    Where the recipe has `faces` before it, what lies on people says nothing of the camera, if enough else can be followed. A
    zoom is not told from a dolly, nor a pan from a camera that is carried sideways. Where most of the picture is a moving
    crowd, smoke or water up to its border, that passes for the camera.
    """

    name = "camera"
    version = "1"
    level = "clip"
    reads = ("clip", "download.path")
    adds = CAMERA
    Config = CameraConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=300.0)

    @classmethod
    def may_read(cls, config: CameraConfig) -> tuple[str, ...]:
        """Faces, where the recipe has them before it."""
        return ("faces.tracks",)

    @classmethod
    def watches(cls, config: CameraConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return (CameraWatch,)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        people = [person_of(face) for face in (row.get("faces") or {}).get("tracks") or ()]
        return self.ctx.asset_pass.look(self.ctx.asset_path(row), CameraWatch).of(span_of(row["clip"]), people)


def person_of(face: Mapping[str, Any]) -> Box:
    """Where somebody is whose face is a `schemas.records.FACE_TRACK`."""
    beside, above = PERSON_SIDE * face["width"], PERSON_ABOVE * face["height"]
    return face["x"] - beside, face["y"] - above, face["x"] + face["width"] + beside, 1.0


def corners_between(before: Grey, after: Grey, length_s: float) -> Corners | None:
    """What can be followed between two pictures [h, w]; None where it is too little, as across a cut."""
    import cv2

    points = corners(before)
    if len(points) < FEWEST_CORNERS:
        return None
    found, status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, winSize=(15, 15), maxLevel=3)
    gone = found - points
    far = FAR_PX * max(1.0, before.shape[1] / LONG_SIDE_PX)
    is_kept = (status[:, 0] == 1) & (np.linalg.norm(gone, axis=1) <= far)
    if is_kept.sum() < FEWEST_CORNERS:
        return None
    size = (before.shape[1], before.shape[0])
    return Corners(length_s, size, points[is_kept].astype(np.uint16), gone[is_kept].astype(np.float16))


def step_of(followed: Corners, people: Sequence[Box] = ()) -> CameraStep:
    """What the camera did, told by what does not lie on people, and what moved besides, on them too."""
    size = followed.size
    old, new = followed.outside(people)
    is_still = stands_still(old, new, size)
    right, down, growth, turn = (0.0, 0.0, 0.0, 0.0) if is_still else camera_step(old, new, size)
    every, ends = followed.outside(())
    moved = applied(every, size, (right, down, growth, turn))
    rest = np.minimum(np.linalg.norm(ends - moved, axis=1), FAR_PX)
    rest = np.where(rest <= (STILL_PX if is_still else FIT_PX), 0.0, rest)
    return CameraStep(followed.length_s, right / size[0], down / size[0], growth, turn, float(rest.mean()) / size[0])


def corners(image: Grey) -> F32:
    """The best corner [k, 2] (x, y) of every square of `CELL_PX` of a picture [h, w] that has one worth following."""
    import cv2

    rows, columns = image.shape[0] // CELL_PX, image.shape[1] // CELL_PX
    if not rows * columns:
        return np.zeros((0, 2), np.float32)
    strength = cv2.cornerMinEigenVal(image, 5, ksize=3)
    cells = strength[: rows * CELL_PX, : columns * CELL_PX].reshape(rows, CELL_PX, columns, CELL_PX)
    cells = cells.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    best = cells.argmax(1)
    is_worth = cells[np.arange(len(cells)), best] >= LEAST_CORNER
    row, column = np.divmod(np.arange(len(cells)), columns)
    y, x = np.divmod(best, CELL_PX)
    points = np.stack([column * CELL_PX + x, row * CELL_PX + y], 1)
    return np.asarray(points[is_worth], np.float32)


def stands_still(old: F32, new: F32, size: tuple[int, int]) -> bool:
    """Whether the camera did: most corners [k, 2] of the border are where they were, or most of all."""
    is_still = np.linalg.norm(new - old, axis=1) <= STILL_PX
    place = old / np.array(size, np.float32)
    is_border = ((place < BORDER) | (place > 1 - BORDER)).any(1)
    if is_border.sum() >= FEWEST_CORNERS:
        return bool(is_still[is_border].mean() >= STILL_SHARE)
    return bool(is_still.mean() >= STILL_SHARE)


def camera_step(old: F32, new: F32, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(right, down) in px, growth and turn of the scene about its middle that most corners [k, 2] agree with."""
    import cv2

    cv2.setRNGSeed(0)
    middle = np.array(size, np.float32) / 2
    matrix, _ = cv2.estimateAffinePartial2D(
        old - middle, new - middle, method=cv2.RANSAC, ransacReprojThreshold=FIT_PX, maxIters=500
    )
    if matrix is None:
        return 0.0, 0.0, 0.0, 0.0
    scale = max(1e-6, float(np.hypot(matrix[0, 0], matrix[1, 0])))
    turn = float(np.arctan2(matrix[1, 0], matrix[0, 0]))
    return float(matrix[0, 2]), float(matrix[1, 2]), float(np.log(scale)), turn


def applied(points: F32, size: tuple[int, int], step: tuple[float, float, float, float]) -> F32:
    """Where the camera's movement takes `points` [k, 2]."""
    right, down, growth, turn = step
    middle = np.array(size, np.float32) / 2
    across, along = np.exp(growth) * np.cos(turn), np.exp(growth) * np.sin(turn)
    matrix = np.array([[across, -along], [along, across]], np.float32)
    return np.asarray((points - middle) @ matrix.T + middle + np.array([right, down], np.float32), np.float32)


def describe(steps: Sequence[CameraStep | None]) -> dict[str, Any]:
    """The `CAMERA` struct of consecutive steps; Nones where most of them could not be followed."""
    known = [step for step in steps if step is not None]
    empty = dict.fromkeys((field.name for field in CAMERA), None)
    if not known or len(known) < len(steps) / 2:
        return empty | {"followed_ratio": len(known) / len(steps) if steps else None}
    lengths = np.array([step.length_s for step in known])
    moved = np.array([[getattr(step, name) for name in MOVES] for step in known])
    speed = smoothed(moved, lengths) / smoothed(lengths[:, None], lengths)
    mean = moved.sum(0) / lengths.sum()
    at_border = border_speeds(speed)
    return {
        "move": name_of(at_border, lengths, shake_of(moved, lengths)),
        "camera_speed": float(np.average(np.linalg.norm(border_speeds(moved / lengths[:, None]), axis=1), weights=lengths)),
        "subject_speed": float(sum(step.rest for step in known) / lengths.sum()),
        "pan": float(0 - mean[0]),
        "tilt": float(mean[1]),
        "zoom": float(mean[2]),
        "roll_deg_per_s": float(0 - np.degrees(mean[3])),
        "shake": shake_of(moved, lengths),
        "steadiness": float(lengths[~moved.any(1)].sum() / lengths.sum()),
        "followed_ratio": len(known) / len(steps),
    }  # fmt: skip


def border_speeds(speed: F64) -> F64:
    """Speeds [n, 4] of right, down, growth and turn as what each does at the border, picture widths a second."""
    return np.asarray(speed * np.array([1.0, 1.0, 0.5, 0.5]))


def smoothed(values: F64, lengths: F64) -> F64:
    """Means [n, k] over `SMOOTH_S` of values [n, k] of steps of `lengths` [n], shorter at both ends."""
    reach = max(0, round(SMOOTH_S / float(np.median(lengths)) / 2))
    sums = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), values]), 0)
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low)[:, None])


def shake_of(moved: F64, lengths: F64) -> float:
    """Standard deviation of the path that the steps [n, 4] add up to about its own mean over `SMOOTH_S`, picture widths."""
    path = np.cumsum(border_speeds(moved), 0)
    return float(np.sqrt(np.square(path - smoothed(path, lengths)).sum(1).mean()))


def name_of(at_border: F64, lengths: F64, shake: float) -> str:
    """What the smoothed speeds at the border [n, 4] are called."""
    size = np.linalg.norm(at_border, axis=1)
    is_moving = size >= MOVING
    if lengths[is_moving].sum() < MOST_SHARE * lengths.sum():
        return "shaken" if shake >= SHAKING else "still"
    way = (at_border * lengths[:, None])[is_moving].sum(0)
    total = float((size * lengths)[is_moving].sum())
    leading = int(np.argmax(np.abs(way)))
    if abs(way[leading]) < max(LEADING * total, BEYOND_SHAKE * shake):
        return "shaken" if shake >= SHAKING else "mixed"
    names = (("pan_left", "pan_right"), ("tilt_up", "tilt_down"), ("zoom_in", "zoom_out"), ("roll", "roll"))
    return names[leading][0 if way[leading] > 0 else 1]
