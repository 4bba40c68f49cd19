"""Cheap measures of a clip's picture: sharp, bright, moving, frozen, letterboxed, black."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.media.decoder import Frames, Look

LONG_SIDE_PX = 384
"""Size at which everything is measured, so that figures compare across resolutions."""
TINY = (64, 36)
BLACK = 16
"""Luma (0 to 255) up to which a pixel is black: coding noise and lifted blacks of analogue sources stay below."""
FLAT = 6.0
"""Standard deviation of luma below which nothing is to be seen in a dark picture."""
BAR_SHARE = 0.98
"""Share of a column's pixels that are black in a bar; a logo or subtitle in it may light up the rest."""
SAMPLES_PER_S = 2.0
"""Rate at which sharpness and bars are sampled; both change slowly."""
TILE = 16
REPEAT_LEVEL = 1.0
"""Grey levels by which the tile that changed most may differ in a repeated frame. Coding noise stays below, the
mouth of a small face moves tiles by several levels."""
NOISY_REPEAT_LEVEL = 3.0
NOISY_REPEAT_SHARE = 0.3
"""Where pictures move, coarse coding may add more noise to a repeat: up to these levels and this share of the
changes before and after it."""
FREEZE_S = 0.5
"""Shortest standstill that is a freeze: longer than any repetition from a change of frame rate (a third of a
second at 3 frames per second), shorter than a viewer puts up with."""
MOTION_STEP_S = 0.2

PICTURE = struct(
    f("sharpness", pa.float64(), unit="grey level^2", doc="median variance of the Laplacian at 384 px; blurred < 50",
      show="histogram"),
    f("brightness", pa.float64(), unit="ratio", doc="mean luma, 0 black to 1 white", show="histogram"),
    f("contrast", pa.float64(), unit="ratio", doc="mean standard deviation of luma within a picture, of full scale"),
    f("motion", pa.float64(), unit="ratio", doc="mean change of luma at 64 x 36 px over 0.2 s, of full scale", show="histogram"),
    f("flicker", pa.float64(), unit="ratio", doc="mean bend of the brightness curve from frame to frame, of full scale"),
    f("bar_left_px", pa.int32(), unit="px", doc="width of the black bar at the left, display pixels, to 1/384 of the size"),
    f("bar_right_px", pa.int32(), unit="px", doc="width of the black bar at the right"),
    f("bar_top_px", pa.int32(), unit="px", doc="height of the black bar at the top"),
    f("bar_bottom_px", pa.int32(), unit="px", doc="height of the black bar at the bottom"),
    f("picture_ratio", pa.float64(), unit="ratio", doc="share of frames that are not black"),
    f("damaged_ratio", pa.float64(), unit="ratio", doc="share of frames decoded from damaged data or built upon such a frame"),
    f("freeze_ratio", pa.float64(), unit="ratio", doc="share of the time in which the picture stands still for 0.5 s or more"),
    f("duplicate_ratio", pa.float64(), unit="ratio", doc="share of frames outside freezes that repeat the one before"),
    f("true_fps", pa.float64(), unit="1/s", doc="different pictures per second outside freezes; null if all is frozen"),
)  # fmt: skip


class PictureConfig(StageConfig):
    """Nothing to choose."""


