"""Shot boundaries by content: a fast look at every frame, a close look only where something may have changed.

All of it works on thumbnails of 48 x 27 pixels. Shape legend: n frames, [n, 27, 48, 3] RGB thumbnails, planes are
float32 luma and two chroma channels of the same shape, on a scale of 0 to 255.

Own constants come from reasoning about what the quantity means, checked on synthetic montages (cuts, dissolves,
fades, flashes, captions, shake, noise, 5 to 60 fps; see `benchmarks/quality_shots_montage.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import bridged, runs

Thumbs = NDArray[np.uint8]
Array = NDArray[np.float32]

WIDTH, HEIGHT = 48, 27
CHUNK = 512
YUV_FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.564 * 0.299, -0.564 * 0.587, 0.564 * 0.886],
        [0.713 * 0.701, -0.713 * 0.587, -0.713 * 0.114],
    ],
    np.float32,
)
"""ITU-R BT.601: luma, 0.564 (B - Y) and 0.713 (R - Y)."""
REACH = 3
"""Frames looked at on either side of a cut; a disturbance shorter than this cannot look like one."""
LAGS = 2 * REACH - 1
MIN_CHANGE = 6.0
"""Smallest mean change |dY|+|dU|+|dV| of a cut: three times the noise of 8-bit video after averaging."""
REPEAT_CHANGE = 0.5
"""Mean change up to which a frame repeats the one before: less than half a grey level."""
MIN_CONTRAST = 1.05
"""A cut changes at least this much more than the frames around it do."""
NOISE = 6.0
"""Residual (root mean square) that motion within a shot leaves anyway; keeps ratios of small numbers harmless."""
BLOCK_W, BLOCK_H = 8, 9
SHIFT_X, SHIFT_Y = 5, 4
"""Motion between frames that is followed: a tenth of the width, a seventh of the height."""
SHARE_OF_CALM_BLOCKS = 2 / 3
"""A caption or a passer-by changes at most a third of the picture; a cut changes the rest as well."""
FLASH_S = 0.2
"""Longest flash of light: photographers' and stroboscopic flashes last a few frames."""
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
SURE_STRENGTH = 0.66
"""Strength of a mixture that needs no second opinion: one sixth of the change unexplained."""
MIN_BLEND_S = 0.1
"""Shortest stretch of blended pictures that counts; shorter ones are compression smear at a cut."""
CUT_SCORE = 1.0
"""`Evidence.score` from which the content engine alone calls a cut: as much new content as motion and noise bring."""


@dataclass(frozen=True)
class Boundary:
    """A change of shot. `start` is the first frame of the transition, `end` the first frame of the new shot.

    A hard cut has no transition: both are the first frame of the new shot.
    """

    start: int
    end: int
    kind: Literal["hard", "gradual"]
    confidence: float


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


