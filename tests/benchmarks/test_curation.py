"""The benchmark of curation in small: every process counts, networks are told from the rest, bounds are met or missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import curation
from benchmarks.curation_side import is_in_network
from pipeline.demo import talking_clip
from pipeline.demo.write import Encoding

BURN = """
import subprocess, sys, time
began = time.process_time()
while time.process_time() - began < 0.3: pass
if sys.argv[1:]:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
    left = subprocess.Popen([sys.executable, "-c", sys.argv[1] + "print(flush=True); time.sleep(2)"], stdout=subprocess.PIPE)
    left.stdout.readline()
    time.sleep(1)
    print("done")
"""


def test_a_command_costs_what_all_its_processes_cost(tmp_path: Path) -> None:
    cpu_s, wall_s, text = curation.spent([sys.executable, "-c", BURN, BURN], {}, tmp_path)
    assert text == "done\n"
    assert 0.8 < cpu_s < 1.8, "three processes, each once: two that were waited for and one that nobody waited for"
    assert wall_s > 1


def test_a_command_that_fails_gives_no_figure(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        curation.spent([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path)


def caller(folder: Path, line: str) -> Callable[[Callable[[], Any]], Any]:
    """A function of a module in `folder` with one line, which calls what it is given."""
    path = folder / "module.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"def outer(inner):\n    {line}\n")
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names["outer"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("folder", "line", "expected"),
    [
        ("ours", "return inner()", False),
        ("site-packages/torch/nn", "return inner()", True),
        ("site-packages/onnxruntime", "return inner()", True),
    ],
)
def test_a_thread_is_in_a_network_where_its_stack_says_so(
    folder: str, line: str, expected: bool, tmp_path: Path
) -> None:
    outer = caller(tmp_path / folder, line)
    assert outer(lambda: is_in_network(sys._getframe())) is expected


def test_a_compiled_network_is_told_by_the_line_that_calls_it(tmp_path: Path) -> None:
    def here() -> FrameType | None:
        return sys._getframe().f_back

    net: Any = SimpleNamespace(forward=partial(here), other=partial(here))
    assert is_in_network(caller(tmp_path / "a", "return inner.forward()")(net))
    assert not is_in_network(caller(tmp_path / "b", "return inner.other()")(net))
    assert not is_in_network(None)


def taken(cpu_s: float, run_s: float, decodes: float | None) -> dict[str, Any]:
    stages = {
        "minutes": 2.0, "setup_s": 4.0, "cpu_s": cpu_s, "recogniser_s": 3.0, "networks_s": cpu_s / 2, "rest_s": cpu_s / 2,
        "by_stage": {"probe": 1.0}, "decodes_per_frame": decodes,
    }  # fmt: skip
    run = {"cpu_s": run_s, "minutes": 2.0, "start_s": 9.0, "wall_s": 20.0, "told_s": 10.0, "seen_s": 10.0}
    run |= {"decodes_per_frame": {"with_cutting": decodes and 2 * decodes}, "utilisation": 0.9}
    return {"stages": stages, "run": run}


def test_ratios_are_of_one_round_and_bounds_are_held_by_the_middle() -> None:
    rounds = []
    for this_s, other_s in ((8.0, 20.0), (12.0, 20.0), (16.0, 80.0)):
        sides = {"this": taken(this_s, this_s, 1.2), "against": taken(other_s, other_s, None)}
        parts = {part: {whose: told[part] for whose, told in sides.items()} for part in ("stages", "run")}
        rounds.append({"limit_s": 5.0, "scenes_s": 6.0, **parts})
    found = curation.summary(rounds)
    assert found["stages"] == {"this": [4, 6, 8], "against": [10, 10, 40], "ratio": pytest.approx([0.2, 0.4, 0.6])}
    assert "against" not in found["decodes_per_frame.before_cutting"]
    assert found["limit"] == {"this": [2.5, 2.5, 2.5]}
    told = {line.split()[0]: line.split()[-1] for line in curation.held(found)}
    assert told == {
        "decodes_per_frame.before_cutting": "MISSED",
        "decodes_per_frame.with_cutting": "MISSED",
        "rest_per_decode": "met",
        "ratio.stages": "met",
        "ratio.run": "met",
    }
    assert "scenes" in curation.as_text(found)


@pytest.mark.slow
def test_a_round_on_one_small_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curation, "WARM_UP_S", 2.2)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    talking_clip(tmp_path / "clip.mp4", duration_s=3.0, seed=7, encoding=Encoding(width_px=160, height_px=128))
    curation.main([str(tmp_path), "--json", str(tmp_path / "found.json"), "--rounds", "1", "--without-run"])
    told = json.loads((tmp_path / "found.json").read_text())
    (side,) = (each["stages"]["this"] for each in told["rounds"])
    assert told["setting"]["media"] == ["clip.mp4"]
    assert side["minutes"] == pytest.approx(3 / 60)
    assert sum(side["by_stage"].values()) == pytest.approx(side["cpu_s"] + side["recogniser_s"], rel=0.3)
    assert side["recogniser_s"] > 0.1, "it speaks"
    assert 0 < side["networks_s"] < side["cpu_s"]
    assert 1 <= side["decodes_per_frame"] < 1.1
    assert told["figures"]["limit"]["this"][0] > 0
    assert "ratio.stages" not in capsys.readouterr().out
