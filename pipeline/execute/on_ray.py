"""Carries a plan out on Ray: workers that take leases (`pipeline.execute.dispatch`), and one task per shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from pipeline import pack
from pipeline.execute.cluster import connected, describe_cluster
from pipeline.execute.dispatch import Dispatch
from pipeline.execute.lease import Lease, Settled
from pipeline.execute.monitor import Monitor, Snapshot, looking
from pipeline.execute.processes import Account, Family, own_cpu_s
from pipeline.execute.spent import Bill
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.errors import NavaError
from schemas.plain_arrow import without_pandas

ANSWERED_S = 5.0
COUNTED_EVERY = 4
"""Looks at the workers from one look at Ray's processes to the next, which takes some milliseconds."""
PACKED_AHEAD = 2
"""Shard tasks handed out per CPU: their clips are held in memory until they run."""


class OnRay:
    """An executor on a connected cluster; see `on_ray`."""

    def __init__(self, ray: Any, plan: Plan, directory: RunDir, *, is_private: bool = False) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._plan, self._directory = ray, plan, directory
        cluster = describe_cluster(ray)
        make_plan(plan.recipe, cluster)
        self._cores = cluster.cpus
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Monitor)
        self._monitor = actor.options(scheduling_strategy=here).remote()
        self._uris: dict[str, str] = {}
        self._known = Snapshot()
        self._family = Family() if is_private else None
        self._packers: dict[tuple[str, int], Account] = {}
        self._started: tuple[float, float] | None = None

    def carry(self, lease: Lease) -> Iterator[Settled]:
        """The units of a lease of any size, as they finish."""
        self._uris = {source.source_id: source.uri for source in lease.sources}
        yield from Dispatch(self._ray, self._plan, lease, self._directory, self._monitor).run()

    def pack(self, tasks: Iterable[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[str]]]:
        """See `pipeline.run.Executor.pack`."""
        remote = self._ray.remote(num_cpus=1, max_retries=3)(_pack_remote)
        plan = self._ray.put(self._plan)
        self._cores = describe_cluster(self._ray).cpus
        most = PACKED_AHEAD * max(int(self._cores), 1)
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
            damaged, account = answer
            self._packers[account.host, account.pid] = account
            yield waiting.pop(done), damaged

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there."""
        return self._snapshot().nodes

    def _snapshot(self, timeout_s: float | None = None) -> Snapshot:
        found: Snapshot = self._ray.get(self._monitor.snapshot.remote(), timeout=timeout_s)
        named = [replace(at, unit=self._uris.get(at.unit, at.unit)) for at in found.at_work]
        self._known = replace(found, at_work=named)
        return self._known

    def cores(self) -> float:
        """CPUs of the cluster, as it was when it was last asked: at the beginning, and before packing."""
        return self._cores

    def spent(self) -> Bill:
        """As far as `watched` knows, and of Ray's own processes only on the private runtime: a cluster has others to serve."""
        stages = {stage: tally.cpu_s for stage, tally in self._known.stages.items()}
        accounts = [*self._known.accounts, *self._packers.values()]
        started_at, started_cpu_s = self._started or (None, 0.0)
        if self._family is not None:
            self._family.look()
        return Bill(
            stages=stages,
            workers=max(0.0, sum(each.cpu_s for each in self._known.accounts) - sum(stages.values())),
            packing=sum((each.cpu_s for each in self._packers.values()), 0.0),
            driver=own_cpu_s(),
            ray=None if self._family is None else self._family.cpu_s(each.pid for each in accounts),
            started_at=started_at,
            started_cpu_s=started_cpu_s,
        )

    @contextmanager
    def watched(self, show: Callable[[Snapshot], None]) -> Iterator[None]:
        """Feeds the display twice a second while the body runs, and once more when it has ended well."""
        number = count()

        def look() -> None:
            if self._family is not None and next(number) % COUNTED_EVERY == 0:
                self._family.look()
            try:
                snapshot = self._snapshot(ANSWERED_S)
            except (self._ray.exceptions.RayError, TimeoutError):
                return
            if snapshot.nodes and self._started is None:
                self._started = time.time(), self.spent().total
            show(snapshot)

        with looking(look):
            yield


def _pack_remote(task: pack.ShardTask, plan: Plan, uri: str) -> tuple[list[str], Account]:
    without_pandas()
    return pack.pack_shard(task, plan.recipe, RunDir(uri)), Account.own()


@contextmanager
def on_ray(
    plan: Plan, directory: RunDir, *, address: str | None = None, num_cpus: int | None = None
) -> Iterator[OnRay]:
    """The executor on the cluster at `address`, else on a private runtime of `num_cpus` CPUs that ends with it.

    Raises PlanError where the cluster is too small for the plan, and NavaError where there is none.
    """
    with connected(address, num_cpus) as ray:
        yield OnRay(ray, plan, directory, is_private=address is None)
