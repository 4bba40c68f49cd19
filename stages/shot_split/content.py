"""Shot boundaries by content: a fast look at every frame, a close look only where something may have changed.

All of it works on thumbnails of 48 x 27 pixels; shapes as in `thumbs`.

Own constants come from reasoning about what the quantity means, checked on generated films (cuts, dissolves,
fades, flashes, captions, shake, noise, 5 to 60 fps; see `benchmarks/quality_shots_kinds.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import bridged, runs
from stages.shot_split.evidence import LAGS, cut_candidates, examine, probability_of
from stages.shot_split.thumbs import HEIGHT, NOISE, WIDTH, Array, Thumbs, levelled, new_content, planes, tiles

CHUNK = 512
MIX_SPANS_S = (0.15, 0.3, 0.6)
"""Half lengths at which mixing is looked for; dissolves and fades usually take 0.3 to 2 s."""
MIX_CHANGE = 25.0
"""Change |dY|+|dU|+|dV| across a mixture that makes it worth a look."""
MIX_RESIDUAL = 0.25
"""Share of that change that the mixture may leave unexplained; motion leaves half and more."""
BLEND_NEWS, SURE_BLEND_NEWS = 5.0, 8.0
"""Residual that motion leaves unexplained at a blend worth a second opinion, and at one that needs none."""
BLEND_SHARE, SURE_BLEND_SHARE = 0.8, 0.55
"""Share of that residual which the best mixture may leave at such a blend; in a pan, motion explains more."""
WIPE_SIDE = 0.85
"""Share of the change that one line parts into new and old during a wipe; the edge itself crosses one tile in sixteen."""
LEVEL, LEVEL_NEWS = 50.0, 15.0
"""Contrast given to levelled pictures, that of usual ones, and the residual of motion up to which they show the same."""
SURE_STRENGTH = 0.66
"""Strength of a mixture that needs no second opinion: one sixth of the change unexplained."""
MIN_BLEND_S = 0.1
"""Shortest stretch of blended pictures that counts; shorter ones are compression smear at a cut."""


@dataclass(frozen=True)
class Boundary:
    """A change of shot. `start` is the first frame of the transition, `end` the first frame of the new shot.

    A hard cut has no transition: both are the first frame of the new shot.
    """

    start: int
    end: int
    kind: Literal["hard", "gradual"]
    confidence: float


class ContentDetector:
    """Finds cuts, dissolves and fades by content alone; no weights.

    Costs about 0.05 ms per frame and 5 ms per possible cut on one core. Light changes, flashes, captions and steady
    motion are told from cuts; jump cuts in which little moves, titles over plain pictures and wipes are its weak spots.
    """

    frame_size = (WIDTH, HEIGHT)

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 27, 48, 3], in order."""
        seen, hard = survey(thumbs, fps), []
        for at in cut_candidates(seen.changes, seen.levelled_changes):
            log_odds = examine(thumbs, at, fps).log_odds
            if log_odds > 0:
                hard.append(Boundary(at, at, "hard", probability_of(log_odds)))
        return combine(hard, sure_transitions(thumbs, blends(thumbs, seen.mixture, fps), hard, fps), thumbs)


@dataclass(frozen=True)
class Survey:
    """What one pass over every frame shows."""

    changes: Array
    """[LAGS + 1, n]: mean |dY|+|dU|+|dV| between frame t - lag and frame t; infinite where there is no such frame."""
    levelled_changes: Array
    """The same of levelled tiles."""
    mixture: NDArray[np.float64]
    """[n] in [0, 1): how surely each frame is a blend of an earlier and a later picture; 0 for no."""
    mosaic: NDArray[np.float64]
    """[n] in [0, 1): how surely each frame is a later picture on one side and an earlier one on the other; 0 for no."""


def survey(thumbs: Thumbs, fps: float) -> Survey:
    """The fast look at every frame of `thumbs` [n, 27, 48, 3], in pieces, so that long videos fit in memory."""
    num, halves = len(thumbs), _halves(fps)
    halo = max(LAGS, halves[-1])
    changes, steady = np.full((2, LAGS + 1, num), np.inf, np.float32)
    mixture, mosaic = np.zeros((2, num))
    for first in range(0, num, CHUNK):
        low, end = max(0, first - halo), min(num, first + CHUNK)
        part = planes(thumbs[low : end + halo])
        small = tiles(part)
        for pictures, into in ((part, changes), (levelled(small.reshape(len(part), -1, 3)), steady)):
            for lag in range(1, LAGS + 1):
                start = max(first, low + lag)
                if start < end:
                    step = pictures[start - low : end - low] - pictures[start - low - lag : end - low - lag]
                    into[lag, start:end] = 3 * np.abs(step, out=step).reshape(end - start, -1).mean(1)
        view = mixture[low : low + len(part)]
        for half in halves:
            np.maximum(view, mixtures(small, half), out=view)
        view = mosaic[low : low + len(part)]
        np.maximum(view, mosaics(small, halves[0]), out=view)
    return Survey(changes, steady, mixture, mosaic)


