"""Counts what the workers do while they do it, and remembers what they were doing when they died.

One `Monitor` lives on the driver's node as a Ray actor (or in-process in tests). Because a worker announces every row
before it touches it, a row that crashes or hangs its worker is known by name when Ray starts the worker again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Snapshot:
    """What the workers have done and are at."""

    stages: dict[str, StageTally] = field(default_factory=dict)
    in_flight: list[tuple[str, str, float]] = field(default_factory=list)
    """(unit, stage, seconds since it was taken up)."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Node -> workers started there."""
    refusal: str | None = None
    """Why a stage could not start, if one could not."""


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
    def refuse(self, reason: str) -> None: ...


@dataclass
class Monitor:
    """The one implementation; see module docstring."""

    tallies: dict[str, StageTally] = field(default_factory=lambda: defaultdict(StageTally))
    in_flight: dict[str, tuple[str, list[str], float]] = field(default_factory=dict)
    crashes: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    poison: dict[str, list[Poison]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refusal: str | None = None

    def begin(self, unit_id: str) -> list[Poison]:
        """Rows of this unit that must not be tried again; called when a worker takes the unit up."""
        left = self.in_flight.pop(unit_id, None)
        if left is not None:
            stage, row_ids, _ = left
            for row_id in row_ids:
                self.crashes[unit_id, stage, row_id] += 1
                is_certain = len(row_ids) == 1 and self.crashes[unit_id, stage, row_id] >= MAX_CRASHES
                self.poison[unit_id].append(Poison(stage, row_id, "crash" if is_certain else "suspect"))
        return self.poison[unit_id]

    def enter(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """A worker is about to touch these rows."""
        self.in_flight[unit_id] = (stage, row_ids, time.monotonic())

    def leave(self, unit_id: str, stage: str, tally: StageTally) -> None:
        """The rows announced last are through."""
        self.in_flight.pop(unit_id, None)
        total = self.tallies[stage]
        for name, value in vars(tally).items():
            setattr(total, name, getattr(total, name) + value)

    def expire(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """These rows ran past their limit; their worker is about to end itself."""
        self.in_flight.pop(unit_id, None)
        cause = "timeout" if len(row_ids) == 1 else "suspect"
        self.poison[unit_id] += [Poison(stage, row_id, cause) for row_id in row_ids]

    def end(self, unit_id: str) -> None:
        """The unit left this worker group."""
        self.in_flight.pop(unit_id, None)

    def refuse(self, reason: str) -> None:
        """A stage cannot start, whatever the row: the run ends with this reason, the first one given."""
        self.refusal = self.refusal or reason

    def report(self, node: str) -> None:
        """A worker started on `node`."""
        self.nodes[node] += 1

    def snapshot(self) -> Snapshot:
        """What is known now."""
        now = time.monotonic()
        return Snapshot(
            stages={name: replace(tally) for name, tally in self.tallies.items()},
            in_flight=[(unit, stage, now - since) for unit, (stage, _, since) in self.in_flight.items()],
            nodes=dict(self.nodes),
            refusal=self.refusal,
        )


class RemoteMonitor:
    """A worker's view of the monitor actor; every announcement is confirmed before the row is touched."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self._handle, method).remote(*args))

    def begin(self, unit_id: str) -> list[Poison]:
        """See Monitor.begin."""
        return list(self._call("begin", unit_id))

    def enter(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """See Monitor.enter."""
        self._call("enter", unit_id, stage, row_ids)

    def leave(self, unit_id: str, stage: str, tally: StageTally) -> None:
        """See Monitor.leave."""
        self._call("leave", unit_id, stage, tally)

    def expire(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """See Monitor.expire."""
        self._call("expire", unit_id, stage, row_ids)

    def end(self, unit_id: str) -> None:
        """See Monitor.end."""
        self._call("end", unit_id)

    def refuse(self, reason: str) -> None:
        """See Monitor.refuse."""
        self._call("refuse", reason)

    def report(self, node: str) -> None:
        """See Monitor.report."""
        self._call("report", node)
