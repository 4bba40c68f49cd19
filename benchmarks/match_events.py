"""Things that happen and are heard: pictures of drawn events over photographs, and sounds at the same instants.

    ball     bounces on the ground     hammer   is raised and strikes     puck     hits the sides of the picture
    lamp     lights up and fades       hands    meet                      card     jumps to another place

Backgrounds stand still, tremble as in a hand, or glide; half of the films show something else that moves without a sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_camera import trembling
from pipeline.demo.face import photograph
from pipeline.demo.sound import music
from pipeline.demo.voice import SAMPLE_RATE_HZ

Half = Literal["choose", "publish"]
Picture = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
WIDTH_PX, HEIGHT_PX, FPS, SECONDS = 256, 144, 25, 6.0
KINDS = ("ball", "hammer", "puck", "lamp", "hands", "card")
PHOTOGRAPHS: dict[Half, tuple[str, ...]] = {
    "choose": ("coffee.png", "brick.png", "grass.png"),
    "publish": ("astronaut.png", "chelsea.png", "gravel.png", "rocket.jpg"),
}
SOUNDS: dict[Half, tuple[str, ...]] = {"choose": ("click", "knock", "hit"), "publish": ("ring", "thud", "rattle")}
FIRST_SEED: dict[Half, int] = {"choose": 0, "publish": 1000}
SOUNDS_MADE = ("every event", "every second event", "as many unseen", "music as loud", "three events", "one event")
"""What is heard: a strike at every event, at every second one, at as many instants besides at which nothing happens, over music
of the same level, and at three of the events or one."""
GAP_S = (0.35, 1.4)
"""Between two events."""


@dataclass(frozen=True)
class Happening:
    """One film and its sound."""

    number: int
    kind: str
    events_s: F64
    pictures: NDArray[np.uint8]
    """[n, h, w, 3]"""
    sounds: Mapping[str, F32]
    """`SOUNDS_MADE` -> sound at the demo's rate, as long as the film."""


def happenings(half: Half, rounds: int) -> Iterator[Happening]:
    """Every kind in turn, `rounds` times."""
    for number in range(rounds * len(KINDS)):
        rng = np.random.default_rng((FIRST_SEED[half] + number, 16))
        kind = KINDS[number % len(KINDS)]
        events_s = instants(rng)
        pictures = np.stack(list(film(half, kind, events_s, rng)))
        sounds = dict(zip(SOUNDS_MADE, sounds_of(half, events_s, rng), strict=True))
        yield Happening(number, kind, events_s, pictures, sounds)


def sounds_of(half: Half, events_s: F64, rng: np.random.Generator) -> Iterator[F32]:
    """The sounds of a film in the order of `SOUNDS_MADE`."""
    plain = heard(half, events_s, rng)
    yield plain
    yield heard(half, events_s[::2], rng)
    yield heard(half, np.sort(np.concatenate([events_s, instants(rng)])), rng)
    bed = music(SECONDS, seed=int(rng.integers(1_000)))
    yield plain + bed * np.sqrt(np.square(plain).mean() / np.square(bed).mean())
    for num in (3, 1):
        yield heard(half, np.sort(rng.choice(events_s, num, replace=False)), rng)


def instants(rng: np.random.Generator) -> F64:
    """When something happens: gaps drawn anew each time, so that no two films share a rhythm."""
    at = np.cumsum(rng.uniform(*GAP_S, size=int(SECONDS / GAP_S[0]) + 2))
    return np.asarray(at[at < SECONDS - 0.1])


def film(half: Half, kind: str, events_s: F64, rng: np.random.Generator) -> Iterator[Picture]:
    """The pictures of events of one kind."""
    import cv2

    num = round(SECONDS * FPS)
    background = cv2.resize(photograph(str(rng.choice(PHOTOGRAPHS[half]))), (2 * WIDTH_PX, 2 * HEIGHT_PX))
    background = (background * rng.uniform(0.4, 1.0)).astype(np.uint8)
    camera = np.zeros((num, 2))
    if (taken := rng.random()) < 0.3:
        camera += rng.uniform(0.5, 2.0) * trembling(num, rng)[:, :2]
    elif taken < 0.5:
        camera += np.linspace(0, 1, num)[:, None] * rng.uniform(-60, 60, 2)
    colour = tuple(int(each) for each in rng.integers(60, 255, 3))
    size = rng.uniform(0.05, 0.13) * HEIGHT_PX
    place = rng.uniform(0.3, 0.7, 2) * (WIDTH_PX, HEIGHT_PX)
    passer = rng.uniform(0.2, 1.2) if rng.random() < 0.5 else None
    grain = rng.uniform(0, 6)
    for index in range(num):
        x, y = camera[index] + (WIDTH_PX / 2, HEIGHT_PX / 2)
        moved = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        picture = cv2.warpAffine(background, moved, (WIDTH_PX, HEIGHT_PX), borderMode=cv2.BORDER_REFLECT)
        if passer is not None:
            at = (WIDTH_PX * (0.5 + 0.45 * np.sin(passer * index / FPS)), 0.15 * HEIGHT_PX)
            cv2.circle(picture, (round(at[0]), round(at[1])), round(0.1 * HEIGHT_PX), colour[::-1], -1, cv2.LINE_AA)
        draw(picture, kind, index / FPS, events_s, (place, size, colour))
        yield np.clip(picture + rng.normal(0, grain, picture.shape), 0, 255).astype(np.uint8)


