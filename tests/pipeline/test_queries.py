"""Questions to the ledger: tightening is exact, loosening honest, every chain can be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.ask.find import find
from pipeline.ask.queries import Run, stats
from pipeline.ask.what_if import what_if
from pipeline.config import parse_recipe
from pipeline.ledger import Ledger, ledger_schema
from pipeline.plan import make_plan
from pipeline.show.text import stats_text, what_if_text, why_text
from schemas.errors import LedgerError
from tests.pipeline.toy_run import make_run, toy_source

TWO = [toy_source("good.mp4"), toy_source("bad.mp4", faults={"shot_split": "item"})]


@pytest.fixture
def run(tmp_path: Path, toy_recipe: dict[str, Any]) -> Run:
    """Two sources of 20 s, one of them broken: 5 shots x 2 clips of 1.6 s, every second clip rejected."""
    return make_run(toy_recipe, TWO, tmp_path / "run")


def test_stats_are_complete_and_add_up(run: Run) -> None:
    answer = stats(run)
    exact = answer["hours"]["exact_us"]
    assert exact["in"] == 40_000_000
    assert exact["errors"] == {"engine_failed": 20_000_000}
    assert exact["kept"] == exact["rejected"]["audio.value.min"] == 5 * 1_600_000
    assert exact["difference"] == 0
    assert answer["assets"] == {"total": 2, "settled": 2, "kept": 1, "rejected": 0, "error": 1}
    assert answer["clips"] == {"total": 10, "kept": 5, "rejected": 5, "error": 0}
    assert json.loads(json.dumps(answer)) == answer
    text = stats_text(answer)
    assert "0:00:08.000" in text
    assert "adds up exactly" in text


def test_tightening_is_exact(run: Run) -> None:
    answer = what_if(run, ["gates.sync.offset_ms.abs_max=5"])
    assert answer["is_exact"]
    assert answer["kept"]["low"] == 0
    assert what_if(run, ["gates.audio.value.min=0.5"])["delta"] == {"low": 0.0, "high": 0.0}


def test_loosening_is_an_interval_and_says_so(run: Run) -> None:
    answer = what_if(run, ["gates.audio.value.min=0"])
    assert not answer["is_exact"]
    assert answer["kept"]["low"] * 3600 == pytest.approx(8.0)
    assert answer["kept"]["high"] * 3600 == pytest.approx(16.0)
    assert answer["estimate"] is None, "nothing was audited"
    assert "between" in what_if_text(answer)


def test_the_audit_lane_turns_the_interval_into_an_estimate(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    """With every clip audited nothing is undecided: the what-if equals a run under the other gates."""
    sources = [toy_source("a.mp4"), toy_source("b.mp4", shot=90)]
    audited = make_run(toy_recipe | {"audit_fraction": 1.0}, sources, tmp_path / "audited")
    loose = json.loads(json.dumps(toy_recipe))
    loose["gates"]["audio"]["value"]["min"] = 0
    really = stats(make_run(loose, sources, tmp_path / "loose"))["hours"]["kept"]
    answer = what_if(audited, ["gates.audio.value.min=0"])
    assert answer["is_exact"]
    assert answer["kept"]["low"] == pytest.approx(really)


def test_only_gates_can_be_asked_about(run: Run) -> None:
    with pytest.raises(LedgerError, match="only gates"):
        what_if(run, ["stages.audio.other=1"])


def test_why_tells_the_chain_from_source_to_verdict(run: Run) -> None:
    clip = run.ledger.settled("clip").to_pylist()[1]
    chain = find(run, clip["row_id"][:12])
    assert [row["kind"] for row in chain] == ["asset", "shot", "clip"]
    text = why_text(chain, run.plan)
    assert "good.mp4" in text
    assert clip["row_id"] in text
    assert len(find(run, "good.mp4")) == 1 + 5 + 10
    with pytest.raises(LedgerError, match="matches nothing"):
        find(run, "nowhere.mp4")


def test_of_equal_bytes_given_twice_why_tells_the_first(run: Run) -> None:
    kinds = [run.ledger.table(kind).to_pylist() for kind in ("asset", "shot", "clip")]
    source_id = run.ledger.settled("clip").to_pylist()[0]["source_id"]
    copy = [{**row, "source_id": f"{source_id}z"} for rows in kinds for row in rows if row["source_id"] == source_id]
    Ledger(run.ledger.uri, ledger_schema(run.plan)).commit("copy", copy)
    clip_id = copy[-1]["row_id"]
    assert {row["source_id"] for row in find(Run(run.dir.uri), clip_id)} == {source_id}


def test_a_run_of_another_recipe_is_not_mixed_in(run: Run, toy_recipe: dict[str, Any]) -> None:
    plan = make_plan(parse_recipe(toy_recipe))
    with pytest.raises(LedgerError, match="another recipe"):
        Ledger(run.ledger.uri, ledger_schema(plan)).create("another hash")


def test_a_folder_without_a_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="run --out"):
        Run(str(tmp_path))
