"""How stored pictures become upright ones with square pixels. Runs inside the decoder's child process."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """How stored pictures become upright pictures with square pixels."""

    coded_width: int
    coded_height: int
    sar: Fraction
    quarter_turns: int
    """Counter-clockwise quarter turns to apply after mirroring, 0 to 3."""
    is_mirrored: bool
    """Mirror left-right before turning."""

    @property
    def square_size(self) -> tuple[int, int]:
        """(width, height) with square pixels before turning; the height is kept, the width follows the aspect."""
        return max(1, round(self.coded_width * self.sar)), self.coded_height

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) as a viewer sees it."""
        width, height = self.square_size
        return (height, width) if self.quarter_turns % 2 else (width, height)

    @property
    def is_plain(self) -> bool:
        """Nothing to do: upright, not mirrored, square pixels."""
        return self.sar == 1 and not self.quarter_turns and not self.is_mirrored


SAR_LIMIT = 16
"""An aspect ratio of a pixel beyond this (or its inverse) is a damaged header and is ignored."""


SAME_SAR = 0.01
"""Two aspects of a pixel closer than this share are one, rounded by a container."""


class Shapes:
    """The geometry of the pictures of a stream, one after the other: size and aspect of pixels may change on the way.

    Where the container states an aspect of its own it holds throughout; else that of the coded pictures. libav tells the latter
    of the packet it has decoded last, so that a new one holds from that packet's picture on.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._is_stated = stream, False
        self._raw = stream.codec_context.sample_aspect_ratio
        self._sar = self._told = _plausible(self._raw)
        self._stated = _plausible(stream.sample_aspect_ratio) if stream.sample_aspect_ratio else self._sar
        self._coming: list[tuple[int | None, Fraction]] = []
        self._seen: tuple[Any, ...] = ()
        self._shape: Geometry | None = None

    def note(self, packet: Any) -> None:
        """`packet` has been decoded."""
        raw = self._stream.codec_context.sample_aspect_ratio
        if raw == self._raw:
            return
        self._raw, sar = raw, _plausible(raw)
        if sar != self._told:
            self._told = sar
            self._coming.append((packet.pts, sar))

    def of(self, frame: Any) -> Geometry:
        """The geometry of the next picture; the same object for as long as nothing changes."""
        if self._shape is None:
            self._sar, self._coming = self._told, []
            self._is_stated = abs(self._stated - self._sar) > SAME_SAR * self._sar
        while self._coming and _is_at(frame, self._coming[0][0]):
            self._sar = self._coming.pop(0)[1]
        seen = (frame.width, frame.height, self._sar, frame.rotation)
        if self._shape is None or seen != self._seen:
            self._seen = seen
            sar = self._stated if self._is_stated else self._sar
            self._shape = Geometry(frame.width, frame.height, sar, *_orientation(frame))
        return self._shape


def _is_at(frame: Any, pts: int | None) -> bool:
    """Whether a picture is that of a packet with `pts`, or later."""
    if pts is None or frame.pts is None:
        return bool(frame.key_frame)
    return bool(frame.pts > pts or (frame.pts == pts and frame.key_frame))


def _plausible(sar: Fraction | None) -> Fraction:
    sar = Fraction(sar) if sar else Fraction(1)
    return sar if Fraction(1, SAR_LIMIT) <= sar <= SAR_LIMIT else Fraction(1)


def _orientation(frame: Any) -> tuple[int, bool]:
    """(counter-clockwise quarter turns, mirrored first) closest to the frame's display matrix."""
    matrix = None
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), dtype="<i4").astype(float)
    if matrix is None or not matrix[:5].any():
        return 0, False
    # The matrix maps x' = a x + c y, y' = b x + d y with y downwards (ISO 14496-12, 6.2.2), 9 numbers row by row.
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    turns = round(np.degrees(np.arctan2(-b, a)) / 90) % 4
    return turns, mirrored
