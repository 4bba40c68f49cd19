"""Carries a plan out on Ray: workers that take leases (`pipeline.execute.dispatch`), and one task per shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline import pack
from pipeline.execute.cluster import connected, describe_cluster
from pipeline.execute.dispatch import Dispatch
from pipeline.execute.lease import Lease, Settled
from pipeline.execute.monitor import Monitor, Snapshot
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.errors import NavaError
from schemas.plain_arrow import without_pandas

SHOWN_EVERY_S = 0.5
PACKED_AHEAD = 2
"""Shard tasks handed out per CPU: their clips are held in memory until they run."""


class OnRay:
    """An executor on a connected cluster; see `on_ray`."""

    def __init__(self, ray: Any, plan: Plan, directory: RunDir) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._plan, self._directory = ray, plan, directory
        make_plan(plan.recipe, describe_cluster(ray))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Monitor)
        self._monitor = actor.options(scheduling_strategy=here).remote()
        self._uris: dict[str, str] = {}

    def carry(self, lease: Lease) -> Iterator[Settled]:
        """The units of a lease of any size, as they finish."""
        self._uris = {source.source_id: source.uri for source in lease.sources}
        yield from Dispatch(self._ray, self._plan, lease, self._directory, self._monitor).run()

    def pack(self, tasks: Iterable[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[str]]]:
        """See `pipeline.run.Executor.pack`."""
        remote = self._ray.remote(num_cpus=1, max_retries=3)(_pack_remote)
        plan = self._ray.put(self._plan)
        most = PACKED_AHEAD * max(int(describe_cluster(self._ray).cpus), 1)
        ahead, waiting = iter(tasks), dict[Any, pack.ShardTask]()
        while True:
            while len(waiting) < most and (task := next(ahead, None)) is not None:
                waiting[remote.remote(task, plan, self._directory.uri)] = task
            if not waiting:
                return
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=1.0, fetch_local=False)
            if not ready:
                continue
            (done,) = ready
            try:
                answer = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, NavaError | OSError):
                    raise error.cause from None
                raise
            yield waiting.pop(done), answer

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there."""
        return self._snapshot().nodes

    def _snapshot(self, timeout_s: float | None = None) -> Snapshot:
        found: Snapshot = self._ray.get(self._monitor.snapshot.remote(), timeout=timeout_s)
        named = [replace(at, unit=self._uris.get(at.unit, at.unit)) for at in found.at_work]
        return replace(found, at_work=named)

    @contextmanager
    def watched(self, show: Callable[[Snapshot], None]) -> Iterator[None]:
        """Feeds the display twice a second while the body runs."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(SHOWN_EVERY_S):
                try:
                    snapshot = self._snapshot(timeout_s=5)
                except (self._ray.exceptions.RayError, TimeoutError):
                    continue
                show(snapshot)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)


def _pack_remote(task: pack.ShardTask, plan: Plan, uri: str) -> list[str]:
    without_pandas()
    return pack.pack_shard(task, plan.recipe, RunDir(uri))


@contextmanager
def on_ray(
    plan: Plan, directory: RunDir, *, address: str | None = None, num_cpus: int | None = None
) -> Iterator[OnRay]:
    """The executor on the cluster at `address`, else on a private runtime of `num_cpus` CPUs that ends with it.

    Raises PlanError where the cluster is too small for the plan, and NavaError where there is none.
    """
    with connected(address, num_cpus) as ray:
        yield OnRay(ray, plan, directory)
