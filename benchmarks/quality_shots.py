"""Scores every shot engine against a manifest's truth and on generated films of many kinds, PySceneDetect included.

    python -m benchmarks.quality_shots MEDIA_DIR [--engines hybrid,content] [--kinds trailer,titles] [--films 4]

Films are made of the single-shot videos of MEDIA_DIR. Half of those videos, and seeds below 1000, were there to choose
settings on (`benchmarks.fit_shots`); figures come from the other half of the videos and from seeds of 1000 and above.
A hard cut counts as found if one is reported within a frame of it, each report counting once. A gradual transition
counts as found if any boundary is reported within its range, two frames either side allowed. Ranges the manifest calls
`soft_transitions`, `not_cuts`, `graphics_cuts_optional` or `ambiguous` are never held against a detector.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import bootstrap_interval
from benchmarks.quality_shots_camera import SingleShot, resized
from benchmarks.quality_shots_kinds import KINDS, make_film
from stages.base import Context
from stages.shot_split.content import Boundary
from stages.shot_split.stage import Detector, Reel, ShotSplitConfig, make_detector
from stages.shot_split.transnet import HybridDetector, TransNetDetector

ENGINES: tuple[str, ...] = get_args(ShotSplitConfig.model_fields["engine"].annotation)
TOLERANCE_FRAMES = 1
"""Own choice of how far a cut may be off: 42 ms at 24 fps, which is the length of an audio latent."""
RANGE_MARGIN_FRAMES = 2
"""Own choice: the first and last frames of a gradual transition hardly differ from those beside them."""
IGNORED_KEYS = ("soft_transitions", "not_cuts", "graphics_cuts_optional", "ambiguous")
GRADUAL_TYPES = ("fade", "dissolve", "wipe")
PUBLISHED, FITTING = 0, 1
"""The halves of the single-shot videos."""
FIRST_SEED = {PUBLISHED: 1000, FITTING: 0}
SOURCE_SIZE = (320, 180)
"""Own choice of pixels: a close framing of them still fills a thumbnail, and all sources fit in memory."""
SOURCE_S, SOURCE_FRAMES, FASTEST_SOURCE_FPS = Fraction(6), 150, 40
"""Own choice of how much of a source is used: the beginning, of fast ones every second frame."""
MIN_SOURCE_FRAMES = 60
"""Own choice: pieces of up to 4 s would be all alike if taken from less than 2 s."""
COMPOSED = "split_screen"
"""In the name of a video that is put together from others, which may lie in the other half."""

Range = tuple[int, int]
"""[first frame, one past the last)."""


@dataclass
class Truth:
    """What is known of one video."""

    name: str
    hard: Sequence[int]
    gradual: Sequence[Range]
    ignored: Sequence[Range] = field(default_factory=list)


def score_shots(
    media_dir: Path | str,
    engines: Sequence[str] = ENGINES,
    num_films: int = 4,
    kinds: Sequence[str] = tuple(KINDS),
    device: str = "cpu",
    half: int = PUBLISHED,
) -> dict[str, Any]:
    """{"manifest": {engine: figures}, "generated": {engine: {"all": figures, kind: figures}}}; see `summarise`.

    Every engine sees what its stage would show it. Takes a quarter of an hour on one core, nearly all of it for
    `transnetv2`. `generated` is empty where the media hold no single-shot video to make films of.
    """
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    known = [(item, truth_of(item)) for item in items if is_scored(item)]
    detectors = {
        name: make_detector(ShotSplitConfig.model_validate({"engine": name, "device": device})) for name in engines
    }
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        real: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
        context.asset_pass.expect = lambda: [(Reel, *detector.frame_size) for detector in detectors.values()]
        for item, truth in known:
            path = media_dir / item["path"]
            for name, detector in detectors.items():
                thumbs = context.asset_pass.look(path, Reel, *detector.frame_size).thumbs()
                real[name].append(_row(detector, thumbs, context.asset_pass.seen(path).fps, truth))
        sources = sources_of(context, media_dir, items, half)
        context.media.close()
    seeds = range(FIRST_SEED[half], FIRST_SEED[half] + num_films)
    made = {kind: _score_films(detectors, sources, kind, seeds) for kind in kinds if len(sources) > 1}
    return {
        "manifest": {name: summarise(rows) for name, rows in real.items()},
        "generated": {
            name: {
                "all": summarise([row for rows in made.values() for row in rows[name]]),
                **{kind: summarise(rows[name]) for kind, rows in made.items()},
            }
            for name in (engines if made else ())
        },
    }


def is_scored(item: Mapping[str, Any]) -> bool:
    """Whether the manifest states all hard cuts of this video."""
    truth = item["ground_truth"]
    return bool(item["probe"].get("decoded_video_frames")) and ("hard_cuts" in truth or "cuts" in truth)


def truth_of(item: Mapping[str, Any]) -> Truth:
    """The truth about shots in a manifest item."""
    truth = item["ground_truth"]
    gradual = [
        _range(entry)
        for entry in truth.get("soft_transitions", [])
        if str(entry.get("type", "")).startswith(GRADUAL_TYPES)
    ]
    ignored = [_range(entry) for key in IGNORED_KEYS for entry in truth.get(key, [])]
    return Truth(item["path"], truth.get("hard_cuts", truth.get("cuts", [])), gradual, ignored)


def _range(entry: Mapping[str, Any] | int) -> Range:
    if isinstance(entry, int):
        return entry, entry + 1
    if "frame" in entry:
        return entry["frame"], entry["frame"] + 1
    return entry["first_frame"], entry["last_frame"] + 1


def compare(found: Sequence[Boundary], truth: Truth) -> dict[str, Any]:
    """Counts of one video: hits, misses and false reports by frame number."""
    reported = sorted(b.start for b in found if b.kind == "hard")
    missed, left = [], list(reported)
    for cut in sorted(truth.hard):
        near = [frame for frame in left if abs(frame - cut) <= TOLERANCE_FRAMES]
        if near:
            left.remove(min(near, key=lambda frame: abs(frame - cut)))
        else:
            missed.append(cut)
    excused = [*truth.ignored, *truth.gradual]
    false_hard = [frame for frame in left if not any(_touches((frame, frame), r) for r in excused)]
    unfound = [r for r in truth.gradual if not any(_touches((b.start, b.end), r) for b in found)]
    around_cuts = [(cut, cut) for cut in truth.hard]
    soft = [(b.start, b.end) for b in found if b.kind == "gradual"]
    return {
        "name": truth.name,
        "hard_hits": len(truth.hard) - len(missed),
        "hard_missed": missed,
        "hard_false": false_hard,
        "gradual_hits": len(truth.gradual) - len(unfound),
        "gradual_missed": unfound,
        "gradual_false": [s for s in soft if not any(_touches(s, r) for r in [*excused, *around_cuts])],
    }


def _touches(one: Range, other: Range) -> bool:
    return one[0] <= other[1] + RANGE_MARGIN_FRAMES and one[1] >= other[0] - RANGE_MARGIN_FRAMES


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pooled figures of `rows` from `compare` plus num_frames, length_s, cpu_s and looks.

    Intervals are 95 % bootstraps over videos.
    """
    hits, missed, false = (
        np.array([_count(row[key]) for row in rows]) for key in ("hard_hits", "hard_missed", "hard_false")
    )
    soft_hits, soft_missed = (
        np.array([_count(row[key]) for row in rows]) for key in ("gradual_hits", "gradual_missed")
    )

    def f1_of(picked: NDArray[np.int64]) -> float:
        found = _f1(hits[picked].sum(), missed[picked].sum(), false[picked].sum())
        return float("nan") if found is None else found

    frames, cpu_s = sum(row["num_frames"] for row in rows), sum(row["cpu_s"] for row in rows)
    return {
        "videos": len(rows),
        "hard_cuts": int(hits.sum() + missed.sum()),
        "precision": _ratio(hits.sum(), hits.sum() + false.sum()),
        "recall": _ratio(hits.sum(), hits.sum() + missed.sum()),
        "f1": _f1(hits.sum(), missed.sum(), false.sum()),
        "f1_interval": bootstrap_interval(f1_of, len(rows)),
        "gradual": int(soft_hits.sum() + soft_missed.sum()),
        "gradual_recall": _ratio(soft_hits.sum(), soft_hits.sum() + soft_missed.sum()),
        "gradual_false": sum(len(row["gradual_false"]) for row in rows),
        "frames_per_cpu_s": frames / cpu_s if cpu_s else None,
        "looks_per_min": 60 * sum(row["looks"] for row in rows) / sum(row["length_s"] for row in rows),
        "faults": [dict(row) for row in rows if row["hard_missed"] or row["hard_false"] or row["gradual_missed"]],
    }