def mixtures(small: Array, half: int) -> NDArray[np.float64]:
    """[n] in [0, 1): how surely each frame is a blend of those `half` frames before and after it; 0 for no.

    Dissolves blend two shots, fades blend a shot with a flat picture. Means of tiles, `small` [n, k], are compared
    rather than pixels, so that slight motion does not count.
    """
    strength = np.zeros(len(small))
    if len(small) > 2 * half:
        whole, part = small[2 * half :] - small[: -2 * half], small[half:-half] - small[: -2 * half]
        share = (whole * part).sum(1) / ((whole * whole).sum(1) + 1e-6)
        size = np.abs(whole).mean(1)
        left = np.abs(part - share[:, None] * whole).mean(1) / (size + 2)
        is_mix = (3 * size > MIX_CHANGE) & (np.abs(share - 0.5) < 0.25) & (left < MIX_RESIDUAL)
        strength[half:-half] = np.where(is_mix, 1 - 2 * left, 0.0)
    return strength


def mosaics(small: Array, half: int) -> NDArray[np.float64]:
    """[n] in [0, 1): how surely each frame shows, on one side, the picture `half` frames later and else the one before.

    That is what wipes do; in a pan over flat colours, each edge has new tiles on one side and old ones on the other.
    The frame counts where about half of what changes has done so. `small` as for `mixtures`.
    """
    strength = np.zeros(len(small))
    if len(small) > 2 * half:
        each = small.reshape(len(small), -1, 3)
        old, here, new = each[: -2 * half], each[half:-half], each[2 * half :]
        whole, to_old, to_new = (np.abs(a - b).sum(2) for a, b in ((old, new), (here, old), (here, new)))
        size = whole.mean(1)
        is_new = to_new < to_old
        share = (whole * is_new).mean(1) / (size + 1e-6)
        left = np.minimum(to_old, to_new).mean(1) / (size + 6)
        is_mosaic = (size > MIX_CHANGE) & (np.abs(share - 0.5) < 0.25) & (left < MIX_RESIDUAL)
        is_mosaic &= _one_sided(whole, is_new) > WIPE_SIDE
        strength[half:-half] = np.where(is_mosaic, 1 - 2 * left, 0.0)
    return strength


