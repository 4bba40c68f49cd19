"""How often to ask again, and how long to wait before: one policy for everything that is asked over a network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from schemas.machine import is_trouble

T = TypeVar("T")

JITTER = (0.5, 1.5)
"""Factor range of every pause, so that workers that failed together do not return together."""


class TryAgainError(Exception):
    """This attempt failed; another may not. `wait_s` is what the other side asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter that respects what the other side asks for."""

    attempts: int
    """In all, at least 1."""
    first_pause_s: float
    """Pause after the first failure; doubles."""
    longest_pause_s: float = 60.0
    longest_asked_s: float = 300.0
    """Longest pause granted to a Retry-After header."""

    def run(
        self,
        once: Callable[[], T],
        retried: tuple[type[Exception], ...] = (TryAgainError,),
        sleep: Callable[[float], None] = time.sleep,
    ) -> tuple[T, int]:
        """(what `once` returns, attempts it took); errors other than `retried` and that of the last attempt are raised.

        An error's `wait_s`, where it has one, is waited at least. Trouble of this machine is not asked again.
        """
        for attempt in range(1, self.attempts):
            try:
                return once(), attempt
            except retried as error:
                if is_trouble(error):
                    raise
                sleep(self.pause_s(attempt, getattr(error, "wait_s", None)))
        return once(), self.attempts

    def pause_s(self, failures: int, asked_s: float | None = None) -> float:
        """Seconds to wait after this many failures in a row."""
        own_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failures - 1)) * random.uniform(*JITTER)
        return max(own_s, min(asked_s or 0.0, self.longest_asked_s))


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3: seconds or a date) asks for; None without a readable one."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
