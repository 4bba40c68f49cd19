"""Whether copies of clips are found, and strangers left alone: `python -m benchmarks.quality_near_duplicates DIR --json FILE`.

Pieces of up to 6 s of every file with a picture are written anew, each in every way of `COPIES`, through decoder, encoder and
stage `fingerprint`; pieces in which nothing can be told (flat pictures and no sound) are named apart. Against them and against
one another stand the other pieces and `--generated` drawn scenes, all distinct; of one in twenty scenes the same copies are made
picture by picture, through JPEG. Files that share an origin are no strangers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import polars as pl
from numpy.typing import NDArray

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
COPIED_SCENES = 20
"""Of one in so many scenes copies are made."""
JPEG = [1, 30]
"""cv2.IMWRITE_JPEG_QUALITY"""

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
    return np.pad(picture, ((bar, bar), *((0, 0),) * (picture.ndim - 1)))


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
    keeps_pitch: bool = False
    """At another speed: as players and editors stretch sound, and not as a record that turns faster."""

    def heard(self, sound: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        """What the copy lets hear of a mono sound [n]."""
        part = sound[round(self.trimmed * len(sound)) :]
        if self.speed == 1 or not len(part):
            return part
        if self.keeps_pitch:
            return stretched(part, rate_hz, self.speed)
        return np.asarray(np.interp(np.arange(0, len(part), self.speed), np.arange(len(part)), part), np.float32)


def stretched(sound: NDArray[np.float32], rate_hz: int, speed: float) -> NDArray[np.float32]:
    """A mono sound [n] played `speed` times as fast at the pitch it has, by ffmpeg's `atempo`."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono", time_base=Fraction(1, rate_hz))
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("atempo", str(speed)), sink).configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    source.push(frame)
    source.push(None)
    parts = []
    with suppress(av.error.EOFError):
        while True:
            parts.append(sink.pull().to_ndarray()[0])
    return np.asarray(np.concatenate(parts), np.float32)


SPEEDS = (1.1, 1.25, 1.5, 0.8)
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
    **{
        f"{speed} times as fast, pitch {pitch}": Copy(speed=speed, keeps_pitch=pitch == "kept")
        for speed in SPEEDS
        for pitch in ("moved", "kept")
    },
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
            part = copy.heard(heard, SAMPLE_RATE_HZ)
            height_px, width_px = pictures[0].shape[:2]
            encoding = Encoding(width_px, height_px, fps * Fraction(copy.speed).limit_denominator(100), quality=CRF)
            encode(to, pictures, part if len(part) else None, encoding)
            yield kind, self.prints(to)


