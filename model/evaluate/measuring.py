"""Files measured by the curation half, as processes of `nava-curate score`: this package and that one share files, no code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from schemas.errors import ModelError
from schemas.files import write_whole
from schemas.ids import digest
from schemas.measured import MeasuredFile, read_measured

WHOLE_SAMPLES = (
    "stages.clip.whole_shots=true",
    "stages.clip.min_s=0.1",
    "stages.transcribe.engine=whisperx",
    "stages.sound.rate_speech=true",
)
"""Every shot is looked at whole; what is said is heard, never read from subtitles beside a sample; speech is rated."""


def measure_files(
    files: Iterable[Path], stages: Sequence[str], out: Path, *, workers: int = 1, settings: Sequence[str] = ()
) -> dict[Path, MeasuredFile]:
    """File -> what `stages` measure of it. Lines lie in `out`, a folder, and what is there already is not measured again.

    Files are dealt to `workers` processes by their names. `settings` are those of a recipe, KEY=VALUE. Raises ModelError
    where a process ends badly, which is a fault of the machine or of a setting and never of a file.
    """
    wanted = sorted({path.absolute() for path in files})
    if not wanted or not stages:
        return {}
    dealt: dict[int, list[Path]] = {}
    for path in wanted:
        dealt.setdefault(int(digest(str(path)), 16) % workers, []).append(path)
    running = []
    for number, share in sorted(dealt.items()):
        listed = out / f"files.{number}.jsonl"
        write_whole(listed, "".join(json.dumps({"uri": str(path)}) + "\n" for path in share).encode())
        told = [f"--set={each}" for each in (*WHOLE_SAMPLES, *settings)]
        command = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "score",
            str(listed),
            "--stages",
            ",".join(stages),
            "--vectors",
        ]
        running.append(
            subprocess.Popen([*command, "--out", str(_lines(out, number)), *told], stdout=subprocess.DEVNULL)
        )
    codes = [process.wait() for process in running]
    if any(codes):
        raise ModelError(
            f"nava-curate score ended with {max(codes)} on files listed in {out}.",
            remedy="What it said stands above; the same command goes on.",
        )
    found = {each.uri: each for number in dealt for each in read_measured(_lines(out, number))}
    both = {path: found.get(str(path)) or found.get(path.as_uri()) for path in wanted}
    return {path: each for path, each in both.items() if each is not None}


def _lines(out: Path, number: int) -> Path:
    return out / f"measured.{number}.jsonl"
