"""A worker's line to the monitor actor (`pipeline.execute.monitor`)."""

from __future__ import annotations

import threading
import time
from typing import Any

from pipeline.execute.counters import Counters
from pipeline.execute.monitor import AtWork, Poison, StageTally
from pipeline.execute.processes import Account
from pipeline.unit import Unit
from schemas.records import identity_of

TOLD_EVERY_S = 2.0
"""A worker tells what it is at no more often, whatever the length of its units."""


class RemoteMonitor:
    """A worker's view of the monitor actor: tells in the background, and waits for an answer only where it must.

    `unit` is what the worker has in hand. While `is_careful` every announcement is confirmed before the row is touched.
    """

    def __init__(self, handle: Any, worker: str, counters: Counters) -> None:
        self._handle, self._worker, self._counters = handle, worker, counters
        self.unit: Unit | None = None
        self.is_careful = False
        self._lock = threading.Lock()
        self._stage: tuple[str, float] | None = None
        self._tallies: dict[str, StageTally] = {}
        self._is_idle = True
        threading.Thread(target=self._keep_telling, daemon=True).start()

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self._handle, method).remote(*args))

    def begin(self, unit_id: str) -> list[Poison]:
        """See Monitor.begin."""
        return list(self._call("begin", unit_id)) if self.is_careful else []

    def enter(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """See Monitor.enter."""
        if self.is_careful:
            self._call("enter", unit_id, stage, row_ids)
        with self._lock:
            if self._stage is None or self._stage[0] != stage:
                self._stage = (stage, time.monotonic())

    def leave(self, unit_id: str, stage: str, tally: StageTally) -> None:
        """See Monitor.leave."""
        with self._lock:
            self._tallies.setdefault(stage, StageTally()).add(tally)
            self._stage = None
        if self.is_careful:
            self._call("leave", unit_id, stage, StageTally())

    def expire(self, unit_id: str, stage: str, row_ids: list[str]) -> None:
        """See Monitor.expire; the process ends right after, so the answer is waited for."""
        self._call("expire", unit_id, stage, row_ids)

    def end(self, unit_id: str) -> None:
        """See Monitor.end."""
        if self.is_careful:
            self._call("end", unit_id)
        with self._lock:
            self.unit = self._stage = None

    def started(self, node: str) -> None:
        """See Monitor.started."""
        self._handle.started.remote(node)

    def tell(self) -> None:
        """Sends what has changed since the last time; waits for nothing."""
        with self._lock:
            unit, stage = self.unit, self._stage
            tallies, self._tallies = self._tallies, {}
            at = None
            if unit is not None and stage is not None:
                duration_us = identity_of(unit.asset.structs)[1] or 0
                at = AtWork(unit.source.source_id, stage[0], time.monotonic() - stage[1], duration_us, unit.part)
            is_news = at is not None or not self._is_idle or bool(tallies)
            self._is_idle = at is None
        self._counters.stages(tallies)
        if is_news:
            self._handle.report.remote(self._worker, at, tallies, Account.own())

    def close(self) -> None:
        """Says what this process has spent by now, and waits until that is known: it is about to be ended."""
        self._call("report", self._worker, None, {}, Account.own())

    def _keep_telling(self) -> None:
        while True:
            time.sleep(TOLD_EVERY_S)
            self.tell()
