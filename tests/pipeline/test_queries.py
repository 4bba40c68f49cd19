"""Questions to the ledger: tightening is exact, loosening honest, every chain can be told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.ask.find import find
from pipeline.ask.queries import Run, balance
from pipeline.ask.stats import stats
from pipeline.ask.status import status
from pipeline.ask.what_if import what_if
from pipeline.pack import MANIFEST
from pipeline.replay import Difference, Replayed, replay
from pipeline.show.plain import chain_plain, stats_plain, what_if_plain
from pipeline.show.text import stats_text, status_text, what_if_text, why_text
from schemas.errors import LedgerError
from schemas.recipe import apply_overrides
from schemas.shard_file import Manifest
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import make_run, toy_source

TWO = [toy_source("good.mp4"), toy_source("bad.mp4", faults={"shot_split": "item"})]


@pytest.fixture
def run(tmp_path: Path, toy_recipe: dict[str, Any]) -> Run:
    """Two sources of 20 s, one of them broken: 5 shots x 2 clips of 1.6 s, every second clip rejected."""
    return make_run(toy_recipe, TWO, tmp_path / "run")


def test_stats_are_complete_and_add_up(run: Run) -> None:
    found = stats(run)
    answer = stats_plain(found)
    exact = answer["hours"]["exact_us"]
    assert exact["in"] == 40_000_000
    assert exact["errors"] == {"engine_failed": 20_000_000}
    assert exact["kept"] == exact["rejected"]["audio.value.min"] == 5 * 1_600_000
    assert exact["cut_away"] == 5 * 800_000
    assert exact["difference"] == 0
    assert answer["assets"] == {"total": 2, "settled": 2, "provisional": 0, "kept": 1, "rejected": 0, "error": 1}
    assert answer["clips"] == {"total": 10, "kept": 5, "rejected": 5, "error": 0}
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer["cost"])[:3] == ["download", "probe", "shot_split"], "in running order"
    assert answer["cost"]["audio"]["rows"] == 10
    text = stats_text(found)
    assert "0:00:08.000" in text
    assert "adds up exactly" in text


def test_a_run_that_another_recipe_has_not_been_through_is_not_called_packed(run: Run) -> None:
    """Its manifest is the earlier recipe's; `status --watch` would end on it."""
    told = Manifest(2, "toy", run.recipe.measure_hash(), 5, 0, 512.0, "", 0, ())
    run.dir.write(MANIFEST, told.to_json())
    assert status(run).packed == (5, 0)
    grown = Run(run.dir.uri)
    grown.raw_recipe = apply_overrides(run.raw_recipe, ["gates.audio.value.min=0.9"])
    found = status(grown)
    assert (found.num_provisional, found.num_outdated, found.packed) == (2, 2, None)
    assert "2 of them by another recipe or other versions of stages" in " ".join(status_text(found).split())


def test_status_tells_how_far_a_run_is(run: Run) -> None:
    found = status(run)
    assert (found.num_sources, found.assets, found.num_left, found.packed) == (2, {"error": 1, "keep": 1}, 0, None)
    assert (found.in_us, found.kept_us) == (40_000_000, 8_000_000)
    text = status_text(found)
    assert "2 of 2 sources settled (1 error, 1 keep)" in " ".join(text.split())
    assert "kept 0:00:08.000 of 0:00:40.000 so far" in text


def test_tightening_is_exact(run: Run) -> None:
    answer = what_if(run, ["gates.sync.offset_ms.abs_max=5"])
    assert answer.is_exact
    assert (answer.now_us, answer.low_us, answer.estimate_us) == (8_000_000, 0, 0)
    assert what_if_plain(what_if(run, ["gates.audio.value.min=0.5"]))["delta"] == {"low": 0.0, "high": 0.0}


def test_loosening_is_an_interval_and_says_so(run: Run) -> None:
    answer = what_if(run, ["gates.audio.value.min=0"])
    assert not answer.is_exact
    assert (answer.low_us, answer.high_us) == (8_000_000, 16_000_000)
    assert answer.estimate_us is None, "nothing was audited"
    assert "between" in what_if_text(answer)


