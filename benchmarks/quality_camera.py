"""Whether camera movement gets its name: `python -m benchmarks.quality_camera DIR --json FILE`.

A virtual camera looks at photographs, and at real videos of people whose own camera stood still, and pans, tilts, zooms,
trembles or stands, at random speeds, with and without a hand's tremble; what it saw is encoded and goes through decoder and
stage `camera`. The half `choose` has other photographs, other people and other seeds than the half `publish`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.halves import parser_of_halves
from benchmarks.intervals import bootstrap_interval
from pipeline.demo.face import photograph
from pipeline.demo.write import Encoding, encode
from schemas.timing import Span
from stages.base import Context
from stages.camera import CameraWatch

Half = Literal["choose", "publish"]
Pictures = NDArray[np.uint8]
WIDTH_PX, HEIGHT_PX, FPS, SECONDS = 320, 180, 25, 3
MOVES = ("still", "shaken", "pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out")
PHOTOGRAPHS: dict[Half, tuple[str, ...]] = {
    "choose": ("coffee.png", "brick.png", "hubble_deep_field.jpg"),
    "publish": ("astronaut.png", "chelsea.png", "gravel.png", "rocket.jpg"),
}
VIDEOS: dict[Half, tuple[str, ...]] = {
    "choose": (
        "talking/grid_lay_blue_at_x_four_now__man_glasses.mpg",
        "talking/grid_set_blue_with_e_five_now__young_man_grey_shirt.mpg",
        "talking/talking_man_world_map.mp4",
        "nonspeech/ukulele_duet_60fps.mp4",
    ),
    "publish": (
        "talking/grid_bin_red_by_k_seven_now__woman_long_brown_hair.mpg",
        "talking/grid_place_white_in_j_three_please__man_dark_shirt.mpg",
        "talking/talking_woman_blue_backdrop.mp4",
        "talking/talking_woman_red_jacket_glasses.mp4",
    ),
}
FIRST_SEED: dict[Half, int] = {"choose": 0, "publish": 1000}


@dataclass(frozen=True)
class Take:
    """What the camera did."""

    source: str
    move: str
    views: NDArray[np.float64]
    """[n, 4]: width of the view as a share of the source's, its middle x and y as shares, turn in radians."""


def takes(half: Half, rounds: int) -> Iterator[Take]:
    """Every movement over every source, `rounds` times."""
    seed = FIRST_SEED[half]
    for _ in range(rounds):
        for source in (*PHOTOGRAPHS[half], *VIDEOS[half]):
            for move in MOVES:
                seed += 1
                yield Take(source, move, path_of(move, np.random.default_rng(seed)))


