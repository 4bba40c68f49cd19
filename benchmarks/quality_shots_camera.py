"""Footage for generated films: pieces of real single-shot videos through a virtual camera, drawn scenes, drawn screens.

All pictures are uint8 RGB [n, 144, 256, 3], the size that PySceneDetect works at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
WIDTH, HEIGHT = 256, 144


@dataclass(frozen=True)
class SingleShot:
    """One single-shot video."""

    frames: Frames
    fps: float


class Footage:
    """Shots of `sources` (name -> video) as a camera with its own framing, motion, grade and grain would take them."""

    def __init__(self, sources: Mapping[str, SingleShot], rng: np.random.Generator, fps: float) -> None:
        self._sources, self._rng, self.fps = sources, rng, fps
        self._last = ""

    def pick(self) -> SingleShot:
        """Any source but the last."""
        names = [name for name in self._sources if name != self._last] or list(self._sources)
        self._last = str(self._rng.choice(names))
        return self._sources[self._last]

    def stretch(self, source: SingleShot, num: int, *, start_share: float | None = None, pace: float = 1.0) -> Frames:
        """`num` frames of `source` at the film's rate, from `start_share` of it on; its last frame is held."""
        step = source.fps / self.fps * pace
        room = max(0.0, len(source.frames) - 1 - num * step)
        start = room * (self._rng.random() if start_share is None else start_share)
        index = np.minimum((start + np.arange(num) * step).astype(int), len(source.frames) - 1)
        return np.asarray(source.frames[index], np.uint8)

    def shot(self, num: int, *, motion: str | None = None, is_graded: bool = True) -> Frames:
        """`num` frames of any source, framed anyhow; `motion` is one of `MOTIONS`."""
        rng = self._rng
        motion = motion or str(rng.choice(MOTIONS, p=MOTION_SHARES))
        pace = 1.0 if rng.random() < 0.8 else rng.uniform(1.5, 3.0)
        piece = self.stretch(self.pick(), 1 if motion == "still" else num, pace=pace)
        piece = np.repeat(piece, num, axis=0) if len(piece) < num else piece
        views = camera_path(num, motion, rng)
        pictures = np.stack([view(frame, *place) for frame, place in zip(piece, views, strict=True)])
        return graded(pictures, rng) if is_graded else pictures


MOTIONS = ("held", "drift", "zoom", "shake", "whip", "still")
MOTION_SHARES = (0.3, 0.25, 0.15, 0.12, 0.08, 0.1)


