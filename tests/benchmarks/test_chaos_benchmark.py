"""The benchmark of kills: it sees the processes that it kills and those that are left, and what differs between two runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import chaos, chaos_watch
from benchmarks.chaos import tally
from benchmarks.chaos_kills import Trial
from benchmarks.chaos_mutants import mutants, write_seeds
from benchmarks.chaos_watch import MARK, Watch, folders_left

FAMILY = """
import subprocess, sys
child = [sys.executable, "-c", "print('lives', flush=True); input()"]
escaped = subprocess.Popen(child, stdin=subprocess.PIPE, start_new_session=True)
input()
"""


def test_a_child_that_leads_its_own_session_is_seen_and_outlives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_watch, "GRACE_S", 0.3)
    env = os.environ | {MARK: f"test-{os.getpid()}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True
    )
    assert parent.stdout.readline() == b"lives\n"
    watch = Watch((parent.pid,), f"test-{os.getpid()}")
    seen = {each.pid: each.command for each in watch.seen()}
    assert len(seen) == 2
    (child,) = set(seen) - {parent.pid}
    assert "lives" in seen[child]
    assert child not in {each.pid for each in Watch((parent.pid,), "another").seen()}
    os.kill(parent.pid, 19)
    assert {each.pid for each in watch.outlived()} == {parent.pid, child}
    parent.kill()
    parent.communicate()
    monkeypatch.setattr(chaos_watch, "GRACE_S", 10.0)
    assert watch.outlived() == [], "its pipe is closed"


def test_a_tally_counts_what_went_wrong(tmp_path: Path) -> None:
    good = Trial("worker", 1.0, endings=[0], lost_s=1.0)
    bad = Trial("worker", 2.0, endings=[-9, 0], differences=["x"], unclear=["y"], processes=["p", "q"], lost_s=3.0)
    found = tally([good, bad])
    assert (found["tried"], found["equal"], found["differing"], found["unclear"], found["went_on"]) == (2, 1, 1, 1, 1)
    assert (found["processes_left"], found["lost_s_median"], found["lost_s_most"]) == (2, 2.0, 3.0)
    for name in ("ray", "nava-scratch-worker-1"):
        (tmp_path / name).mkdir()
    assert folders_left(tmp_path) == ["nava-scratch-worker-1"]


def test_a_mutant_is_made_again_by_its_number(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path)
    assert len(seeds) == 14
    first, again = list(islice(mutants(seeds, 5), 30)), list(islice(mutants(seeds, 5, first=20), 10))
    assert first[20:] == again
    assert list(islice(mutants(seeds, 6), 30)) != first
    assert sum(mutant.data == seeds[mutant.name.split("-")[-1]] for mutant in first) < 3, "zeros for zeros are none"


@pytest.mark.slow
def test_mutants_are_read_or_refused_and_settle_in_a_run(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    chaos.main(["--json", str(path), "--mutants", "28", "--seed", "11"])
    found = json.loads(path.read_text())
    assert (found["decoder"]["tried"], found["runs"]["tried"]) == (28, 2)
    assert found["decoder"]["bad"] == found["runs"]["bad"] == []
    assert min(found["decoder"]["read"], found["decoder"]["refused"], found["runs"]["read"]) > 0
