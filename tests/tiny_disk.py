"""A disk of a few kilobytes, to see what happens when it is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class TinyDisk:
    """A file system in memory at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def grow(self, size_kb: int) -> None:
        """Makes room."""
        _mount("-o", f"remount,size={size_kb}k", str(self.path))


@contextmanager
def tiny_disk(path: Path, size_kb: int) -> Iterator[TinyDisk]:
    """Mounts one at the new folder `path`; skips the test where that is not allowed."""
    path.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(path)):
        pytest.skip("needs the right to mount a file system")
    try:
        yield TinyDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=60)


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False
