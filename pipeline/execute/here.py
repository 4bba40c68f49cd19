"""Carries a plan out in this process, one unit at a time, without Ray: for tests, `replay`, and machines without a cluster.

Time limits of stages are not enforced: there is nobody to end a process and start another. The decoder's own limits hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline import pack
from pipeline.execute.adapter import LIBRARY_ENVIRONMENT, Worker
from pipeline.execute.monitor import Monitor, Snapshot
from pipeline.plan import Plan
from pipeline.store import RunDir
from pipeline.unit import Unit


class Here:
    """The executor without Ray; see `here`."""

    def __init__(self, plan: Plan, directory: RunDir) -> None:
        self._plan, self._directory = plan, directory
        self._monitor = Monitor()
        self._workers: dict[int, list[Worker]] = {}

    def workers(self, number: int) -> list[Worker]:
        """The workers of pass `number`, one per group."""
        if number not in self._workers:
            places = [(number, at) for at in range(len(self._plan.passes[number].groups))]
            store = self._directory.url("assets")
            self._workers[number] = [
                Worker(self._plan, place, store, self._monitor, ends_late=False) for place in places
            ]
        return self._workers[number]

    def carry(self, number: int, units: Iterable[Unit]) -> Iterator[Unit]:
        """`units` after the workers of pass `number`, in their order."""
        for unit in units:
            done = unit
            for worker in self.workers(number):
                done = worker.advance(done)
            yield done

    def pack(self, tasks: Sequence[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[dict[str, Any]]]]:
        """Each shard once it is published, with the ledger rows of its clips."""
        for task in tasks:
            yield task, pack.pack_shard(task, self._plan.recipe, self._directory)

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there: this process."""
        return {"here": 1}

    @contextmanager
    def watched(self, show: Callable[[Snapshot], None]) -> Iterator[None]:
        """The display is fed when a unit is finished; nothing runs beside it."""
        yield
        show(self._monitor.snapshot())

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
