"""What a picture or a sound is recognised by: hashes that survive encoding, scaling and brightness.

Pictures: signs of the 8 x 8 lowest cosine coefficients without constant rows and columns, of a 64 x 64 picture (as pHash and
PDQ do with medians), of the whole and of five ever smaller middles, so that a crop meets the whole of its original. A picture
and its mirror image have one hash. Sounds: Haitsma and Kalker's bits (ISMIR 2002), the signs of changes between 33 bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

HASH_PX = 64
SIDE, KEY_SIDE = 8, 6
"""Coefficients a hash has in each direction, and of those the ones that make its key."""
KEY_BITS = KEY_SIDE * KEY_SIDE
CROPS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)
"""Shares of width and height that are left out around the middle. Half a step changes 2 bits of 64 (median of 23 videos)."""
FLAT = 8.0
"""Standard deviation in grey levels below which a picture is recognised by nothing."""
BLACK, BAR_SHARE, MOST_BARS = 24, 0.98, 0.5
"""Rows and columns of which so much is so dark are bars, up to so much of a side."""
NUM_BANDS, LOW_HZ, HIGH_HZ = 33, 300.0, 2000.0
FRAME_S, HOP_S = 0.37, 0.0464
"""Haitsma and Kalker's bands and frames; their hop is a quarter of this: a copy half a hop off keeps 7 bits of 8."""
SILENT_DB = -60.0
Hashes = NDArray[np.uint64]


def picture_hashes(image: NDArray[np.uint8]) -> Hashes | None:
    """uint64 [6], by `CROPS`, of a grey picture [h, w] without its black bars; None if it is flat."""
    import cv2

    image = without_bars(image)
    if float(image.std()) < FLAT:
        return None
    height, width = image.shape
    found = np.zeros(len(CROPS), np.uint64)
    for number, share in enumerate(CROPS):
        x, y = round(width * share / 2), round(height * share / 2)
        small = cv2.resize(image[y : height - y, x : width - x], (HASH_PX, HASH_PX), interpolation=cv2.INTER_AREA)
        waves = _waves()
        found[number] = _packed(waves @ small.astype(np.float64) @ waves.T)
    return found


def without_bars(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part of a grey picture [h, w] between black bars; all of it where bars would be most of it."""
    is_dark = image <= BLACK
    for axis in (0, 1):
        is_picture = np.flatnonzero(is_dark.mean(1 - axis) < BAR_SHARE)
        if len(is_picture) and is_picture[-1] + 1 - is_picture[0] >= MOST_BARS * image.shape[axis]:
            inside = slice(int(is_picture[0]), int(is_picture[-1]) + 1)
            image = image[inside] if axis == 0 else image[:, inside]
    return image


def keys(hashes: Hashes) -> Hashes:
    """The lowest coefficients of hashes, for exact search."""
    return np.asarray(hashes & np.uint64((1 << KEY_BITS) - 1))


def apart(a: Hashes, b: Hashes) -> NDArray[np.uint8]:
    """Bits of 64 in which hashes differ; broadcasts."""
    return np.asarray(np.bitwise_count(a ^ b))


def sound_prints(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.uint32]:
    """uint32 [n], one every `HOP_S`, of mono `samples` [m]; 0 where it is silent, [0] where there is too little."""
    size, hop = round(FRAME_S * rate_hz), round(HOP_S * rate_hz)
    num = (len(samples) - size) // hop + 1
    if num < 2:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop][:num]
    edges = _band_edges(size, rate_hz)
    energies = np.zeros((num, NUM_BANDS))
    for first in range(0, num, 256):  # a block at a time: an hour is 300 MB at once
        power = np.abs(np.fft.rfft(frames[first : first + 256] * np.hanning(size).astype(np.float32))) ** 2
        energies[first : first + 256] = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    slopes = energies[:, :-1] - energies[:, 1:]
    bits = (slopes[1:] - slopes[:-1]) > 0
    level = 10 * np.log10(np.square(frames[1:]).mean(1) + 1e-12)
    found = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)[:, 0]
    return np.where(level < SILENT_DB, np.uint32(0), found)


@cache
def _waves() -> NDArray[np.float64]:
    """[8, 64]: cosines 1 to 8."""
    waves, at = np.arange(1, SIDE + 1)[:, None], np.arange(HASH_PX)[None]
    return np.asarray(np.cos(np.pi / (2 * HASH_PX) * waves * (2 * at + 1)))


@cache
def _order() -> NDArray[np.intp]:
    """Places of the coefficients in a hash, those of its key first."""
    rows, columns = np.indices((SIDE, SIDE))
    return np.argsort((np.maximum(rows, columns) >= KEY_SIDE).ravel(), kind="stable")


def _packed(coefficients: NDArray[np.float64]) -> np.uint64:
    """One bit a coefficient, mirror images alike: mirroring turns the sign of every second column."""
    odd = coefficients[:, ::2]
    strongest = odd.ravel()[int(np.abs(odd).argmax())]
    signed = coefficients.copy()
    signed[:, ::2] *= 1.0 if strongest >= 0 else -1.0
    bits = (signed > 0).ravel()[_order()]
    return np.uint64(np.packbits(bits, bitorder="little").view(np.uint64)[0])


def _band_edges(size: int, rate_hz: int) -> NDArray[np.intp]:
    """[34]: first spectral lines of the bands, and the end of the last."""
    edges = np.geomspace(LOW_HZ, HIGH_HZ, NUM_BANDS + 1) * size / rate_hz
    return np.asarray(np.maximum.accumulate(np.round(edges)).astype(np.intp))
