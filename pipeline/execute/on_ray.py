"""Carries a plan out on Ray Data: one actor pool per worker group, one block per unit, one task per shard."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline import pack
from pipeline.config import Recipe
from pipeline.execute.adapter import LIBRARY_ENVIRONMENT
from pipeline.execute.monitor import Monitor, RemoteMonitor, Snapshot
from pipeline.plan import Cluster, Plan, WorkerGroup, make_plan
from pipeline.store import RunDir
from pipeline.unit import Unit
from schemas.errors import PlanError

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "3000",
}
"""A lost node is noticed within seconds (docs/cluster.md); a local runtime is private to this user and asks no token."""


class OnRay:
    """An executor on a connected cluster; see `on_ray`."""

    def __init__(self, ray: Any, plan: Plan, directory: RunDir) -> None:
        self._ray, self._plan, self._directory = ray, plan, directory
        self._cluster = describe_cluster(ray)
        make_plan(plan.recipe, self._cluster)
        self._monitor = ray.remote(num_cpus=0)(Monitor).options(max_concurrency=1).remote()

    def carry(self, number: int, units: Iterable[Unit]) -> Iterator[Unit]:
        """`units` after the workers of pass `number`, in the order in which they finish."""
        schema = self._plan.unit_schema()
        blocks = [pa.Table.from_pylist([unit.row()], schema=schema) for unit in units]
        if not blocks:
            return
        dataset = self._ray.data.from_arrow(blocks)
        groups = self._plan.passes[number].groups
        recipe = self._plan.recipe.model_dump(mode="json")
        for at, group in enumerate(groups):
            most = _max_workers(groups, at, self._cluster)
            dataset = dataset.map_batches(
                GroupWorker,
                fn_constructor_args=(recipe, (number, at), self._directory.url("assets"), self._monitor),
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=self._ray.data.ActorPoolStrategy(min_size=1, max_size=most),
                num_cpus=group.cpus,
                num_gpus=group.gpus or None,
                memory=int(group.memory_gb * 1e9),
            )
        for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            yield from (Unit.of(row) for row in batch.to_pylist())

    def pack(self, tasks: Sequence[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[dict[str, Any]]]]:
        """Each shard once it is published, with the ledger rows of its clips."""
        remote = self._ray.remote(num_cpus=1, max_retries=3)(_pack_remote)
        raw = self._plan.recipe.model_dump(mode="json")
        waiting = {remote.remote(task, raw, self._directory.uri): task for task in tasks}
        while waiting:
            ready, _ = self._ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready[0]), self._ray.get(ready[0])

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there."""
        return self._snapshot().nodes

    def _snapshot(self, timeout_s: float | None = None) -> Snapshot:
        found: Snapshot = self._ray.get(self._monitor.snapshot.remote(), timeout=timeout_s)
        return found

    @contextmanager
    def watched(self, show: Callable[[Snapshot], None]) -> Iterator[None]:
        """Feeds the display twice a second, and tells a worker's own reason where Ray's account has lost it."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                try:
                    show(self._snapshot(timeout_s=5))
                except (self._ray.exceptions.RayError, TimeoutError):
                    time.sleep(1)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        except self._ray.exceptions.RayError as error:
            refusal = self._snapshot().refusal
            if refusal is None:
                raise
            raise PlanError(refusal) from error
        finally:
            stop.set()
            thread.join(timeout=10)


class GroupWorker:
    """What Ray Data constructs once per worker process; see `pipeline.execute.adapter.Worker`."""

    def __init__(self, recipe: dict[str, Any], place: tuple[int, int], store_dir: str, monitor: Any) -> None:
        import ray

        os.environ.update(LIBRARY_ENVIRONMENT)
        from pipeline.execute.adapter import Worker

        remote = RemoteMonitor(monitor)
        remote.report(ray.util.get_node_ip_address() + "/" + ray.get_runtime_context().get_node_id()[:8])
        self._worker = Worker(make_plan(Recipe.model_validate(recipe)), place, store_dir, remote)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See Worker.__call__."""
        return self._worker(table)


def describe_cluster(ray: Any) -> Cluster:
    """Totals and largest node of the connected cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        memory_gb=sum(node.get("memory", 0.0) for node in nodes) / 1e9,
        node_cpus=max((node.get("CPU", 0.0) for node in nodes), default=0.0),
        node_gpus=max((node.get("GPU", 0.0) for node in nodes), default=0.0),
    )


def local_cluster(num_cpus: int | None = None) -> Cluster:
    """What a private runtime on this machine would offer, without starting it."""
    cpus = float(num_cpus or os.cpu_count() or 1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Cluster(cpus, 0.0, memory, cpus, 0.0)


def _max_workers(groups: Sequence[WorkerGroup], at: int, cluster: Cluster) -> int:
    """As many workers as fit beside one of every other group; Ray scales between one and this many by demand."""
    group = groups[at]
    others = [other for number, other in enumerate(groups) if number != at]
    by_cpu = (cluster.cpus - sum(other.cpus for other in others)) / group.cpus if group.cpus else cluster.cpus
    by_memory = (cluster.memory_gb - sum(other.memory_gb for other in others)) / group.memory_gb
    by_gpu = (cluster.gpus - sum(other.gpus for other in others)) / group.gpus if group.gpus else by_cpu
    return max(1, int(min(by_cpu, by_memory, by_gpu)))


def _pack_remote(task: pack.ShardTask, recipe: dict[str, Any], uri: str) -> list[dict[str, Any]]:
    os.environ.update(LIBRARY_ENVIRONMENT)
    return pack.pack_shard(task, Recipe.model_validate(recipe), RunDir(uri))


@contextmanager
def on_ray(
    plan: Plan, directory: RunDir, *, address: str | None = None, num_cpus: int | None = None
) -> Iterator[OnRay]:
    """The executor on the cluster at `address`, else on a private runtime of `num_cpus` CPUs that ends with it.

    Raises PlanError where the cluster is too small for the plan.
    """
    with _ray(address, num_cpus) as ray:
        yield OnRay(ray, plan, directory)


@contextmanager
def _ray(address: str | None, num_cpus: int | None) -> Iterator[Any]:
    """The ray module, connected; a runtime started here is stopped here."""
    os.environ.update({key: value for key, value in RAY_ENVIRONMENT.items() if key not in os.environ})
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        runtime = {"env_vars": LIBRARY_ENVIRONMENT}
        if address:
            ray.init(address=address, runtime_env=runtime, log_to_driver=False, logging_level="warning")
        else:
            ray.init(
                address="local", num_cpus=num_cpus, include_dashboard=False, runtime_env=runtime,
                log_to_driver=False, logging_level="warning",
            )  # fmt: skip
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log is raised as well
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
