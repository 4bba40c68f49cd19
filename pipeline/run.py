"""Executes a plan on Ray Data, commits every finished unit, packs what was kept. Running it again resumes.

sources --(1 row a block)--> worker group 1 --> ... --> worker group n --> driver: one ledger commit per source
kept clips --(1 task a shard)--> packers --> tar + index --> driver: one ledger commit per shard
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import pack
from pipeline.config import Recipe
from pipeline.execute.monitor import Monitor, RemoteMonitor
from pipeline.ledger import Ledger, ledger_schema, rows_of
from pipeline.plan import Cluster, Plan, make_plan, render
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from schemas.arrow_file import table_bytes
from schemas.errors import PlanError, RecipeError
from schemas.records import SOURCE

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
LIBRARY_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Workers never call home, and one worker uses one core so that as many fit as there are."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    num_sources: int
    num_done_before: int
    num_shards: int
    nodes: dict[str, int]


def run(
    recipe: Recipe,
    sources: Sequence[dict[str, Any]],
    out: str,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    retry_errors: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Curates `sources` into the run directory `out`; units already in its ledger are not touched again.

    `retry_errors` first takes back those in which anything settled as an error, say because a server was away.
    `address` joins a running Ray cluster; otherwise a private one is started on `num_cpus` CPUs (default: all).
    Raises RecipeError or LedgerError before any work starts, and PlanError when a stage cannot start in a worker.
    """
    if not sources:
        raise RecipeError("no input files were found.", remedy="Give files, folders, globs, URLs or a manifest.")
    plan = make_plan(recipe)
    directory = RunDir(out)
    ledger = Ledger(directory.url("ledger"), ledger_schema(plan))
    ledger.create(recipe.measure_hash())
    if retry_errors:
        given = {source["source_id"] for source in sources}
        ledger.reopen([source_id for source_id in ledger.with_errors() if source_id in given])
    _write_facts(directory, plan, sources)
    todo = [source for source in sources if not ledger.has(source["source_id"])]
    with _ray(address, num_cpus) as ray, Progress(len(sources), len(sources) - len(todo), quiet) as progress:
        cluster = describe_cluster(ray)
        make_plan(recipe, cluster)
        monitor = ray.remote(num_cpus=0)(Monitor).options(max_concurrency=1).remote()
        with _watching(ray, monitor, progress), _told(ray, monitor):
            for unit in _curate(ray, plan, todo, cluster, monitor, directory):
                ledger.commit(unit["source_id"], rows_of(unit))
                progress.unit_done(unit)
            tasks = pack.plan_shards(ledger, recipe)
            _pack(ray, tasks, recipe, directory, ledger, progress)
        pack.write_manifest(directory, tasks, recipe)
        nodes = ray.get(monitor.snapshot.remote())["nodes"]
    return RunResult(len(sources), len(sources) - len(todo), len(tasks), nodes)


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


def _write_facts(directory: RunDir, plan: Plan, sources: Sequence[dict[str, Any]]) -> None:
    import yaml

    table = pa.Table.from_pylist([_source_row(source) for source in sources], schema=pa.schema(list(SOURCE)))
    directory.write("sources.arrow", table_bytes(table))
    directory.write("recipe.yaml", yaml.safe_dump(plan.recipe.model_dump(mode="json"), sort_keys=False).encode())
    directory.write("plan.txt", render(plan).encode())


def _source_row(source: dict[str, Any]) -> dict[str, Any]:
    return {field.name: source.get(field.name) for field in SOURCE}


def _curate(
    ray: Any, plan: Plan, todo: Sequence[dict[str, Any]], cluster: Cluster, monitor: Any, directory: RunDir
) -> Iterator[dict[str, Any]]:
    """Finished units in the order they finish."""
    if not todo:
        return
    schema = plan.unit_schema()
    blocks = [pa.Table.from_pylist([source], schema=schema) for source in todo]
    dataset = ray.data.from_arrow(blocks)
    for number, group in enumerate(plan.groups):
        dataset = dataset.map_batches(
            GroupWorker,
            fn_constructor_args=(plan.recipe.model_dump(mode="json"), number, directory.url("assets"), monitor),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_max_workers(plan, number, cluster)),
            num_cpus=group.cpus,
            num_gpus=group.gpus or None,
            memory=int(group.memory_gb * 1e9),
        )
    for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _max_workers(plan: Plan, number: int, cluster: Cluster) -> int:
    """As many workers as fit beside one of every other group; Ray scales between one and this many by demand."""
    group = plan.groups[number]
    others = [other for at, other in enumerate(plan.groups) if at != number]
    by_cpu = (cluster.cpus - sum(other.cpus for other in others)) / group.cpus if group.cpus else cluster.cpus
    by_memory = (cluster.memory_gb - sum(other.memory_gb for other in others)) / group.memory_gb
    by_gpu = (cluster.gpus - sum(other.gpus for other in others)) / group.gpus if group.gpus else by_cpu
    return max(1, int(min(by_cpu, by_memory, by_gpu)))


class GroupWorker:
    """What Ray Data constructs once per worker process; see `pipeline.execute.adapter.Worker`."""

    def __init__(self, recipe: dict[str, Any], group: int, store_dir: str, monitor: Any) -> None:
        import ray

        os.environ.update(LIBRARY_ENVIRONMENT)
        from pipeline.execute.adapter import Worker

        remote = RemoteMonitor(monitor)
        remote.report(ray.util.get_node_ip_address() + "/" + ray.get_runtime_context().get_node_id()[:8])
        self._worker = Worker(recipe, group, store_dir, remote)

    def __call__(self, table: pa.Table) -> pa.Table:
        """See Worker.__call__."""
        return self._worker(table)


def _pack(
    ray: Any, tasks: Sequence[pack.ShardTask], recipe: Recipe, directory: RunDir, ledger: Ledger, progress: Progress
) -> None:
    remote = ray.remote(num_cpus=1, max_retries=3)(_pack_remote)
    raw = recipe.model_dump(mode="json")
    waiting = {
        remote.remote(task, raw, directory.uri): task
        for task in tasks
        if not (ledger.has(task.unit_id) and directory.exists(f"index/{task.name}.arrow"))
    }
    progress.packing(len(tasks), len(tasks) - len(waiting))
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        task = waiting.pop(ready[0])
        ledger.commit(task.unit_id, ray.get(ready[0]))
        progress.shard_done(task.name, len(task.clips))


def _pack_remote(task: pack.ShardTask, recipe: dict[str, Any], uri: str) -> list[dict[str, Any]]:
    os.environ.update(LIBRARY_ENVIRONMENT)
    return pack.pack_shard(task, Recipe.model_validate(recipe), RunDir(uri))


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


@contextmanager
def _told(ray: Any, monitor: Any) -> Iterator[None]:
    """Raises what a worker refused to start for, instead of Ray's account of it, which has lost the exception."""
    try:
        yield
    except ray.exceptions.RayError as error:
        refusal = ray.get(monitor.snapshot.remote())["refusal"]
        if refusal is None:
            raise
        raise PlanError(refusal) from error


@contextmanager
def _watching(ray: Any, monitor: Any, progress: Progress) -> Iterator[None]:
    """Feeds the display from the monitor twice a second."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            try:
                progress.show(ray.get(monitor.snapshot.remote(), timeout=5))
            except (ray.exceptions.RayError, TimeoutError):
                time.sleep(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
