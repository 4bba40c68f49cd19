"""Cheap measures of a clip's picture: sharp, bright, moving, frozen, letterboxed, black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from stages.base import Measure, Resources, StageConfig

LONG_SIDE_PX = 384
"""Size at which everything is measured, so that figures compare across resolutions."""
CHUNK = 64
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
    """Picture measures of a clip from one decode of its frames at 384 px, grey. About 0.5 ms per frame and core."""

    name = "picture"
    version = "2"
    level = "clip"
    reads = ("download.path", "probe.width_px", "probe.height_px", "clip")
    adds = PICTURE
    Config = PictureConfig
    resources = Resources(cpus=1.0, memory_gb=0.2, timeout_s=300.0)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        span = span_of(row["clip"])
        watch = Watch()
        decoded = self.ctx.media.iter_frames(
            self.ctx.asset_path(row),
            start=span.start,
            end=span.end,
            long_side_px=LONG_SIDE_PX,
            gray=True,
            chunk=CHUNK,
        )
        for run in decoded:
            watch.see(run.images, run.times_s, run.num_damaged)
        return watch.sums(float(span.end), row["probe"]["width_px"], row["probe"]["height_px"])


class Watch:
    """Collects what is needed of grey pictures as they pass, frame by frame, in little memory."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.means: list[float] = []
        self.stds: list[float] = []
        self.changes: list[float] = []
        self.sharpness: list[float] = []
        self.tiny: list[NDArray[np.float32]] = []
        self.columns: NDArray[np.bool_] | None = None
        self.rows: NDArray[np.bool_] | None = None
        self.shape = (0, 0)
        self.num_damaged = 0
        self._last: NDArray[np.uint8] | None = None
        self._next_sample_s = -np.inf

    def see(self, images: NDArray[np.uint8], times_s: NDArray[np.float64], num_damaged: int = 0) -> None:
        """Adds pictures, uint8 [n, h, w], and their times [n]."""
        import cv2

        self.num_damaged += num_damaged
        for image, time_s in zip(images, times_s.tolist(), strict=True):
            mean, std = cv2.meanStdDev(image)
            self.times.append(time_s)
            self.means.append(float(mean[0, 0]))
            self.stds.append(float(std[0, 0]))
            self.tiny.append(cv2.resize(image, TINY, interpolation=cv2.INTER_AREA).astype(np.float32))
            self.changes.append(np.inf if self._last is None else largest_change(self._last, image))
            self._last = image
            if time_s >= self._next_sample_s:
                self._next_sample_s = time_s + 1 / SAMPLES_PER_S
                self._sample(image)
        self.shape = self._last.shape if self._last is not None else (0, 0)

    def _sample(self, image: NDArray[np.uint8]) -> None:
        import cv2

        self.sharpness.append(float(cv2.Laplacian(image, cv2.CV_32F).var()))
        black = image <= BLACK
        columns, rows = black.mean(0) >= BAR_SHARE, black.mean(1) >= BAR_SHARE
        self.columns = columns if self.columns is None else self.columns & columns
        self.rows = rows if self.rows is None else self.rows & rows

    def sums(self, end_s: float, width_px: int, height_px: int) -> dict[str, Any]:
        """The `PICTURE` struct of what was seen; the last frame lasts until `end_s`."""
        if not self.times:
            return dict.fromkeys((field.name for field in PICTURE), None)
        times = np.append(np.array(self.times), end_s)
        means, stds = np.array(self.means), np.array(self.stds)
        is_picture = (means > BLACK) | (stds > FLAT)
        bend = np.abs(np.diff(means, 2)) if len(means) > 2 else np.zeros(1)
        return {
            "sharpness": float(np.median(self.sharpness)),
            "brightness": float(means.mean() / 255),
            "contrast": float(stds.mean() / 255),
            "motion": motion(self.tiny, times[:-1]),
            "flicker": float(bend.mean() / 255),
            **self._bars(width_px, height_px, bool(is_picture.any())),
            "picture_ratio": float(is_picture.mean()),
            "damaged_ratio": self.num_damaged / len(self.times),
            **standstills(repeats(np.array(self.changes)), times),
        }

    def _bars(self, width_px: int, height_px: int, has_picture: bool) -> dict[str, int | None]:
        """Black bars in display pixels; null where all is black."""
        names = ("bar_left_px", "bar_right_px", "bar_top_px", "bar_bottom_px")
        if not has_picture or self.columns is None or self.rows is None:
            return dict.fromkeys(names, None)
        scale_x, scale_y = width_px / self.shape[1], height_px / self.shape[0]
        sides = (
            (self.columns, scale_x),
            (self.columns[::-1], scale_x),
            (self.rows, scale_y),
            (self.rows[::-1], scale_y),
        )
        return {
            name: round(edge_length(is_black) * scale) for name, (is_black, scale) in zip(names, sides, strict=True)
        }


def edge_length(is_black: NDArray[np.bool_]) -> int:
    """How many leading entries are True."""
    return len(is_black) if is_black.all() else int(np.argmin(is_black))


def largest_change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Mean absolute change of the tile of 16 x 16 pixels that changed most, in grey levels; pictures [h, w]."""
    import cv2

    difference = cv2.absdiff(before, after)
    height, width = difference.shape
    tiles = (max(1, width // TILE), max(1, height // TILE))
    return float(cv2.resize(difference.astype(np.float32), tiles, interpolation=cv2.INTER_AREA).max())


def motion(tiny: Sequence[NDArray[np.float32]], times: NDArray[np.float64]) -> float | None:
    """Mean absolute change of luma over `MOTION_STEP_S`, of full scale; None if the frames do not span that long."""
    later = np.searchsorted(times, times + MOTION_STEP_S - 1e-6)
    pairs = [(i, int(j)) for i, j in enumerate(later) if j < len(times)]
    if not pairs:
        return None
    return float(np.mean([np.abs(tiny[j] - tiny[i]).mean() for i, j in pairs]) / 255)


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
