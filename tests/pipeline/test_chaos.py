"""What is killed in the middle, and who comes second: the record stays whole, and who has to give way says so in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable

from benchmarks.chaos_kills import Facts
from tests.pipeline.toy_run import settled, toy_source

ROOT = Path(__file__).parents[2]

KILLED = """
import os, signal, sys, threading
from pathlib import Path
import stages
from pipeline import ledger_writer
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import settled, toy_source

out, moment, number, after_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
stages.CATALOG.clear()
stages.CATALOG.update(toy_stages.CATALOG)
ledger_writer.FLUSH_UNITS = 2
writer, calls = ledger_writer.LedgerWriter, iter(range(1000))
really = getattr(writer, moment)

def fatal(self, *arguments):
    is_last = next(calls) == number
    if is_last:
        threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    really(self, *arguments)
    while is_last:
        threading.Event().wait()

setattr(writer, moment, fatal)
writer.__enter__ = lambda self: (self.compact(2), self)[1]
with settled(toy_stages.RECIPE, [toy_source(str(number), x=number) for number in range(7)], Path(out)):
    pass
"""
"""A run of toys that kills itself so long after a commit or a compaction began, or right after it."""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_commit_leaves_the_ledger_whole(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Or of a compaction; killed four times over, the run ends as if undisturbed."""
    sources = [toy_source(str(number), x=number) for number in range(7)]
    with settled(toy_recipe, sources, tmp_path / "calm"):
        expected = Facts.of(tmp_path / "calm")
    out = tmp_path / "killed"
    for moment, number, after_s in (
        ("_write", 0, 0.002),
        ("_write", 1, 0.01),
        ("_write", 2, 0.04),
        ("compact", 0, 0.01),
    ):
        again = [sys.executable, "-c", KILLED, str(out), moment, str(number), str(after_s)]
        done = subprocess.run(again, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = Facts.of(out).rows
        there = {row["source_id"] for row in found["asset"]}
        for level, rows in found.items():
            of_them = [row["row_id"] for row in expected.rows[level] if row["source_id"] in there]
            assert [row["row_id"] for row in rows] == of_them, "units are there whole or not at all"
    with settled(toy_recipe, sources, out):
        assert expected.differences_in(out) == []


COMMAND = """
import stages
from pipeline.cli import main
from tests.pipeline import toy_stages

stages.CATALOG.clear()
stages.CATALOG.update(toy_stages.CATALOG)
main()
"""


@pytest.mark.slow
def test_of_two_commands_on_one_folder_one_gives_way(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """At once, with a sentence; nothing is lost or there twice, and afterwards the same command finds nothing to do."""
    rest = tmp_path / "rest"
    sources = [{"uri": f"{number}.mp4", "frames": 500, "shot": 100, "clip": 40} for number in range(5)]
    sources[2]["faults"] = {"probe": f"until {rest}"}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_recipe, sort_keys=False))
    (tmp_path / "given.jsonl").write_text("\n".join(json.dumps(source) for source in sources))

    def command(out: str) -> subprocess.Popen[str]:
        words = ["run", "toy.yaml", "--input", "given.jsonl", "--out", out, "--here", "--quiet"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env,
        )  # fmt: skip

    both = [command("run"), command("run")]
    while not (ended := [each for each in both if each.poll() is not None]):
        time.sleep(0.05)
    (loser,) = ended
    _, said = loser.communicate()
    assert loser.returncode == 2
    assert (
        said == f"error: another run is writing to {tmp_path / 'run'}. Let it finish; then the same command goes on.\n"
    )
    rest.touch()
    (winner,) = set(both) - {loser}
    _, said = winner.communicate(timeout=100)
    assert (winner.returncode, said) == (0, "")

    def version() -> int:
        return DeltaTable(tmp_path / "run" / "ledger").version()

    before = version()
    for out in ("calm", "run"):
        again = command(out)
        _, said = again.communicate(timeout=100)
        assert (again.returncode, said) == (0, "")
    assert version() == before, "nothing to do"
    assert Facts.of(tmp_path / "calm").differences_in(tmp_path / "run") == []


