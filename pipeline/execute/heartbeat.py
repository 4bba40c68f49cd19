"""What a run is at, for other terminals: a small file in the run's folder, written every few seconds while it works.

    at_work.json   when it was written, what workers are at, what stages have done, and how long the rest takes

It is written whole or not at all, and taken away at the end; deleting it changes nothing but what `status` can say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.execute.monitor import AtWork, Snapshot, StageTally
from pipeline.store import RunDir
from pipeline.unit import Part
from schemas.errors import NavaError

AT_WORK = "at_work.json"
WRITTEN_EVERY_S, STORED_EVERY_S = 5.0, 30.0
"""In a folder, and on an object store."""
FRESH_S = 90.0
"""What is older was left by a run that was killed."""


@dataclass(frozen=True)
class Heartbeat:
    """What a run said last."""

    written: float
    """Unix time."""
    headline: str
    """Sources, media time, rate and time left, as the run itself tells them."""
    snapshot: Snapshot

    @property
    def age_s(self) -> float:
        """Time since then."""
        return time.time() - self.written


@contextmanager
def beating(directory: RunDir, headline: Callable[[], str]) -> Iterator[Callable[[Snapshot], None]]:
    """While the body runs, what it is given writes what the run is at, if it is time; afterwards nobody is at anything.

    `headline` gives the run's line. What cannot be written is not.
    """
    every_s = WRITTEN_EVERY_S if directory.is_local else STORED_EVERY_S
    written_s = float("-inf")

    def beat(snapshot: Snapshot) -> None:
        nonlocal written_s
        if time.monotonic() - written_s < every_s:
            return
        written_s = time.monotonic()
        told = {
            "written": time.time(),
            "headline": headline(),
            "at_work": [asdict(at) for at in snapshot.at_work],
            "stages": {name: asdict(tally) for name, tally in snapshot.stages.items()},
        }
        with suppress(NavaError, OSError):
            directory.write(AT_WORK, json.dumps(told).encode())

    try:
        yield beat
    finally:
        with suppress(NavaError, OSError):
            directory.remove(AT_WORK)


def heartbeat(directory: RunDir) -> Heartbeat | None:
    """What the run said last; None where it says nothing, or nothing that can be read, or has not for `FRESH_S`."""
    with suppress(NavaError, OSError, ValueError, KeyError, TypeError):
        told = json.loads(directory.read(AT_WORK))
        at_work = [AtWork(**{**at, "part": _part(at["part"])}) for at in told["at_work"]]
        stages = {name: StageTally(**tally) for name, tally in told["stages"].items()}
        found = Heartbeat(float(told["written"]), str(told["headline"]), Snapshot(stages, at_work))
        return found if found.age_s < FRESH_S else None
    return None


def _part(told: Any) -> Part | None:
    return None if told is None else Part(**told)
