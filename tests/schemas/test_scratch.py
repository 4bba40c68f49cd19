"""Scratch folders end with their process, however that ends, and with no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from schemas.scratch import Scratch

HOLD = """
import sys
from pathlib import Path
from schemas.scratch import Scratch
held = Scratch("test")
Path(held.name, "frames").write_bytes(b"0" * 1000)
print(held.name, flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def held(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    alive, kept = held(temporary)
    process, left = held(temporary)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (temporary / "nava-other").mkdir()
    assert left.is_dir()
    with Scratch("test") as own:
        assert sorted(path.name for path in temporary.iterdir()) == sorted([kept.name, Path(own).name, "nava-other"])
        assert (kept / "frames").is_file()
    alive.communicate("\n")
    assert alive.returncode == 0
    assert [path.name for path in temporary.iterdir()] == ["nava-other"]
