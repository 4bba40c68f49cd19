"""Whether figures of picture quality follow known faults: `python -m benchmarks.quality_picture DIR --json FILE`.

Photographs and frames of real videos are blurred, made noisy, shrunken and enlarged, and coded coarser and coarser: along
each of these ladders BRISQUE and the fault's own figure have to rise. Bars of known width are put around them, and pictures
of two times are woven. The half `choose` has other pictures than the half `publish`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.halves import parser_of_halves
from benchmarks.intervals import bootstrap_interval
from pipeline.demo.face import photograph
from pipeline.demo.write import Encoding, encode
from stages.base import Context
from stages.quality.brisque import Brisque
from stages.quality.faults import bars, blockiness, blur, is_combed, noise
from stages.quality.stage import centre, most_detailed

Half = Literal["choose", "publish"]
Picture = NDArray[np.uint8]
LONG_SIDE_PX = 960
PHOTOGRAPHS: dict[Half, tuple[str, ...]] = {
    "choose": ("coffee.png", "hubble_deep_field.jpg", "grass.png"),
    "publish": ("astronaut.png", "chelsea.png", "rocket.jpg", "gravel.png"),
}
VIDEOS: dict[Half, tuple[str, ...]] = {
    "choose": (
        "talking/portrait_hevc_man_kitchen.mp4",
        "talking/talking_man_world_map.mp4",
        "nonspeech/dog_barks_720p.mp4",
        "nonspeech/ukulele_duet_60fps.mp4",
    ),
    "publish": (
        "talking/portrait_hevc_woman_garden.mp4",
        "talking/portrait_hevc_man_curtain_30fps.mp4",
        "talking/talking_woman_blue_backdrop.mp4",
        "nonspeech/tennis_serves_indoor.mp4",
        "nonspeech/gopro_walk_with_telemetry_tracks.mp4",
    ),
}
Worse = Callable[[Picture, float], Picture]


def blurred(picture: Picture, sigma_px: float) -> Picture:
    """Out of focus."""
    import cv2

    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), np.uint8) if sigma_px else picture


def noisy(picture: Picture, levels: float) -> Picture:
    """With noise of so many grey levels."""
    grain = np.random.default_rng(5).normal(0, levels, picture.shape[:2])[..., None] if levels else 0
    return np.asarray(np.clip(picture + grain, 0, 255), np.uint8)


def enlarged(picture: Picture, times: float) -> Picture:
    """From a copy so many times as small."""
    import cv2

    small = cv2.resize(picture, None, fx=1 / times, fy=1 / times, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def squeezed(picture: Picture, strength: float) -> Picture:
    """Through JPEG, at a quality of 100 less `strength`."""
    import cv2

    coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength)])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def through_h264(picture: Picture, crf: float) -> Picture:
    """Through an H.264 encoder and the project's decoder."""
    with tempfile.TemporaryDirectory() as folder:
        context, path = Context(Path(folder)), Path(folder) / "coded.mp4"
        encode(path, [picture], None, Encoding(picture.shape[1], picture.shape[0], Fraction(1), quality=round(crf)))
        coded = context.media.frames(path).images[0]
        context.media.close()
    return np.asarray(coded, np.uint8)


LADDERS: dict[str, tuple[Worse, tuple[float, ...], str]] = {
    "blur, px": (blurred, (0, 1, 2, 4, 8), "blur"),
    "noise, grey levels": (noisy, (0, 4, 10, 20, 40), "noise"),
    "enlarged, times": (enlarged, (1, 1.5, 2, 3, 5), "blur"),
    "JPEG, 100 less quality": (squeezed, (5, 50, 75, 88, 95), "blockiness"),
    "H.264, crf": (through_h264, (18, 28, 36, 44, 51), "blur"),
}
"""Name -> (how, rungs from good to bad, the fault that has to rise along it)."""