def path_of(move: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """The views of a camera that does `move`."""
    num = FPS * SECONDS
    t = np.arange(num) / FPS
    size = rng.uniform(0.45, 0.6)
    views = np.stack([np.full(num, size), np.full(num, 0.5), np.full(num, 0.5), np.zeros(num)], 1)
    if move.startswith(("pan", "tilt")):
        axis = 1 if move.startswith("pan") else 2
        reach = (1 - size) / size * 0.9 / SECONDS
        speed = np.exp(rng.uniform(np.log(0.04), np.log(min(0.5, reach))))
        sign = 1 if move in ("pan_right", "tilt_down") else -1
        views[:, axis] += sign * speed * size * (t - SECONDS / 2)
    elif move.startswith("zoom"):
        rate = np.exp(rng.uniform(np.log(0.06), np.log(0.3)))
        views[:, 0] *= np.exp((-1 if move == "zoom_in" else 1) * rate * (t - SECONDS / 2))
    tremble = 0.0
    if move == "shaken":
        tremble = np.exp(rng.uniform(np.log(0.004), np.log(0.02)))
    elif move != "still" and rng.random() < 0.5:
        tremble = rng.uniform(0.0005, 0.002)
    views[:, 1:3] += size * tremble * trembling(num, rng)[:, :2]
    views[:, 3] += tremble * trembling(num, rng)[:, 0]
    return views


def trembling(num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[num, 2] of a hand that holds a camera: sums of waves of 0.7 to 3.5 Hz, of standard deviation 1."""
    t = np.arange(num) / FPS
    waves = [
        rng.normal(size=2)[None] * np.sin(2 * np.pi * (rng.uniform(0.7, 3.5) * t[:, None] + rng.random(2)))
        for _ in range(6)
    ]
    path = np.sum(waves, 0)
    return np.asarray(path / np.sqrt(np.square(path).mean()))


def seen_by(views: NDArray[np.float64], pictures: Pictures) -> Iterator[Pictures]:
    """What the camera saw of pictures [n, h, w, 3], the last of them held."""
    import cv2

    high, wide = pictures.shape[1:3]
    across = min(wide, high * WIDTH_PX / HEIGHT_PX)
    for number, (size, x, y, turn) in enumerate(views):
        picture = pictures[min(number, len(pictures) - 1)]
        scale = across * size / WIDTH_PX
        middle = np.array([wide / 2 + (x - 0.5) * across, high / 2 + (y - 0.5) * across])
        turned = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        corner = middle - turned @ np.array([WIDTH_PX / 2, HEIGHT_PX / 2])
        matrix = np.column_stack([turned, corner])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        yield np.asarray(
            cv2.warpAffine(picture, matrix, (WIDTH_PX, HEIGHT_PX), flags=flags, borderMode=cv2.BORDER_REFLECT), np.uint8
        )


class Sources:
    """Pictures the camera looks at."""

    def __init__(self, media_dir: Path, context: Context) -> None:
        self._media_dir, self._context = media_dir, context
        self._name, self._pictures = "", np.zeros((0, 0, 0, 3), np.uint8)

    def of(self, name: str) -> Pictures:
        """Pictures [n, h, w, 3] of a photograph, or of a video at `FPS`."""
        if name != self._name:
            self._name = name
            self._pictures = self._read(name)
        return self._pictures

    def _read(self, name: str) -> Pictures:
        if "/" not in name:
            return photograph(name)[None]
        path = self._media_dir / name
        shown = self._context.media.frames(path, long_side_px=720, max_fps=float(FPS), end=Fraction(SECONDS))
        return shown.images


def measured(half: Half, media_dir: Path, rounds: int) -> Iterator[tuple[Take, dict[str, Any]]]:
    """Every take with what the stage says of it."""
    with tempfile.TemporaryDirectory() as folder:
        context, path = Context(Path(folder)), Path(folder) / "take.mp4"
        sources = Sources(media_dir, context)
        for number, take in enumerate(takes(half, rounds)):
            encoding = Encoding(WIDTH_PX, HEIGHT_PX, Fraction(FPS), quality=(22, 28, 34)[number % 3])
            encode(path, seen_by(take.views, sources.of(take.source)), None, encoding)
            watch = context.asset_pass.look(path, CameraWatch)
            yield take, watch.of(Span(0, FPS * SECONDS, 1, FPS))
        context.media.close()


def score(told: list[tuple[Take, dict[str, Any]]]) -> dict[str, Any]:
    """Share of right names, in all and by movement, and what wrong ones were called."""
    is_right = np.array([take.move == found["move"] for take, found in told])
    wrong = Counter(f"{take.move} called {found['move']}" for take, found in told if take.move != found["move"])
    kinds = {}
    for kind in MOVES:
        mine = np.array([take.move == kind for take, _ in told])
        called = np.array([found["move"] == kind for _, found in told])
        both = int((mine & called).sum())
        kinds[kind] = {"tried": int(mine.sum()), "recall": both / mine.sum(), "precision": both / max(1, called.sum())}
    on_video = np.array(["/" in take.source for take, _ in told])
    return {
        "takes": len(told),
        "right": float(is_right.mean()),
        "interval": bootstrap_interval(lambda at: float(is_right[at].mean()), len(told)),
        "of_photographs": float(is_right[~on_video].mean()),
        "of_people": float(is_right[on_video].mean()),
        "kinds": kinds,
        "wrong": dict(wrong.most_common()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints the table and writes it."""
    parser = parser_of_halves(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args(arguments)
    figures = score(list(measured(given.half, given.media, given.rounds)))
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    for kind, each in figures["kinds"].items():
        print(f"{kind:<10} {each['tried']:>3}  recall {each['recall']:.2f}  precision {each['precision']:.2f}")
    print(f"right {figures['right']:.3f} {figures['interval']}; {figures['wrong']}")


if __name__ == "__main__":
    main()
