"""Objects at fsspec URLs: read into files and left in the run's store, asked again while the other side is away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from schemas.errors import MachineError
from schemas.files import BLOCK_BYTES
from schemas.machine import GOES_ON
from stages.retry import RetryPolicy, TryAgainError

T = TypeVar("T")

STORE = RetryPolicy(attempts=8, first_pause_s=1.0)
"""How long the store of a run may be away, about two minutes: without it nothing can be done for any file."""
BACK_END_ERRORS = (
    ("builtins", "OSError"),
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
)
"""(module, class) of what fsspec's back ends raise when the other side does not answer as it should."""
REFUSALS = (("builtins", "PermissionError"), ("botocore.exceptions", "NoCredentialsError"))
"""Those of them that asking again does not change."""


@contextmanager
def other_side() -> Iterator[None]:
    """Whatever goes wrong in the block is the other side's: TryAgainError. What is not there stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _loaded(BACK_END_ERRORS) as error:
        raise TryAgainError(str(error) or type(error).__name__) from error


def at_store(url: str, once: Callable[[], T]) -> T:
    """What `once` does at the run's store `url`. Raises MachineError where the store stays away, or does not let it in."""

    def admitted() -> T:
        try:
            return once()
        except TryAgainError as error:
            if isinstance(error.__cause__, _loaded(REFUSALS)):
                msg = f"a store that this run needs does not let it in: {url}: {error}."
                remedy = f"Give credentials for it in the environment of every process (docs/cluster.md); {GOES_ON}"
                raise MachineError(msg, remedy=remedy) from error
            raise

    try:
        return STORE.run(admitted)[0]
    except TryAgainError as error:
        msg = f"a store that this run needs does not answer: {url}: {error}."
        raise MachineError(msg, remedy=f"See that it is there and lets this run in; {GOES_ON}") from error


def _loaded(classes: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    """Those of the classes whose module is loaded: the others nobody can have raised."""
    return tuple(getattr(sys.modules[module], name) for module, name in classes if module in sys.modules)


def blocks_of(url: str, check_size: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The bytes of an object, one read at a time; `check_size` is told their number before, where the store knows it.

    Raises FileNotFoundError, TryAgainError, and ImportError or ValueError where there is no back end for the URL.
    """
    import fsspec  # type: ignore[import-untyped]

    with other_side():
        fs, place = fsspec.core.url_to_fs(url)
        size = fs.size(place)
        if size is not None:
            check_size(size)
        with fs.open(place, "rb") as source:
            while block := source.read(BLOCK_BYTES):
                yield block


def fetch(url: str, target: Path, check_size: Callable[[int], None] = lambda _: None) -> None:
    """Writes an object to the file `target`. Raises what `blocks_of` does, and OSError of this machine's own disk."""
    with target.open("wb") as out:
        for block in blocks_of(url, check_size):
            out.write(block)


def leave(data: bytes, url: str) -> None:
    """Writes an object of the run's store, which shows it only when it is complete. Raises MachineError."""
    import fsspec

    def once() -> None:
        with other_side():
            fs, place = fsspec.core.url_to_fs(url)
            fs.pipe_file(place, data)

    at_store(url, once)


def put(path: Path, url: str) -> None:
    """Copies a file to an object of the run's store, unless one of its size is there. Raises MachineError."""
    import fsspec

    def once() -> None:
        with other_side():
            fs, place = fsspec.core.url_to_fs(url)
            if not fs.exists(place) or fs.size(place) != path.stat().st_size:
                fs.makedirs(place.rpartition("/")[0], exist_ok=True)
                fs.put_file(str(path), place)

    at_store(url, once)
