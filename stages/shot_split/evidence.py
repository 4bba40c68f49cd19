"""What speaks for a cut at one place: where to look, and how it looks from close by.

Four things are measured on three frames either side and added up as log-odds, a logistic regression
(`benchmarks/fit_shots.py`). Flashes, strobes and lamps change a picture's level, which is taken out; pans and shake
change it as much in the frames beside; inserts and titles leave most of it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.shot_split.thumbs import (
    BLOCK_H,
    BLOCK_W,
    HEIGHT,
    WIDTH,
    Array,
    Thumbs,
    levelled,
    new_content,
    planes,
    tiles,
)

REACH = 3
"""Frames looked at on either side of a cut; a disturbance shorter than this cannot look like one."""
LAGS = 2 * REACH - 1
MIN_CHANGE, MIN_LEVELLED_CHANGE = 6.0, 0.25
"""Smallest mean change |dY|+|dU|+|dV| of a possible cut, three times the noise of 8-bit video after averaging; and the
same for levelled pictures, a tenth of what two pictures that have nothing to do with each other differ by."""
MIN_CONTRAST, MIN_LEVELLED_CONTRAST = 0.9, 1.05
"""A possible cut changes at least this much of what the frames around it do; what shakes may change more than the cut."""
SHORTEST = 2
"""Frames that a film must have before its first cut and after its last; one alone may be a flash or a fault."""
FLASH_S = 0.2
"""Longest flash of light: photographers' and stroboscopic flashes last a few frames."""
LIT = 16.0
"""Luma up to which a tile is taken for part of black bars if it stays so dark; codecs leave black at 0 to 10."""
LEAST_LIT = 1 / 8
"""Share of the picture that must be lit to leave out the rest."""
BACK, AWAY = 1 / 3, 0.8
"""Shares of the change: with less left of it the old picture is back, with more it is gone; in between, the more the surer."""
EASE_CHANGE = 0.03
"""Keeps logarithms of small differences harmless: what coding noise makes of two like pictures."""
CONTENT_WEIGHTS, CONTENT_BIAS = (2.27, 1.88, 5.96, 1.52), -9.79
"""Logistic regression on `Evidence.features`, fitted by `benchmarks/fit_shots.py`."""


@dataclass(frozen=True)
class Evidence:
    """How a possible cut looks from close by; bars at the picture's sides are left out."""

    change: float
    """Difference of the levelled pictures: the least among all pairs across, 0 to about 2.5."""
    beside: float
    """The greatest such difference between neighbours on either side."""
    staying: float
    """How far the old picture stays away within `FLASH_S`, as a share of the change: 0 if it comes back, 1 if not."""
    news: float
    """Residual in the least new third of the picture after motion and light are accounted for, in grey levels."""

    @property
    def log_odds(self) -> float:
        """Of a cut against none, by content alone."""
        return float(np.dot(CONTENT_WEIGHTS, self.features()) + CONTENT_BIAS)

    def features(self) -> NDArray[np.float64]:
        """The four measurements as the regression sees them [4]."""
        ratio = (self.change + EASE_CHANGE) / (self.beside + EASE_CHANGE)
        staying = 0.0 if self.staying < BACK else min(self.staying, AWAY)
        return np.array([np.log(self.change + EASE_CHANGE), np.log(ratio), staying, np.log(self.news + 1)])


def probability_of(log_odds: float) -> float:
    """Log-odds as a probability."""
    return float(1 / (1 + np.exp(-log_odds)))


def cut_candidates(changes: Array, levelled_changes: Array) -> list[int]:
    """Frames at which a new shot may begin: everything before differs from everything after, within three frames.

    Both are those of a `Survey`: a cut stands out from motion in the pictures as they are, or from flicker in the
    levelled ones.
    """
    plain = peaks(changes, MIN_CHANGE, MIN_CONTRAST)
    steady = peaks(levelled_changes, MIN_LEVELLED_CHANGE, MIN_LEVELLED_CONTRAST)
    return sorted({*plain, *(at for at in steady if not {at - 1, at, at + 1} & {*plain})})


def peaks(changes: Array, least: float, contrast: float) -> list[int]:
    """Frames at which `changes` across are at least `least` and `contrast` times those beside, and locally greatest."""
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
    between[:SHORTEST] = between[num - SHORTEST + 1 :] = 0
    is_peak = between >= np.maximum(np.append(between[1:], 0), np.append(0, between[:-1]))
    return [int(t) for t in np.flatnonzero((between > least) & (between > contrast * within) & is_peak)]


def examine(thumbs: Thumbs, at: int, fps: float) -> Evidence:
    """A close look at the possible cut before frame `at`, which is not the first.

    For `Evidence.news`, each block of a later picture is sought near its place in an earlier one, with the lighting
    evened out; of the pairs across the cut, the one with the least news counts.
    """
    reach = max(REACH, round(FLASH_S * fps)) + 1
    low = max(0, at - reach)
    part, here = planes(thumbs[low : at + reach + 1]), at - low
    old, new = range(max(0, here - REACH), here), range(here, min(len(part), here + REACH))
    small = tiles(part).reshape(len(part), -1, 3)
    flat = levelled(small[:, _lit(small[old.start : new.stop, :, 0])])

    def apart(i: int, j: int) -> float:
        return float(np.abs(flat[i] - flat[j]).sum(1).mean())

    step = apart(here - 1, here) + EASE_CHANGE
    gone = [apart(here - 1, j) for j in range(here + 1, len(part))] + [apart(i, here) for i in range(here - 1)]
    beside = [apart(i, i + 1) for i in (*old[:-1], *new[:-1])]
    return Evidence(
        min(apart(i, j) for i in old for j in new),
        max(beside, default=0.0),
        min(1.0, min(gone, default=step) / step),
        min(_least_news(part[i], part[j]) for i in old[-2:] for j in new[:2]),
    )


def _lit(luma: Array) -> NDArray[np.bool_]:
    """[k]: which tiles of `luma` [n, k] are not black throughout; all, if hardly any."""
    is_lit: NDArray[np.bool_] = luma.max(0) > LIT
    return is_lit if is_lit.mean() >= LEAST_LIT else np.ones_like(is_lit)


def _least_news(before: Array, after: Array) -> float:
    """Mean of `new_content` over the third of the blocks in which it is least."""
    luma = np.maximum(before[..., 0], after[..., 0]).reshape(HEIGHT // BLOCK_H, BLOCK_H, WIDTH // BLOCK_W, BLOCK_W)
    news = np.sort(new_content(before, after)[_lit(luma.mean((1, 3)).reshape(1, -1))])
    return float(news[: max(1, len(news) // 3)].mean())
