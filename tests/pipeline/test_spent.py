"""What a run costs beside its stages: every process is counted once, and the record of it survives what ends a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.ask.stats import Decodes, decodes, stats
from pipeline.config import load_recipe, parse_recipe
from pipeline.demo import flash_and_click
from pipeline.demo.write import Encoding
from pipeline.execute.adapter import Worker
from pipeline.execute.monitor import Monitor
from pipeline.execute.processes import Family, cpu_s
from pipeline.execute.spent import SPENT, Bill, Book, invocations
from pipeline.plan import make_plan
from pipeline.show.plain import stats_plain
from pipeline.show.text import stats_text
from pipeline.store import RunDir
from schemas.records import NUM_FRAMES
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import make_run, toy_source

BURN = """
import subprocess, sys, time
def burn():
    began = time.process_time()
    while time.process_time() - began < 0.3: pass
burn()
if sys.argv[1:]:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
    print("burnt", flush=True)
    sys.stdin.read()
"""
CURATE = """
import sys
import stages
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.run import run
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import toy_source
stages.CATALOG.clear()
stages.CATALOG.update(toy_stages.CATALOG)
sources = [toy_source(f"v{number}", x=number) for number in range(20)]
run(parse_recipe(toy_stages.RECIPE), sources, sys.argv[1], here, quiet=True, is_process=True)
"""


class Spender:
    """Somebody who says what a test wants."""

    def __init__(self, spent: Bill) -> None:
        self._spent = spent

    def cores(self) -> float:
        return 2.0

    def spent(self) -> Bill:
        return self._spent


def test_a_family_counts_every_process_once_whatever_becomes_of_it() -> None:
    family, before_s = Family(), cpu_s()
    family.look()
    others_s = family.cpu_s()
    process = subprocess.Popen(
        [sys.executable, "-c", BURN, BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "burnt\n"
    family.look()
    living = family.cpu_s() - others_s
    assert living >= 0.58, "its own and that of the child it has waited for, to the tick"
    assert cpu_s() - before_s >= living, "a process knows what its living children have spent"
    assert family.cpu_s(without=[process.pid]) == pytest.approx(others_s, abs=0.02), (
        "what descends from it left out as well"
    )
    process.communicate()
    family.look()
    assert family.cpu_s() - others_s == pytest.approx(living, abs=0.02), "what it spent is not forgotten"
    assert cpu_s() - before_s >= living


@pytest.mark.parametrize("retire_gb", [0.01, 1.0])
@pytest.mark.slow
def test_a_worker_counts_its_decoder_once_whether_it_lives_or_was_replaced(
    retire_gb: float, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    flash_and_click(tmp_path / "film.mp4", 2.0, Encoding(width_px=640, height_px=480))
    worker = Worker(make_plan(parse_recipe(toy_recipe)), (0, 0), "", Monitor())
    worker.context.media.retire_gb = retire_gb
    before_s, told_before_s = cpu_s(), worker._cpu_s()
    for _ in range(3):
        assert sum(len(run.images) for run in worker.context.media.iter_frames(tmp_path / "film.mp4")) == 50
    assert (worker.context.media.ended_cpu_s > 0) == (retire_gb < 1)
    assert worker._cpu_s() - told_before_s == pytest.approx(cpu_s() - before_s, rel=0.1, abs=0.05)
    worker.close()


@pytest.mark.slow
def test_the_record_of_a_run_is_what_its_process_cost(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CURATE, str(tmp_path)])
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    (done,) = invocations(RunDir(tmp_path))
    assert done.is_whole
    assert 0.7 * (used.ru_utime + used.ru_stime) < done.cpu.total <= used.ru_utime + used.ru_stime
    assert done.cpu.stages.keys() == toy_stages.CATALOG.keys() - {"duplicates", "shut"}
    assert min(done.cpu.stages.values()) > 0
    assert done.cpu.driver > 0.3, "start-up"


@pytest.mark.usefixtures("toy_recipe")
def test_an_invocation_that_failed_is_recorded_as_far_as_it_came(tmp_path: Path) -> None:
    book = Book(RunDir(tmp_path))
    with pytest.raises(KeyboardInterrupt), book.of(Spender(Bill({"probe": 2.0}, driver=1e6))):
        raise KeyboardInterrupt
    (found,) = invocations(RunDir(tmp_path))
    assert not found.is_whole
    assert found.cpu.stages == {"probe": 2.0}
    assert 1e6 - found.cpu.driver == pytest.approx(cpu_s(), rel=0.5), "without what the process had spent before"


def test_a_run_without_its_record_is_asked_as_any_other(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    opened = make_run(toy_recipe, [toy_source("a")], tmp_path)
    answer = stats(opened)
    assert (answer.invocations, answer.overhead.total) == ([], 0)
    assert "packing" not in stats_text(answer)
    (tmp_path / SPENT).mkdir()
    (tmp_path / SPENT / "torn.json").write_text('{"began"')
    (tmp_path / SPENT / "other.json").write_text("{}")
    assert stats(opened).invocations == []


def test_rows_of_the_cost_table_add_up_to_all_that_was_spent(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    opened = make_run(toy_recipe, [toy_source("a")], tmp_path)
    in_ledger = sum(each.cpu_s for each in stats(opened).cost.values())
    first = Bill({"probe": 5.0}, workers=1.0, packing=2.0, driver=3.0, ray=None)
    second = Bill(
        {"probe": in_ledger, "gone": 2.0}, workers=1.0, driver=3.0, ray=4.0, started_at=0.0, started_cpu_s=5.0
    )
    for at, spent in enumerate((first, second)):
        told = {"began": 100.0 * at - 100.0, "wall_s": 110.0, "cores": 2.0, "is_whole": True, "cpu": vars(spent)}
        RunDir(tmp_path).write(f"{SPENT}/{at}.json", json.dumps(told).encode())
    answer = stats(opened)
    assert vars(answer.overhead) == pytest.approx({"packing": 2, "workers": 2, "driver": 6, "ray": 4, "again": 7})
    assert answer.cpu_s == pytest.approx(first.total + second.total)
    plain = stats_plain(answer)
    assert plain["cpu_s"] == pytest.approx(21 + in_ledger)
    assert plain["invocations"][0]["utilisation"] == pytest.approx(11 / 220)
    assert plain["invocations"][1]["utilisation_started"] == pytest.approx((5 + in_ledger) / 220)
    assert f"all{21 + in_ledger:37.1f}" in stats_text(answer)


class Assets:
    """Sources as a ledger has them: frames shown, and frames decoded by stage."""

    def __init__(self, *told: tuple[int | None, dict[str, int | None]], field: str = "frames_decoded") -> None:
        rows = [(shown, [{"stage": name, field: count} for name, count in by.items()]) for shown, by in told]
        kind = pl.List(pl.Struct({"stage": pl.String, field: pl.Int64}))
        schema = {NUM_FRAMES: pl.Int32(), "cost": kind}
        self._rows = pl.LazyFrame(rows, schema=schema, orient="row")

    def scan(self, kind: str) -> pl.LazyFrame:
        assert kind == "asset"
        return self._rows


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        (Assets((100, {"probe": 110}), (300, {"probe": 290, "picture": 40, "cut": 360})), Decodes(1.1, 2.0)),
        (Assets((100, {"probe": 100, "cut": 0}), (None, {"probe": 900})), Decodes(1.0, 1.0)),
        (Assets((100, {"probe": 100, "audio": 0})), Decodes(1.0, None)),
        (Assets((100, {"probe": 100, "cut": None})), Decodes(1.0, None)),
        (Assets((100, {"probe": 100}), (100, {"probe": None})), Decodes(None, None)),
        (Assets((100, {"probe": 100}), field="rows"), Decodes(None, None)),
        (Assets((0, {"probe": 0})), Decodes(None, None)),
        (Assets(), Decodes(None, None)),
    ],
)
def test_decodes_per_frame_are_told_where_they_were_counted(assets: Assets, expected: Decodes) -> None:
    assert decodes(assets, make_plan(load_recipe("quickstart"))) == expected