def _one_sided(weights: Array, is_new: NDArray[np.bool_]) -> Array:
    """[n] in [0.5, 1]: how well one upright or level line parts the new tiles from the old, weighted by [n, 144]."""
    grid = (np.where(is_new, weights, -weights)).reshape(len(weights), HEIGHT // 3, WIDTH // 3)
    total, lead = weights.sum(1) + 1e-6, grid.sum((1, 2))
    best = np.zeros(len(weights), np.float32)
    for axis in (1, 2):
        before = np.cumsum(grid.sum(axis), axis=1)
        best = np.maximum(best, np.abs(2 * before - lead[:, None]).max(1))
    return np.asarray((best / total + 1) / 2, np.float32)


def _halves(fps: float) -> list[int]:
    """`MIX_SPANS_S` in frames, ascending."""
    return sorted({max(2, round(span * fps)) for span in MIX_SPANS_S})


@dataclass(frozen=True)
class Blend:
    """Frames [first, end) that are each a mixture of an earlier and a later picture rather than moved ones."""

    first: int
    end: int
    strength: float
    is_sure: bool


def blends(thumbs: Thumbs, mixture: NDArray[np.float64], fps: float) -> list[Blend]:
    """The stretches of `thumbs` that look like a dissolve or fade, the more doubtful ones included.

    `mixture` is that of their `Survey`.
    """
    found = []
    for first, end in lasting(mixture > 0, 2):
        middle = first + int(np.argmax(mixture[first:end]))
        strength = float(mixture[middle])
        share, news = min(_mixed_or_moved(thumbs, middle, half) for half in _halves(fps))
        is_long = end - first >= MIN_BLEND_S * fps
        is_sure = is_long and strength >= SURE_STRENGTH and share <= SURE_BLEND_SHARE and news >= SURE_BLEND_NEWS
        if share <= BLEND_SHARE and news >= BLEND_NEWS:
            found.append(Blend(first, end, strength, is_sure))
    return found


def _mixed_or_moved(thumbs: Thumbs, middle: int, half: int) -> tuple[float, float]:
    """(residual of mixing over residual of motion, residual of motion) at frame `middle`, from frames `half` away.

    Where only the light differs between those, nothing is mixed, and the first is infinite.
    """
    before, here, after = planes(thumbs[[max(0, middle - half), middle, min(len(thumbs) - 1, middle + half)]])
    moved = min(float(new_content(other, here, is_relit=False).mean()) for other in (before, after))
    first, last = LEVEL * levelled(np.stack([before, after]).reshape(2, -1, 3)).reshape(2, HEIGHT, WIDTH, 3)
    if float(new_content(first, last, is_relit=False).mean()) < LEVEL_NEWS:
        return float("inf"), moved
    whole = (after - before).ravel()
    share = float(whole @ (here - before).ravel()) / (float(whole @ whole) + 1e-6)
    mixed = before + np.float32(np.clip(share, 0, 1)) * (after - before)
    return float(new_content(mixed, here, is_relit=False).mean()) / (moved + 1), moved


def wipes(thumbs: Thumbs, mosaic: NDArray[np.float64], fps: float) -> list[Blend]:
    """The stretches of `thumbs` that look like a wipe and not like motion; content alone is never sure of one.

    `mosaic` is that of their `Survey`.
    """
    half, found = _halves(fps)[0], []
    for first, end in lasting(mosaic > 0, 2):
        middle = first + int(np.argmax(mosaic[first:end]))
        ends = [max(0, middle - half), min(len(thumbs) - 1, middle + half)]
        here, *others = planes(thumbs[[middle, *ends]])
        if min(float(new_content(other, here, is_relit=False).mean()) for other in others) >= BLEND_NEWS:
            found.append(Blend(first, end, float(mosaic[middle]), is_sure=False))
    return found


def sure_transitions(thumbs: Thumbs, found: Sequence[Blend], hard: Sequence[Boundary], fps: float) -> list[Boundary]:
    """The gradual transitions of those blends `found` that need no second opinion; none reaches over a `hard` cut."""
    transitions = []
    for blend in found:
        low = max((cut.start for cut in hard if cut.start <= blend.first), default=0)
        high = min((cut.start for cut in hard if cut.start >= blend.end), default=len(thumbs))
        if blend.is_sure:
            transitions.append(Boundary(*ramp(thumbs, blend, (low, high), fps), "gradual", blend.strength))
    return transitions


def ramp(thumbs: Thumbs, blend: Blend, limits: tuple[int, int], fps: float) -> tuple[int, int]:
    """[start, end) of the frames that lie between both pictures of `blend`, within `limits`."""
    reach = round(MIX_SPANS_S[-1] * fps)
    low, high = max(limits[0], blend.first - reach), min(limits[1], blend.end + reach)
    flat = planes(thumbs[low:high]).reshape(high - low, -1)
    whole = flat[-1] - flat[0]
    share = (flat - flat[0]) @ whole / (float(whole @ whole) + 1e-6)
    middle = (blend.first + blend.end) // 2 - low
    before = np.flatnonzero(share[: middle + 1] < 0.05)
    after = np.flatnonzero(share[middle:] > 0.95)
    start = low + (int(before[-1]) + 1 if len(before) else 0)
    end = low + (middle + int(after[0]) if len(after) else high - low)
    return min(start, blend.first), max(end, blend.end)


def lasting(mask: NDArray[np.bool_], min_length: int) -> list[tuple[int, int]]:
    """[first, end) of the stretches of True in `mask` of at least `min_length`, gaps shorter than that closed."""
    closed = bridged(runs(mask), min_length).tolist()
    return [(first, end) for first, end in closed if end - first >= min_length]


def combine(hard: Sequence[Boundary], soft: Sequence[Boundary], thumbs: Thumbs) -> list[Boundary]:
    """All boundaries in order without overlap: a cut inside a gradual range replaces it, one where it begins is part
    of it, ranges that touch or have only a flat picture between them (fade out, black, fade in) become one.
    """
    kept: list[Boundary] = []
    for found in sorted(soft, key=lambda b: b.start):
        if any(found.start < cut.start < found.end for cut in hard):
            continue
        last = kept[-1] if kept else None
        if last and (found.start <= last.end or _is_flat(thumbs[last.end : found.start])):
            confidence = max(last.confidence, found.confidence)
            kept[-1] = Boundary(last.start, max(last.end, found.end), "gradual", confidence)
        else:
            kept.append(found)
    apart = [cut for cut in hard if not any(r.start <= cut.start < r.end for r in kept)]
    return sorted([*kept, *apart], key=lambda b: (b.start, b.end))


def _is_flat(thumbs: Thumbs) -> bool:
    """Whether most pictures show nothing but one brightness, and there are not too many of them to look at."""
    return len(thumbs) < CHUNK and float(np.median(planes(thumbs)[..., 0].std((1, 2)))) < NOISE