class Picture(Measure[PictureConfig]):
    """Picture measures of a clip: its part of what the asset pass saw at 384 px, grey. About 0.2 ms per frame and core.

    Sources above 640 px are shrunk in two steps where faces are sought in the same pass, else in one: sharpness then differs by
    -3 to +19 %, the other figures by up to 4 %.
    """

    name = "picture"
    version = "4"
    level = "clip"
    reads = ("download.path", "probe.width_px", "probe.height_px", "clip")
    adds = PICTURE
    Config = PictureConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.2, timeout_s=300.0)

    @classmethod
    def watches(cls, config: PictureConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return (Watch,)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        watch = self.ctx.asset_pass.look(self.ctx.asset_path(row), Watch)
        return watch.sums(span_of(row["clip"]), row["probe"]["width_px"], row["probe"]["height_px"])


class Glimpse(NamedTuple):
    """What changes slowly, of a picture now and then."""

    frame: int
    sharpness: float
    columns: NDArray[np.bool_]
    """Which of its columns are black."""
    rows: NDArray[np.bool_]


class Watch:
    """Collects what is needed of grey pictures as they pass: 0.3 kB a frame, and 1 kB for each that is sampled."""

    look = Look(long_side_px=LONG_SIDE_PX, format="gray")

    def __init__(self, ctx: Context | None = None) -> None:
        self.shape = (0, 0)
        self._frames: list[tuple[int, float, float, float, bool]] = []
        self._moves: list[tuple[int, float]] = []
        self._samples: list[Glimpse] = []
        self._tiny: deque[tuple[float, NDArray[np.float32]]] = deque()
        self._last: NDArray[np.uint8] | None = None
        self._slot = -np.inf

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w]."""
        import cv2

        for image, pts, time_s, is_damaged in zip(run.images, run.pts, run.times_s, run.is_damaged, strict=True):
            mean, std = cv2.meanStdDev(image)
            change = np.inf if self._last is None else largest_change(self._last, image)
            self._last = image
            self._move(shrunk(image, TINY), float(time_s))
            if time_s * SAMPLES_PER_S // 1 != self._slot:
                self._slot = time_s * SAMPLES_PER_S // 1
                self._sample(image)
            self._frames.append((int(pts), float(mean[0, 0]), float(std[0, 0]), change, bool(is_damaged)))
        self._last = run.images[-1].copy()
        self.shape = run.images.shape[1:]

    def _move(self, tiny: NDArray[np.float32], time_s: float) -> None:
        """Notes how far those earlier pictures have moved to which this is the first that comes `MOTION_STEP_S` later."""
        while self._tiny and self._tiny[0][0] + MOTION_STEP_S - 1e-6 <= time_s:
            self._moves.append((len(self._frames), float(np.abs(tiny - self._tiny.popleft()[1]).mean())))
        self._tiny.append((time_s, tiny))

    def _sample(self, image: NDArray[np.uint8]) -> None:
        import cv2

        black = image <= BLACK
        sharpness = float(cv2.Laplacian(image, cv2.CV_32F).var())
        columns, rows = black.mean(0) >= BAR_SHARE, black.mean(1) >= BAR_SHARE
        self._samples.append(Glimpse(len(self._frames), sharpness, columns, rows))

    def sums(self, span: Span, width_px: int, height_px: int) -> dict[str, Any]:
        """The `PICTURE` struct of the clip `span`, of pictures that are shown at `width_px` x `height_px`."""
        low, high = (bisect_left(self._frames, (pts,)) for pts in (span.start_pts, span.end_pts))
        if low == high:
            return dict.fromkeys((field.name for field in PICTURE), None)
        pts, means, stds, changes, is_damaged = (np.array(part) for part in zip(*self._frames[low:high], strict=True))
        times = np.append(pts, span.end_pts) * (span.num / span.den)
        changes[0] = np.inf
        is_picture = (means > BLACK) | (stds > FLAT)
        bend = np.abs(np.diff(means, 2)) if len(means) > 2 else np.zeros(1)
        moves = [move for later, move in self._moves[low:high] if later < high]
        samples = self._sampled(low, high)
        return {
            "sharpness": float(np.median([sample.sharpness for sample in samples])),
            "brightness": float(means.mean() / 255),
            "contrast": float(stds.mean() / 255),
            "motion": float(np.mean(moves) / 255) if moves else None,
            "flicker": float(bend.mean() / 255),
            **self._bars(samples, width_px, height_px, bool(is_picture.any())),
            "picture_ratio": float(is_picture.mean()),
            "damaged_ratio": float(is_damaged.mean()),
            **standstills(repeats(changes), times),
        }

    def _sampled(self, low: int, high: int) -> list[Glimpse]:
        """What was sampled of frames [low, high), or at least the sample before."""
        first, end = (bisect_left(self._samples, (at,)) for at in (low, high))
        return self._samples[min(first, end - 1) : end]

    def _bars(
        self, samples: Sequence[Glimpse], width_px: int, height_px: int, has_picture: bool
    ) -> dict[str, int | None]:
        """Black bars in display pixels; null where all is black."""
        names = ("bar_left_px", "bar_right_px", "bar_top_px", "bar_bottom_px")
        if not has_picture:
            return dict.fromkeys(names, None)
        columns = np.logical_and.reduce([sample.columns for sample in samples])
        rows = np.logical_and.reduce([sample.rows for sample in samples])
        scale_x, scale_y = width_px / self.shape[1], height_px / self.shape[0]
        sides = ((columns, scale_x), (columns[::-1], scale_x), (rows, scale_y), (rows[::-1], scale_y))
        return {
            name: round(edge_length(is_black) * scale) for name, (is_black, scale) in zip(names, sides, strict=True)
        }


def edge_length(is_black: NDArray[np.bool_]) -> int:
    """How many leading entries are True."""
    return len(is_black) if is_black.all() else int(np.argmin(is_black))


def shrunk(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Means over the areas that become the pixels of a picture of `size` (width, height), one direction after the other.

    At once OpenCV takes up to five times as long, and so it does where the first direction is one that does not divide.
    """
    import cv2

    height, width = image.shape
    between = (size[0], height) if width % size[0] == 0 else (width, size[1])
    partly = cv2.resize(image.astype(np.float32), between, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(partly, size, interpolation=cv2.INTER_AREA))


