"""Faces made unrecognisable in pictures on their way to the encoder. Runs inside the decoder's child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
PixelBox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""
FacePath = Sequence[Sequence[float]]
"""A face by time, each (seconds since the clip's start, left, top, right, bottom), edges as shares of the upright picture."""

HOLD_S = 0.5
"""A face is hidden this much before it was seen first and after it was seen last, where it was."""
REACH = 1.5
"""Half axes of the hidden ellipse in halves of the face's box; from the root of 2 on the ellipse holds all of the box."""
CELLS = 8
"""Brightnesses that are left along each axis of the ellipse: five across a face, on which nobody is recognised, and of which
no enlarging makes more."""
GREY = (126, 128, 128)
"""Luma and chroma of the plain grey that `fill` leaves."""


def hide_faces(
    frame: Any, time_s: float, faces: Sequence[FacePath], how: str, part: tuple[tuple[int, int], PixelBox]
) -> None:
    """Makes `faces` unrecognisable in `frame`, yuv420p, in place.

    `how` is gaussian or fill; `part` is the size of the upright picture and the box of it that the frame holds.
    """
    boxes = list(boxes_at(time_s, faces))
    if not boxes:
        return
    frame.make_writable()
    whole, (x, y, *_) = part
    for plane, grey in zip(frame.planes, GREY, strict=True):
        pixels = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        scale = np.array(whole * 2) * plane.width / frame.width
        corner = np.array([x, y] * 2) * plane.width / frame.width
        for box in boxes:
            _hide(pixels, box * scale - corner, None if how == "gaussian" else grey)


def boxes_at(time_s: float, faces: Sequence[FacePath]) -> Iterator[F64]:
    """float64 [4] for each face that is there: where it is, between two sightings on the straight line."""
    for face in faces:
        if face[0][0] - HOLD_S <= time_s <= face[-1][0] + HOLD_S:
            times, *edges = np.asarray(face, np.float64).T
            yield np.array([np.interp(time_s, times, edge) for edge in edges])


def _hide(pixels: NDArray[np.uint8], box: F64, level: int | None) -> None:
    """Hides the face in `box` (left, top, right, bottom) of the plane `pixels` [h, w] under `level`, or softens it."""
    centre, radius = (box[:2] + box[2:]) / 2, np.maximum(REACH * (box[2:] - box[:2]) / 2, 1.0)
    low = np.maximum(np.floor(centre - radius), 0).astype(int)
    high = np.minimum(np.ceil(centre + radius), pixels.shape[::-1]).astype(int)
    if (low >= high).any():
        return
    patch = pixels[low[1] : high[1], low[0] : high[0]]
    across, down = ((np.arange(low[n], high[n]) + 0.5 - centre[n]) / radius[n] for n in (0, 1))
    is_inside = across**2 + down[:, None] ** 2 <= 1
    patch[is_inside] = level if level is not None else _softened(patch, 2 * radius)[is_inside]


def _softened(patch: NDArray[np.uint8], whole_px: F64) -> NDArray[np.uint8]:
    """`patch` [h, w] out of as many Gaussian means of it as `CELLS` along each of `whole_px` gives, joined smoothly."""
    (wide, join_wide), (high, join_high) = (
        _means(length, max(1, round(CELLS * length / whole)))
        for length, whole in zip(patch.shape[::-1], whole_px, strict=True)
    )
    return np.asarray(np.rint(join_high @ (high @ patch @ wide.T) @ join_wide.T), np.uint8)


@lru_cache(maxsize=64)
def _means(length: int, num: int) -> tuple[F64, F64]:
    """Weights that make `num` means of `length` pixels [num, length], and those that make pixels of means [length, num]."""
    cell = length / num
    distance = (np.arange(length) + 0.5 - (np.arange(num)[:, None] + 0.5) * cell) / cell
    near = np.exp(-(distance**2) / 2)
    return near / near.sum(1, keepdims=True), (near / near.sum(0)).T