def pictures(half: Half, media_dir: Path) -> dict[str, Picture]:
    """RGB pictures of even sides by name."""
    import cv2

    found = {name: photograph(name) for name in PHOTOGRAPHS[half]}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder))
        for name in VIDEOS[half]:
            found[name] = context.media.frames(media_dir / name, start=Fraction(1), end=Fraction(6, 5)).images[0]
        context.media.close()
    for name, picture in found.items():
        scale = min(1.0, LONG_SIDE_PX / max(picture.shape))
        size = tuple(round(side * scale / 2) * 2 for side in picture.shape[1::-1])
        found[name] = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return found


def grey(picture: Picture) -> Picture:
    """As the stage sees it."""
    import cv2

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def score_ladders(all_pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Means on each rung, and the share of steps down on which a picture's figure rises."""
    brisque, figures = Brisque.load(), {}
    measures: dict[str, Callable[[Picture], float | None]] = {
        "brisque": lambda picture: brisque.score(most_detailed(picture, None)),
        "blur": lambda picture: blur(centre(picture, None)),
        "noise": lambda picture: noise(centre(picture, None)),
        "blockiness": lambda picture: blockiness(centre(picture, None)),
    }
    for name, (worse, rungs, fault) in LADDERS.items():
        table = np.array(
            [
                [[measures[each](grey(worse(picture, rung))) for each in ("brisque", fault)] for rung in rungs]
                for picture in all_pictures.values()
            ],
            float,
        )
        figures[name] = {"rungs": list(rungs), "fault": fault, **_along(table)}
    return figures


def _along(table: NDArray[np.float64]) -> dict[str, Any]:
    """Of figures [pictures, rungs, 2]."""
    rises = np.diff(table, axis=1) > 0
    return {
        "brisque": table[..., 0].mean(0).round(1).tolist(),
        "fault_mean": table[..., 1].mean(0).round(3).tolist(),
        "brisque_rises": float(rises[..., 0].mean()),
        "brisque_interval": bootstrap_interval(lambda at: float(rises[at, :, 0].mean()), len(rises)),
        "brisque_ends_apart": float((table[:, -1, 0] > table[:, 0, 0]).mean()),
        "fault_rises": float(rises[..., 1].mean()),
    }


def score_bars(all_pictures: Mapping[str, Picture], rng: np.random.Generator) -> dict[str, Any]:
    """Bars of known widths and levels, and none: how far off they are found, after coding."""
    errors, false = [], 0
    for picture in all_pictures.values():
        false += bars(grey(squeezed(picture, 30))) != (0, 0, 0, 0)
        for level in (0, 16, 255, int(rng.integers(40, 200))):
            left, top, right, bottom = (int(side) for side in rng.choice([0, 20, 60, 110], 4))
            boxed = np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=level)
            found = bars(grey(squeezed(boxed, 30)))
            errors.append(max(abs(a - b) for a, b in zip(found or (999,) * 4, (left, top, right, bottom), strict=True)))
    return {
        "boxed": len(errors),
        "within_8_px": float(np.mean(np.array(errors) <= 8)),
        "worst_px": int(max(errors)),
        "false": false,
        "without": len(all_pictures),
    }


def score_combs(all_pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Pictures whose second rows are from another time, moved by 2 to 12 px, against whole ones."""
    woven = []
    for picture in all_pictures.values():
        for move in (2, 5, 12):
            both = picture.copy()
            both[1::2] = np.roll(picture, move, axis=1)[1::2]
            woven.append(is_combed(grey(through_h264(both, 20))))
    whole = [is_combed(grey(through_h264(picture, crf))) for picture in all_pictures.values() for crf in (20, 34)]
    return {"woven": len(woven), "found": sum(woven), "whole": len(whole), "false": sum(whole)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores, prints and writes."""
    parser = parser_of_halves(__doc__)
    given = parser.parse_args(arguments)
    shown = pictures(given.half, given.media)
    figures = {
        "pictures": len(shown),
        "ladders": score_ladders(shown),
        "bars": score_bars(shown, np.random.default_rng(7)),
        "combs": score_combs(shown),
    }
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