def _count(value: int | Sequence[Any]) -> int:
    return value if isinstance(value, int) else len(value)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _f1(hits: float, missed: float, false: float) -> float | None:
    return _ratio(2 * hits, 2 * hits + missed + false)


def _row(detector: Detector, thumbs: NDArray[np.uint8], fps: float, truth: Truth) -> dict[str, Any]:
    looked, started = _looks(detector), time.process_time()
    found = detector.detect(thumbs, fps)
    spent = {"cpu_s": time.process_time() - started, "looks": _looks(detector) - looked}
    return {**compare(found, truth), "num_frames": len(thumbs), "length_s": len(thumbs) / fps, **spent}


def _looks(detector: Detector) -> int:
    """Windows that the engine's network was asked about so far; 0 without one."""
    return detector.net.num_looks if isinstance(detector, HybridDetector | TransNetDetector) else 0


def sources_of(
    context: Context, media_dir: Path, items: Iterable[Mapping[str, Any]], half: int
) -> dict[str, SingleShot]:
    """The single-shot videos of one half, `PUBLISHED` or `FITTING`, by path."""
    sources = {}
    for item in items:
        if is_one_shot(item) and zlib.crc32(Path(item["path"]).name.encode()) % 2 == half:
            frames = context.media.frames(media_dir / item["path"], size=SOURCE_SIZE, end=SOURCE_S)
            fps = len(frames.pts) * frames.den / ((frames.end_pts - int(frames.pts[0])) * frames.num)
            step = 2 if fps > FASTEST_SOURCE_FPS else 1
            sources[str(item["path"])] = SingleShot(frames.images[::step][:SOURCE_FRAMES], fps / step)
    return sources


