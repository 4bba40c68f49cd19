"""What tests with whole runs share: the command, the marks of those that start Ray, and one curated demo.

The demo is written and curated once per test session: whichever test or worker needs it first makes it for all. Tests only
read it; who wants to damage something copies it first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

SAID = "said.txt"
"""Beside the run: what the command that made it printed."""


def starts_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts a Ray runtime; two runtimes at once would share the cores, and each would take twice as long."""
    for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)):
        test = mark(test)
    return test


def curate(*arguments: str) -> subprocess.Popen[str]:
    """`nava-curate` as a user starts it, in a process group of its own."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Its output; fails if it failed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this test session, filled by `make` once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    whole = folder / "whole"
    with FileLock(f"{folder}.lock"):
        if not whole.exists():
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def write_media(folder: Path) -> None:
    """The media of `make demo`."""
    from pipeline.demo import write_demo

    write_demo(folder)


def curate_media(media: Path, folder: Path) -> None:
    """The run of `make demo`, on a private Ray runtime."""
    run = curate("run", "quickstart", "--input", str(media / "sources.jsonl"), "--out", str(folder / "run"))
    (folder / SAID).write_text(finish(run))


def part_of_run(whole: Path, names: Sequence[str], out: Path) -> Path:
    """A run in `out` of the sources of `whole` with these file names, settled as they are there and not packed."""
    from pipeline.ask.queries import Run
    from pipeline.ledger import unit_tables
    from pipeline.ledger_writer import LedgerWriter
    from pipeline.run import write_facts
    from pipeline.store import RunDir

    run, directory = Run(str(whole)), RunDir(out)
    known = list(run.ledger.passed()["source_id"])
    units = [unit for unit in run.ledger.units(run.plan, known) if Path(unit.source.uri).name in names]
    assert len(units) == len(names)
    write_facts(directory, run.plan, [unit.source for unit in units])
    through = run.plan.identity(len(run.plan.passes) - 1)
    with LedgerWriter(directory.url("ledger"), run.plan) as writer:
        for unit in units:
            writer.add(unit.source.source_id, unit_tables(run.plan, unit, through), is_there=False)
    return out
