"""Known-truth films by kind of material: what makes detectors miss cuts, and what makes them see some that are none.

    film = make_film("trailer", sources, seed)

Films are coded as H.264 and decoded again, as what a crawler finds has been. The same kind, sources and seed give the
same film. Truth follows the manifests of the test media: a cut is the first frame of the new shot.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_shots_camera import (
    HEIGHT,
    WIDTH,
    Cartoon,
    Desktop,
    Footage,
    Frames,
    SingleShot,
    backdrop_of,
    before,
    camera_path,
    resized,
    view,
)
from benchmarks.quality_shots_montage import make_montage

FILM_S = 8.0
"""Own choice: eight seconds hold a dozen cuts at most kinds' pace, and scoring one costs the network five seconds."""

SEEN = 5.0
"""Own choice: mean difference in grey levels from which a jump cut shows; a head that turns makes about that."""


@dataclass
class KnownFilm:
    """Frames and their truth, built up from its beginning."""

    fps: float
    frames: Frames = field(default_factory=lambda: np.zeros((0, HEIGHT, WIDTH, 3), np.uint8))
    hard: list[int] = field(default_factory=list)
    gradual: list[tuple[int, int]] = field(default_factory=list)
    ignored: list[tuple[int, int]] = field(default_factory=list)
    """[first, end) where a report counts neither for nor against."""

    def __len__(self) -> int:
        return len(self.frames)

    def cut_to(self, shot: Frames) -> None:
        """The next shot, after a cut."""
        if len(self):
            self.hard.append(len(self))
        self.go_on(shot)

    def go_on(self, shot: Frames) -> None:
        """More of the same shot."""
        self.frames = np.concatenate([self.frames, shot])

    def mix_to(self, shot: Frames, num: int, how: Callable[[Frames, Frames, float], NDArray[np.float32]]) -> None:
        """The next shot, after `num` frames that are `how`(old picture, new picture, share from 0 to 1)."""
        start = len(self) - num
        pairs = zip(self.frames[start:].astype(np.float32), shot[:num].astype(np.float32), strict=True)
        for t, (old, new) in enumerate(pairs):
            self.frames[start + t] = how(old, new, (t + 1) / (num + 1)).clip(0, 255).astype(np.uint8)
        self.gradual.append((start, start + num))
        self.go_on(shot[num:])


