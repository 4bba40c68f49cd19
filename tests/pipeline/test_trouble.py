"""Trouble of the machine in the middle of a run: it ends with one sentence, nothing is settled, the same command goes on."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.demo.clips import flash_and_click
from pipeline.demo.write import Encoding
from pipeline.ledger import Ledger
from schemas.errors import MachineError
from schemas.records import Level
from stages.download.sources import expand_sources
from tests.pipeline.toy_run import settled, verdicts
from tests.tiny_disk import tiny_disk

STAGES: dict[str, Any] = {"download": {"mode": "copy"}, "probe": {}, "shot_split": {"engine": "content"}}
RECIPE = {"name": "short", "audit_fraction": 0.0, "stages": STAGES, "gates": {}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    flash_and_click(path, 2.0, Encoding(width_px=320, height_px=160), seed=3)
    return path


def said(ledger: Ledger) -> list[tuple[str, str | None]]:
    return [(verdict.status, verdict.reason) for verdict in verdicts(ledger, Level.ASSET).values()]


@pytest.mark.parametrize("full", ["scratch", "store"])
def test_a_full_disk_settles_nothing_and_room_lets_the_run_go_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """A worker finds too little room for frames before it begins, or none for the asset in the middle of it."""
    sources = expand_sources([str(clip)])
    with tiny_disk(tmp_path / "disk", 40) as disk:
        run = disk.path / "run" if full == "store" else tmp_path / "run"
        if full == "scratch":
            monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
        with (
            pytest.raises(MachineError, match=f"{disk.path}.*Make room there.*the same command goes on"),
            settled(RECIPE, sources, run),
        ):
            pass
        assert said(Ledger(f"{run}/ledger")) == []
        disk.grow(20_000)
        with settled(RECIPE, sources, run) as ledger:
            assert said(ledger) == [("reject", "asset.no_clip")], "a recipe without clips gives none"


@pytest.mark.parametrize(("error", "code"), [(OSError(errno.ENOSPC, "full"), 2), (MachineError("No memory."), 2)])
def test_the_command_says_it_in_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def test_an_out_that_cannot_be_written_is_said_in_one_line(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (str(tmp_path / "file"), "/proc/run"):
        monkeypatch.setattr(sys, "argv", ["nava-curate", "run", "quickstart", "--here", "-i", str(clip), "-o", out])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert f"{out} cannot be written to" in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_says_what_is_safe(clip: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        "quickstart",
        "--here",
        "-i",
        str(clip),
        "-o",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lock = tmp_path / "run" / "lock"
    while not lock.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"what {tmp_path / 'run'} holds is whole" in said
    assert "Traceback" not in said


def test_the_command_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(FileNotFoundError):
        cli.main()
