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


def geometry(frame: Any, stream: Any) -> Geometry:
    """The geometry of the stream, from its first decoded frame."""
    sar = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    sar = Fraction(sar) if sar > 0 else Fraction(1)
    if not Fraction(1, SAR_LIMIT) <= sar <= SAR_LIMIT:
        sar = Fraction(1)
    turns, mirrored = _orientation(frame)
    return Geometry(frame.width, frame.height, sar, turns, mirrored)


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
