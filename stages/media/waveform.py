"""Sound as stages hear it: samples on the asset clock, and what is kept of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

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


Form = tuple[int | None, int | None, int | None]
"""Rate, channels, stream; None: as the file has it, and the stream that `probe` chooses."""
AS_IT_IS: Form = (None, None, None)


class KeptSounds:
    """The sound of the file asked about last, in every form asked for; as it is it may lie in a file of which others are made."""

    def __init__(self) -> None:
        self.forms: dict[Form, Waveform] = {}
        self.stored: dict[str, Any] | None = None
        """A `stages.media.listen.StoredSound`."""
        self._file: Hashable = None

    @property
    def num_bytes(self) -> int:
        """What all forms take."""
        return sum(sound.samples.nbytes for sound in self.forms.values())

    def turn_to(self, file: Hashable) -> None:
        """From here on `file` is asked about; what is kept of another is forgotten."""
        if file != self._file:
            self.forget()
            self._file = file

    def store(self, stored: dict[str, Any]) -> None:
        """All of the sound was decoded, and lies in a file, which takes the place of one stored before."""
        self._unlink()
        path, channels = Path(stored["path"]), len(stored["channels"])
        samples = mapped(path, np.float32, [path.stat().st_size // (4 * channels), channels])
        self.forms[AS_IT_IS] = Waveform(samples, stored["rate_hz"], Fraction(stored["start"]))
        self.stored = stored

    def forget(self) -> None:
        """Keeps nothing."""
        self._unlink()
        self.forms.clear()
        self.stored, self._file = None, None

    def _unlink(self) -> None:
        if self.stored is not None:
            Path(self.stored["path"]).unlink(missing_ok=True)


def mapped(path: Path, kind: type, shape: list[int]) -> np.ndarray:
    """The file's content as a private, writable memory map."""
    if 0 in shape:
        return np.zeros(shape, kind)
    return np.memmap(path, dtype=kind, mode="c", shape=tuple(shape)).view(np.ndarray)