class ContentDetector:
    """Finds cuts, dissolves and fades by content alone; no weights.

    Costs about 0.03 ms per frame and 7 ms per possible cut on one core. Light changes, flashes, captions and steady
    motion are told from cuts; cuts between alike pictures at a few frames per second, and wipes, are its weak spots.
    """

    frame_size = (WIDTH, HEIGHT)

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 27, 48, 3], in order."""
        seen, hard = survey(thumbs, fps), []
        for at in cut_candidates(seen.changes):
            score = examine(thumbs, at, fps).score
            if score >= CUT_SCORE:
                hard.append(Boundary(at, at, "hard", confidence_of(score)))
        return combine(hard, sure_transitions(thumbs, blends(thumbs, seen.mixture, fps), hard, fps), thumbs)


def confidence_of(score: float) -> float:
    """`Evidence.score` as a number in [0, 1) that is one half at the decision threshold."""
    return score**2 / (score**2 + CUT_SCORE**2)


def planes(thumbs: Thumbs) -> Array:
    """Luma and colour difference planes (ITU-R BT.601) of RGB pictures; same shape, float32."""
    import cv2

    rows = thumbs.reshape(-1, thumbs.shape[-2], 3).astype(np.float32)
    return np.asarray(cv2.transform(rows, YUV_FROM_RGB), np.float32).reshape(thumbs.shape)


@dataclass(frozen=True)
class Survey:
    """What one pass over every frame shows."""

    changes: Array
    """[LAGS + 1, n]: mean |dY|+|dU|+|dV| between frame t - lag and frame t; infinite where there is no such frame."""
    mixture: NDArray[np.float64]
    """[n] in [0, 1): how surely each frame is a blend of an earlier and a later picture; 0 for no."""


def survey(thumbs: Thumbs, fps: float) -> Survey:
    """The fast look at every frame of `thumbs` [n, 27, 48, 3], in pieces, so that long videos fit in memory."""
    num, halves = len(thumbs), _halves(fps)
    halo = max(LAGS, halves[-1])
    changes = np.full((LAGS + 1, num), np.inf, np.float32)
    mixture = np.zeros(num)
    for first in range(0, num, CHUNK):
        low, end = max(0, first - halo), min(num, first + CHUNK)
        part = planes(thumbs[low : end + halo])
        for lag in range(1, LAGS + 1):
            start = max(first, low + lag)
            if start < end:
                step = part[start - low : end - low] - part[start - low - lag : end - low - lag]
                changes[lag, start:end] = np.abs(step, out=step).reshape(end - start, -1).sum(1) / (WIDTH * HEIGHT)
        tiles, view = _tiles(part), mixture[low : low + len(part)]
        for half in halves:
            np.maximum(view, mixtures(tiles, half), out=view)
    return Survey(changes, mixture)


def _tiles(part: Array) -> Array:
    """[n, 432]: the means of tiles of 3 x 3 pixels."""
    rows = part.reshape(len(part), HEIGHT // 3, 3, WIDTH * 3).sum(2).reshape(len(part), -1, 3, 3)
    sums: Array = rows[:, :, 0] + rows[:, :, 1] + rows[:, :, 2]
    return sums.reshape(len(part), -1) / np.float32(9)


def mixtures(tiles: Array, half: int) -> NDArray[np.float64]:
    """[n] in [0, 1): how surely each frame is a blend of those `half` frames before and after it; 0 for no.

    Dissolves blend two shots, fades blend a shot with a flat picture. Tiles [n, k] are compared rather than pixels, so
    that slight motion does not count.
    """
    strength = np.zeros(len(tiles))
    if len(tiles) > 2 * half:
        whole, part = tiles[2 * half :] - tiles[: -2 * half], tiles[half:-half] - tiles[: -2 * half]
        share = (whole * part).sum(1) / ((whole * whole).sum(1) + 1e-6)
        size = np.abs(whole).mean(1)
        left = np.abs(part - share[:, None] * whole).mean(1) / (size + 2)
        is_mix = (3 * size > MIX_CHANGE) & (np.abs(share - 0.5) < 0.25) & (left < MIX_RESIDUAL)
        strength[half:-half] = np.where(is_mix, 1 - 2 * left, 0.0)
    return strength


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


def new_content(before: Array, after: Array, *, is_relit: bool = True) -> NDArray[np.float64]:
    """Root mean square residual of each block of `after` that is sought in `before`, ascending [18].

    If `is_relit`, two guesses at the lighting are tried: unchanged, and the gain and offset that fit the whole picture.
    """
    import cv2

    best: NDArray[np.float64] | None = None
    for gain, offset in [(1.0, 0.0)] + [_relight(before[..., 0], after[..., 0])] * is_relit:
        lit = before * np.float32(gain)
        lit[..., 0] += np.float32(offset)
        field = cv2.copyMakeBorder(lit, SHIFT_Y, SHIFT_Y, SHIFT_X, SHIFT_X, cv2.BORDER_REPLICATE)
        residual = []
        for y in range(0, HEIGHT, BLOCK_H):
            for x in range(0, WIDTH, BLOCK_W):
                area = field[y : y + BLOCK_H + 2 * SHIFT_Y, x : x + BLOCK_W + 2 * SHIFT_X]
                match = cv2.matchTemplate(area, after[y : y + BLOCK_H, x : x + BLOCK_W], cv2.TM_SQDIFF)
                residual.append(np.sqrt(max(0.0, float(match.min())) / (BLOCK_W * BLOCK_H)))
        if best is None or np.mean(residual) < best.mean():
            best = np.sort(residual)
    assert best is not None
    return best


def _relight(before: Array, after: Array) -> tuple[float, float]:
    """Gain (a factor of two at most) and offset that bring the luma of `before` closest to `after`."""
    old, new = before - before.mean(), after - after.mean()
    variance = float((old * old).mean())
    gain = float(np.clip((old * new).mean() / variance, 0.5, 2.0)) if variance > NOISE else 1.0
    return gain, float(after.mean() - gain * before.mean())


def _is_flash(part: Array, here: int) -> bool:
    """Whether the change before frame `here` is mostly brightness and the picture from before it returns at once."""
    step = part[here] - part[here - 1]
    size = float(np.abs(step).sum(-1).mean())
    if abs(float(step[..., 0].mean())) < 0.5 * size:
        return False
    later = np.abs(part[here + 1 :] - part[here - 1]).sum(-1).mean((1, 2))
    earlier = np.abs(part[: here - 1] - part[here]).sum(-1).mean((1, 2))
    return bool((later < 0.35 * size).any() or (earlier < 0.35 * size).any())


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
    """(residual of mixing over residual of motion, residual of motion) at frame `middle`, from frames `half` away."""
    before, here, after = planes(thumbs[[max(0, middle - half), middle, min(len(thumbs) - 1, middle + half)]])
    whole = (after - before).ravel()
    share = float(whole @ (here - before).ravel()) / (float(whole @ whole) + 1e-6)
    mixed = before + np.float32(np.clip(share, 0, 1)) * (after - before)
    moved = min(float(new_content(other, here, is_relit=False).mean()) for other in (before, after))
    return float(new_content(mixed, here, is_relit=False).mean()) / (moved + 1), moved


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
    """All boundaries in order without overlap: a cut inside a gradual range replaces it, ranges that touch or
    have only a flat picture between them (fade out, black, fade in) become one.
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
    apart = [cut for cut in hard if not any(r.start <= cut.start <= r.end for r in kept)]
    return sorted([*kept, *apart], key=lambda b: (b.start, b.end))


def _is_flat(thumbs: Thumbs) -> bool:
    """Whether most pictures show nothing but one brightness, and there are not too many of them to look at."""
    return len(thumbs) < CHUNK and float(np.median(planes(thumbs)[..., 0].std((1, 2)))) < NOISE
