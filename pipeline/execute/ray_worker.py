"""The actor that does the work: carries the units of a lease through one worker group and yields them as they finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.execute.adapter import Worker
from pipeline.execute.counters import Counters
from pipeline.execute.hop import Hop
from pipeline.execute.lease import Desk, Lease, Settled
from pipeline.execute.remote_monitor import RemoteMonitor
from pipeline.plan import Plan
from pipeline.store import RunDir
from pipeline.unit import Part, Unit
from schemas.machine import limit_memory
from schemas.plain_arrow import without_pandas

YIELDED_EVERY_S = 0.5
"""Units that finish within this time of one another travel together."""


@dataclass(frozen=True)
class Place:
    """Where a worker stands: pass, group, and its own name in this run."""

    number: int
    group: int
    name: str


@dataclass(frozen=True)
class News:
    """What a worker yields next: `done` units as a list of `Settled`, a unit's `Hop` to the next group, or one of its parts.

    The driver learns from it what became of which unit, without fetching a hop.
    """

    kind: Literal["done", "on", "part"]
    key: str = ""
    """Of the unit that goes on, or is being divided."""
    part: Part | None = None


class GroupWorker:
    """One worker process of one worker group. `carry` and the other methods run in threads of their own.

    It may take the memory that the plan says it needs: a row for which that is too little is told so and settles.

    In a pass that ends with its Collect there is no stage to run: units are opened, judged anew and settled.
    """

    def __init__(self, plan: Plan, place: Place, directory_uri: str, monitor: Any) -> None:
        without_pandas()
        directory = RunDir(directory_uri)
        self._plan, self._number = plan, place.number
        groups = plan.passes[place.number].groups
        self._is_last = place.group >= len(groups) - 1
        self._counters = Counters()
        self._monitor = RemoteMonitor(monitor, place.name, self._counters)
        self._desk = Desk(plan, place.number, directory)
        if groups and not groups[place.group].gpus:  # a GPU's driver maps more than it uses
            limit_memory(groups[place.group].memory_gb)
        here, store = (place.number, place.group), directory.url("assets")
        cuts = directory.url("cuts")
        self._worker = Worker(plan, here, store, self._monitor, cuts_dir=cuts) if groups else None
        self._lock = threading.Lock()
        self._serial, self._waiting = -1, set[str]()

    def hello(self) -> str:
        """The id of the node it runs on, once it runs."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        self._monitor.started(f"{ray.util.get_node_ip_address()}/{node[:8]}")
        return node

    def carry(self, serial: int, lease: Lease, is_careful: bool, *hops: Hop) -> Iterator[News | list[Settled] | Hop]:
        """The units of lease number `serial`, in its order, those given back left out; before each yield, its `News`.

        Whole units are opened from the lease in the first group; parts, and units in later groups, come as `hops`.
        """
        with self._lock:
            keys = [hop.key for hop in hops] or [source.source_id for source in lease.sources]
            self._serial, self._waiting = serial, set(keys)
        self._monitor.is_careful = is_careful
        done: list[Settled] = []
        since = time.monotonic()
        for unit in self._units(lease, hops):
            if not self._take(unit.key):
                continue
            self._monitor.unit = unit
            parts = self._worker.advance(unit) if self._worker is not None else []
            if parts and unit.is_remade:
                yield News("done")
                yield [*done, self._desk.head(unit, parts)]
                done, since = [], time.monotonic()
            for part in parts:
                yield News("part", unit.key, part.part)
                yield Hop.of(self._plan, part)
            if parts:
                continue
            if not self._is_last:
                yield News("on", unit.key)
                yield Hop.of(self._plan, unit)
                continue
            done.append(self._desk.settled(unit))
            self._counters.unit(self._plan, self._number, unit)
            if is_careful or time.monotonic() - since >= YIELDED_EVERY_S:
                yield News("done")
                yield done
                done, since = [], time.monotonic()
        if done:
            yield News("done")
            yield done
        self._monitor.tell()

    def give_back(self, serial: int) -> list[str]:
        """Keys of the units of lease number `serial` that were not begun, and now never will be."""
        with self._lock:
            if serial != self._serial:
                return []
            given, self._waiting = sorted(self._waiting), set()
            return given

    def close(self) -> None:
        """Ends the decoder's child and removes the scratch folder, and tells what all of that has cost."""
        if self._worker is not None:
            self._worker.close()
        self._monitor.close()

    def _take(self, key: str) -> bool:
        """Whether the unit is still this worker's to do."""
        with self._lock:
            is_ours = key in self._waiting
            self._waiting.discard(key)
            return is_ours

    def _units(self, lease: Lease, hops: tuple[Hop, ...]) -> Iterator[Unit]:
        if not hops:
            yield from self._desk.units(lease)
        yield from (hop.unit() for hop in hops)
