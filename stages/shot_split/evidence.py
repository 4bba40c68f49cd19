"""What speaks for a cut at one place: where to look, and how it looks from close by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from stages.shot_split.thumbs import NOISE, Array, Thumbs, new_content, planes

REACH = 3
"""Frames looked at on either side of a cut; a disturbance shorter than this cannot look like one."""
LAGS = 2 * REACH - 1
MIN_CHANGE = 6.0
"""Smallest mean change |dY|+|dU|+|dV| of a cut: three times the noise of 8-bit video after averaging."""
REPEAT_CHANGE = 0.5
"""Mean change up to which a frame repeats the one before: less than half a grey level."""
MIN_CONTRAST = 1.05
"""A cut changes at least this much more than the frames around it do."""
SHARE_OF_CALM_BLOCKS = 2 / 3
"""A caption or a passer-by changes at most a third of the picture; a cut changes the rest as well."""
FLASH_S = 0.2
"""Longest flash of light: photographers' and stroboscopic flashes last a few frames."""
CUT_SCORE = 1.0
"""`Evidence.score` from which the content engine alone calls a cut: as much new content as motion and noise bring."""


@dataclass(frozen=True)
class Evidence:
    """How a possible cut looks from close by."""

    change: float
    """Picture content that is new after the cut, over what is new from frame to frame around it."""
    calm_change: float
    """The same for the two thirds of the picture that changed least."""
    is_flash: bool
    """The earlier picture comes back at once, and the change was one of brightness."""

    @property
    def score(self) -> float:
        """Geometric mean of both changes, 0 for a flash; from about 1 on it looks like a cut."""
        return 0.0 if self.is_flash else float(np.sqrt(self.change * self.calm_change))


def confidence_of(score: float) -> float:
    """`Evidence.score` as a number in [0, 1) that is one half at the decision threshold."""
    return score**2 / (score**2 + CUT_SCORE**2)


def cut_candidates(changes: Array) -> list[int]:
    """Frames at which a new shot may begin: everything before differs from everything after, within three frames.

    `changes` is that of a `Survey`.
    """
    num = changes.shape[1]
    between = np.full(num, np.inf, np.float32)
    within = np.zeros(num, np.float32)
    for after in range(REACH):
        for before in range(1, REACH + 1):
            lag = before + after
            between[: num - after] = np.minimum(between[: num - after], changes[lag, after:])
    steps = np.where(np.isinf(changes[1]), 0, changes[1])
    for shift in (-2, -1, 1, 2):
        moved = np.zeros(num, np.float32)
        if shift > 0:
            moved[:-shift] = steps[shift:]
        else:
            moved[-shift:] = steps[:shift]
        within = np.maximum(within, moved)
    between[0] = 0
    is_peak = between >= np.maximum(np.append(between[1:], 0), np.append(0, between[:-1]))
    return [int(t) for t in np.flatnonzero((between > MIN_CHANGE) & (between > MIN_CONTRAST * within) & is_peak)]


def examine(thumbs: Thumbs, at: int, fps: float) -> Evidence:
    """A close look at the possible cut before frame `at`.

    Each block of a later picture is sought near its place in an earlier one, with the lighting evened out. What
    is not found is new content. The least new pair across the cut is compared with the newest step beside it.
    """
    reach = max(REACH, round(FLASH_S * fps)) + 1
    low = max(0, at - reach)
    part, here = planes(thumbs[low : at + reach + 1]), at - low
    pairs = [(i, j) for i in (here - 1, here - 2) for j in (here, here + 1) if i >= 0 and j < len(part)]
    steps = _nearest_steps(part, range(here - 1, 0, -1)) + _nearest_steps(part, range(here + 1, len(part)))
    across = [new_content(part[i], part[j]) for i, j in pairs]
    beside = [new_content(part[s - 1], part[s]) for s in steps]
    calm = round(SHARE_OF_CALM_BLOCKS * len(across[0]))
    changes = [
        min(float(b[:k].mean()) for b in across) / (max((float(b[:k].mean()) for b in beside), default=0.0) + NOISE)
        for k in (len(across[0]), calm)
    ]
    return Evidence(changes[0], changes[1], _is_flash(part, here))


def _nearest_steps(part: Array, order: Iterable[int]) -> list[int]:
    """The first two frames in `order` that differ from the one before; repeated frames say nothing about motion."""
    steps = (s for s in order if np.abs(part[s] - part[s - 1]).sum(-1).mean() > REPEAT_CHANGE)
    return list(islice(steps, 2))


def _is_flash(part: Array, here: int) -> bool:
    """Whether the change before frame `here` is mostly brightness and the picture from before it returns at once."""
    step = part[here] - part[here - 1]
    size = float(np.abs(step).sum(-1).mean())
    if abs(float(step[..., 0].mean())) < 0.5 * size:
        return False
    later = np.abs(part[here + 1 :] - part[here - 1]).sum(-1).mean((1, 2))
    earlier = np.abs(part[: here - 1] - part[here]).sum(-1).mean((1, 2))
    return bool((later < 0.35 * size).any() or (earlier < 0.35 * size).any())
