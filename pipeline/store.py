"""A run's directory, local or on an object store, in which files appear whole or not at all.

run/  lock  recipe.yaml  plan.txt  sources.arrow  ledger/ (Delta)  assets/  cuts/ (until packed)  shards/  index/  spent/
      at_work.json (while it works)
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from schemas.errors import LedgerError, MachineError, RecipeError
from schemas.files import publish_file, write_whole
from schemas.machine import GOES_ON, is_trouble
from stages.objects import at_store, other_side

T = TypeVar("T")

LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without locks answer; some network file systems are."""


class Entry(NamedTuple):
    """A file of a run."""

    num_bytes: int
    written_s: float | None
    """When it was last written to, as a Unix time; None where the store does not say."""


def _written(told: Mapping[str, Any]) -> float | None:
    when = told.get("mtime") or told.get("LastModified") or told.get("created")
    return when.timestamp() if isinstance(when, datetime) else when


class RunDir:
    """Paths and atomic writes below one folder or URL prefix.

    An object store is asked again while it is away, and never answers from what it said before: others write to the run
    as well. Every method raises MachineError where it stays away.
    """

    def __init__(self, uri: str | Path) -> None:
        import fsspec  # type: ignore[import-untyped]

        self.uri = str(uri).rstrip("/")
        if self.is_local:
            self.uri = os.path.abspath(self.uri)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(
                self.uri, **{} if self.is_local else {"use_listings_cache": False}
            )
        except (ImportError, ValueError) as error:
            remedy = "Install fsspec's back end for it (s3fs, gcsfs, adlfs), or give a folder."
            raise RecipeError(f"{self.uri} cannot be opened: {error}.", remedy=remedy) from error

    @property
    def is_local(self) -> bool:
        """Whether the run lies on this machine's file system."""
        return "://" not in self.uri

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While the body runs, no other process claims this folder; the end of this one, whatever ends it, gives it back.

        Only where the folder lies in a file system that knows locks: on an object store the ledger tells the run that
        commits second. Raises LedgerError where another has claimed it, or nobody can write.
        """
        if not self.is_local:
            yield
            return
        try:
            os.makedirs(self.root, exist_ok=True)
            lock = open(f"{self.root}/{LOCK}", "ab")  # noqa: SIM115 held while the body runs
        except OSError as error:
            if is_trouble(error):
                raise
            raise LedgerError(
                f"{self.uri} cannot be written to: {error.strerror}.", remedy="Give another --out."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                msg = f"another run is writing to {self.uri}."
                raise LedgerError(msg, remedy="Let it finish; then the same command goes on.") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            yield

    def url(self, name: str) -> str:
        """Full path or URL of an entry."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        """Whether an entry is there."""
        return self.entry(name) is not None

    def names(self, folder: str) -> list[str]:
        """Sorted entry names of a folder; empty if there is none."""
        try:
            found = self._asked(folder, lambda place: self.fs.ls(place, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def entries(self, folder: str) -> dict[str, Entry]:
        """Name -> what is known of each file below a folder at any depth; empty if there is none."""
        root = f"{self.root}/{folder}"
        try:
            found = self._asked(folder, lambda place: self.fs.find(place, detail=True))
        except FileNotFoundError:
            return {}
        return {
            str(path).removeprefix(f"{root}/"): Entry(int(told["size"]), _written(told)) for path, told in found.items()
        }

    def entry(self, name: str) -> Entry | None:
        """What is known of a file; None if it is not there."""
        try:
            told = self._asked(name, self.fs.info)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(int(told["size"]), _written(told))

    def read(self, name: str) -> bytes:
        """The bytes of an entry. Raises LedgerError if it is not there."""
        try:
            return bytes(self._asked(name, self.fs.cat_file))
        except FileNotFoundError:
            remedy = "Give the folder that `nava-curate run --out` wrote."
            raise LedgerError(f"{self.url(name)} is not there.", remedy=remedy) from None

    def open(self, name: str) -> Any:
        """A seekable binary file for reading."""
        return self._asked(name, lambda place: self.fs.open(place, "rb"))

    def write(self, name: str, data: bytes) -> None:
        """Writes an entry whole or not at all."""
        if self.is_local:
            write_whole(Path(self.root, name), data)
        else:
            self._sent(name, lambda place: self.fs.pipe_file(place, data))

    def publish(self, local: Path, name: str) -> None:
        """Moves a finished local file to an entry, whole or not at all."""
        if self.is_local:
            publish_file(local, Path(self.root, name))
        else:
            self._sent(name, lambda place: self.fs.put_file(str(local), place))
            local.unlink()

    def remove(self, name: str) -> None:
        """Removes an entry if it is there."""
        try:
            self._asked(name, self.fs.rm_file)
        except FileNotFoundError:
            return

    def _asked(self, name: str, once: Callable[[str], T]) -> T:
        """What `once` answers of the entry's place; of an object store asked again while that is away."""
        place = f"{self.root}/{name}"

        def patient() -> T:
            with other_side():
                return once(place)

        return once(place) if self.is_local else at_store(self.url(name), patient)

    def _sent(self, name: str, send: Callable[[str], object]) -> None:
        """Sends an object, and once more where an upload in parts is not found because its end was told already, unheard."""

        def whole(place: str) -> None:
            try:
                send(place)
            except FileNotFoundError:
                send(place)

        try:
            self._asked(name, whole)
        except FileNotFoundError as error:
            msg = f"{self.url(name)} cannot be written: {error}."
            raise MachineError(msg, remedy=f"Make the bucket, or give another --out; {GOES_ON}") from error
