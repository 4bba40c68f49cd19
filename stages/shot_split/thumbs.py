"""Thumbnails of 48 x 27 pixels, and how two of them are compared.

Shape legend: n frames, [n, 27, 48, 3] RGB thumbnails, planes are float32 luma and two chroma channels of the same
shape, on a scale of 0 to 255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Thumbs = NDArray[np.uint8]
Array = NDArray[np.float32]
WIDTH, HEIGHT = 48, 27
YUV_FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.564 * 0.299, -0.564 * 0.587, 0.564 * 0.886],
        [0.713 * 0.701, -0.713 * 0.587, -0.713 * 0.114],
    ],
    np.float32,
)
"""ITU-R BT.601: luma, 0.564 (B - Y) and 0.713 (R - Y)."""
NOISE = 6.0
"""Residual (root mean square) that motion within a shot leaves anyway; keeps ratios of small numbers harmless."""
BLOCK_W, BLOCK_H = 8, 9
SHIFT_X, SHIFT_Y = 5, 4
"""Motion between frames that is followed: a tenth of the width, a seventh of the height."""


def planes(thumbs: Thumbs) -> Array:
    """Luma and colour difference planes (ITU-R BT.601) of RGB pictures; same shape, float32."""
    import cv2

    rows = thumbs.reshape(-1, thumbs.shape[-2], 3).astype(np.float32)
    return np.asarray(cv2.transform(rows, YUV_FROM_RGB), np.float32).reshape(thumbs.shape)


def tiles(part: Array) -> Array:
    """[n, 432]: the means of tiles of 3 x 3 pixels."""
    rows = part.reshape(len(part), HEIGHT // 3, 3, WIDTH * 3).sum(2).reshape(len(part), -1, 3, 3)
    sums: Array = rows[:, :, 0] + rows[:, :, 1] + rows[:, :, 2]
    return sums.reshape(len(part), -1) / np.float32(9)


def new_content(before: Array, after: Array, *, is_relit: bool = True) -> NDArray[np.float64]:
    """Root mean square residual of each block of `after` that is sought in `before`, row by row [18].

    If `is_relit`, two guesses at each block's lighting are tried: unchanged, and what fits the whole picture.
    """
    import cv2

    best = np.full(WIDTH * HEIGHT // (BLOCK_W * BLOCK_H), np.inf)
    for gain, offset in [(1.0, 0.0)] + [_relight(before[..., 0], after[..., 0])] * is_relit:
        lit = before * np.float32(gain)
        lit[..., 0] += np.float32(offset)
        field = cv2.copyMakeBorder(lit, SHIFT_Y, SHIFT_Y, SHIFT_X, SHIFT_X, cv2.BORDER_REPLICATE)
        residual = []
        for y in range(0, HEIGHT, BLOCK_H):
            for x in range(0, WIDTH, BLOCK_W):
                area = field[y : y + BLOCK_H + 2 * SHIFT_Y, x : x + BLOCK_W + 2 * SHIFT_X]
                match = cv2.matchTemplate(area, after[y : y + BLOCK_H, x : x + BLOCK_W], cv2.TM_SQDIFF)
                residual.append(np.sqrt(max(0.0, float(match.min())) / (BLOCK_W * BLOCK_H)))
        best = np.minimum(best, residual)
    return best


def _relight(before: Array, after: Array) -> tuple[float, float]:
    """Gain (a factor of two at most) and offset that bring the luma of `before` closest to `after`."""
    old, new = before - before.mean(), after - after.mean()
    variance = float((old * old).mean())
    gain = float(np.clip((old * new).mean() / variance, 0.5, 2.0)) if variance > NOISE else 1.0
    return gain, float(after.mean() - gain * before.mean())


def levelled(small: Array) -> Array:
    """Tiles [n, k, 3] with light and contrast taken out: each picture's mean is 0, its root mean square about 1."""
    apart = small - small.mean(1, keepdims=True)
    size = np.sqrt(np.square(apart).sum(2).mean(1) + np.float32(NOISE**2))
    return np.asarray(apart / size[:, None, None], np.float32)