def camera_path(num: int, motion: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """[num, 3]: size of the frame as a share of the picture, and its centre x and y from 0 to 1."""
    size, t = rng.uniform(0.45, 0.95), np.linspace(0, 1, num)
    path = np.stack([np.full(num, size), np.full(num, rng.random()), np.full(num, rng.random())], 1)
    if motion == "drift":
        path[:, 1:] += t[:, None] * rng.uniform(-0.02, 0.02, 2) * num
    elif motion == "zoom":
        path[:, 0] *= 1 + (t - 0.5) * rng.uniform(-0.006, 0.006) * num
    elif motion == "shake":
        path[:, 1:] += np.cumsum(rng.normal(0, 0.05, (num, 2)), 0) * [1, 0.8]
    elif motion == "whip":
        path[:, 0] = min(size, 0.6)
        speed = rng.uniform(0.06, 0.3) * rng.choice([-1, 1])
        path[:, 1] = np.abs((path[0, 1] + speed * np.arange(num) + 1) % 2 - 1)
    path[:, 0] = path[:, 0].clip(0.3, 1)
    path[:, 1:] = path[:, 1:].clip(0, 1)
    return path


def view(picture: Frames, size: float, x: float, y: float) -> Frames:
    """`picture` [h, w, 3] through the frame of `camera_path`."""
    import cv2

    h, w = picture.shape[:2]
    across, down = max(8.0, w * size), max(8.0, h * size)
    left, top = (w - across) * x, (h - down) * y
    matrix = np.array([[across / WIDTH, 0, left], [0, down / HEIGHT, top]], np.float32)
    return np.asarray(
        cv2.warpAffine(
            picture,
            matrix,
            (WIDTH, HEIGHT),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.uint8,
    )


def resized(frames: Frames, size: tuple[int, int]) -> Frames:
    """`frames` [n, h, w, 3] at `size`, (width, height), by averaging."""
    import cv2

    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def graded(pictures: Frames, rng: np.random.Generator) -> Frames:
    """`pictures` in other colours and with grain, either of them perhaps."""
    if rng.random() < 0.5:
        gains, gamma = rng.uniform(0.75, 1.1, 3), rng.uniform(0.7, 1.5)
        table = 255 * (np.arange(256) / 255) ** gamma
        curves = np.clip(table[:, None] * gains, 0, 255).astype(np.uint8)
        pictures = np.stack([curves[pictures[..., c], c] for c in range(3)], -1)
    if rng.random() < 0.25:
        grain = rng.normal(0, rng.uniform(2, 8), pictures.shape[:-1])[..., None].astype(np.float32)
        pictures = (pictures + grain).clip(0, 255).astype(np.uint8)
    return pictures


def person(pictures: Frames) -> tuple[Frames, NDArray[np.float32]]:
    """Head and shoulders in the middle of `pictures` [n, h, w, 3], and how much of each pixel they take [h, w, 1]."""
    import cv2

    h, w = pictures.shape[1:3]
    mask = np.zeros((h, w), np.float32)
    cv2.ellipse(mask, (w // 2, int(h * 0.42)), (int(w * 0.17), int(h * 0.36)), 0, 0, 360, 1.0, -1)
    cv2.ellipse(mask, (w // 2, h), (int(w * 0.38), int(h * 0.34)), 0, 0, 360, 1.0, -1)
    return pictures, cv2.GaussianBlur(mask, (0, 0), 2.0)[..., None]


def before(backdrop: Frames, pictures: Frames, scale: float, x: float) -> Frames:
    """The person of `pictures` `scale` times as high as the `backdrop` [144, 256, 3], standing at `x` of its width."""
    import cv2

    figures, mask = person(pictures)
    h, w = figures.shape[1:3]
    zoom = HEIGHT * scale / h
    matrix = np.array([[zoom, 0, WIDTH * x - zoom * w / 2], [0, zoom, HEIGHT - zoom * h]], np.float32)
    if scale > 1:
        matrix[1, 2] = -0.08 * zoom * h
    share = cv2.warpAffine(mask, matrix, (WIDTH, HEIGHT))[..., None]
    shown = [cv2.warpAffine(figure, matrix, (WIDTH, HEIGHT)) * share + backdrop * (1 - share) for figure in figures]
    return np.stack(shown).astype(np.uint8)


def backdrop_of(sources: Sequence[SingleShot], rng: np.random.Generator) -> Frames:
    """A plain colour, a soft gradient or a picture out of focus, [144, 256, 3]."""
    import cv2

    kind = rng.choice(["plain", "gradient", "picture"])
    colour = rng.uniform(20, 235, 3)
    if kind == "picture":
        frame = sources[int(rng.integers(len(sources)))].frames[0]
        near = view(frame, 0.9, rng.random(), rng.random())
        return np.asarray(cv2.GaussianBlur(near, (0, 0), rng.uniform(0.5, 4)), np.uint8)
    other = colour if kind == "plain" else colour * rng.uniform(0.4, 0.9)
    share = np.linspace(0, 1, HEIGHT)[:, None, None]
    return np.broadcast_to(colour * (1 - share) + other * share, (HEIGHT, WIDTH, 3)).astype(np.uint8)


class Cartoon:
    """Drawn scenes in flat colours: a backdrop of shapes, and figures that are moved on twos or threes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._palette = rng.uniform(0, 255, (9, 3))
        self._stage = self._paint_stage()
        self._cast = [rng.integers(0, 9, 4) for _ in range(3)]

    def _paint_stage(self) -> Frames:
        import cv2

        rng, stage = self._rng, np.empty((HEIGHT * 2, WIDTH * 2, 3), np.uint8)
        stage[:] = self._palette[0]
        cv2.rectangle(stage, (0, int(HEIGHT * rng.uniform(1, 1.6))), (WIDTH * 2, HEIGHT * 2), self._colour(1), -1)
        for _ in range(int(rng.integers(4, 14))):
            at = (int(rng.integers(0, WIDTH * 2)), int(rng.integers(0, HEIGHT * 2)))
            size = (int(rng.integers(10, 90)), int(rng.integers(10, 70)))
            if rng.random() < 0.5:
                cv2.ellipse(stage, at, size, 0, 0, 360, self._colour(int(rng.integers(2, 6))), -1, cv2.LINE_AA)
            else:
                end = (at[0] + size[0], at[1] + 2 * size[1])
                cv2.rectangle(stage, at, end, self._colour(int(rng.integers(2, 6))), -1)
        return stage

    def _colour(self, index: int) -> list[float]:
        return [float(value) for value in self._palette[index % 9]]

    def shot(self, num: int, *, size: float | None = None) -> Frames:
        """`num` frames of this scene with one or two figures acting in it; `size` as in `camera_path`."""
        import cv2

        rng = self._rng
        hold, who = int(rng.choice([1, 2, 2, 3])), self._cast[int(rng.integers(3))]
        motion = str(rng.choice(["held", "held", "drift", "zoom"]))
        path = camera_path(num, motion, rng)
        path[:, 0] *= 1.0 if size is None else size / path[0, 0]
        x, y = WIDTH * 2 * (0.2 + 0.6 * path[0, 1]), HEIGHT * 2 * (0.3 + 0.5 * path[0, 2])
        walk, swing, tall = rng.uniform(-4, 4), rng.uniform(2, 18), rng.uniform(25, 70)
        drawn: list[Frames] = []
        for t in range(num):
            if t % hold == 0 or not drawn:
                cel = self._stage.copy()
                cx, cy = int(x + walk * t), int(y + swing * np.sin(t * 0.5))
                cv2.ellipse(
                    cel, (cx, cy + int(tall)), (int(tall * 0.6), int(tall)), 0, 0, 360, self._colour(who[0]), -1
                )
                cv2.circle(cel, (cx, cy), int(tall * 0.5), self._colour(who[1]), -1, cv2.LINE_AA)
                mouth = int(2 + tall * 0.12 * (1 + np.sin(t * 1.3)))
                cv2.ellipse(
                    cel, (cx, cy + int(tall * 0.2)), (int(tall * 0.2), mouth), 0, 0, 360, self._colour(who[2]), -1
                )
                arm = (int(cx + tall * np.cos(t * 0.4)), int(cy + tall * (1 + np.sin(t * 0.4))))
                cv2.line(cel, (cx, cy + int(tall)), arm, self._colour(who[3]), max(2, int(tall * 0.2)))
            drawn.append(view(cel, *(path[t] if motion != "held" else path[0])))
        return np.stack(drawn)


class Desktop:
    """A screen recording: windows of text and pictures, light or dark, that are typed into and scrolled."""

    def __init__(self, rng: np.random.Generator, pictures: Sequence[Frames]) -> None:
        self._rng, self._pictures = rng, pictures
        self._is_dark = rng.random() < 0.4

    def page(self) -> Frames:
        """A long page [432, 256, 3]."""
        import cv2

        rng = self._rng
        ground = rng.uniform(5, 50) if self._is_dark else rng.uniform(225, 255)
        page = np.full((HEIGHT * 3, WIDTH, 3), ground, np.float32)
        ink = 230.0 if self._is_dark else 30.0
        cv2.rectangle(
            page, (0, 0), (int(rng.integers(20, 70)), HEIGHT * 3), [float(v) for v in rng.uniform(40, 220, 3)], -1
        )
        left, line = int(rng.integers(75, 100)), int(rng.integers(5, 11))
        for y in range(8, HEIGHT * 3 - 8, line):
            if rng.random() < 0.8:
                end = int(rng.uniform(left + 20, WIDTH - 8))
                for x in range(left, end, int(rng.integers(9, 22))):
                    cv2.line(page, (x, y), (min(end, x + int(rng.integers(4, 14))), y), [ink] * 3, max(1, line // 4))
        for _ in range(int(rng.integers(0, 4))):
            picture = self._pictures[int(rng.integers(len(self._pictures)))]
            h, w = int(rng.integers(30, 90)), int(rng.integers(50, 140))
            x, y = int(rng.integers(70, WIDTH - w + 40)), int(rng.integers(0, HEIGHT * 3 - h))
            page[y : y + h, x : x + w] = cv2.resize(picture, (w, h))[:, : WIDTH - x]
        return page.astype(np.uint8)

    def shot(self, num: int) -> Frames:
        """`num` frames of one window: scrolled, typed into, or a box opening over it."""
        import cv2

        rng, page = self._rng, self.page()
        what = str(rng.choice(["scroll", "type", "box", "still"]))
        top, speed = 0.0, rng.uniform(2, 30)
        box = [
            int(v) for v in (rng.integers(40, 110), rng.integers(20, 60), rng.integers(60, 130), rng.integers(30, 70))
        ]
        shown = []
        for t in range(num):
            if what == "scroll" and (t // 12) % 2:
                top = min(top + speed, HEIGHT * 2.0)
            screen = page[int(top) : int(top) + HEIGHT].copy()
            if what == "type":
                cv2.line(screen, (80, 100), (80 + min(150, t * 2), 100), [128.0] * 3, 3)
            if what == "box" and num // 3 <= t < num * 3 // 4:
                cv2.rectangle(screen, box[:2], (box[0] + box[2], box[1] + box[3]), [200.0, 200.0, 210.0], -1)
            cv2.circle(screen, (int(20 + t * 3) % WIDTH, 70), 2, [255.0, 60.0, 60.0], -1)
            shown.append(screen)
        return np.stack(shown)
