"""One policy of asking again: how often, how long it waits, and what it never retries."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.retry import JITTER, RetryPolicy, TryAgainError, retry_after_s


class Flaky:
    """Fails with the given errors in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_failures_are_waited_out_and_counted() -> None:
    waits: list[float] = []
    flaky = Flaky(TryAgainError("busy"), TryAgainError("busy", wait_s=9.0))
    assert RetryPolicy(3, 0.1).run(flaky, sleep=waits.append) == ("answer", 3)
    assert 0.05 <= waits[0] <= 0.15
    assert waits[1] == 9.0


def test_the_last_error_and_other_errors_are_raised_at_once() -> None:
    waits: list[float] = []
    with pytest.raises(TryAgainError, match="third"):
        RetryPolicy(3, 0.1).run(Flaky(*map(TryAgainError, ("first", "second", "third"))), sleep=waits.append)
    assert len(waits) == 2
    wrong = Flaky(KeyError("no"))
    with pytest.raises(KeyError):
        RetryPolicy(3, 0.1).run(wrong, (OSError,), waits.append)
    assert (wrong.calls, len(waits)) == (1, 2)


@given(failures=st.integers(1, 60), first_s=st.floats(0, 10), asked_s=st.none() | st.floats(0, 1e6))
def test_pauses_double_up_to_their_limits(failures: int, first_s: float, asked_s: float | None) -> None:
    policy = RetryPolicy(5, first_s, longest_pause_s=20.0, longest_asked_s=100.0)
    middle = min(20.0, first_s * 2 ** (failures - 1))
    least = min(asked_s or 0.0, 100.0)
    pause = policy.pause_s(failures, asked_s)
    assert max(least, JITTER[0] * middle) <= pause <= max(least, JITTER[1] * middle)


def test_retry_after_in_both_forms() -> None:
    assert retry_after_s("7") == 7.0
    in_a_minute = retry_after_s(formatdate(time.time() + 60, usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert retry_after_s(formatdate(0, usegmt=True)) == 0.0
    assert [retry_after_s(header) for header in (None, "", "soon", "-3", "²")] == [None] * 5