class Director:
    """Makes films of one kind after another from `sources`."""

    def __init__(self, sources: Mapping[str, SingleShot], rng: np.random.Generator) -> None:
        self.rng, self.sources = rng, sources
        fps = float(rng.choice([15, 24, 25, 25, 30, 30, 50, 60], p=[0.05, 0.2, 0.2, 0.15, 0.15, 0.15, 0.05, 0.05]))
        self.film = KnownFilm(fps)
        self.footage = Footage(sources, rng, fps)

    def lengths(self, shortest_s: float, longest_s: float) -> list[int]:
        """Numbers of frames of shots that fill a film."""
        lengths, left = [], FILM_S * self.film.fps
        while left > 0:
            lengths.append(max(3, round(self.film.fps * self.rng.uniform(shortest_s, longest_s))))
            left -= lengths[-1]
        return lengths

    def trailer(self) -> None:
        """Shots of three frames and up, now and then a black or white picture between them, and a title over some."""
        while len(self.film) < FILM_S * self.film.fps:
            num = int(self.rng.integers(3, 16)) if self.rng.random() < 0.85 else int(self.rng.integers(16, 40))
            self.film.cut_to(
                self.titled(self.footage.shot(num)) if self.rng.random() < 0.25 else self.footage.shot(num)
            )
            if self.rng.random() < 0.08:
                self.film.cut_to(np.full((int(self.rng.integers(3, 9)), HEIGHT, WIDTH, 3), 0, np.uint8))

    def animation(self) -> None:
        """Drawn scenes in flat colours; cuts to another scene or another framing of the same."""
        scenes = [Cartoon(self.rng) for _ in range(3)]
        size, last = 0.9, -1
        for num in self.lengths(0.3, 1.6):
            which = int(self.rng.integers(3))
            size = float(self.rng.choice([0.35, 0.5, 0.7, 0.9]) if which != last else (0.35 if size > 0.6 else 0.9))
            self.film.cut_to(self.noted(scenes[which].shot(num, size=size)))
            last = which

    def reframed(self) -> None:
        """One take, cut from wide to close and back."""
        lengths = self.lengths(0.5, 1.8)
        take, at, size = self.footage.stretch(self.footage.pick(), sum(lengths)), 0, 0.9
        for num in lengths:
            x, y = self.rng.uniform(0.35, 0.65), self.rng.uniform(0.1, 0.5)
            self.film.cut_to(np.stack([view(frame, size, x, y) for frame in take[at : at + num]]))
            at += num
            other = float(np.clip(size * self.rng.choice([0.4, 0.5, 0.65, 1.5, 1.8, 2.2]), 0.35, 0.95))
            size = other if abs(other / size - 1) >= 0.25 else (0.45 if size > 0.6 else 0.9)

    def keyed(self) -> None:
        """People before one backdrop that stays as it is: another one, another size or another place at every cut."""
        people = [self.footage.pick() for _ in range(2)]
        backdrop = backdrop_of(list(self.sources.values()), self.rng)
        who, scale, x = 0, 0.8, 0.5
        for num in self.lengths(0.5, 1.8):
            what = self.rng.choice(["other", "size", "place"], p=[0.3, 0.5, 0.2])
            who = 1 - who if what == "other" else who
            scale = float(self.rng.uniform(1.4, 2.0) if scale < 1.2 else self.rng.uniform(0.6, 0.95))
            x = (
                float(self.rng.uniform(0.25, 0.4) if x >= 0.45 else self.rng.uniform(0.6, 0.75))
                if what == "place"
                else 0.5
            )
            self.film.cut_to(before(backdrop, self.footage.stretch(people[who], num), scale, x))

    def jumps(self) -> None:
        """One framing of one take with pieces left out: each cut goes where, of eight places, the picture differs most.

        Where that is not `SEEN` grey levels, nobody would see a cut, and the last picture is held instead.
        """
        source = self.footage.pick()
        place = (float(self.rng.uniform(0.5, 0.95)), 0.5, float(self.rng.uniform(0.2, 0.6)))
        for num in self.lengths(0.6, 2.0):
            size = place[0] * (float(self.rng.uniform(0.8, 0.95)) if self.rng.random() < 0.4 else 1.0)
            takes = [self.footage.stretch(source, num) for _ in range(8)]
            last = self.film.frames[-1:] if len(self.film) else np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
            firsts = [view(take[0], size, *place[1:]).astype(np.float32) for take in takes]
            far = [float(np.abs(first - last).mean()) for first in firsts]
            if len(self.film) and max(far) < SEEN:
                self.film.go_on(np.repeat(last, num, axis=0))
            else:
                take = takes[int(np.argmax(far))]
                self.film.cut_to(np.stack([view(frame, size, *place[1:]) for frame in take]))

    def faded(self) -> None:
        """Cuts inside and beside fades: out of black, into black, and under a fade that goes on across them."""
        for num in self.lengths(0.5, 1.8):
            shot, start, level = self.footage.shot(num), len(self.film), float(self.rng.choice([0, 0, 0, 255]))
            span = int(np.clip(round(self.film.fps * self.rng.uniform(0.2, 0.9)), 3, num - 2))
            how = str(self.rng.choice(["in", "out", "across", "none"]))
            ramp = np.linspace(0, 1, span + 2)[1:-1]
            if how == "in":
                shot = _faded(shot, np.concatenate([ramp, np.ones(num - span)]), level)
                self.film.cut_to(shot)
                self.film.hard = self.film.hard[:-1]
                self.film.ignored.append((start, start + span))
            elif how == "out":
                self.film.cut_to(_faded(shot, np.concatenate([np.ones(num - span), ramp[::-1]]), level))
                self.film.ignored.append((start + num - span, start + num - 1))
                self.film.go_on(np.full((int(self.rng.integers(3, 9)), HEIGHT, WIDTH, 3), level, np.uint8))
            elif how == "across":
                other, dim = self.footage.shot(num), np.linspace(1, self.rng.uniform(0.15, 0.4), span)
                self.film.cut_to(_faded(shot, np.concatenate([np.ones(num - span), dim]), level))
                self.film.ignored.append((start + num - span, start + num - 2))
                start = len(self.film)
                self.film.cut_to(_faded(other, np.concatenate([dim[::-1], np.ones(num - span)]), level))
                self.film.ignored.append((start + 2, start + span))
            else:
                self.film.cut_to(shot)

    def flashes(self) -> None:
        """Cuts, and flashes of one to five frames within shots, just before a cut and just after one."""
        for num in self.lengths(0.6, 1.8):
            shot = self.footage.shot(num, motion=str(self.rng.choice(["held", "drift", "shake"])))
            for at in [int(self.rng.integers(3, num - 5)) for _ in range(2)] if num > 12 else []:
                _flash(shot, at, int(self.rng.integers(1, 6)), self.rng)
            if self.rng.random() < 0.3:
                _flash(shot, 0 if self.rng.random() < 0.5 else num - 2, 2, self.rng)
            self.film.cut_to(shot)

    def strobe(self) -> None:
        """Light that goes on and off every few frames, over cuts as well."""
        period, depth = int(self.rng.integers(2, 8)), self.rng.uniform(0.1, 0.6)
        tint = self.rng.uniform(0.5, 1.0, 3) if self.rng.random() < 0.5 else np.ones(3)
        for num in self.lengths(1.0, 2.5):
            shot, t = self.footage.shot(num), np.arange(num) + len(self.film)
            gain = np.where((t // max(1, period // 2) % 2 == 0)[:, None], np.ones(3), depth * tint)
            self.film.cut_to((shot * gain[:, None, None]).astype(np.uint8))

    def lights(self) -> None:
        """Lamps switched on, off and faded within shots."""
        for num in self.lengths(1.0, 2.5):
            shot, at = self.footage.shot(num).astype(np.float32), int(self.rng.integers(num // 4, num * 3 // 4))
            dark, slope = self.rng.uniform(0.15, 0.6), int(self.rng.choice([1, 1, 3, 10]))
            gain = np.interp(
                np.arange(num), [at - 1, at - 1 + slope], [dark, 1.0] if self.rng.random() < 0.6 else [1.0, dark]
            )
            side = np.ones((1, WIDTH, 1), np.float32)
            if self.rng.random() < 0.4:
                side = np.linspace(self.rng.uniform(0.2, 1), 1, WIDTH, dtype=np.float32)[None, :, None]
            self.film.cut_to((shot * (1 - (1 - gain)[:, None, None, None] * side)).astype(np.uint8))

    def titles(self) -> None:
        """Large titles that appear, change and go within shots, and stay on over cuts."""
        for num in self.lengths(0.8, 2.0):
            self.film.cut_to(self.titled(self.footage.shot(num)))

    def inserts(self) -> None:
        """Another picture within the picture, which comes, moves and goes."""
        import cv2

        for num in self.lengths(1.2, 2.6):
            shot, other = self.footage.shot(num), self.footage.shot(num)
            w = int(WIDTH * self.rng.uniform(0.2, 0.42))
            h = w * HEIGHT // WIDTH
            x, y = int(self.rng.integers(2, WIDTH - w - 2)), int(self.rng.integers(2, HEIGHT - h - 2))
            first, end = sorted(int(v) for v in self.rng.integers(4, num - 4, 2))
            slide = int(self.rng.choice([0, 0, 6]))
            for t in range(first, end):
                left = WIDTH - 1 - (WIDTH - 1 - x) * min(1.0, (t - first + 1) / slide) if slide else x
                width = min(w, WIDTH - int(left))
                shot[t, y : y + h, int(left) : int(left) + width] = cv2.resize(other[t], (w, h))[:, :width]
            self.film.cut_to(shot)

    def sport(self) -> None:
        """A camera that follows fast play and whips round, with motion blur; cuts in the middle of it."""
        for num in self.lengths(0.8, 2.4):
            take = self.footage.stretch(self.footage.pick(), num)
            turns = np.repeat(self.rng.uniform(-0.16, 0.16, num // 8 + 2), 8) * self.rng.uniform(0.5, 2.0)
            speed = np.convolve(turns, np.full(5, 0.2), "valid")[:num]
            x = np.abs((self.rng.random() + np.cumsum(speed) + 1) % 2 - 1)
            size, y = self.rng.uniform(0.3, 0.5), self.rng.uniform(0.3, 0.7)
            blurred = [
                np.mean([view(frame, size, float(np.clip(at + step * back, 0, 1)), y) for back in (-0.4, -0.2, 0.0)], 0)
                for frame, at, step in zip(take, x, speed, strict=True)
            ]
            self.film.cut_to(np.stack(blurred).astype(np.uint8))

    def shaken(self) -> None:
        """A hand-held camera, now and then knocked."""
        for num in self.lengths(0.8, 2.4):
            take, path = self.footage.stretch(self.footage.pick(), num), camera_path(num, "held", self.rng)
            size, shake = self.rng.uniform(0.4, 0.7), self.rng.uniform(0.02, 0.12)
            jolt = np.where(self.rng.random((num, 1)) < 0.05, 4.0, 1.0) * self.rng.normal(0, shake, (num, 2))
            x, y = (path[:, 1:] + jolt).clip(0, 1).T
            self.film.cut_to(np.stack([view(f, size, a, b) for f, a, b in zip(take, x, y, strict=True)]))

    def screens(self) -> None:
        """A screen recording: windows that are switched (cuts), scrolled, typed into and covered (none)."""
        desktop = Desktop(self.rng, [self.footage.shot(1)[0] for _ in range(4)])
        for num in self.lengths(0.8, 2.4):
            self.film.cut_to(desktop.shot(num))

    def blends(self) -> None:
        """Dissolves, fades through black or white, and wipes; a cut now and then."""
        for index, num in enumerate(self.lengths(1.4, 2.6)):
            shot = self.footage.shot(num, motion=str(self.rng.choice(["held", "drift", "zoom", "shake"])))
            span = int(np.clip(round(self.film.fps * self.rng.uniform(0.25, 1.2)), 4, num // 2))
            if index and self.rng.random() < 0.75:
                self.film.mix_to(shot, span, MIXES[str(self.rng.choice(list(MIXES)))])
            else:
                self.film.cut_to(shot)

    def boxed(self) -> None:
        """Upright or wide pictures between black bars, among others that fill the screen."""
        import cv2

        share = float(self.rng.uniform(0.3, 0.6))
        box = (int(WIDTH * share), HEIGHT) if self.rng.random() < 0.7 else (WIDTH, int(HEIGHT * (0.4 + share / 2)))
        left, top = (WIDTH - box[0]) // 2, (HEIGHT - box[1]) // 2
        for num in self.lengths(0.5, 2.0):
            shot = self.footage.shot(num)
            if self.rng.random() < 0.8:
                inner = np.stack([cv2.resize(frame, box, interpolation=cv2.INTER_AREA) for frame in shot])
                shot[:] = 0
                shot[:, top : top + box[1], left : left + box[0]] = inner
            self.film.cut_to(shot)

    def slides(self) -> None:
        """Still pictures that the camera moves over, or not, cut to one another; some with text on a plain ground."""
        for num in self.lengths(0.4, 2.5):
            frame = self.footage.stretch(self.footage.pick(), 1)[0]
            path = camera_path(num, str(self.rng.choice(["held", "zoom", "drift"])), self.rng)
            shot = np.stack([view(frame, *place) for place in path])
            if self.rng.random() < 0.2:
                shot[:] = _title_card(self.rng)
            self.film.cut_to(shot)

    def montage(self) -> None:
        """Cuts, dissolves, fades and wipes with crops, flashes, captions and noise, see `make_montage`."""
        pieces = {name: (source.frames, source.fps) for name, source in self.sources.items()}
        made = make_montage(pieces, self.rng, 6)
        self.film = KnownFilm(
            made.fps, resized(made.frames, (WIDTH, HEIGHT)), made.hard_cuts, [(a, b) for a, b, _ in made.gradual]
        )

    def titled(self, shot: Frames) -> Frames:
        """`shot` with a title that appears in it, changes or goes, or is there throughout."""
        edges = (
            sorted(int(v) for v in self.rng.integers(0, len(shot), 2)) if self.rng.random() < 0.7 else [0, len(shot)]
        )
        middle = int(self.rng.integers(edges[0], edges[1] + 1))
        fade = int(self.rng.choice([1, 1, 5, 10]))
        for first, end in [(edges[0], middle), (middle, edges[1])]:
            letters, share = _lettering(self.rng)
            for t in range(first, end):
                part = share * min(1.0, (t - first + 1) / fade)
                shot[t] = shot[t] * (1 - part) + letters * part
        return shot

    def noted(self, shot: Frames) -> Frames:
        """`shot`, in one case of four titled."""
        return self.titled(shot) if self.rng.random() < 0.25 else shot


def _faded(shot: Frames, share: NDArray[np.float64], level: float) -> Frames:
    return (shot * share[:, None, None, None] + level * (1 - share[:, None, None, None])).astype(np.uint8)


def _flash(shot: Frames, at: int, num: int, rng: np.random.Generator) -> None:
    """Light that comes at once and goes over `num` frames, in place."""
    size = rng.uniform(80, 255)
    for t in range(at, min(at + num, len(shot))):
        shot[t] = (shot[t].astype(np.float32) + size * (1 - (t - at) / (2 * num))).clip(0, 255)


def _lettering(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A title's colours and coverage, [144, 256, 3] each: letters, perhaps on a bar of up to a third of the height."""
    import cv2

    share, colour = np.zeros((HEIGHT, WIDTH, 3), np.float32), rng.uniform(150, 255, 3)
    text = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(4, 11))))
    scale = float(rng.uniform(0.5, 1.6))
    y = int(rng.uniform(0.3, 0.95) * HEIGHT)
    letters = np.broadcast_to(colour, share.shape).astype(np.float32).copy()
    if rng.random() < 0.4:
        share[max(0, y - int(26 * scale)) : y + 8] = rng.uniform(0.5, 1.0)
        letters *= 0.3
    cv2.putText(
        share, text, (int(rng.integers(2, 40)), y), cv2.FONT_HERSHEY_DUPLEX, scale, [1.0] * 3, max(1, int(2 * scale))
    )
    cv2.putText(letters, text, (0, y), cv2.FONT_HERSHEY_DUPLEX, scale, [float(v) for v in colour], 1)
    return letters, share


def _title_card(rng: np.random.Generator) -> Frames:
    letters, share = _lettering(rng)
    ground = rng.uniform(0, 255, 3).astype(np.float32)
    return (ground * (1 - share) + letters * share).astype(np.uint8)


def _wipe(axis: int, is_back: bool) -> Callable[[Frames, Frames, float], NDArray[np.float32]]:
    def mixed(old: Frames, new: Frames, share: float) -> NDArray[np.float32]:
        place = np.arange(old.shape[axis]) / old.shape[axis]
        place = place[::-1] if is_back else place
        shape = [-1, 1, 1] if axis == 0 else [1, -1, 1]
        return np.where(place.reshape(shape) < share, new, old)

    return mixed


def _through(level: float) -> Callable[[Frames, Frames, float], NDArray[np.float32]]:
    def mixed(old: Frames, new: Frames, share: float) -> NDArray[np.float32]:
        picture, part = (old, 1 - 2 * share) if share < 0.5 else (new, 2 * share - 1)
        return picture * part + level * (1 - part)

    return mixed


MIXES: Mapping[str, Callable[[Frames, Frames, float], NDArray[np.float32]]] = {
    "dissolve": lambda old, new, share: old * (1 - share) + new * share,
    "black": _through(0.0),
    "white": _through(255.0),
    "wipe": _wipe(1, False),
    "wipe up": _wipe(0, True),
}
KINDS: Mapping[str, Callable[[Director], None]] = {
    way.__name__: way
    for way in (
        Director.trailer,
        Director.animation,
        Director.reframed,
        Director.keyed,
        Director.jumps,
        Director.faded,
        Director.flashes,
        Director.strobe,
        Director.lights,
        Director.titles,
        Director.inserts,
        Director.sport,
        Director.shaken,
        Director.screens,
        Director.slides,
        Director.boxed,
        Director.blends,
        Director.montage,
    )
}


def make_film(kind: str, sources: Mapping[str, SingleShot], seed: int) -> KnownFilm:
    """A film of one of `KINDS`, coded and decoded."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), seed])
    director = Director(sources, rng)
    KINDS[kind](director)
    film = director.film
    film.frames = coded(film.frames, film.fps, int(rng.integers(18, 35)))
    return film


def coded(frames: Frames, fps: float, crf: int) -> Frames:
    """`frames` after H.264 at that constant rate factor (18 is hardly seen, 34 is a bad download)."""
    import av

    store = io.BytesIO()
    with av.open(store, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    store.seek(0)
    with av.open(store) as file:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    if shown.shape != frames.shape:
        raise RuntimeError(f"Coding {len(frames)} frames gave {len(shown)} back; please report the seed.")
    return shown
