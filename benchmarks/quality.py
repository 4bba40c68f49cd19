"""Scores every engine against ground truth: cuts, words, turns, voices and sync, in one table.

    python -m benchmarks.quality --media DIR --json FILE [--parts shots,cuts,words,languages,speech,timbre,sync]

DIR holds a manifest.json in the form of the project's test media, which is the truth; without --media the demo set is
made anew and scored. Writes the JSON, and beside it the same as Markdown with date and versions.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def score(media_dir: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Figures of each part by name, with date, machine and package versions. Raises KeyError for an unknown part."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        **{part: PARTS[part](media_dir) for part in parts},
    }


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
    lines = [f"# Quality of the engines, {figures['date']}", "", f"Python {figures['python']}, {versions}.", ""]
    for part in PARTS:
        if part in figures:
            lines += [f"## {part}", "", "| figure | value |", "|---|---|"]
            lines += [f"| {name} | {value} |" for name, value in leaves(figures[part])]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, help="folder with manifest.json (default: the demo set, made anew)")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go; .md is written beside it")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        media = arguments.media
        if media is None:
            from pipeline.demo import write_demo

            media = write_demo(folder).parent
        figures = score(media, arguments.parts.split(","))
    arguments.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    arguments.json.with_suffix(".md").write_text(markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
