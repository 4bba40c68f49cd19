"""Leases on a real cluster: workers that crash, hang, are killed or go down with their node cost no unit but the guilty one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from pipeline.config import parse_recipe
from pipeline.execute import dispatch
from pipeline.execute.cluster import RAY_ENVIRONMENT, connected
from pipeline.execute.counters import CLIPS, DOCS, ERRORS, IN, ROWS, SECONDS, US_PER_HOUR
from pipeline.execute.dispatch import lease_size
from pipeline.execute.here import here
from pipeline.execute.lease import Lease, Settled
from pipeline.execute.on_ray import OnRay
from pipeline.ledger import Ledger
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import Plan, make_plan
from pipeline.run import Executor, measure, write_facts
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from schemas.ids import source_id
from schemas.records import Level, Source

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(300)]


def unit(name: str, **facts: Any) -> Source:
    metadata = json.dumps({"frames": 200, "shot": 100, "clip": 40, "of": name} | facts)
    return Source(source_id=source_id(name), uri=name, metadata=metadata)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node whose workers can import the toy stages."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        folders = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        for name, value in (RAY_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(folders)}).items():
            patch.setenv(name, value)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            yield started
        finally:
            started.shutdown()


@pytest.fixture(scope="module")
def ray(cluster: Any) -> Iterator[Any]:
    with connected(cluster.address, None) as module:
        yield module


def carried(ray: Any, recipe: dict[str, Any], sources: list[Source], folder: Path) -> Iterator[Settled]:
    """The first pass of `sources`, as it is on Ray."""
    yield from OnRay(ray, make_plan(parse_recipe(recipe)), RunDir(folder)).carry(Lease(0, tuple(sources)))


def whole_run(executor: Executor, plan: Plan, sources: list[Source], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The ledger rows of all passes, without what differs between equal runs."""
    directory = RunDir(folder)
    with LedgerWriter(directory.url("ledger"), plan) as writer:
        union = write_facts(directory, plan, sources)
        with Progress(len(union), 0, quiet=True) as progress:
            measure(plan, union, executor, writer, progress)
    ledger = Ledger(directory.url("ledger"))
    return {
        level: [{key: value for key, value in row.items() if key != "cost"} for row in ledger.rows(level)]
        for level in Level
    }


def verdicts(settled: Settled) -> list[tuple[str, str | None]]:
    """(status, reason) of the unit's clips."""
    rows = settled.rows()["clip"].to_pylist()
    return [(row["verdict.status"], row["verdict.reason"]) for row in rows]


