"""Frames decoded by decord and by PyAV, as the stages get them: processor time, and whether they are the same frames.

    python -m benchmarks.decode MEDIA [MEDIA ...] [--repeats 3] [--long-side-px 640] [--json FILE]

MEDIA are files and folders. Every file is decoded through the contained child, one thread, by both engines in turn, and
`repeats` times so, because the speed of a shared machine changes within minutes: the figure of a file is the median of the
ratios of neighbouring runs. `all` takes every frame, `sparse` one a second. Processor time is the child's, from the request
to the last frame; a file that decord cannot give exactly is named with PyAV's time only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from stages.media.decoder import MAX_PIXELS, Decoder, DecoderConfig
from stages.media.decord_frames import Wanted, decord_runs
from stages.media.picture import View
from stages.media.shared import PictureRoom, Shared

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".ts", ".flv", ".wmv"}
VIEWS: dict[str, float | None] = {"all": None, "sparse": 1.0}
"""View -> frames a second asked for."""


def score_decoding(media: Sequence[Path], repeats: int = 3, long_side_px: int = 640) -> dict[str, Any]:
    """`files`, one row per file and view, and per view the median `ratio` of PyAV's time to decord's over the files.

    Costs about six times the files' decoding.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pyav = Decoder(Path(folder) / "pyav")
        decord = Decoder(Path(folder) / "decord", DecoderConfig(engine="decord"))
        for path in _files(media):
            for view, max_fps in VIEWS.items():
                rows.append(
                    {"file": path.name, "view": view, **_compare(path, (pyav, decord), max_fps, repeats, long_side_px)}
                )
        pyav.close()
        decord.close()
    ratios = {view: [row["ratio"] for row in rows if row["view"] == view and row["ratio"]] for view in VIEWS}
    return {
        "files": rows,
        "ratio": {view: median(found) if found else None for view, found in ratios.items()},
        "compared": {view: len(found) for view, found in ratios.items()},
    }


def _compare(
    path: Path, decoders: tuple[Decoder, Decoder], max_fps: float | None, repeats: int, long_side_px: int
) -> dict[str, Any]:
    pyav, decord = decoders
    is_exact = _is_exact(path, max_fps, long_side_px)
    own = [_decode(pyav, path, max_fps, long_side_px)]
    row = {"pyav_cpu_s": own[0][0], "decord_cpu_s": None, "ratio": None, "frames": len(own[0][1]), "apart": None}
    if not is_exact:
        return row
    own, other = [], []
    for _ in range(repeats):
        own.append(_decode(pyav, path, max_fps, long_side_px))
        other.append(_decode(decord, path, max_fps, long_side_px))
    apart = [float(np.abs(a - b).mean()) for a, b in zip(own[0][1], other[0][1], strict=True)]
    return row | {
        "pyav_cpu_s": median(cpu_s for cpu_s, _ in own),
        "decord_cpu_s": median(cpu_s for cpu_s, _ in other),
        "ratio": median(a / b for (a, _), (b, _) in zip(own, other, strict=True)),
        "apart": max(apart),
    }


def _is_exact(path: Path, max_fps: float | None, long_side_px: int) -> bool:
    """Whether decord may decode this file."""
    wanted = Wanted(None, None, View(long_side_px=long_side_px, max_fps=max_fps), 1)
    return decord_runs(str(path), wanted, MAX_PIXELS, PictureRoom(Shared.new())) is not None


def _decode(decoder: Decoder, path: Path, max_fps: float | None, long_side_px: int) -> tuple[float, list[np.ndarray]]:
    """(processor seconds of the child, a small grey copy of each frame)."""
    before, small = decoder.cpu_s, []
    for run in decoder.iter_frames(path, long_side_px=long_side_px, max_fps=max_fps):
        small += [image[::8, ::8].mean(axis=2) for image in run.images]
    return decoder.cpu_s - before, small


def _files(media: Sequence[Path]) -> Iterator[Path]:
    for given in media:
        found = sorted(given.rglob("*")) if given.is_dir() else [given]
        yield from (path for path in found if path.suffix.lower() in SUFFIXES)


def as_text(result: dict[str, Any]) -> str:
    """A table, one line per file and view."""
    lines = [f"{'file':<52}{'view':<8}{'frames':>7}{'PyAV s':>9}{'decord s':>9}{'ratio':>7}{'apart':>7}"]
    for row in result["files"]:
        other = "".join(
            f"{'-' if row[key] is None else format(row[key], '.2f'):>{width}}"
            for key, width in (("pyav_cpu_s", 9), ("decord_cpu_s", 9), ("ratio", 7), ("apart", 7))
        )
        lines.append(f"{row['file'][:51]:<52}{row['view']:<8}{row['frames']:>7}{other}")
    for view, ratio in result["ratio"].items():
        shown = "-" if ratio is None else f"{ratio:.2f}"
        lines.append(f"{view}: PyAV takes {shown} times decord's processor time ({result['compared'][view]} files)")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long-side-px", type=int, default=640)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = score_decoding(options.media, options.repeats, options.long_side_px)
    print(as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
