"""Objects at fsspec URLs: read into files and left in the run's store, asked again while the other side is away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
)
"""(module, class) of what fsspec's back ends raise besides OSError when the other side does not answer as it should."""


@contextmanager
def other_side() -> Iterator[None]:
    """Whatever goes wrong in the block is the other side's: TryAgainError. What is not there stays a FileNotFoundError."""
    loaded = [getattr(sys.modules[module], name) for module, name in BACK_END_ERRORS if module in sys.modules]
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, *loaded) as error:
        raise TryAgainError(str(error) or type(error).__name__) from error


def at_store(url: str, once: Callable[[], T]) -> T:
    """What `once` does at the run's store `url`. Raises MachineError where the store stays away."""
    try:
        return STORE.run(once)[0]
    except TryAgainError as error:
        msg = f"a store that this run needs does not answer: {url}: {error}."
        raise MachineError(msg, remedy=f"See that it is there and lets this run in; {GOES_ON}") from error


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