def test_two_hundred_sources_end_as_they_do_in_one_process(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    sources = [unit(f"v{number}", frames=100 + number) for number in range(198)]
    sources += [unit("first", of="same"), unit("second", of="same")]
    sources += [unit("bad", faults={"probe": "media"}), unit("worse", faults={"audio:1": "bug"})]
    plan = make_plan(parse_recipe(toy_recipe))
    assert len(plan.passes) == 2
    with here(plan, RunDir(tmp_path / "here")) as executor:
        expected = whole_run(executor, plan, sources, tmp_path / "here")
    on_ray = OnRay(ray, plan, RunDir(tmp_path / "ray"))
    with on_ray.watched(lambda snapshot: None):
        assert whole_run(on_ray, plan, sources, tmp_path / "ray") == expected
    spent = on_ray.spent()
    assert whole_run(on_ray, plan, sources, tmp_path / "ray") == expected, "nothing is left to do"
    in_ledger: dict[str, float] = defaultdict(float)
    for row in Ledger(f"{tmp_path}/ray/ledger").rows(Level.ASSET):
        for each in row["cost"]:
            in_ledger[each["stage"]] += each["cpu_s"]
    assert spent.stages == pytest.approx(in_ledger), "workers are ended when all they did is told"
    assert spent.workers > 0.5, "interpreter, Ray and the first imports of two workers"
    assert (spent.ray, on_ray.cores()) == (None, 2), "a cluster that was there before has others to serve"
    assert spent.started_at is not None


def test_units_hop_from_group_to_group(ray: Any, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Three worker groups; units that failed before and are judged anew keep that on their way."""
    recipe = copy.deepcopy(toy_recipe)
    recipe["resources"] = {"audio": {"cpus": 0.5, "batch": 3}, "sync": {"cpus": 0.25}}
    del recipe["stages"]["late"]
    sources = [unit(f"v{number}", faults={"sync:0": "item"} if number % 3 else {}) for number in range(28)]
    sources += [unit("first", of="same"), unit("second", of="same")]
    for gate in (80, 5):
        recipe["gates"]["sync"]["offset_ms"]["abs_max"] = gate
        plan = make_plan(parse_recipe(recipe))
        assert [len(each.groups) for each in plan.passes] == [3, 0], "the last pass is a Collect and no more"
        with here(plan, RunDir(tmp_path / "here")) as executor:
            expected = whole_run(executor, plan, sources, tmp_path / "here")
        on_ray = OnRay(ray, plan, RunDir(tmp_path / "ray"))
        assert whole_run(on_ray, plan, sources, tmp_path / "ray") == expected


def test_rows_that_crash_hang_or_swell_are_found_by_name_and_the_rest_survives(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = toy_recipe | {"resources": {"audio": {"batch": 3, "timeout_s": 1.5, "timeout_per_s": 0}}}
    sources = [unit(f"v{number}", frames=500, shot=500) for number in range(12)]
    sources[5] = unit("crashes", frames=500, shot=500, faults={"audio:4": "crash"})
    sources[7] = unit("hangs", frames=500, shot=500, faults={"audio:6": "hang"})
    sources[9] = unit("swells", frames=500, shot=500, faults={"audio:2": "memory"})
    found = {settled.source_id: settled for settled in carried(ray, recipe, sources, tmp_path)}
    assert set(found) == {source.source_id for source in sources}
    calm = verdicts(found[source_id("v0")])
    crashed, hung, swollen = (verdicts(found[source_id(name)]) for name in ("crashes", "hangs", "swells"))
    assert crashed == [*calm[:4], ("error", "worker_crash"), *calm[5:]]
    assert hung == [*calm[:6], ("error", "timeout"), *calm[7:]]
    assert swollen == [*calm[:2], ("error", "worker_memory"), *calm[3:]], "8 GiB, where the plan says less than one"
    assert all(verdicts(found[source.source_id]) == calm for source in sources if source.uri.startswith("v"))


def test_leases_are_small_at_the_beginning_and_near_the_end() -> None:
    assert lease_size(None, 10_000, 2) == 1
    assert lease_size(0.5, 10_000, 2) == 20, "ten seconds of work"
    assert lease_size(60.0, 10_000, 2) == 1
    assert lease_size(1e-6, 10_000, 2) == 256
    assert [lease_size(0.01, left, 2) for left in (800, 80, 15, 1)] == [100, 10, 1, 1]


def test_no_short_source_waits_for_a_long_one(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its worker has not begun of a lease is given to an idle one; the long source goes on until all others are finished."""
    monkeypatch.setattr(dispatch, "lease_size", lambda *_: 10)
    long = unit("long", faults={"probe": f"until {tmp_path / 'rest'}"})
    sources = [long, *(unit(f"v{number}") for number in range(19))]
    order = []
    for settled in carried(ray, toy_recipe, sources, tmp_path):
        order.append(settled.source_id)
        if len(order) == len(sources) - 1:
            (tmp_path / "rest").touch()
    assert sorted(order) == sorted(source.source_id for source in sources)
    assert order[-1] == long.source_id


def test_a_killed_worker_and_a_lost_node_cost_only_their_leases(
    cluster: Any, ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    sources = [unit(f"v{number}", faults={"probe": "sleep0.2"}) for number in range(100)]
    sources[2] = unit("unlucky", faults={"probe": f"once {tmp_path / 'killed'}"})
    executor = OnRay(ray, make_plan(parse_recipe(toy_recipe)), RunDir(tmp_path))
    found = []
    for settled in executor.carry(Lease(0, tuple(sources))):
        found.append(settled)
        if len(executor.nodes()) == 2 and len(found) > 10 and node is not None:
            cluster.remove_node(node, allow_graceful=False)
            node = None
    assert node is None, "the second node had work"
    assert (tmp_path / "killed").exists()
    assert sorted(each.source_id for each in found) == sorted(source.source_id for source in sources)
    assert {each.verdict.status for each in found} == {"keep"}


def film(name: str, **facts: Any) -> Source:
    """2,000 s, in parts of ten minutes."""
    return unit(name, frames=25 * 2000, shot=25 * 60, clip=25 * 25, **facts)


class Seen(OnRay):
    """Notes the units of the first pass in the order in which they end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ended: list[str] = []

    def carry(self, lease: Lease) -> Iterator[Settled]:
        for settled in super().carry(lease):
            if settled.is_done and lease.number == 0:
                self.ended.append(settled.source_id)
            yield settled


def test_workers_share_a_film_once_short_sources_do_not_wait_for_them(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """The film's clips wait until two processes are at them."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    sources = [film("film", faults={"sync:0": f"meet {meeting}"}), *(unit(f"v{number}") for number in range(12))]
    plan = make_plan(parse_recipe(toy_recipe))
    on_ray = Seen(ray, plan, RunDir(tmp_path / "ray"))
    rows = whole_run(on_ray, plan, sources, tmp_path / "ray")
    assert len(list(meeting.iterdir())) == 2
    assert len(on_ray.ended) == len(sources)
    assert on_ray.ended[-1] == source_id("film")
    with here(plan, RunDir(tmp_path / "here")) as executor:
        assert rows == whole_run(executor, plan, sources, tmp_path / "here")


def test_a_worker_killed_over_a_part_and_a_node_lost_with_parts_cost_nothing(
    cluster: Any, ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Hops of this size stay on the node that made them, and are lost with it."""
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    padding = "p" * 300_000
    sources = [film(f"f{at}", faults={"sync:0": "sleep0.05"}, padding=padding) for at in range(4)]
    sources[3] = film("unlucky", faults={"sync:0": f"once {tmp_path / 'killed'}"}, padding=padding)
    plan = make_plan(parse_recipe(toy_recipe))

    class Losing(OnRay):
        def carry(self, lease: Lease) -> Iterator[Settled]:
            nonlocal node
            for number, settled in enumerate(super().carry(lease)):
                yield settled
                if number > 8 and len(self.nodes()) == 2 and node is not None:
                    cluster.remove_node(node, allow_graceful=False)
                    node = None

    rows = whole_run(Losing(ray, plan, RunDir(tmp_path / "ray")), plan, sources, tmp_path / "ray")
    assert node is None, "the second node had work"
    assert (tmp_path / "killed").exists()
    with here(plan, RunDir(tmp_path / "here")) as executor:
        assert rows == whole_run(executor, plan, sources, tmp_path / "here")


def test_a_stage_that_cannot_start_ends_the_run_with_its_own_words(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    from schemas.errors import PlanError

    recipe = copy.deepcopy(toy_recipe)
    recipe["stages"] = {"download": {}, "probe": {}, "shot_split": {}, "clip": {}, "shut": {}}
    recipe["gates"] = {}
    with pytest.raises(PlanError, match=r"stage shut cannot start. no key. Nothing is lost") as caught:
        list(carried(ray, recipe, [unit("a")], tmp_path))
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_fits_on_no_node_is_refused(ray: Any, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    from schemas.errors import PlanError

    recipe = toy_recipe | {"resources": {"audio": {"memory_gb": 1e5}}}
    began = time.monotonic()
    with pytest.raises(PlanError, match=r"needs 1 CPUs, 0 GPUs and 1000.* GB on one node"):
        list(carried(ray, recipe, [unit("a")], tmp_path))
    assert time.monotonic() - began < 20


ALONE = """
import json, os, sys
import stages, toy_stages
stages.CATALOG.clear()
stages.CATALOG.update(toy_stages.CATALOG)
from pipeline.config import parse_recipe
from pipeline.execute.lease import Lease
from pipeline.execute.on_ray import on_ray
from pipeline.plan import make_plan
from pipeline.store import RunDir
from tests.pipeline.test_on_ray import unit

sources = (unit("a"), unit("b", faults={"audio:0": "crash"}), unit("c", faults={"probe": "media"}))
with on_ray(make_plan(parse_recipe(toy_stages.RECIPE)), RunDir(sys.argv[1]), num_cpus=1) as executor:
    found = {each.source_id: each.verdict.status for each in executor.carry(Lease(0, sources))}
    import ray
    told = {key: os.environ.get(key) for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    mode = os.stat(told["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777
    print(json.dumps({"statuses": sorted(found.values()), "auth": told["RAY_AUTH_MODE"], "mode": mode,
                      "addresses": [node["NodeManagerAddress"] for node in ray.nodes()]}))
assert "RAY_AUTH_MODE" not in os.environ and not os.path.exists(told["RAY_AUTH_TOKEN_PATH"])
"""


def test_a_private_runtime_listens_on_loopback_asks_a_token_and_says_nothing(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=200,
        env=env | {"PYTHONPATH": os.pathsep.join(folders)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert said == {"statuses": ["error", "keep", "keep"], "auth": "token", "mode": 0o600, "addresses": ["127.0.0.1"]}


@pytest.mark.parametrize(
    ("address", "env", "said"),
    [
        (
            "'127.0.0.1:1'",
            {},
            "NavaError: no Ray cluster answers at 127.0.0.1:1: [Errno 111] Connection refused. Start one",
        ),
        ("None", {"RAY_TMPDIR": "/proc"}, "NavaError: Ray could not be started on this machine, twice: "),
        ("None", {"TMPDIR": f"{{here}}/{'x' * 60}"}, "Set RAY_TMPDIR to a folder of a shorter name, such as /tmp."),
    ],
)
def test_where_there_is_no_ray_the_remedy_is_told(address: str, env: dict[str, str], said: str, tmp_path: Path) -> None:
    """In a process of its own: this one is connected."""
    code = f"from pipeline.execute.cluster import connected\nwith connected({address}, None): pass"
    env = os.environ | {name: value.format(here=tmp_path) for name, value in env.items()}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=env, check=False
    )
    assert said in done.stderr.strip().splitlines()[-1]


def served(ray: Any) -> dict[str, dict[tuple[str, ...], float]]:
    """Worker -> (counter, tags) -> what it counted, as Prometheus reads it off the nodes."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for node in ray.nodes():
        if node["Alive"]:
            with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
            for sample in (sample for family in families for sample in family.samples):
                name = sample.name.removeprefix("ray_").removesuffix("_total")
                if name in DOCS:
                    tags = (sample.labels[tag] for tag in DOCS[name][1])
                    found[sample.labels["WorkerId"]][name, *tags] = sample.value
    return found


def test_counters_that_nodes_serve_say_what_the_ledger_says(
    ray: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Over both passes, gates of the second and parts of a film included: every clip and every error is counted once."""
    sources = [unit("a", of="same"), unit("b", of="same"), unit("c", faults={"probe": "media"}), film("film")]
    sources += [unit("d", faults={"audio:0": "item"}), unit("e", video=False)]
    sources.append(unit("f", faults={"late:0": "bug"}))
    plan, earlier = make_plan(parse_recipe(toy_recipe)), set(served(ray))
    rows = whole_run(OnRay(ray, plan, RunDir(tmp_path)), plan, sources, tmp_path)
    told: dict[tuple[str, ...], float] = defaultdict(float)
    for row in rows["asset"]:
        told[(IN,)] += (row["duration_us"] or 0) / US_PER_HOUR
    for row in rows["clip"]:
        told[CLIPS, row["verdict.status"], row["verdict.reason"] or ""] += row["duration_us"] / US_PER_HOUR
    for level, found in rows.items():
        for row in found:
            if row["verdict.status"] == "error":
                told[ERRORS, level, row["verdict.reason"]] += 1
    for row in Ledger(f"{tmp_path}/ledger").rows(Level.ASSET, columns=["cost"]):
        for each in row["cost"]:
            told[SECONDS, each["stage"]] += each["wall_s"]
            told[ROWS, each["stage"]] += each["rows"]
    counted: dict[tuple[str, ...], float] = {}
    for _ in range(120):
        counted = defaultdict(float)
        for worker, counts in served(ray).items():
            for name, amount in counts.items() if worker not in earlier else ():
                counted[name] += amount
        if counted == pytest.approx(told):
            break
        time.sleep(0.5)
    assert counted == pytest.approx(told)
    assert told[ERRORS, "clip", "unexpected"] > 0
    assert told[CLIPS, "reject", "duplicates.is_first.equals"] > 0
