"""Distances between sets of samples: Frechet distance, Kullback-Leibler divergence, inception score. Formulas, no networks."""

from __future__ import annotations

import numpy as np

from model.evaluate.metric import Vector

SMALLEST = 1e-12
"""Probabilities are held above this, so that a class that never occurs costs much and not infinitely much."""


def frechet(one: Vector, other: Vector) -> float:
    """Frechet distance of the Gaussians through two sets of vectors, [n, d] and [m, d], n and m of two and more.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2). The last trace is the sum of the singular values of A B^T where S1 = A^T A and
    S2 = B^T B are the factors that the vectors themselves are: exact for any rank, where the root of a product of matrices
    loses half the digits. Raises ValueError for fewer than two vectors, which have no covariance.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{min(len(one), len(other))} vectors have no covariance: a set needs two and more")
    means = [vectors.mean(axis=0) for vectors in (one, other)]
    factors = [
        _narrow((vectors - mean) / np.sqrt(len(vectors) - 1)) for vectors, mean in zip((one, other), means, strict=True)
    ]
    traces = sum(float(np.sum(factor**2)) for factor in factors)
    shared = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2)) + traces - 2.0 * shared)


def pair_frechet(one: Vector, other: Vector) -> float:
    """Verse-Bench's distance of one pair of files, by one vector [d] each: without covariance what is left is the means."""
    return float(np.sum((one - other) ** 2))


def _narrow(factor: Vector) -> Vector:
    """A factor of the same covariance with at most as many rows as columns."""
    return np.asarray(np.linalg.qr(factor, mode="r")) if len(factor) > factor.shape[1] else factor


def divergence(made: Vector, real: Vector) -> float:
    """Kullback-Leibler divergence sum real log(real / made) of two distributions over classes [c], in nats."""
    made, real = (np.maximum(each, SMALLEST) / np.maximum(each, SMALLEST).sum() for each in (made, real))
    return float(np.sum(real * np.log(real / made)))


def inception_score(classes: Vector) -> float:
    """exp of the mean divergence of each sample's distribution over classes [n, c] from that of all samples together."""
    held = np.maximum(classes, SMALLEST)
    held = held / held.sum(axis=1, keepdims=True)
    together = held.mean(axis=0)
    return float(np.exp(np.mean(np.sum(held * np.log(held / together), axis=1))))
