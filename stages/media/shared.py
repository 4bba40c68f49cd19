"""What a decoder and its child share: names, and memory that pictures are drawn into on one side and looked at on the other."""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from typing import Literal

import numpy as np

PixelFormat = Literal["rgb24", "gray", "yuv420p"]
Interpolation = Literal["BILINEAR", "AREA"]
"""libswscale's; both take a mean over what becomes one pixel, the first with weights that fall off."""
FRAMES_DECODED = "frames_decoded"
"""What the child counts every decoded picture as, whatever for."""


class Shared:
    """Bytes behind an open file without a name, which both processes map. It only ever grows."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls) -> Shared:
        """Empty; in memory where the system has files there (Linux), else in the temporary folder."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("nava-pictures"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def grow(self, num_bytes: int) -> None:
        """Makes room for at least `num_bytes`. Raises OSError where there is none."""
        if os.fstat(self.descriptor).st_size < num_bytes:
            os.ftruncate(self.descriptor, num_bytes)

    def view(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 `shape` that begins at byte `at`; no copy."""
        size = prod(shape)
        if self._map is None or len(self._map) < at + size:
            self._map = mmap.mmap(self.descriptor, 0)
        return np.frombuffer(self._map, np.uint8, size, at).reshape(shape)

    def close(self) -> None:
        """Gives it back once nobody looks at it any more."""
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class PictureRoom:
    """Two places in shared memory, of which one is filled while the other is looked at."""

    def __init__(self, memory: Shared) -> None:
        self._memory = memory
        self._size, self._turn, self._used = 0, 0, 0

    def open(self, num_bytes: int) -> None:
        """Both places hold `num_bytes` from here on."""
        self._size = num_bytes
        self._memory.grow(2 * num_bytes)

    def turn(self) -> None:
        """Goes to the other place."""
        self._turn, self._used = 1 - self._turn, 0

    def take(self, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """(byte at which it begins, uint8 `shape`): the next part of this place."""
        at = self._turn * self._size + self._used
        self._used += prod(shape)
        return at, self._memory.view(at, shape)
