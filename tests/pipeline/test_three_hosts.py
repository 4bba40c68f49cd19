"""Three hosts of which one is lost: the run ends as if undisturbed; without its head it says so, and goes on with another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import parse_recipe
from pipeline.demo import ball_clip
from pipeline.execute.cluster import RAY_ENVIRONMENT
from pipeline.execute.here import here
from pipeline.ledger import Ledger
from pipeline.run import run
from schemas.records import Level
from stages.download.sources import expand_sources
from tests.pipeline.hosts import Host, hosts, why_not
from tests.pipeline.light_run import LIGHT, files_of
from tests.ray_runs import starts_ray

NUM_SOURCES = 8
PORT = 6379
ONE_PASS = LIGHT | {
    "stages": {name: config for name, config in LIGHT["stages"].items() if name != "duplicates"},
    "gates": {name: gates for name, gates in LIGHT["gates"].items() if name != "duplicates"},
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short films, a recipe beside them, and a run of it that nobody disturbed."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "media").mkdir()
    for seed in range(NUM_SOURCES):
        ball_clip(folder / "media" / f"{seed:02}.mp4", duration_s=3.0, seed=seed)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(ONE_PASS, sort_keys=False))
    run(parse_recipe(ONE_PASS), expand_sources([str(folder / "media")]), str(folder / "calm"), here, quiet=True)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, ...]]:
    """Three hosts, Ray's head on the first and nodes of one CPU on the others, and one more host without Ray."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with hosts(4, tmp_path_factory.mktemp("hosts")) as found:
        head, first, second, _ = found
        for host, num_cpus in ((head, 0), (first, 1), (second, 1)):
            join(host, head, num_cpus)
        yield tuple(found)


def join(host: Host, head: Host, num_cpus: int) -> None:
    """Starts a node of Ray on `host`, in the cluster of `head`, and waits until it is there."""
    where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host is head else [f"--address={at(head)}"]
    limits = [f"--num-cpus={num_cpus}", "--object-store-memory=100000000", f"--node-ip-address={host.address}"]
    limits += ["--include-log-monitor=false"]
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block"]
    node = host.start(*ray, *where, *limits, environment=environment())
    until(lambda: any("ray::RuntimeEnvAgent" in command for command in host.commands()), node)


def at(head: Host) -> str:
    """Where a head listens."""
    return f"{head.address}:{PORT}"


def environment() -> dict[str, str]:
    """What docs/cluster.md asks of every node."""
    return os.environ | RAY_ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_AUTH_MODE": "disabled"}


def until(holds: Callable[[], bool], while_running: subprocess.Popen[str]) -> None:
    """Waits; fails with what the process said if it ends before."""
    while not holds():
        assert while_running.poll() is None, while_running.stdout.read()
        time.sleep(0.2)


def drive(host: Host, head: Host, media: Path, out: Path) -> subprocess.Popen[str]:
    """The command as a user gives it on `host`."""
    command = ["run", f"{media}/recipe.yaml", "--input", f"{media}/media", "--out", str(out), "--address", at(head)]
    return host.start(sys.executable, "-m", "pipeline.cli", *command, "--quiet", environment=environment())


def num_cut(out: Path) -> int:
    """Clips that are done and not packed yet."""
    return len(list((out / "cuts").glob("*")))


def works(host: Host) -> bool:
    """Whether a worker of the run is at work there."""
    return any("GroupWorker.carry" in command for command in host.commands())


def result(out: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows but for what they cost, and SHA-256 of shards, indexes and cuts."""
    rows = [row for level in Level for row in Ledger(str(out / "ledger")).rows(level)]
    return [{name: value for name, value in row.items() if name != "cost"} for row in rows], files_of(out)


@starts_ray
def test_a_lost_host_costs_nothing(cluster: tuple[Host, ...], media: Path, tmp_path: Path) -> None:
    head, first, second, _ = cluster
    running = drive(first, head, media, tmp_path / "run")
    until(lambda: works(first) and works(second) and num_cut(tmp_path / "run") > 1, running)
    assert num_cut(tmp_path / "run") < NUM_SOURCES
    second.vanish()
    said, _ = running.communicate()
    assert running.returncode == 0, said
    assert f"{NUM_SOURCES} clips kept, 0 rejected, 0 errors; 0 sources with errors" in said
    assert result(tmp_path / "run") == result(media / "calm")


@starts_ray
def test_a_lost_head_is_named_and_another_goes_on(cluster: tuple[Host, ...], media: Path, tmp_path: Path) -> None:
    """The driver's host hears no more of it; its own node is then taken down, as that of a cluster that is no more."""
    head, first, _, other = cluster
    running = drive(first, head, media, tmp_path / "run")
    until(lambda: num_cut(tmp_path / "run") > 1, running)
    head.vanish()
    said, _ = running.communicate()
    assert running.returncode == 2, said
    assert said.splitlines()[-1] == (
        f"error: the head of the Ray cluster, {at(head)}, has not answered for 12 s. Start a cluster with another head "
        "(docs/cluster.md); afterwards the same command goes on, and nothing is lost."
    )
    first.vanish()
    join(other, other, 1)
    again = drive(other, other, media, tmp_path / "run")
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert result(tmp_path / "run") == result(media / "calm")
