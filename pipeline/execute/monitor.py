"""Counts what the workers do while they do it, and remembers what they were doing when they died.

One `Monitor` lives beside the driver as a Ray actor (or in-process, without Ray). Workers tell it what they are at every few
seconds and wait for no answer. Only a worker that carries a unit which already cost another worker its life is careful: it
announces every row before it touches it, so that a row that crashes its worker is known by name.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.execute.processes import Account
from pipeline.unit import Part

LOOKED_EVERY_S = 0.5
MAX_CRASHES = 2
"""A row found in flight after this many worker deaths settles as an error; one death may be the node's fault."""


@dataclass
class StageTally:
    """What one stage has done so far in this run."""

    rows: int = 0
    errors: int = 0
    rejects: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, other: StageTally) -> None:
        """Takes in what was done since."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class AtWork:
    """What one worker is at."""

    unit: str
    """Source id."""
    stage: str
    for_s: float
    duration_us: int = 0
    """Length of the source; 0 while it is not known."""
    part: Part | None = None
    """The part of the source, if it is in parts."""


@dataclass(frozen=True)
class Snapshot:
    """What the workers have done and are at."""

    stages: dict[str, StageTally] = field(default_factory=dict)
    at_work: list[AtWork] = field(default_factory=list)
    nodes: dict[str, int] = field(default_factory=dict)
    """Node -> workers started there."""
    accounts: list[Account] = field(default_factory=list)
    """Of the processes of workers, those that ended included."""


@dataclass
class Poison:
    """A row that took its worker down: `crash`, `timeout`, or `suspect` if it was one of a batch and goes alone next."""

    stage: str
    row_id: str
    cause: str


class MonitorLike(Protocol):
    """What a worker needs of a monitor."""

    def begin(self, unit_id: str) -> list[Poison]: ...
    def enter(self, unit_id: str, stage: str, row_ids: list[str]) -> None: ...
    def leave(self, unit_id: str, stage: str, tally: StageTally) -> None: ...
    def expire(self, unit_id: str, stage: str, row_ids: list[str]) -> None: ...
    def end(self, unit_id: str) -> None: ...


@dataclass
class Monitor:
    """The one implementation; see module docstring."""

    tallies: dict[str, StageTally] = field(default_factory=lambda: defaultdict(StageTally))
    in_flight: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Unit -> stage and rows that were announced and are not through."""
    crashes: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    poison: dict[str, list[Poison]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    at_work: dict[str, tuple[AtWork, float]] = field(default_factory=dict)
    """Worker -> what it is at, and when it said so."""
    accounts: dict[tuple[str, int], Account] = field(default_factory=dict)
    """Host and process id of a worker -> what it has spent by its own account."""

    def begin(self, unit_id: str) -> list[Poison]:
        """Rows of this unit that must not be tried again; called when a worker takes the unit up."""
        left = self.in_flight.pop(unit_id, None)
        if left is not None:
            stage, row_ids = left
            for row_id in row_ids:
                self.crashes[unit_id, stage, row_id] += 1
                is_certain = len(row_ids) == 1 and self.crashes[unit_id, stage, row_id] >= MAX_CRASHES
                self.poison[unit_id].append(Poison(stage, row_id, "crash" if is_certain else "suspect"))
        return self.poison.get(unit_id, [])

    def enter(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """A worker is about to touch these rows."""
        self.in_flight[unit_id] = (stage, row_ids)

    def leave(self, unit_id: str, stage: str, tally: StageTally) -> None:
        """The rows announced last are through."""
        self.in_flight.pop(unit_id, None)
        self.tallies[stage].add(tally)

    def expire(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """These rows ran past their limit; their worker is about to end itself."""
        self.in_flight.pop(unit_id, None)
        cause = "timeout" if len(row_ids) == 1 else "suspect"
        self.poison[unit_id] += [Poison(stage, row_id, cause) for row_id in row_ids]

    def end(self, unit_id: str) -> None:
        """The unit left this worker group."""
        self.in_flight.pop(unit_id, None)

    def started(self, node: str) -> None:
        """A worker started on `node`."""
        self.nodes[node] += 1

    def report(
        self, worker: str, at: AtWork | None, tallies: dict[str, StageTally], account: Account | None = None
    ) -> None:
        """What a worker is at, None if it waits or is gone, what it has done since it last said so, and what it has spent."""
        if at is None:
            self.at_work.pop(worker, None)
        else:
            self.at_work[worker] = (at, time.monotonic())
        for stage, tally in tallies.items():
            self.tallies[stage].add(tally)
        if account is not None:
            self.accounts[account.host, account.pid] = account

    def snapshot(self) -> Snapshot:
        """What is known now."""
        now = time.monotonic()
        return Snapshot(
            stages={name: replace(tally) for name, tally in dict(self.tallies).items()},
            at_work=[replace(at, for_s=at.for_s + now - said) for at, said in self.at_work.values()],
            nodes=dict(self.nodes),
            accounts=list(self.accounts.values()),
        )


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` every `LOOKED_EVERY_S` from a thread while the body runs, and once more when it has ended well."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(LOOKED_EVERY_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
    look()
