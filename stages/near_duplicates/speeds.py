"""Whether a sound is another one, played faster or slower: with its pitch, as a tape does, or without, as editors do.

Prints of sound are signs between bands a semitone apart. What is played s times as fast has them s times as close in time, and,
where pitch moves along, as many bands higher as s has semitones. So two sounds are laid over each other at one speed, at all
offsets at once, and their prints need not know of speeds.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.near_duplicates.prints import HIGH_HZ, HOP_S, LOW_HZ, NUM_BANDS

NUM_BITS = NUM_BANDS - 1
BANDS_PER_OCTAVE = NUM_BANDS / float(np.log2(HIGH_HZ / LOW_HZ))
SPEEDS = tuple(2 ** (steps / 12) for steps in sorted(range(-12, 13), key=abs))
"""From half to twice as fast in semitones, the nearest first: none between lies further than 3 % from one of these."""
BETWEEN = (1.0, 0.985, 1.015)
"""What a speed is varied by: 1.5 % off, the ends of 6 s are 45 ms apart, as prints are."""
LEAST_S, LEAST_SHARE = 1.5, 0.5
"""How much of two sounds, and what share of the shorter one, has to lie over each other."""
SPED_BITS, STANDING_OUT = 0.33, 7.0
"""A copy at another speed differs in no more of its bits, or in so many standard deviations fewer than at other offsets.

Of 22 pieces of speech without a picture, after AAC at 64 kbit/s: at 1.1, 1.15, 1.25, 1.5 and 0.8 times the speed, with and
without the pitch, 0.11 to 0.31 of the bits, and twice as fast, where 20 are left, 0.24 to 0.36; other recordings 0.38 and more
at whatever speed. Drawn tones in noise, of which there are more independent bits: 0.18 to 0.39, by 6.2 deviations and more;
others 0.40, by 5.4.
"""
PEAK, LEAST_OFFSETS = 4, 20
"""Offsets on each side of the best that fit because it does, and how many others tell what is usual."""
Spectra = NDArray[np.complex64]
Rows = TypeVar("Rows", NDArray[np.float32], Spectra)


def sped_alike(one: NDArray[np.uint32], other: NDArray[np.uint32], speed: float) -> bool:
    """Whether the sound with prints `other` [m] is that with prints `one` [n], played about `speed` times as fast."""
    shorter = min(np.count_nonzero(one) / speed, np.count_nonzero(other))
    least = max(LEAST_S / HOP_S, LEAST_SHARE * shorter)
    if shorter < least:
        return False
    size = 1 << int(len(one) / (speed * min(BETWEEN)) + len(other) + 1).bit_length()
    its = _spectra(np.vstack([_signs(other), other > 0]), size)
    for near in BETWEEN:
        stretched = played(one, speed * near)
        signs = _signs(stretched)
        mine = _spectra(np.vstack([signs, stretched > 0]), size).conj()
        for up in (0.0, BANDS_PER_OCTAVE * float(np.log2(speed * near))):
            bands = slice(max(0, ceil(up)), NUM_BITS + min(0, floor(up)))
            together = (_raised(mine, up, bands) * its[bands]).sum(0)
            weighed = _spectra(np.abs(_raised(signs, up, bands)).sum(0), size).conj() * its[-1]
            agreeing, sure, common = np.fft.irfft(np.stack([together, weighed, mine[-1] * its[-1]]), size)
            if _is_one(agreeing, sure, common, least):
                return True
    return False


def played(sound: NDArray[np.uint32], speed: float) -> NDArray[np.uint32]:
    """Prints [n / speed] of a sound with prints [n] at `speed` times the speed and the pitch it has, each the nearest."""
    at = np.round(np.arange(0, len(sound) - 0.5, speed)).astype(np.intp)
    return sound[at]


def _signs(sound: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[32, n]: -1 or 1 for each bit of prints [n], 0 in silence."""
    bits = np.unpackbits(sound.view(np.uint8).reshape(-1, NUM_BITS // 8), axis=1, bitorder="little").T
    return np.where(sound > 0, bits * np.float32(2) - 1, np.float32(0))


def _raised(rows: Rows, up: float, bands: slice) -> Rows:
    """What lies `up` bands below `bands` of rows [32, n], between two by linear interpolation: those that disagree say little."""
    whole, part = floor(up), up - floor(up)
    at = rows[bands.start - whole : bands.stop - whole]
    if not part:
        return at
    return np.float32(1 - part) * at + np.float32(part) * rows[bands.start - whole - 1 : bands.stop - whole - 1]


def _spectra(rows: NDArray[Any], size: int) -> Spectra:
    """[..., size / 2 + 1] of rows [..., n] over time."""
    return np.asarray(np.fft.rfft(rows.astype(np.float32), size), np.complex64)


def _is_one(
    agreeing: NDArray[np.float32], sure: NDArray[np.float32], common: NDArray[np.float32], least: float
) -> bool:
    """Whether sounds are one at any of n offsets, which have so many more bits alike than not, bits, and prints in common."""
    is_enough = common > least - 0.5
    if not is_enough.any():
        return False
    right = agreeing[is_enough] / (2 * sure[is_enough])
    if right.max() >= 0.5 - SPED_BITS:
        return True
    rise = right * np.sqrt(common[is_enough])
    best = int(rise.argmax())
    others = np.delete(rise, slice(max(0, best - PEAK), best + PEAK + 1))
    return bool(len(others) >= LEAST_OFFSETS and rise[best] >= STANDING_OUT * np.sqrt(np.mean(others**2)))