def draw(picture: Picture, kind: str, time_s: float, events_s: F64, look: tuple[F64, float, tuple[int, ...]]) -> None:
    """Draws what happens into a picture [h, w, 3]; `look` is place, size in px and colour."""
    import cv2

    (x, y), size, colour = look
    after = int(np.searchsorted(events_s, time_s, side="right"))
    begin = float(events_s[after - 1]) if after else float(events_s[0]) - 0.8
    end = float(events_s[after]) if after < len(events_s) else float(events_s[-1]) + 0.8
    begin = begin if after else min(begin, 0.0)
    part = min(1.0, max(0.0, (time_s - begin) / (end - begin)))
    at: Any = (x, y)
    if kind == "ball":
        at = (x, 0.9 * HEIGHT_PX - size - 4 * part * (1 - part) * min(0.6, (end - begin) ** 2) * HEIGHT_PX)
    elif kind == "puck":
        side = 1 if after % 2 else -1
        at = (WIDTH_PX / 2 + side * (1 - 2 * part) * (WIDTH_PX / 2 - size), y)
    elif kind == "hands":
        apart = np.sin(np.pi * part) * 4 * size
        for sign in (-1, 1):
            cv2.circle(picture, (round(x + sign * (size + apart)), round(y)), round(size), colour, -1, cv2.LINE_AA)
        return
    elif kind == "hammer":
        turn = 1.2 * (part / 0.75 if part < 0.75 else max(0.0, (1 - part) / 0.25) ** 0.5)
        tip = (x + 4 * size * np.cos(turn), y - 4 * size * np.sin(turn))
        cv2.line(
            picture, (round(x), round(y)), (round(tip[0]), round(tip[1])), colour, max(2, round(size / 2)), cv2.LINE_AA
        )
        at = tip
    elif kind == "card":
        rng = np.random.default_rng(after)
        at = rng.uniform(0.2, 0.8, 2) * (WIDTH_PX, HEIGHT_PX)
    elif kind == "lamp":
        light = np.exp(-4 * (time_s - begin)) if after else 0.0
        mask = np.zeros(picture.shape[:2], np.float32)
        cv2.circle(mask, (round(x), round(y)), round(2 * size), 1.0, -1)
        picture += (mask[..., None] * light * (255 - picture) * 0.7).astype(np.uint8)
        return
    cv2.circle(picture, (round(at[0]), round(at[1])), round(size), colour, -1, cv2.LINE_AA)


def heard(half: Half, events_s: F64, rng: np.random.Generator) -> F32:
    """A film's sound: one kind of strike at every event, louder and softer, in a room that is never silent."""
    num = round(SECONDS * SAMPLE_RATE_HZ)
    sound = rng.normal(0, 10 ** (rng.uniform(-60, -35) / 20), num)
    strike = struck(str(rng.choice(SOUNDS[half])), rng)
    for at_s in events_s:
        first = round(float(at_s) * SAMPLE_RATE_HZ)
        piece = strike[: num - first]
        sound[first : first + len(piece)] += rng.uniform(0.15, 0.5) * piece
    return sound.astype(np.float32)


def struck(kind: str, rng: np.random.Generator) -> F64:
    """One strike of up to 0.6 s, peak 1."""
    t = np.arange(round(0.6 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    noise = rng.normal(0, 1, len(t))
    hz = rng.uniform(150, 900)
    shapes = {
        "click": noise * np.exp(-t * rng.uniform(150, 400)),
        "knock": np.sin(2 * np.pi * hz * t) * np.exp(-t * rng.uniform(25, 60)),
        "hit": (noise + np.sin(2 * np.pi * hz * t)) * np.exp(-t * rng.uniform(15, 40)),
        "ring": sum(np.sin(2 * np.pi * hz * k * 2.7 * t) / k for k in (1, 2, 3)) * np.exp(-t * rng.uniform(6, 15)),
        "thud": np.sin(2 * np.pi * rng.uniform(60, 120) * t) * np.exp(-t * rng.uniform(15, 30)),
        "rattle": noise * np.exp(-t * 12) * (np.sin(2 * np.pi * rng.uniform(12, 25) * t) > 0),
    }
    shape = np.asarray(shapes[kind], np.float64)
    return np.asarray(shape / np.abs(shape).max())