def is_one_shot(item: Mapping[str, Any]) -> bool:
    """Whether the video is known to be one shot: the manifest says so, or it is one of somebody talking."""
    truth, path = item["ground_truth"], str(item["path"])
    changes = any(truth.get(key) for key in ("hard_cuts", "cuts", *IGNORED_KEYS))
    is_known = "cuts" in truth or path.startswith("talking/")
    is_long = (item["probe"].get("decoded_video_frames") or 0) >= MIN_SOURCE_FRAMES
    return is_known and is_long and not changes and COMPOSED not in path


def _score_films(
    detectors: Mapping[str, Detector], sources: Mapping[str, SingleShot], kind: str, seeds: Iterable[int]
) -> dict[str, list[dict[str, Any]]]:
    """Rows per engine on films of `kind`, one for each of `seeds`."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in detectors}
    for seed in seeds:
        film = make_film(kind, sources, seed)
        truth = Truth(f"{kind} {seed}", film.hard, film.gradual, film.ignored)
        for name, detector in detectors.items():
            rows[name].append(_row(detector, resized(film.frames, detector.frame_size), film.fps, truth))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media_dir", type=Path)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--films", type=int, default=4, help="of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", choices=("published", "fitting"), default="published")
    options = parser.parse_args(argv)
    json.dump(
        score_shots(
            options.media_dir,
            options.engines.split(","),
            options.films,
            options.kinds.split(","),
            options.device,
            PUBLISHED if options.half == "published" else FITTING,
        ),
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
