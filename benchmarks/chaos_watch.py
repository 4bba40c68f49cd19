"""The processes of a command as /proc tells of them, and what they leave behind: processes, shared memory, temporary folders.

A process belongs to a command that was started in a session of its own if it is of that session or carries the command's mark in
its environment: a decoder's child leads a session of its own, and a Ray worker writes its title over its environment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "NAVA_CHAOS"
"""Name of the environment variable that tells the processes of one command from all others."""
SEGMENTS = Path("/dev/shm")
GRACE_S = 10.0
"""What a process may take to notice that those it worked for are gone; a decoder's child looks every two seconds."""


@dataclass(frozen=True)
class Seen:
    """A process that lives."""

    pid: int
    command: str
    """Its arguments, or the title it gave itself."""


class Watch:
    """The processes of a command that was started in these sessions, one after another, with the mark `mark`."""

    def __init__(self, sessions: tuple[int, ...], mark: str) -> None:
        self.sessions = sessions
        self._token = f"{MARK}={mark}".encode()
        self._is_ours: dict[tuple[int, str], bool] = {}
        """(process, when it began) -> whether it carries the mark."""

    def seen(self) -> list[Seen]:
        """All that live now; costs some milliseconds."""
        return list(self._living())

    def outlived(self) -> list[Seen]:
        """Those that still live when they had time to end."""
        until = time.monotonic() + GRACE_S
        while (left := self.seen()) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def _living(self) -> Iterator[Seen]:
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) == os.getpid():
                continue
            try:
                state, _, _, session, *rest = _read(entry, "stat").rpartition(b")")[2].split()
                if state not in (b"Z", b"X") and (int(session) in self.sessions or self._has_mark(entry, rest[15])):
                    command = _read(entry, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
                    yield Seen(int(entry), command)
            except OSError:  # it ended while it was looked at, or is somebody else's
                continue

    def _has_mark(self, entry: str, began: bytes) -> bool:
        key = (int(entry), began.decode())
        if key not in self._is_ours:
            self._is_ours[key] = self._token in _read(entry, "environ").split(b"\0")
        return self._is_ours[key]


def _read(entry: str, name: str) -> bytes:
    return Path("/proc", entry, name).read_bytes()


def segments() -> set[str]:
    """Names in /dev/shm."""
    return {path.name for path in SEGMENTS.iterdir()} if SEGMENTS.is_dir() else set()


def segments_left(before: set[str]) -> list[str]:
    """Segments of shared memory that came since `before` and that no living process has mapped or opened."""
    new = segments() - before
    return sorted(name for name in new if not _is_held(str(SEGMENTS / name)))


def _is_held(path: str) -> bool:
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            held = {os.readlink(each.path) for each in os.scandir(f"/proc/{entry}/fd")}
            if path in held or path.encode() in _read(entry, "maps"):
                return True
        except OSError:
            continue
    return False


def folders_left(temporary: Path) -> list[str]:
    """What lies in a command's temporary folder, Ray's own logs aside: a run that ended well leaves nothing there."""
    return sorted(path.name for path in temporary.iterdir() if path.name != "ray")
