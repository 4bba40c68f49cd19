"""BRISQUE: how far the statistics of a picture are from those of clean photographs.

Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", IEEE TIP 21(12), 2012: 18 figures of a
picture whose local mean and contrast were evened out, and 18 of the same at half the size, are weighed by a support vector
regression that was trained on people's opinions of the LIVE set. Its vectors and the ranges of the figures lie in the wheel
of `brisque`, of which nothing is imported.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.engines.packaged import packaged

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
NUM_FIGURES = 36
KERNEL_PX, KERNEL_SIGMA_PX = 7, 7 / 6
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""(down, right) from a pixel to those it is multiplied with."""
LEAST_PX = 32
"""Shortest side of a picture whose statistics say anything."""


@dataclass(frozen=True)
class Brisque:
    """The regression."""

    vectors: F64
    """[770, 36]"""
    weights: F64
    """[770]"""
    rho: float
    gamma: float
    low: F64
    """[36]: what becomes -1"""
    high: F64
    """[36]: what becomes 1"""

    @classmethod
    def load(cls) -> Brisque:
        """As it lies in its package. Raises RecipeError where that is missing or other."""
        lines = packaged("brisque").read_text().splitlines()
        start = lines.index("SV")
        head = dict(line.split(maxsplit=1) for line in lines[:start])
        rows = [line.split() for line in lines[start + 1 :]]
        vectors = np.zeros((len(rows), NUM_FIGURES))
        for vector, row in zip(vectors, rows, strict=True):
            for entry in row[1:]:
                place, _, value = entry.partition(":")
                vector[int(place) - 1] = float(value)
        low, high = _ranges()
        return cls(
            vectors, np.array([float(row[0]) for row in rows]), float(head["rho"]), float(head["gamma"]), low, high
        )

    def score(self, picture: NDArray[np.uint8]) -> float | None:
        """0 for the best, 100 for the worst of a grey picture [h, w]; None for one too small or flat."""
        found = figures(picture)
        if found is None:
            return None
        scaled = 2 * (found - self.low) / (self.high - self.low) - 1
        near = np.exp(-self.gamma * np.square(self.vectors - scaled).sum(1))
        return float(np.clip(self.weights @ near - self.rho, 0.0, 100.0))


def _ranges() -> tuple[F64, F64]:
    """Lowest and highest of each figure: the floats in a pickle of two lists, read without running it."""
    content = packaged("brisque_ranges").read_bytes()
    floats = np.array([value for code, value, _ in pickletools.genops(content) if code.name == "BINFLOAT"], np.float64)
    low, high = floats.reshape(2, NUM_FIGURES)
    return low, high


def figures(picture: NDArray[np.uint8]) -> F64 | None:
    """The 36 figures of a grey picture [h, w]."""
    import cv2

    if min(picture.shape) < LEAST_PX or picture.std() < 1:
        return None
    whole = picture.astype(np.float32)
    half = cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return np.concatenate([_of_one_size(whole), _of_one_size(half)])


def evened(picture: F32) -> F32:
    """`picture` [h, w] less its local mean, over its local contrast."""
    import cv2

    size = (KERNEL_PX, KERNEL_PX)
    mean = cv2.GaussianBlur(picture, size, KERNEL_SIGMA_PX)
    square = cv2.GaussianBlur(picture * picture, size, KERNEL_SIGMA_PX)
    return np.asarray((picture - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1), np.float32)


def _of_one_size(picture: F32) -> F64:
    from scipy.special import gammaln

    even = evened(picture)
    shape, left, right = fit(even)
    found = [shape, (left**2 + right**2) / 2]
    high, wide = even.shape
    for down, across in NEIGHBOURS:
        first = even[: high - down, max(0, -across) : wide - max(0, across)]
        second = even[down:, max(0, across) : wide + min(0, across)]
        shape, left, right = fit(first * second)
        lean = (right - left) * np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
        found += [shape, float(lean), left**2, right**2]
    return np.array(found)


def fit(values: F32) -> tuple[float, float, float]:
    """Shape, left and right spread of the asymmetric generalised Gaussian whose moments `values` have."""
    sizes = np.abs(values)
    squares = np.square(values)
    is_left = values < 0
    num_left = max(1, int(is_left.sum()))
    sum_left, total = float(squares[is_left].sum()), float(squares.sum())
    left = np.sqrt(sum_left / num_left)
    right = np.sqrt(max(total - sum_left, 1e-12) / max(1, values.size - num_left))
    lean = max(left, 1e-6) / right
    ratio = float(sizes.mean()) ** 2 / max(total / values.size, 1e-12)
    wanted = ratio * (lean**3 + 1) * (lean + 1) / (lean**2 + 1) ** 2
    shapes, ratios = _table()
    return float(shapes[min(np.searchsorted(ratios, wanted), len(shapes) - 1)]), float(left), float(right)


@cache
def _table() -> tuple[F64, F64]:
    """Shapes from 0.2 to 10, and the ratio of squared mean size to mean square of each, which rises with it."""
    from scipy.special import gammaln

    shapes = np.arange(0.2, 10.0, 0.001)
    return shapes, np.exp(2 * gammaln(2 / shapes) - gammaln(1 / shapes) - gammaln(3 / shapes))