def even(picture: np.ndarray) -> np.ndarray:
    """Without a last row or column that codecs do not take."""
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def pieces(media_dir: Path, most: int) -> Iterator[tuple[str, frozenset[str], float, float]]:
    """(path, origins, start, end) of what is cut out of every file with a picture, `most` pieces of one at most."""
    for item in json.loads((media_dir / "manifest.json").read_text())["items"]:
        kinds = {stream["type"] for stream in item["probe"].get("streams", [])}
        length_s = item["probe"].get("duration_s") or 0.0
        if item["category"] == "awkward" or "video" not in kinds or length_s < SHORTEST_S:
            continue
        origins = frozenset(f"{each.get('repo')}/{each.get('path')}" for each in item["origin"])
        num = max(1, int(length_s // PIECE_S))
        for at in range(min(num, most)):
            yield item["path"], origins, at * length_s / num, (at + 1) * length_s / num


@dataclass(frozen=True)
class Scene:
    """A drawn scene of 5 s: blobs that wander, under tones that change."""

    pictures: list[np.ndarray]
    """Grey, four a second."""
    sound: np.ndarray

    @classmethod
    def drawn(cls, number: int, seed: int) -> Scene:
        """One like no other."""
        y, x = np.arange(72, dtype=np.float32)[:, None], np.arange(128, dtype=np.float32)
        rng = np.random.default_rng((seed, number))
        found = np.full((20, 72, 128), 128, np.float32)
        for _ in range(12):
            (down, right), pace = rng.uniform((0, 0), (72, 128)), rng.normal(0, 4, 2)
            size, level = rng.uniform(5, 20), rng.uniform(-110, 110)
            for at in range(20):
                rows = np.exp(-((y - down - at * pace[0]) ** 2) / (2 * size**2))
                found[at] += level * rows * np.exp(-((x - right - at * pace[1]) ** 2) / (2 * size**2))
        when = np.arange(5 * SPEECH_RATE_HZ) / SPEECH_RATE_HZ
        tones = rng.uniform((300, 0.5), (1900, 4), (6, 2))
        sound = sum(np.sin(2 * np.pi * pitch * when + 20 * np.sin(rate * when)) for pitch, rate in tones)
        noisy = (0.05 * sound + rng.normal(0, 0.01, len(when))).astype(np.float32)
        return cls(list(found.clip(0, 255).astype(np.uint8)), noisy)

    def copied(self, copy: Copy) -> Scene:
        """What `copy` makes of it, each picture coded anew; at another speed others are looked at, as four a second are."""
        import cv2

        at = np.arange(round(copy.trimmed * len(self.pictures)), len(self.pictures) - 0.5, copy.speed)
        pictures = [cv2.imencode(".jpg", copy.change(self.pictures[int(each)]), JPEG)[1] for each in at]
        shown = [np.asarray(cv2.imdecode(each, cv2.IMREAD_GRAYSCALE), np.uint8) for each in pictures]
        return Scene(shown, copy.heard(self.sound, SPEECH_RATE_HZ))

    @property
    def prints(self) -> ClipPrints:
        """As stage `fingerprint` finds them."""
        hashes = [(at / 4, picture_hashes(picture)) for at, picture in enumerate(self.pictures)]
        kept = [(when, each) for when, each in hashes if each is not None]
        return ClipPrints(
            np.array([when for when, _ in kept]),
            np.array([each for _, each in kept], np.uint64).reshape(-1, 6),
            sound_prints(self.sound, SPEECH_RATE_HZ),
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


@dataclass
class Clips:
    """All clips of the benchmark: originals, then copies."""

    originals: list[Piece]
    copies: list[tuple[int, str, ClipPrints]]
    """(which original, kind, prints)"""

    @property
    def prints(self) -> list[ClipPrints]:
        """Of all."""
        return [*(each.prints for each in self.originals), *(prints for *_, prints in self.copies)]

    def original_of(self, number: int) -> Piece:
        """What the clip is, or is a copy of."""
        num = len(self.originals)
        return self.originals[number if number < num else self.copies[number - num][0]]


def made(media_dir: Path, num_generated: int, most_pieces: int, seed: int) -> Clips:
    """Pieces of files and drawn scenes, with their copies."""
    clips = Clips([], [])
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        for name, origins, start_s, end_s in pieces(media_dir, most_pieces):
            try:
                clips.originals.append(Piece(name, origins, maker.prints(media_dir / name, start_s, end_s)))
            except ItemError:
                continue
            of = len(clips.originals) - 1
            clips.copies += [(of, *copy) for copy in maker.copies(media_dir / name, start_s, end_s)]
        maker.context.media.close()
    for number in range(num_generated):
        scene, name = Scene.drawn(number, seed), f"scene {number}"
        clips.originals.append(Piece(name, frozenset({name}), scene.prints))
        if number % COPIED_SCENES == 0:
            of = len(clips.originals) - 1
            clips.copies += [(of, kind, scene.copied(copy).prints) for kind, copy in COPIES.items()]
    return clips


def score(clips: Clips) -> dict[str, Any]:
    """Copies found by kind, with intervals over files, and strangers taken for copies."""
    prints, num = clips.prints, len(clips.originals)
    began = time.process_time()
    pairs = candidates(rows_of(prints)).rows()
    asked = [(a, b) for a, b in pairs if a < num or clips.original_of(a) is not clips.original_of(b)]
    found = {(a, b) for a, b in asked if likeness(prints[a], prints[b]).picture}
    search_s = time.process_time() - began
    strangers = [
        pair for pair in found if not (clips.original_of(pair[0]).origins & clips.original_of(pair[1]).origins)
    ]
    blank = {number for number, each in enumerate(clips.originals) if len(each.prints.at_s) < LEAST_COMMON}
    told = [
        (clips.originals[of].name, kind, (of, num + number) in found)
        for number, (of, kind, _) in enumerate(clips.copies)
        if of not in blank
    ]
    own = Counter(of for of, *_ in clips.copies)
    related = sum((1 + own[number]) * own[number] // 2 for number in range(num))
    return {
        "distinct": num,
        "generated": sum(each.name.startswith("scene") for each in clips.originals),
        "copies": len(clips.copies),
        "blank": sorted({clips.originals[number].name for number in blank}),
        "kinds": {
            kind: _found(its)
            for kind in COPIES
            if (its := [(name, is_found) for name, other, is_found in told if other == kind])
        },
        **_sums(told),
        "false_pairs": len(strangers),
        "false_pairs_of": len(prints) * (len(prints) - 1) // 2 - related,
        "false": sorted({tuple(sorted(clips.original_of(end).name for end in pair)) for pair in strangers}),
        "candidates": len(pairs),
        "compared": len(asked),
        "search_s": round(search_s, 2),
    }


def _sums(told: list[tuple[str, str, bool]]) -> dict[str, Any]:
    """All copies, those of files and those of scenes: at any speed, at one, at others."""
    return {
        f"{what}_at_{speeds}": _found(its)
        for speeds, are_plain in (("any_speed", {True, False}), ("one_speed", {True}), ("other_speeds", {False}))
        for what, are_files in (("all", {True, False}), ("files", {True}), ("scenes", {False}))
        if (
            its := [
                (name, is_found)
                for name, kind, is_found in told
                if is_plain(kind) in are_plain and is_file(name) in are_files
            ]
        )
    }


def is_plain(kind: str) -> bool:
    """Whether copies of this kind play as fast as their originals."""
    return COPIES[kind].speed == 1


def is_file(name: str) -> bool:
    """Whether this is no drawn scene."""
    return not name.startswith("scene")


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
    parser.add_argument("--pieces", type=int, default=10**9, help="most pieces of one file")
    given = parser.parse_args(arguments)
    figures = score(made(given.media, given.generated, given.pieces, seed=0))
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    sums = {name.replace("_", " "): each for name, each in figures.items() if "_at_" in name}
    for kind, each in (figures["kinds"] | sums).items():
        print(f"{kind:<34} {each['found']:>4} of {each['tried']:>4}  {each['share']:.3f}  {each['interval']}")
    print(f"false pairs {figures['false_pairs']} of {figures['false_pairs_of']}: {figures['false'][:5]}")


if __name__ == "__main__":
    main()
