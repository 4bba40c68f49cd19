"""The Ray runtime a run uses: a private one on this machine's loopback, or a cluster that somebody started."""

from __future__ import annotations

import _thread
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.execute.processes import Process, below, command, end, fallen
from pipeline.plan import Cluster
from schemas.errors import MachineError, NavaError
from schemas.machine import GOES_ON
from schemas.scratch import Scratch

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
"""A lost node is noticed within seconds (docs/cluster.md). Ray's own lines stay in its log files: what they say of a worker that
ended, the run says itself, of a row and with a remedy."""
LOOPBACK_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without clusters Ray binds every port to 127.0.0.1, as it does by itself on systems other than Linux; read on import."""
STARTS = 2
"""A busy machine may need longer than the 30 s Ray gives its own processes; once more is usually enough."""
BETWEEN_STARTS_S = 5.0
ANSWERED_S = 10.0
LONG_NAME = "AF_UNIX path length"
"""In what Ray says where TMPDIR leaves too little of the 107 characters that a socket may be named by."""
HEAD = "head"
NEEDED_S = {"raylet": 3.0, "gcs_server": 30.0, HEAD: 30.0}
"""Ray's name of what nothing goes on without -> how long a driver has to end well. Ray itself ends it a second later without
the first, and after a minute without the others."""
STARTING_S = {"raylet": 45.0, "gcs_server": 3.0}
"""The same while Ray starts, which would wait a minute for its server. A raylet that falls then has mostly given up: it does
where its agents take more than 20 s, as on a busy machine. Ray puts the rest away in its own time, and is started once more."""
HEAD_SILENT_S = 12.0
"""A head that accepts no connection for this long is lost; its own health checks give nodes up about as soon."""
LOOKED_EVERY_S = 0.5
RAY_TITLE = "ray::"
"""How Ray's workers and agents call themselves; agents outlive a raylet that fell by minutes."""


@contextmanager
def connected(address: str | None, num_cpus: int | None) -> Iterator[Any]:
    """The ray module, connected to `address` or to a private runtime of `num_cpus` CPUs; what was started is stopped.

    Raises NavaError where neither can be had.
    """
    private = {} if address else LOOPBACK_ENVIRONMENT
    with Scratch("ray") as folder:
        if not address and "ray" not in sys.modules:
            private = private | _token(Path(folder))
        with _environment(RAY_ENVIRONMENT | private):
            import ray

            is_ours = not ray.is_initialized()
            if is_ours:
                _start(ray, address, num_cpus)
            try:
                is_client = (address or "").startswith("ray://")
                head = ray.get_runtime_context().gcs_address if address and not is_client else None
                needed_s = {HEAD: NEEDED_S[HEAD]} if address else NEEDED_S  # a raylet of another's cluster may fall
                with _guarded(needed_s, head) if is_ours and not is_client else nullcontext():
                    yield ray
            finally:
                if is_ours:
                    ray.shutdown()


def _token(folder: Path) -> dict[str, str]:
    """A secret that only this user can read, without which nobody talks to the private runtime."""
    path = folder / "token"
    path.touch(0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in this process's environment and its children's; what the user has set stays as it is."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _start(ray: Any, address: str | None, num_cpus: int | None) -> None:
    from pipeline.execute.adapter import LIBRARY_ENVIRONMENT

    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": LIBRARY_ENVIRONMENT},
        "log_to_driver": False,
        "logging_level": "error",
    }
    if address:
        _check_answers(address)
        settings["address"] = address
    else:
        settings |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    before = {each.pid for each in below(os.getpid())}
    for start in range(STARTS):
        try:
            with _guarded(STARTING_S):
                ray.init(**settings)
            return
        except Exception as error:  # Ray raises bare Exceptions here
            ray.shutdown()
            end(each for each in below(os.getpid()) if each.pid not in before)  # Ray leaves what it had begun to start
            if start + 1 == STARTS or LONG_NAME in str(error):
                raise error if isinstance(error, MachineError) else _not_there(address, error) from error
            time.sleep(BETWEEN_STARTS_S)


@contextmanager
def _guarded(needed_s: Mapping[str, float], head: str | None = None) -> Iterator[None]:
    """Ends the body with a MachineError once the private runtime or the head at HOST:PORT is gone, or else this process.

    Processes are looked at through /proc: where there is none, Ray ends by itself.
    """
    ended, stop, before = list[str](), threading.Event(), fallen(os.getpid())
    seen: dict[tuple[int, int], Process] = {}

    def look() -> None:
        heard = time.monotonic()
        while not stop.wait(LOOKED_EVERY_S):
            seen.update({(each.pid, each.began): each for each in below(os.getpid())})
            ended.extend(name for pid, name in fallen(os.getpid()).items() if name in needed_s and pid not in before)
            if head and not _is_heard(head):
                ended.extend([HEAD] if time.monotonic() - heard > HEAD_SILENT_S else [])
            else:
                heard = time.monotonic()
            if ended:
                _thread.interrupt_main()
                if not stop.wait(needed_s[ended[0]]):
                    print(f"error: {_fall_of(ended[0], head)}", file=sys.stderr, flush=True)
                    end(seen.values())
                    os._exit(2)
                return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        try:
            yield
        finally:
            stop.set()
            looking.join()
    except BaseException as error:  # the interrupt, or whatever Ray made of it before
        if not ended:
            raise
        end(each for each in seen.values() if command(each.pid).startswith(RAY_TITLE))
        raise _fall_of(ended[0], head) from error


def _is_heard(address: str) -> bool:
    """Whether HOST:PORT accepts a connection."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_SILENT_S / 4).close()
    except OSError:
        return False
    return True


def _fall_of(name: str, head: str | None) -> MachineError:
    if name == HEAD:
        msg = f"the head of the Ray cluster, {head}, has not answered for {HEAD_SILENT_S:g} s."
        return MachineError(msg, remedy=f"Start a cluster with another head (docs/cluster.md); {GOES_ON}")
    msg = f"the {name} of the private Ray runtime on {socket.gethostname()} is no more: ended from outside, or by Ray itself."
    remedy = f"Free memory there, run fewer workers (--cpus), or wait until it is less busy; {GOES_ON}"
    return MachineError(msg, remedy=remedy)


def _check_answers(address: str) -> None:
    """Raises NavaError where nobody listens at HOST:PORT: Ray itself would end this process without an exception."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=ANSWERED_S).close()
        except OSError as error:
            raise _not_there(address, error) from error


def _not_there(address: str | None, error: Exception) -> NavaError:
    said = str(error).strip().split("\n")[0].rstrip(".")
    if address:
        msg = f"no Ray cluster answers at {address}: {said}."
        return NavaError(msg, remedy="Start one (docs/cluster.md), or leave --address out to run on this machine.")
    if LONG_NAME in said:
        msg = f"Ray could not be started: the temporary folder has too long a name for its sockets: {said}."
        return NavaError(msg, remedy="Set RAY_TMPDIR to a folder of a shorter name, such as /tmp.")
    msg = f"Ray could not be started on this machine, twice: {said}."
    remedy = "Try again when the machine is less busy, with fewer --cpus, or with --here, which needs no Ray."
    return NavaError(msg, remedy=remedy)


def alive_nodes(ray: Any) -> dict[str, dict[str, float]]:
    """Node id -> what it offers: CPU, GPU, memory in bytes."""
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def describe_cluster(ray: Any) -> Cluster:
    """Totals and largest node of the connected cluster."""
    nodes = alive_nodes(ray).values()
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
