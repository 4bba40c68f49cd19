"""Reads that fail for a while: a store that is busy or away, a link that is cut, a mount that comes back."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from schemas.errors import MachineError, ShardError
from schemas.machine import GOES_ON

T = TypeVar("T")
WAITS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8, 15, 30, 60, 60, 60)
"""Seconds between tries, four minutes in all: less than the ten after which ranks give each other up."""
SAID_AFTER = 3
"""Failures in a row after which it is said that a read waits: single ones are daily bread."""
FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
PASSING_STATUS = (408, 425, 429)
"""Answers of a server below 500 that may be another one soon."""
STORE_ERRORS = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "requests": ("RequestException",),
    "google.auth.exceptions": ("TransportError",),
    "azure.core.exceptions": ("AzureError",),
}
"""Errors of the libraries that fsspec's file systems use which are no OSError. Looked up where the library is loaded."""


def store_errors() -> tuple[type[BaseException], ...]:
    """What reading from a store may raise, by the libraries that are loaded."""
    loaded = [(sys.modules[name], kinds) for name, kinds in STORE_ERRORS.items() if name in sys.modules]
    return (OSError, *(getattr(module, kind) for module, kinds in loaded for kind in kinds if hasattr(module, kind)))


def patiently(read: Callable[[], T], what: str, waits_s: Sequence[float] | None = None, *, doing: str = "read") -> T:
    """What `read` gives, tried again after failures that may pass.

    `waits_s` are the seconds between tries (None: `WAITS_S`), `doing` is what `read` does, for what is said. Files that are
    not there or forbidden raise at once, as they are. Raises ShardError when the store refuses, MachineError when it did not
    answer in all that time.
    """
    waits = WAITS_S if waits_s is None else waits_s
    for number, wait_s in enumerate((*waits, None), start=1):
        try:
            return read()
        except FOR_GOOD:
            raise
        except store_errors() as error:
            status = _status(error)
            if status is not None and status < 500 and status not in PASSING_STATUS:
                raise ShardError(
                    f"{what} cannot be {doing}: the store answers {status}.",
                    remedy="Check the URL and the credentials.",
                ) from error
            if wait_s is None:
                raise MachineError(
                    f"{what} cannot be {doing}: {_short(error)}, {number} times in {sum(waits):.0f} s.",
                    remedy=f"See that what holds it answers; {GOES_ON}",
                ) from error
            if number == SAID_AFTER:
                print(f"{what} cannot be {doing}: {_short(error)}; trying again for {sum(waits):.0f} s", flush=True)
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer, under the names that the libraries have for it."""
    for name in ("status", "status_code", "code"):
        if isinstance(value := getattr(error, name, None), int):
            return value
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return value if isinstance(value, int) else None
    return None


def _short(error: BaseException) -> str:
    """What happened, without addresses: they may hold what lets somebody in."""
    if (status := _status(error)) is not None:
        return f"the store answers {status}"
    if isinstance(error, OSError) and error.errno in errno.errorcode and error.strerror:
        return error.strerror
    return type(error).__name__
