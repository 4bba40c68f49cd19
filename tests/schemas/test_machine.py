"""Trouble of the machine: told from that of files, and said in one sentence with what is left."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import ItemError, MachineError
from schemas.machine import REMEDIES, is_trouble, oom_kills, trouble_of


@pytest.mark.parametrize("number", REMEDIES)
def test_what_the_system_says_of_itself_ends_a_run_with_what_where_and_what_to_do(number: int, tmp_path: Path) -> None:
    found = trouble_of(OSError(number, os.strerror(number), str(tmp_path / "none" / "clip.mp4")))
    assert found is not None
    assert not isinstance(found, ItemError)
    assert os.strerror(number) in str(found)
    assert REMEDIES[number] in str(found)
    assert "the same command goes on" in str(found)
    assert str(found).count("\n") == 0
    is_of_a_disk = number not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    assert ("clip.mp4" in str(found) and "GB are free" in str(found)) == is_of_a_disk


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), OSError("x"), ValueError("x")]
)
def test_what_may_be_a_files_fault_is_no_trouble(error: Exception) -> None:
    assert not is_trouble(error)
    assert trouble_of(error) is None


def test_a_place_where_a_run_writes_that_does_not_let_it_is_trouble(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "x", str(tmp_path / "cuts" / "a.mp4"))
    assert trouble_of(error, [tmp_path / "elsewhere"]) is None
    found = trouble_of(error, ["s3://bucket/x", tmp_path / "cuts"])
    assert str(tmp_path / "cuts" / "a.mp4") in str(found)
    assert "Let this user write there" in str(found)


def test_a_process_keeps_to_its_memory() -> None:
    code = (
        "import numpy as np\n"
        "from schemas.machine import limit_memory, trouble_of\n"
        "limit_memory(0.2)\n"
        "np.ones(100_000_000, np.uint8)\n"
        "try: np.ones(300_000_000, np.uint8)\n"
        "except MemoryError as error: print(trouble_of(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None\n", done.stderr


def test_without_a_name_the_fullest_folder_is_told(tmp_path: Path) -> None:
    """/dev/shm and a folder on the disk: one has less left than the other."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system for all folders")
    folders = sorted((tmp_path, shm), key=lambda path: os.statvfs(path).f_bavail * os.statvfs(path).f_frsize)
    found = trouble_of(OSError(errno.ENOSPC, "x"), ["s3://bucket/x", "", *folders])
    assert f"'{folders[0]}'" in str(found)
    assert "which disk" in str(trouble_of(OSError(errno.ENOSPC, "x"), ["s3://bucket/x"]))


def test_of_a_copy_the_end_that_was_written_is_told(tmp_path: Path) -> None:
    told = [str(trouble_of(OSError(number, "x", "from.mp4", None, "to.mp4"))) for number in (errno.ENOSPC, errno.EIO)]
    assert "to.mp4" in told[0]
    assert "from.mp4" in told[1]


def test_it_travels_between_processes() -> None:
    told = pickle.loads(pickle.dumps(MachineError("full.", remedy="Make room.")))
    assert (type(told), str(told)) == (MachineError, "full. Make room.")


@pytest.mark.parametrize(
    ("groups", "place"),
    [
        ("0::/a/b\n", "a/b/memory.events"),
        ("0::/a/b\n", "memory.events"),
        ("8:pids:/x\n4:memory:/a\n0::/\n", "memory/a/memory.oom_control"),
    ],
)
def test_kills_for_want_of_memory_are_read_of_both_kinds_of_control_groups(
    tmp_path: Path, groups: str, place: str
) -> None:
    (tmp_path / "groups").write_text(groups)
    assert oom_kills(tmp_path / "groups", tmp_path) == 0
    counts = tmp_path / place
    counts.parent.mkdir(parents=True, exist_ok=True)
    counts.write_text("under_oom 0\noom_kill 3\n")
    assert oom_kills(tmp_path / "groups", tmp_path) == 3
    assert oom_kills(tmp_path / "none", tmp_path) == 0
