"""Temporary folders that a killed process does not leave behind for good.

Each is locked for as long as its process lives; the kernel takes the lock back however that ends. Whoever makes the next one
on the same machine removes those that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = "nava-scratch-"
"""Begins the names of these folders and of nothing else."""


class Scratch(tempfile.TemporaryDirectory[str]):
    """A `tempfile.TemporaryDirectory`, `nava-scratch-{purpose}-...`, that is removed by others if its process is killed."""

    def __init__(self, purpose: str) -> None:
        remove_abandoned()
        lock = None
        while lock is None:
            super().__init__(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True)
            lock = _locked(Path(self.name))
        self._unlock = weakref.finalize(self, os.close, lock)

    def cleanup(self) -> None:
        """Removes it, if it is there."""
        super().cleanup()
        self._unlock()


def remove_abandoned() -> None:
    """Removes the scratch folders of this user's processes that are no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed; None where somebody else holds it or has removed it.

    Raises OSError for a folder of somebody else.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
    except BlockingIOError:
        is_there = False
    if not is_there:
        os.close(descriptor)
    return descriptor if is_there else None
