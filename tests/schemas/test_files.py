"""Whole files: a reader sees the old bytes or the new ones, through exceptions and kills, and never a part."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.files import open_whole, publish_dir, publish_file, sha256_of, whole_dir, whole_path, write_whole

OLD, NEW = b"old" * 1000, b"new" * 400_000


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.bin"
    write_whole(target, OLD)
    with whole_path(target) as path:
        assert target.read_bytes() == OLD
        assert path.parent == target.parent
        path.write_bytes(NEW)
    assert target.read_bytes() == NEW
    assert os.listdir(target.parent) == ["a.bin"]


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, has_begun: bool) -> None:
    target = tmp_path / "a.bin"
    write_whole(target, OLD)
    with pytest.raises(ValueError, match="half way"), open_whole(target) as file:  # noqa: PT012
        if has_begun:
            file.write(NEW[:10])
        raise ValueError("half way")
    assert target.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_kill_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_whole(target, OLD)
    script = (
        "import os, signal; from pathlib import Path; from schemas.files import open_whole\n"
        f"with open_whole(Path({str(target)!r})) as file:\n"
        "    file.write(b'x' * 100_000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert target.read_bytes() == OLD
    (left,) = (name for name in os.listdir(tmp_path) if name != "a.bin")
    assert left.startswith(".")
    assert left.endswith(".partial")
    write_whole(target, NEW)
    assert target.read_bytes() == NEW


def test_a_finished_file_is_moved_or_kept(tmp_path: Path) -> None:
    local, target = tmp_path / "local", tmp_path / "store" / "a"
    local.write_bytes(NEW)
    publish_file(local, target, keep=True)
    assert local.read_bytes() == target.read_bytes() == NEW
    local.unlink()
    local.write_bytes(OLD)
    publish_file(local, target)
    assert not local.exists()
    assert target.read_bytes() == OLD
    assert os.listdir(target.parent) == ["a"]


def test_a_move_across_file_systems_is_whole(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    local, target = memory / f"test-files-{os.getpid()}", tmp_path / "a"
    local.write_bytes(NEW)
    publish_file(local, target, keep=True)
    publish_file(local, target)
    assert target.read_bytes() == NEW
    assert not local.exists()


def test_directories_appear_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for content in (OLD, NEW):
        with whole_dir(target) as folder:
            (folder / "part").write_bytes(content)
        assert (target / "part").read_bytes() == content
    with pytest.raises(ValueError, match="half way"), whole_dir(target) as folder:  # noqa: PT012
        (folder / "part").write_bytes(OLD)
        raise ValueError("half way")
    assert (target / "part").read_bytes() == NEW
    (tmp_path / "other").mkdir()
    publish_dir(tmp_path / "other", target)
    assert os.listdir(tmp_path) == ["made"]
    assert os.listdir(target) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_any_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    assert sha256_of(path) == (hashlib.sha256(bytes(size)).hexdigest(), size)
