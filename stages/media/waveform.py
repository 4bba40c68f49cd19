"""Sound as stages hear it: samples on the asset clock."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from schemas.timing import sample_at


@dataclass
class Waveform:
    """Sound on the asset clock. Holes between packets are silence, placed by timestamp."""

    samples: np.ndarray
    """float32 [n] if mono, else [n, channels]; a private memory map, may be written to."""
    rate_hz: int
    start: Fraction
    """Instant of sample 0 on the asset clock."""

    @property
    def end(self) -> Fraction:
        """Instant after the last sample."""
        return self.start + Fraction(len(self.samples), self.rate_hz)

    def cut(self, start: Fraction, end: Fraction) -> np.ndarray:
        """float32 [sample_at(end) - sample_at(start)(, channels)] between two instants, zeros where there is no sound.

        The first sample lies within half a sample of `start`.
        """
        first = sample_at(start - self.start, self.rate_hz)
        count = sample_at(end, self.rate_hz) - sample_at(start, self.rate_hz)
        out = np.zeros((count, *self.samples.shape[1:]), np.float32)
        low, high = max(first, 0), min(first + count, len(self.samples))
        if high > low:
            out[low - first : high - first] = self.samples[low:high]
        return out


def mapped(path: Path, kind: type, shape: list[int]) -> np.ndarray:
    """The file's content as a private, writable memory map."""
    if 0 in shape:
        return np.zeros(shape, kind)
    return np.memmap(path, dtype=kind, mode="c", shape=tuple(shape)).view(np.ndarray)