def test_every_difference_between_two_runs_is_named(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """What the campaign of docs/reliability.md holds runs against."""
    out = tmp_path / "run"
    with settled(toy_recipe, [toy_source("a")], out):
        facts = Facts.of(out)
    assert facts.differences_in(out) == []
    (out / "cuts" / "left").mkdir(parents=True)
    (out / "cuts" / "left" / "over.cut").write_bytes(b"0")
    assert facts.differences_in(out) == ["cuts/left/over.cut"]
    table = DeltaTable(out / "ledger")
    table.update(predicate="kind = 'clip'", new_values={"`verdict.reason`": "another"})
    assert "verdict.reason" in facts.differences_in(out)[1]
    table.delete("kind = 'shot'")
    assert "shot: 0 rows, expected 5" in facts.differences_in(out)
    (out / "ledger" / "_delta_log" / "00000000000000000000.json").write_text("torn")
    assert "cannot be read" in facts.differences_in(out)[0]


FALLEN = """
import os, signal, subprocess, sys, threading, time
import stages, toy_stages
stages.CATALOG.clear()
stages.CATALOG.update(toy_stages.CATALOG)
from pipeline.config import parse_recipe
from pipeline.execute.lease import Lease
from pipeline.execute.on_ray import on_ray
from pipeline.execute.processes import below, command
from pipeline.plan import make_plan
from pipeline.store import RunDir
from schemas.errors import MachineError
from tests.pipeline.toy_run import toy_source

def children(name):
    return subprocess.run(["pgrep", "-P", str(os.getpid()), name], capture_output=True, text=True).stdout.split()

def kill(name):
    agents.extend(each.pid for each in below(os.getpid()) if command(each.pid).startswith("ray::"))
    for pid in children(name):
        os.kill(int(pid), signal.SIGKILL)

def kill_early(name):
    while not children(name):
        time.sleep(0.02)
    if name == "gcs_server":
        time.sleep(1)
    kill(name)

agents, name, moment = [], *sys.argv[2:]
if moment == "starting":
    threading.Thread(target=kill_early, args=(name,), daemon=True).start()
sources = tuple(toy_source(str(number), faults={"probe": "sleep0.2"}) for number in range(200))
try:
    with on_ray(make_plan(parse_recipe(toy_stages.RECIPE)), RunDir(sys.argv[1]), num_cpus=1) as executor:
        for settled in executor.carry(Lease(0, sources)):
            if moment == "starting":
                print("went on", flush=True)
                break
            kill(name)
except MachineError as error:
    print(error, flush=True)
assert not [each for each in below(os.getpid()) if command(each.pid)]
assert agents or moment == "starting"
assert not [pid for pid in agents if command(pid).startswith("ray::")]
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_private_runtime_that_falls_ends_the_run_with_a_sentence(name: str, tmp_path: Path) -> None:
    """Ray itself would wait for it for a minute, or end the driver on the spot; and its agents would stay for minutes."""
    done = fallen(tmp_path / "run", name, "working")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the {name} of the private Ray runtime on ")
    assert done.stdout.endswith("afterwards the same command goes on, and nothing is lost.\n")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_one_that_falls_while_it_starts_too(tmp_path: Path) -> None:
    """Ray would wait a minute for its server, then end the process without an exception."""
    done = fallen(tmp_path / "run", "gcs_server", "starting")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the gcs_server of the private Ray runtime on ")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_one_whose_raylet_gives_up_while_it_starts_is_started_once_more(tmp_path: Path) -> None:
    """On a busy machine raylets wait too short for their own agents."""
    done = fallen(tmp_path / "run", "raylet", "starting")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def fallen(run: Path, name: str, moment: str) -> subprocess.CompletedProcess[str]:
    """What a run says whose private runtime loses that process."""
    folders = [str(Path(__file__).parent), str(ROOT)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", FALLEN, str(run), name, moment]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
