"""Known-truth montages: real single-shot footage joined at random frames by cuts, dissolves, fades and wipes.

Between the joins lies what fools detectors: flashes, captions, whip pans, shake, noise, frozen and dropped frames.
Everything happens on small RGB arrays, so that hundreds of transitions cost seconds and the truth is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""[n, h, w, 3] RGB."""

KINDS = ("hard", "dissolve", "fade", "wipe")
KIND_SHARES = (0.66, 0.16, 0.12, 0.06)
"""Own choice: mostly cuts, as in edited video, and enough gradual ones to count."""


@dataclass
class Montage:
    """Frames and their truth; frame numbers from 0, a cut is the first frame of the new shot."""

    frames: Frames
    fps: float
    hard_cuts: list[int] = field(default_factory=list)
    gradual: list[tuple[int, int, str]] = field(default_factory=list)
    """(first frame, one past the last frame, kind) of the pictures that are neither of both shots alone."""
    distractions: list[tuple[int, str]] = field(default_factory=list)
    """(frame, what) of events that are no cut."""


def make_montage(sources: Mapping[str, tuple[Frames, float]], rng: np.random.Generator, num_shots: int = 12) -> Montage:
    """A montage of `num_shots` treated pieces of `sources` (name -> frames of one single shot, their fps)."""
    fps = float(rng.choice([5, 10, 12.5, 15, 24, 25, 25, 30, 30, 50, 60]))
    names = list(sources)
    montage = Montage(np.zeros((0, *next(iter(sources.values()))[0].shape[1:]), np.uint8), fps)
    parts: list[Frames] = []
    length, last = 0, ""
    for index in range(num_shots):
        name = str(rng.choice([n for n in names if n != last]))
        last = name
        shot, events = _treated_piece(*sources[name], fps, rng)
        kind = "hard" if index == 0 else str(rng.choice(KINDS, p=KIND_SHARES))
        span = int(np.clip(round(fps * rng.uniform(0.2, 1.5)), 3, min(len(shot), len(parts[-1]) if parts else 3) // 2))
        if kind != "hard" and span >= 3:
            joint, tail = _joint(parts[-1], shot, kind, span, rng)
            parts[-1] = parts[-1][: len(parts[-1]) - tail]
            length -= tail
            montage.gradual.append((length, length + len(joint), kind))
            parts.append(joint)
            length += len(joint)
            shot, events = shot[tail:], [(at - tail, what) for at, what in events if at >= tail]
        elif index:
            montage.hard_cuts.append(length)
        montage.distractions += [(length + at, what) for at, what in events]
        parts.append(shot)
        length += len(shot)
    montage.frames = np.concatenate(parts)
    return montage


def _joint(before: Frames, after: Frames, kind: str, span: int, rng: np.random.Generator) -> tuple[Frames, int]:
    """The pictures of a gradual transition, and how many frames of either shot it takes up."""
    old, new = before[len(before) - span :].astype(np.float32), after[:span].astype(np.float32)
    share = (np.arange(1, span + 1, dtype=np.float32) / (span + 1))[:, None, None, None]
    if kind == "dissolve":
        mixed = old * (1 - share) + new * share
    elif kind == "wipe":
        columns = np.arange(before.shape[2])[None, None, :, None] / before.shape[2]
        mixed = np.where(columns < share, new, old)
    else:
        level = 0.0 if rng.random() < 0.8 else 255.0
        hold = np.full((int(rng.integers(0, max(1, span))), *before.shape[1:]), level, np.float32)
        mixed = np.concatenate([old * (1 - share) + level * share, hold, level * (1 - share) + new * share])
    return mixed.astype(np.uint8), span


def _treated_piece(
    frames: Frames, source_fps: float, fps: float, rng: np.random.Generator
) -> tuple[Frames, list[tuple[int, str]]]:
    """A re-timed, cropped, regraded, noisy piece of one shot at `fps`, and the distractions put into it."""
    pace = source_fps / fps * (rng.uniform(1.5, 3.0) if rng.random() < 0.15 else 1.0)
    wanted = int(max(6, round(fps * rng.uniform(0.6, 4.0))))
    available = int((len(frames) - 1) / pace)
    num = max(3, min(wanted, available))
    start = rng.uniform(0, max(0.0, len(frames) - 1 - num * pace))
    piece = frames[np.minimum((start + np.arange(num) * pace).astype(int), len(frames) - 1)]
    piece = _cropped(piece, rng)
    values: NDArray[np.float32] = piece.astype(np.float32)
    if rng.random() < 0.5:
        gains = rng.uniform(0.7, 1.1, 3)
        values = (255 * (values / 255) ** rng.uniform(0.6, 1.7) * gains).astype(np.float32)
    if rng.random() < 0.3:
        values += rng.normal(0, rng.uniform(2, 12), values.shape).astype(np.float32)
    events = _distract(values, rng)
    return values.clip(0, 255).astype(np.uint8), events


def _cropped(piece: Frames, rng: np.random.Generator) -> Frames:
    """`piece` through a random, perhaps shaking or whipping window of its own shape."""
    import cv2

    n, h, w, _ = piece.shape
    scale = rng.uniform(0.55, 1.0)
    ch, cw = max(8, int(h * scale)), max(8, int(w * scale))
    y = np.full(n, rng.uniform(0, h - ch))
    x = np.full(n, rng.uniform(0, w - cw))
    motion = rng.random()
    if motion < 0.2:
        x = x + np.cumsum(rng.normal(0, w * 0.01, n))
        y = y + np.cumsum(rng.normal(0, h * 0.01, n))
    elif motion < 0.3:
        x = x + np.linspace(0, rng.choice([-1, 1]) * (w - cw), n) * rng.uniform(1, 3)
    x, y = x.clip(0, w - cw).astype(int), y.clip(0, h - ch).astype(int)
    flip = -1 if rng.random() < 0.5 else 1
    return np.stack(
        [
            cv2.resize(np.ascontiguousarray(f[b : b + ch, a : a + cw][:, ::flip]), (w, h), interpolation=cv2.INTER_AREA)
            for f, a, b in zip(piece, x, y, strict=True)
        ]
    )


def _distract(values: NDArray[np.float32], rng: np.random.Generator) -> list[tuple[int, str]]:
    """Puts at most one event that is no cut into `values` [n, h, w, 3], in place; says where and what."""
    n, h, w, _ = values.shape
    if n < 12 or rng.random() > 0.35:
        return []
    at = int(rng.integers(4, n - 6))
    what = str(rng.choice(["flash", "caption", "freeze", "light"]))
    if what == "flash":
        values[at : at + int(rng.integers(1, 4))] += rng.uniform(60, 220)
    elif what == "caption":
        top = int(h * rng.uniform(0.6, 0.8))
        values[at:, top : top + h // 6, w // 10 : w - w // 10] = rng.uniform(0, 255, 3)
    elif what == "freeze":
        values[at:] = values[at]
    else:
        values[at:] *= rng.uniform(0.7, 1.3)
    return [(at, what)]
