"""Scores every engine against ground truth: cuts, words, turns, voices and sync, in one table.

    python -m benchmarks.quality --media DIR --json FILE [--parts shots,cuts,words,languages,speech,timbre,sync] [--jobs N]

DIR holds a manifest.json in the form of the project's test media, which is the truth; without --media the demo set is
made anew and scored. Each part is a process of its own, N of them side by side, and is written into FILE as soon as it is
through, with its date: parts that are in FILE already and not asked for stay, so that a run that was stopped goes on with
`--parts` of what it lacks. Beside FILE lies the same as Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality_cuts import score_cuts
from benchmarks.quality_languages import score_languages
from benchmarks.quality_shots import score_shots
from benchmarks.quality_speech import score_speech
from benchmarks.quality_sync import score_sync
from benchmarks.quality_timbre import score_timbre
from benchmarks.quality_words import score_words

PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "shots": score_shots,
    "cuts": score_cuts,
    "words": score_words,
    "languages": score_languages,
    "speech": score_speech,
    "timbre": score_timbre,
    "sync": score_sync,
}
VERSIONED = ("torch", "onnxruntime", "opencv-python-headless", "pocketsphinx", "pyannote.audio", "scenedetect", "av")


def about() -> dict[str, Any]:
    """Of this machine: interpreter and package versions."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"python": platform.python_version(), "versions": versions}


def scored(media_dir: Path, part: str) -> tuple[dict[str, Any], float]:
    """The figures of one part, from a process of its own, and its wall seconds. Raises CalledProcessError."""
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["-m", "benchmarks.quality", "--media", str(media_dir), "--json", file.name, "--part", part]
        subprocess.run([sys.executable, *command], check=True)
        figures: dict[str, Any] = json.loads(Path(file.name).read_text())
    return figures, time.perf_counter() - began


def score(media_dir: Path, parts: Sequence[str], jobs: int, keep: Callable[[dict[str, Any]], None]) -> list[str]:
    """Scores parts side by side and hands each to `keep` as it ends; returns those that failed."""
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(scored, media_dir, part): part for part in parts}
        for done in as_completed(waiting):
            part = waiting[done]
            try:
                figures, wall_s = done.result()
            except subprocess.CalledProcessError as error:
                print(f"{part}: failed ({error.returncode})", file=sys.stderr)
                failed.append(part)
                continue
            print(f"{part}: {datetime.timedelta(seconds=round(wall_s))}", file=sys.stderr)
            keep({"dates": {part: datetime.date.today().isoformat()}, part: figures})
    return failed


def write(file: Path, new: Mapping[str, Any]) -> None:
    """Puts `new` figures into `file`, and into the Markdown beside it."""
    before = json.loads(file.read_text()) if file.is_file() and file.stat().st_size else {}
    figures = {**before, **about(), **new, "dates": before.get("dates", {}) | new.get("dates", {})}
    file.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    file.with_suffix(".md").write_text(markdown(figures))


def leaves(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every single figure; lists of two numbers are intervals, longer lists are left out."""
    for name, value in figures.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}.")
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
            yield path, f"{value[0]:.4g} to {value[1]:.4g}"
        elif isinstance(value, float):
            yield path, f"{value:.4g}"
        elif value is not None and not isinstance(value, list):
            yield path, str(value)


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as one table per part."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = ["# Quality of the engines", "", f"Python {figures['python']}, {versions}.", ""]
    for part in PARTS:
        if part in figures:
            lines += [f"## {part}, {figures['dates'].get(part, '')}", "", "| figure | value |", "|---|---|"]
            lines += [f"| {name} | {value} |" for name, value in leaves(figures[part])]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, help="folder with manifest.json (default: the demo set, made anew)")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go; .md is written beside it")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parts side by side (default: one a core)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        arguments.json.write_text(json.dumps(PARTS[arguments.part](arguments.media), default=str))
        return
    parts = arguments.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        media = arguments.media
        if media is None:
            from pipeline.demo import write_demo

            media = write_demo(folder).parent
        failed = score(media, parts, arguments.jobs, partial(write, arguments.json))
    if arguments.json.is_file():
        print(markdown(json.loads(arguments.json.read_text())))
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}\n")


if __name__ == "__main__":
    main()
