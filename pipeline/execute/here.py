"""Carries a plan out in this process, one unit at a time, without Ray: for tests, `replay`, and machines without a cluster.

Time limits of stages are not enforced: there is nobody to end a process and start another. The decoder's own limits hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline import pack
from pipeline.execute.adapter import LIBRARY_ENVIRONMENT, Worker
from pipeline.execute.lease import Desk, Lease, Settled
from pipeline.execute.monitor import AtWork, Monitor, Snapshot, looking
from pipeline.execute.parts import Joiner
from pipeline.execute.processes import cpu_s
from pipeline.execute.spent import Bill
from pipeline.plan import Plan
from pipeline.store import RunDir
from pipeline.unit import Unit
from schemas.records import identity_of


class Here:
    """The executor without Ray; see `here`."""

    def __init__(self, plan: Plan, directory: RunDir) -> None:
        self._plan, self._directory = plan, directory
        self._monitor = Monitor()
        self._workers: dict[int, list[Worker]] = {}
        self._unit: Unit | None = None
        self._packing_s = 0.0
        self._started = time.time(), cpu_s()

    def workers(self, number: int) -> list[Worker]:
        """The workers of pass `number`, one per group."""
        if number not in self._workers:
            places = [(number, at) for at in range(len(self._plan.passes[number].groups))]
            store, cuts = self._directory.url("assets"), self._directory.url("cuts")
            self._workers[number] = [
                Worker(self._plan, place, store, self._monitor, ends_late=False, cuts_dir=cuts) for place in places
            ]
        return self._workers[number]

    def carry(self, lease: Lease) -> Iterator[Settled]:
        """The units of a lease as they finish."""
        desk, joiner = Desk(self._plan, lease.number, self._directory), Joiner()
        for unit in desk.units(lease):
            for settled in self._carried(desk, lease.number, unit):
                yield joiner.take(settled)

    def _carried(self, desk: Desk, number: int, unit: Unit, first: int = 0) -> Iterator[Settled]:
        """The unit through all groups from `first` on, or its head and its parts."""
        for at, worker in enumerate(self.workers(number)[first:], first):
            self._unit = unit
            parts = worker.advance(unit)
            if parts and unit.is_remade:
                yield desk.head(unit, parts)
            for part in parts:
                yield from self._carried(desk, number, part, at)
            if parts:
                return
        yield desk.settled(unit)

    def pack(self, tasks: Iterable[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[str]]]:
        """See `pipeline.run.Executor.pack`."""
        for task in tasks:
            before_s = cpu_s()
            damaged = pack.pack_shard(task, self._plan.recipe, self._directory)
            self._packing_s += cpu_s() - before_s
            yield task, damaged

    def cores(self) -> float:
        """CPUs that this process may use."""
        return float(len(os.sched_getaffinity(0)))

    def spent(self) -> Bill:
        """See `pipeline.execute.spent.Spender`."""
        stages = {stage: tally.cpu_s for stage, tally in self._monitor.tallies.items()}
        driver = cpu_s() - sum(stages.values()) - self._packing_s
        started_at, started_cpu_s = self._started
        return Bill(stages, 0.0, self._packing_s, driver, None, started_at, started_cpu_s)

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there: this process."""
        return {"here": 1}

    @contextmanager
    def watched(self, show: Callable[[Snapshot], None]) -> Iterator[None]:
        """Feeds the display twice a second while the body runs, and once more when it has ended well."""
        since, at_work = 0.0, ("", "")

        def look() -> None:
            nonlocal since, at_work
            snapshot, unit, now = self._monitor.snapshot(), self._unit, time.monotonic()
            stage = next((stage for stage, _ in dict(self._monitor.in_flight).values()), None)
            if unit is not None and stage is not None:
                if at_work != (unit.key, stage):
                    since, at_work = now, (unit.key, stage)
                duration_us = identity_of(unit.asset.structs)[1] or 0
                at = AtWork(unit.source.uri, stage, now - since, duration_us, unit.part)
                snapshot = replace(snapshot, at_work=[at])
            show(snapshot)

        with looking(look):
            yield

    def close(self) -> None:
        """Ends the decoders' children."""
        for workers in self._workers.values():
            for worker in workers:
                worker.close()


@contextmanager
def here(plan: Plan, directory: RunDir) -> Iterator[Here]:
    """The executor of this process, which calls no hub from here on, and computes on one core as a worker on Ray does.

    More threads would add up the same numbers in another order: equal runs would differ in the seventh digit.
    """
    from threadpoolctl import threadpool_limits

    os.environ.update(LIBRARY_ENVIRONMENT)
    executor = Here(plan, directory)
    with threadpool_limits(1):
        try:
            yield executor
        finally:
            executor.close()
