"""Whether copies of clips are found, and strangers left alone: `python -m benchmarks.quality_near_duplicates DIR --json FILE`.

Pieces of up to 6 s of every file with a picture are written anew, each in every way of `COPIES`, through decoder, encoder and
stage `fingerprint`; pieces in which nothing can be told (flat pictures and no sound) are named apart. Against them and against
one another stand the other pieces and `--generated` drawn scenes, all distinct. Files that share an origin are no strangers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.intervals import bootstrap_interval
from pipeline.demo.voice import SAMPLE_RATE_HZ
from pipeline.demo.write import Encoding, encode
from schemas.errors import ItemError
from schemas.spans import SPEECH_RATE_HZ
from schemas.timing import Span
from stages.base import Context
from stages.fingerprint import PrintWatch
from stages.near_duplicates.prints import picture_hashes, sound_prints
from stages.near_duplicates.search import LEAST_COMMON, ClipPrints, candidates, likeness

PIECE_S, SHORTEST_S = 6.0, 3.0
WRITTEN_PX = 320
CRF = 34
NUM_GENERATED = 2000

Change = Callable[[np.ndarray], np.ndarray]


def cropped(share: float) -> Change:
    """The middle of a picture, with `share` of both sides left out."""

    def change(picture: np.ndarray) -> np.ndarray:
        top, left = (round(side * share / 2) for side in picture.shape[:2])
        return picture[top : picture.shape[0] - top, left : picture.shape[1] - left]

    return change


def mirrored(picture: np.ndarray) -> np.ndarray:
    """Left for right."""
    return picture[:, ::-1]


def brighter(picture: np.ndarray) -> np.ndarray:
    """Gamma 0.75."""
    return (255 * (picture / 255) ** 0.75).astype(np.uint8)


def letterboxed(picture: np.ndarray) -> np.ndarray:
    """Bars of a fifth of its height above and below."""
    bar = picture.shape[0] // 5
    return np.pad(picture, ((bar, bar), (0, 0), (0, 0)))


def small(picture: np.ndarray) -> np.ndarray:
    """A third as wide and high."""
    import cv2

    size = (picture.shape[1] // 3, picture.shape[0] // 3)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def as_it_is(picture: np.ndarray) -> np.ndarray:
    """No change but what encoding does."""
    return picture


@dataclass(frozen=True)
class Copy:
    """How a copy is made."""

    change: Change = as_it_is
    trimmed: float = 0.0
    """Share that is left out at the beginning."""
    speed: float = 1.0


COPIES = {
    "encoded again": Copy(),
    "small": Copy(small),
    "cropped 5 %": Copy(cropped(0.05)),
    "cropped 10 %": Copy(cropped(0.1)),
    "cropped 20 %": Copy(cropped(0.2)),
    "mirrored": Copy(mirrored),
    "mirrored and cropped 15 %": Copy(lambda picture: cropped(0.15)(mirrored(picture))),
    "brighter": Copy(brighter),
    "letterboxed": Copy(letterboxed),
    "trimmed by 30 %": Copy(trimmed=0.3),
    "1.25 times as fast": Copy(speed=1.25),
    "0.8 times as fast": Copy(speed=0.8),
}


@dataclass(frozen=True)
class Piece:
    """A part of a file."""

    name: str
    origins: frozenset[str]
    prints: ClipPrints


class Maker:
    """Reads pieces of files, and writes their copies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = Context(folder)

    def prints(self, path: Path, start_s: float = 0.0, end_s: float = 1e6) -> ClipPrints:
        """As stage `fingerprint` finds them."""
        span = Span(round(start_s * 1000), round(end_s * 1000), 1, 1000)
        at_s, pictures = self.context.asset_pass.look(path, PrintWatch).of(span)
        try:
            sound = self.context.media.audio(path, rate_hz=SPEECH_RATE_HZ)
            heard = sound_prints(sound.cut(span.start, min(span.end, sound.end)).reshape(-1), SPEECH_RATE_HZ)
        except ItemError:
            heard = np.zeros(0, np.uint32)
        return ClipPrints(np.array(at_s), np.array(pictures, np.int64).view(np.uint64).reshape(-1, 6), heard)

    def copies(self, path: Path, start_s: float, end_s: float) -> Iterator[tuple[str, ClipPrints]]:
        """(kind, prints) of a piece, written in every way."""
        media = self.context.media
        shown = media.frames(path, long_side_px=WRITTEN_PX, max_fps=25.0, start=Fraction(start_s), end=Fraction(end_s))
        images, fps = shown.images, Fraction(len(shown.pts) / (end_s - start_s)).limit_denominator(100)
        try:
            sound = media.audio(path, rate_hz=SAMPLE_RATE_HZ)
            heard = sound.cut(Fraction(start_s), min(Fraction(end_s), sound.end)).reshape(-1)
        except ItemError:
            heard = np.zeros(0, np.float32)
        for kind, copy in COPIES.items():
            to = self.folder / f"{kind.replace(' ', '_')}.mp4"
            pictures = [even(copy.change(image)) for image in images[round(copy.trimmed * len(images)) :]]
            part = heard[round(copy.trimmed * len(heard)) :]
            if copy.speed != 1:
                part = np.interp(np.arange(0, len(part), copy.speed), np.arange(len(part)), part).astype(np.float32)
            height_px, width_px = pictures[0].shape[:2]
            encoding = Encoding(width_px, height_px, fps * Fraction(copy.speed).limit_denominator(100), quality=CRF)
            encode(to, pictures, part if len(part) else None, encoding)
            yield kind, self.prints(to)


