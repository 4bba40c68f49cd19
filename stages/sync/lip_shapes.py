"""The shape of a mouth over time, whatever the head does, from the points of a followed face."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.face_tracks import CHIN, INNER_LIP, OUTER_LIP, STEADY, FaceTrack, at
from stages.sync.channels import GRID_HZ, Signal, without_trend

Array = NDArray[Any]

MAX_GAP_S = 0.25
"""Frames without a face are bridged up to this long; longer gaps count for nothing."""
NUM_TURNS = 3
TURN_NOISE = 0.02
"""Radians by which a mesh turns on a head at rest; what the mouth seems to do with smaller turns is hardly taken out."""
NUM_SHAPES = 7


def mouth_features(track: FaceTrack, start_s: float, end_s: float) -> Signal:
    """Lip shapes between two instants: [n, 142] = opening, width, height, lower lip, chin, upper lip, protrusion, lips.

    Unit: distance of the outer eye corners. The head's pose is taken out, then the local mean (`TREND_S`), then what goes
    along with the head's turns: the mesh of a turning head gives its mouth other shapes.
    """
    aligned, turns = align(track.points.astype(np.float64))
    lips = aligned[:, at(*INNER_LIP, *OUTER_LIP, *CHIN)].reshape(len(aligned), -1)
    values = np.concatenate([mouth_shapes(aligned), lips], axis=1)
    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    grid = np.arange(first, last) / GRID_HZ
    columns = np.concatenate([values, turns], axis=1)
    columns = without_trend(np.stack([np.interp(grid, track.times_s, column) for column in columns.T], axis=1))
    after = np.clip(np.searchsorted(track.times_s, grid), 1, max(len(track.times_s) - 1, 1))
    gap = np.diff(track.times_s, append=track.times_s[-1:])[after - 1]
    inside = (grid >= track.times_s[0]) & (grid <= track.times_s[-1] + 1.5 / GRID_HZ + MAX_GAP_S / 5)
    weights = (inside & (gap <= MAX_GAP_S)).astype(np.float64)
    return Signal(first, _unturned(columns[:, :-NUM_TURNS], columns[:, -NUM_TURNS:], weights), weights)


def _unturned(values: Array, turns: Array, weights: Array) -> Array:
    """`values` [n, k] less their ridge regression on `turns` [n, 3]."""
    seen = weights[:, None] * turns
    penalty = TURN_NOISE**2 * len(turns) * np.eye(NUM_TURNS)
    return np.asarray(values - turns @ np.linalg.solve(seen.T @ turns + penalty, seen.T @ values))


def mouth_shapes(aligned: Array) -> Array:
    """float64 [n, 7] of aligned points [n, 69, 3]: opening, width, height, lower lip, chin, upper lip, protrusion."""
    upper = aligned[:, at(82, 13, 312)].mean(1)
    lower = aligned[:, at(87, 14, 317)].mean(1)
    left, right, above, below, chin = aligned[:, at(61, 291, 0, 17, 152)].transpose(1, 0, 2)
    opening = np.linalg.norm(upper - lower, axis=1)
    width = np.linalg.norm(left - right, axis=1)
    height = np.linalg.norm(above - below, axis=1)
    protrusion = aligned[:, at(0, 17), 2].mean(1)
    return np.stack([opening, width, height, below[:, 1], chin[:, 1], above[:, 1], protrusion], axis=1)


def align(points: Array) -> tuple[Array, Array]:
    """Points [n, 69, 3] turned, moved and scaled so that the steady points coincide and the mean face looks ahead.

    Least-squares similarity per frame (Umeyama 1991) onto the mean of the clip, twice, for the mean itself sharpens.
    Also the turns [n, 3] that did it, in radians if they are small: to the side, up and down, and in the picture.
    """
    steady = at(*STEADY)
    mean = points.mean(0)
    aligned = points
    for _ in range(2):
        target = mean[steady] - mean[steady].mean(0)
        source = points[:, steady]
        centre = source.mean(1, keepdims=True)
        source = source - centre
        left, scale, right = np.linalg.svd(source.transpose(0, 2, 1) @ target)
        mirror = np.ones_like(scale)
        mirror[:, 2] = np.sign(np.linalg.det(left @ right))
        turn = (left * mirror[:, None]) @ right
        size = (scale * mirror).sum(1) / np.maximum((source**2).sum((1, 2)), 1e-9)
        aligned = size[:, None, None] * ((points - centre) @ turn)
        mean = aligned.mean(0)
    left_eye, right_eye, chin, forehead = mean[at(263, 33, 152, 10)]
    across = left_eye - right_eye
    unit = float(np.linalg.norm(across))
    across = across / unit
    down = chin - forehead
    down = down - across * (down @ across)
    down = down / np.linalg.norm(down)
    ahead = aligned @ np.stack([across, down, np.cross(across, down)], axis=1) / unit
    return np.asarray(ahead), turn[:, (0, 1, 0), (2, 2, 1)]
