"""Downloads under way: what has arrived so far, whose turn it is, and how many ask one host at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

SLOT_POLL_S = 0.05


class PartFile:
    """A download under way: the bytes so far, and beside them what identifies the content they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._about = path.with_suffix(".json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process works on a partial file; the lock ends with the block, or with the process."""
        with locked_file(self.path):
            yield

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self) -> str | None:
        """The strong ETag, else the Last-Modified date, of the content that the bytes belong to."""
        if not self._about.exists():
            return None
        try:
            about: dict[str, Any] = json.loads(self._about.read_text())
        except ValueError:  # a process was killed while it wrote this
            return None
        etag = about.get("etag")
        return etag if etag and not etag.startswith("W/") else about.get("last-modified")

    def remember(self, headers: httpx.Headers) -> None:
        self._about.write_text(json.dumps({key: headers.get(key) for key in ("etag", "last-modified")}))

    def clear(self) -> None:
        self.path.open("wb").close()
        self.forget()

    def forget(self) -> None:
        self._about.unlink(missing_ok=True)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Makes the file `path` if it is not there and keeps it locked, against threads and processes of this machine.

    Whoever had the lock may have moved the file away: what is locked is the file that has the name now.
    """
    while True:
        with path.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(handle.fileno()), path.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:
                yield
                return


@contextmanager
def host_slot(host: str, per_host: int, min_interval_s: float = 0.0) -> Iterator[None]:
    """One of the `per_host` connections that all processes of this machine may have to `host` at a time.

    Also keeps `min_interval_s` between the starts of two requests. File locks, so that a killed process frees its slot.
    """
    folder = Path(tempfile.gettempdir(), "nava-hosts")
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(host.encode()).hexdigest()[:16]
    with _any_lock([folder / f"{name}.{slot}" for slot in range(per_host)]):
        if min_interval_s > 0:
            with (folder / f"{name}.clock").open("a+") as clock:
                fcntl.flock(clock, fcntl.LOCK_EX)
                clock.seek(0)
                last = float(clock.read() or 0)
                time.sleep(min(min_interval_s, max(0.0, last + min_interval_s - time.time())))
                clock.truncate(0)
                clock.write(str(time.time()))
        yield


@contextmanager
def _any_lock(paths: list[Path]) -> Iterator[None]:
    while True:
        for path in paths:
            handle = path.open("a")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            with handle:
                yield
            return
        time.sleep(SLOT_POLL_S)
