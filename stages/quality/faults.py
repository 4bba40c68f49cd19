"""Single faults of a grey picture, each as one figure: soft, noisy, in blocks, combed, framed by bars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
F32 = NDArray[np.float32]

BLUR_PX = 11
"""Length of the mean that a picture is blurred by to see what it had to lose (Crété-Roffet et al., 2007)."""
BLOCK_PX = 8
"""Side of the blocks that JPEG, MPEG-2 and MPEG-4 code by; those of H.264 and HEVC are multiples of it."""
NOISE_STEP = 2
"""Every second pixel each way is enough to tell noise."""
TILE_PX = 16
COMB_RATIO, COMB_LEVELS = 1.25, 2.0
"""Combed: a row differs more from the next than from the next but one, by this factor and so many grey levels."""
LEAST_COMBED = 4
"""Tiles that have to be combed: hair and blinds comb one or two by themselves."""
BAR_LEVELS = 6
"""Grey levels by which the pixels of a bar differ, coding noise included."""
BAR_SHARE = 0.98
"""Share of a row that is of the bar's level; a logo or subtitle in it may be of another."""
BAR_MEAN = 3.0
"""Mean grey levels by which its row differs at most otherwise."""
BAR_JUMP, BAR_DEPTH = 8.0, 8
"""Mean grey levels by which one of so many rows behind a bar has to differ: else a soft vignette would be one."""


def blur(picture: Grey) -> float | None:
    """0 sharp to 1 blurred: how little the neighbours' differences shrink where [h, w] is blurred again; the worse of both
    ways."""
    import cv2

    if min(picture.shape) < 2 * BLUR_PX:
        return None
    found = []
    for size, way in (((BLUR_PX, 1), (1, 0)), ((1, BLUR_PX), (0, 1))):
        again = cv2.blur(picture, size)
        here, there = (np.abs(cv2.Sobel(each, cv2.CV_32F, *way)) for each in (picture, again))
        total = float(here.sum())
        lost = float(np.maximum(here - there, 0).sum())
        found.append(1.0 if total == 0 else 1 - lost / total)
    return max(found)


def noise(picture: Grey) -> float | None:
    """Standard deviation in grey levels of what changes from pixel to pixel without regard to edges (Immerkær, 1996; median)."""
    import cv2

    if min(picture.shape) < TILE_PX:
        return None
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    rough = np.abs(cv2.filter2D(picture, cv2.CV_32F, kernel))[1:-1:NOISE_STEP, 1:-1:NOISE_STEP]
    return float(np.median(rough) / (6 * 0.6745))


def blockiness(picture: Grey) -> float | None:
    """How much more neighbours differ across the borders of 8 x 8 blocks than elsewhere, less 1; the lesser of both ways.

    The grid may begin anywhere. Blocks of a picture that was scaled since are of another size, and not seen.
    """
    if min(picture.shape) < 4 * BLOCK_PX:
        return None
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(picture.astype(np.int16), axis=axis)).mean(1 - axis)
        steps = steps[: len(steps) // BLOCK_PX * BLOCK_PX].reshape(-1, BLOCK_PX).mean(0)
        first = int(steps.argmax())
        others = float(np.median(np.delete(steps, first)))
        found.append(float(steps[first]) / max(others, 0.1) - 1)
    return max(0.0, min(found))


def is_combed(picture: Grey) -> bool:
    """Whether two fields of different times are woven into [h, w]."""
    import cv2

    if picture.shape[0] < 4 * TILE_PX or picture.shape[1] < TILE_PX:
        return False
    tiles = (picture.shape[1] // TILE_PX, picture.shape[0] // TILE_PX)
    near, far = (
        cv2.resize(cv2.absdiff(picture[:-2], other).astype(np.float32), tiles, interpolation=cv2.INTER_AREA)
        for other in (picture[1:-1], picture[2:])
    )
    return bool((near > COMB_RATIO * far + COMB_LEVELS).sum() >= LEAST_COMBED)


def bars(picture: Grey) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom): pixels at each side of [h, w] that are of one level; None if nothing lies between them."""
    top, bottom = _edges(picture)
    inner = picture[top : picture.shape[0] - bottom].T
    left, right = _edges(inner) if inner.shape[1] else (len(inner), 0)
    return None if left + right >= len(inner) else (left, top, right, bottom)


def _edges(picture: Grey) -> tuple[int, int]:
    """How many rows at the top and at the bottom of [h, w] are of the level of the outermost."""
    first = _edge(picture)
    if first == len(picture):
        return first, 0
    return first, _edge(picture[::-1])


def _edge(picture: Grey) -> int:
    level = int(np.median(picture[0]))
    if not _is_level(picture[:1], level)[0]:
        return 0
    is_flat = _is_level(picture, level)
    if is_flat.all():
        return len(picture)
    length = int(np.argmin(is_flat))
    behind = _apart(picture[length : length + BAR_DEPTH], level)
    return length if behind.max() >= BAR_JUMP else 0


def _is_level(picture: Grey, level: int) -> NDArray[np.bool_]:
    """Which rows of [h, w] are of `level`, but for a logo or what coding carried over from the row behind."""
    near = np.abs(picture.astype(np.int16) - level) <= BAR_LEVELS
    return np.asarray((near.mean(1) >= BAR_SHARE) | (_apart(picture, level) <= BAR_MEAN))


def _apart(picture: Grey, level: int) -> F32:
    """Mean distance in grey levels of each row of [h, w] from `level`."""
    return np.asarray(np.abs(picture.astype(np.float32) - level).mean(1))