def even(picture: np.ndarray) -> np.ndarray:
    """Without a last row or column that codecs do not take."""
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def pieces(media_dir: Path) -> Iterator[tuple[str, frozenset[str], float, float]]:
    """(path, origins, start, end) of what is cut out of every file with a picture."""
    for item in json.loads((media_dir / "manifest.json").read_text())["items"]:
        kinds = {stream["type"] for stream in item["probe"].get("streams", [])}
        length_s = item["probe"].get("duration_s") or 0.0
        if item["category"] == "awkward" or "video" not in kinds or length_s < SHORTEST_S:
            continue
        origins = frozenset(f"{each.get('repo')}/{each.get('path')}" for each in item["origin"])
        num = max(1, int(length_s // PIECE_S))
        for at in range(num):
            yield item["path"], origins, at * length_s / num, (at + 1) * length_s / num


def generated(num: int, seed: int) -> Iterator[ClipPrints]:
    """Prints of drawn scenes of 5 s, none like another: blobs that wander, under tones that change."""
    y, x = np.mgrid[0:72, 0:128].astype(np.float32)
    at_s = np.arange(20) / 4
    for number in range(num):
        rng = np.random.default_rng((seed, number))
        found = np.full((20, 72, 128), 128, np.float32)
        for _ in range(12):
            (down, right), pace = rng.uniform((0, 0), (72, 128)), rng.normal(0, 4, 2)
            size, level = rng.uniform(5, 20), rng.uniform(-110, 110)
            for at in range(20):
                apart = (y - down - at * pace[0]) ** 2 + (x - right - at * pace[1]) ** 2
                found[at] += level * np.exp(-apart / (2 * size**2))
        hashes = [picture_hashes(picture) for picture in found.clip(0, 255).astype(np.uint8)]
        kept = [(when, each) for when, each in zip(at_s, hashes, strict=True) if each is not None]
        when = np.arange(5 * SPEECH_RATE_HZ) / SPEECH_RATE_HZ
        tones = rng.uniform((300, 0.5), (1900, 4), (6, 2))
        sound = sum(np.sin(2 * np.pi * pitch * when + 20 * np.sin(rate * when)) for pitch, rate in tones)
        heard = sound_prints((0.05 * sound + rng.normal(0, 0.01, len(when))).astype(np.float32), SPEECH_RATE_HZ)
        yield ClipPrints(
            np.array([each for each, _ in kept]), np.array([each for _, each in kept], np.uint64).reshape(-1, 6), heard
        )


def rows_of(prints: list[ClipPrints]) -> pl.LazyFrame:
    """As `candidates` takes them, each a source of its own."""
    return pl.LazyFrame(
        {
            "clip": range(len(prints)),
            "source_id": [str(number) for number in range(len(prints))],
            "pictures": [each.pictures.ravel().view(np.int64).tolist() for each in prints],
            "sound": [each.sound.view(np.int32).tolist() for each in prints],
        },
        schema={"clip": pl.UInt32, "source_id": pl.String, "pictures": pl.List(pl.Int64), "sound": pl.List(pl.Int32)},
    )


def score(media_dir: Path, num_generated: int, seed: int = 0) -> dict[str, Any]:
    """Copies found by kind, with intervals over files, and strangers taken for copies."""
    originals: list[Piece] = []
    copies: list[tuple[int, str, ClipPrints]] = []
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        for name, origins, start_s, end_s in pieces(media_dir):
            try:
                originals.append(Piece(name, origins, maker.prints(media_dir / name, start_s, end_s)))
            except ItemError:
                continue
            made = maker.copies(media_dir / name, start_s, end_s)
            copies += [(len(originals) - 1, kind, prints) for kind, prints in made]
        maker.context.media.close()
    drawn = list(generated(num_generated, seed))
    prints = [*(each.prints for each in originals), *drawn, *(each for _, _, each in copies)]
    began = time.process_time()
    pairs = candidates(rows_of(prints)).rows()
    search_s = time.process_time() - began
    found = {pair for pair in pairs if likeness(prints[pair[0]], prints[pair[1]]).picture}
    num_distinct = len(originals) + len(drawn)
    strangers = [pair for pair in found if pair[1] < num_distinct and _are_strangers(originals, *pair)]
    blank = {number for number, each in enumerate(originals) if len(each.prints.at_s) < LEAST_COMMON}
    by_kind = {}
    for kind in COPIES:
        told = [
            (originals[of].name, (of, num_distinct + number) in found)
            for number, (of, its, _) in enumerate(copies)
            if its == kind and of not in blank
        ]
        by_kind[kind] = _found(told)
    same_speed = [
        (originals[of].name, (of, num_distinct + number) in found)
        for number, (of, kind, _) in enumerate(copies)
        if of not in blank and COPIES[kind].speed == 1
    ]
    return {
        "pieces": len(originals),
        "generated": len(drawn),
        "blank": sorted({originals[number].name for number in blank}),
        "kinds": by_kind,
        "all_at_one_speed": _found(same_speed),
        "false_pairs": len(strangers),
        "false_pairs_of": num_distinct * (num_distinct - 1) // 2,
        "false": [
            [originals[end].name if end < len(originals) else f"scene {end}" for end in pair] for pair in strangers
        ],
        "candidates": len(pairs),
        "search_s": round(search_s, 2),
    }


def _are_strangers(originals: list[Piece], a: int, b: int) -> bool:
    if b >= len(originals):
        return True
    return not originals[a].origins & originals[b].origins


def _found(told: list[tuple[str, bool]]) -> dict[str, Any]:
    """Share found, with an interval over files."""
    by_file: dict[str, list[bool]] = {}
    for name, is_found in told:
        by_file.setdefault(name, []).append(is_found)
    groups = list(by_file.values())

    def share(picked: Any) -> float:
        return float(np.mean([each for at in picked for each in groups[at]]))

    return {
        "tried": len(told),
        "found": sum(is_found for _, is_found in told),
        "share": share(range(len(groups))),
        "interval": bootstrap_interval(share, len(groups)),
        "missed": sorted({name for name, is_found in told if not is_found}),
    }


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder with a manifest.json")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--generated", type=int, default=NUM_GENERATED, help="drawn scenes beside the pieces")
    given = parser.parse_args(arguments)
    figures = score(given.media, given.generated)
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    for kind, each in [*figures["kinds"].items(), ("all at one speed", figures["all_at_one_speed"])]:
        print(f"{kind:<28} {each['found']:>4} of {each['tried']:>4}  {each['share']:.3f}  {each['interval']}")
    print(f"false pairs {figures['false_pairs']} of {figures['false_pairs_of']}: {figures['false'][:5]}")


if __name__ == "__main__":
    main()