def test_the_audit_lane_turns_the_interval_into_an_estimate(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    """With every clip audited nothing is undecided: the what-if equals a run under the other gates."""
    sources = [toy_source("a.mp4"), toy_source("b.mp4", shot=90)]
    audited = make_run(toy_recipe | {"audit_fraction": 1.0}, sources, tmp_path / "audited")
    loose = copy.deepcopy(toy_recipe)
    loose["gates"]["audio"]["value"]["min"] = 0
    really = balance(make_run(loose, sources, tmp_path / "loose").ledger).kept_us
    answer = what_if(audited, ["gates.audio.value.min=0"])
    assert answer.is_exact
    assert answer.low_us == really


def test_a_gate_may_look_at_the_rows_above(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    above = copy.deepcopy(toy_recipe)
    above["gates"]["audio"]["value"]["when"] = {"probe.has_video": True}
    found = [make_run(recipe, TWO, tmp_path / name) for name, recipe in (("above", above), ("plain", toy_recipe))]
    assert stats(found[0]).gates == stats(found[1]).gates
    looser = ["gates.audio.value={min: 0.5, when: {probe.has_video: false}}"]
    assert what_if(found[0], looser).high_us == what_if(found[1], ["gates.audio={}"]).high_us == 16_000_000


def test_only_gates_can_be_asked_about(run: Run) -> None:
    with pytest.raises(LedgerError, match="only gates"):
        what_if(run, ["stages.audio.other=1"])


def test_why_tells_the_chain_from_source_to_verdict(run: Run) -> None:
    clip = run.ledger.rows("clip")[1]
    chain = find(run, clip["row_id"][:12])
    told = chain_plain(chain, run.plan)
    assert [row["kind"] for row in told] == ["asset", "shot", "clip"]
    assert told[-1]["row_id"] == clip["row_id"]
    assert told[-1]["audio"] == {"value": clip["audio.value"]}
    assert told[-1]["parent_id"] == told[1]["row_id"]
    assert told[0]["source"]["uri"] == "good.mp4"
    assert json.loads(json.dumps(told)) == told
    text = why_text(chain, run.plan)
    assert "good.mp4" in text
    assert clip["row_id"] in text


def test_why_of_a_source_tells_all_below_it_and_of_a_shot_no_more_than_itself(run: Run) -> None:
    kinds = [row["kind"] for row in chain_plain(find(run, "good.mp4"), run.plan)]
    assert kinds == ["asset"] + ["shot"] * 5 + ["clip"] * 10
    shot_id = run.ledger.rows("shot")[0]["row_id"]
    assert [row["kind"] for row in chain_plain(find(run, shot_id), run.plan)] == ["asset", "shot"]
    with pytest.raises(LedgerError, match="matches nothing"):
        find(run, "nowhere.mp4")
    with pytest.raises(LedgerError, match="matches 2 sources"):
        find(run, ".mp4")
    with pytest.raises(LedgerError, match="is the beginning of 10 clip ids"):
        find(run, "c")


def test_replay_finds_what_a_stage_now_measures_otherwise(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.ledger.table.version()
    assert replay(run, "audio", "good.mp4") == Replayed(10, ())
    clip = run.ledger.rows("clip", pl.col("clip.index") == 0)[0]
    monkeypatch.setattr(toy_stages.Audio, "process", lambda self, batch: [{"value": 0.25} for _ in batch])
    found = replay(run, "audio", clip["row_id"])
    assert found == Replayed(1, (Difference(clip["row_id"], "audio.value", 1.0, 0.25),))
    assert run.ledger.table.version() == before
    with pytest.raises(LedgerError, match="no clip that sync measured"):
        replay(run, "sync", run.ledger.rows("clip", pl.col("clip.index") == 1)[0]["row_id"])


def test_a_folder_without_a_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="run --out"):
        Run(str(tmp_path))


def test_a_run_whose_recipe_makes_no_clips_adds_up(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    recipe = {"name": "inventory", "stages": {name: toy_recipe["stages"][name] for name in ("download", "probe")}}
    sheet = balance(make_run(recipe, [toy_source("good.mp4")], tmp_path / "run").ledger)
    assert (sheet.difference_us, sheet.clips, list(sheet.rejected_us)) == (0, {}, ["asset.no_clip"])