def largest_change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Mean absolute change of the tile of 16 x 16 pixels that changed most, in grey levels; pictures [h, w]."""
    import cv2

    difference = cv2.absdiff(before, after)
    height, width = difference.shape
    return float(shrunk(difference, (max(1, width // TILE), max(1, height // TILE))).max())


def repeats(changes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which frames [n] repeat the one before, from the `largest_change` [n] since then (infinite for the first)."""
    before, after = np.append(np.inf, changes[:-1]), np.append(changes[1:], np.inf)
    is_low = (changes <= NOISY_REPEAT_LEVEL) & (changes <= NOISY_REPEAT_SHARE * np.minimum(before, after))
    is_repeat: NDArray[np.bool_] = (changes <= REPEAT_LEVEL) | is_low
    return is_repeat


def freezes(
    is_repeat: NDArray[np.bool_], times: NDArray[np.float64], least_s: float = FREEZE_S
) -> list[tuple[int, int]]:
    """The frames [first, end) of every standstill of `least_s` or longer: one picture and all that repeat it.

    `is_repeat` [n] says which frames repeat the one before, the first never; `times` [n + 1] in s.
    """
    starts = np.flatnonzero(~is_repeat)
    ends = np.append(starts[1:], len(is_repeat))
    is_long = times[ends] - times[starts] >= least_s
    return list(zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True))


def standstills(is_repeat: NDArray[np.bool_], times: NDArray[np.float64]) -> dict[str, float | None]:
    """freeze_ratio, duplicate_ratio and true_fps from which frames [n] repeat the one before; times [n + 1] in s."""
    stills = freezes(is_repeat, times)
    frozen_s = sum(float(times[end] - times[first]) for first, end in stills)
    total_s = float(times[-1] - times[0])
    moving_s, moving = total_s - frozen_s, len(is_repeat) - sum(end - first for first, end in stills)
    distinct = int((~is_repeat).sum()) - len(stills)
    return {
        "freeze_ratio": frozen_s / total_s if total_s > 0 else None,
        "duplicate_ratio": 1 - distinct / moving if moving else None,
        "true_fps": distinct / moving_s if moving and moving_s > 0 else None,
    }
