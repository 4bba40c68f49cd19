"""The adapter under faults: a bad row costs itself, every row settles, and the hours add up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from pipeline.ask.queries import balance
from pipeline.config import parse_recipe
from pipeline.execute.monitor import Monitor
from pipeline.ledger import Ledger, unit_tables
from pipeline.plan import make_plan
from pipeline.unit import Node
from schemas.errors import EngineError, MachineError, PlanError
from schemas.ids import source_id
from schemas.records import Level, Source
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import advance, settled, toy_source, verdicts
from tests.strategies import toy_recipes, toy_sources


def statuses(nodes: list[Node]) -> list[tuple[str, str | None]]:
    return [(node.verdict.status, node.verdict.reason) for node in nodes]


def test_without_faults_gates_decide(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, toy_source("a"))
    assert done.asset.verdict.status == "keep"
    assert statuses(done.clips) == [("keep", None), ("reject", "audio.value.min")] * 5
    assert done.clips[1].structs.get("sync") is None, "a rejected clip is not measured further"
    assert done.clips[1].verdict.message == "audio.value 0 < 0.5"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("item", "engine_failed"), ("returned", "engine_failed"), ("bug", "unexpected"), ("keys", "unexpected"),
     ("nan", "unexpected"), ("type", "unexpected")],
)  # fmt: skip
def test_one_bad_clip_in_a_batch_costs_only_itself(toy_recipe: dict[str, Any], kind: str, reason: str) -> None:
    done = advance(toy_recipe, toy_source("a", shot=500, faults={"audio:4": kind}))
    found = statuses(done.clips)
    assert found[4] == ("error", reason)
    assert [status for at, (status, _) in enumerate(found) if at != 4] == ["keep", "reject"] * 2 + [
        "reject",
        "keep",
    ] * 3 + ["reject"]


@pytest.mark.parametrize("cause", [EngineError("no weights at /nowhere."), OSError("no such driver")])
def test_a_stage_that_cannot_start_ends_the_run_and_settles_nothing(
    toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise cause

    monkeypatch.setattr(toy_stages.Audio, "setup", fail)
    with pytest.raises(PlanError, match=f"stage audio cannot start.*{cause}"):
        advance(toy_recipe, toy_source("a"))


def test_a_source_that_the_scratch_disk_cannot_take_ends_the_run_and_settles_nothing(
    toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = toy_recipe | {"resources": {"audio": {"batch": 3, "scratch_gb_per_h": 1e9}}}
    with (
        pytest.raises(MachineError, match=r"audio takes about 1.33e\+06 GB of scratch for a; .* GB left") as caught,
        settled(recipe, [toy_source("a")], tmp_path),
    ):
        pass
    assert "TMPDIR" in str(caught.value)
    assert len(Ledger(str(tmp_path / "ledger")).passed()) == 0
    with settled(toy_recipe, [toy_source("a")], tmp_path) as ledger:
        assert len(ledger.passed()) == 1


def test_an_error_of_the_asset_settles_it_and_its_children(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, toy_source("a", faults={"probe": "media"}))
    assert (done.asset.verdict.status, done.asset.verdict.reason, done.clips) == ("error", "not_decodable", [])
    assert "no picture in here" in done.asset.verdict.message


def test_a_missing_measurement_is_an_error_not_a_score(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, toy_source("a", faults={"sync:0": "unmeasured"}))
    assert ("error", "sync.offset_ms.missing") in statuses(done.clips)


def test_audited_clips_are_measured_to_the_end_but_never_kept(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe | {"audit_fraction": 1.0}, toy_source("a"))
    rejected = [node for node in done.clips if node.verdict.status == "reject"]
    assert len(rejected) == 5
    assert all(node.structs["sync"] is not None and node.verdict.is_audit for node in rejected)


def test_a_row_found_in_flight_after_two_worker_deaths_settles_as_error(toy_recipe: dict[str, Any]) -> None:
    source = toy_source("a", shot=500)
    clip = advance(toy_recipe, source).clips[0].row_id
    monitor = Monitor()
    for _ in range(2):
        monitor.begin(source.source_id)
        monitor.enter(source.source_id, "audio", [clip])
    done = advance(toy_recipe, source, monitor)
    assert statuses(done.clips)[0] == ("error", "worker_crash")
    assert statuses(done.clips)[2] == ("keep", None)


def test_a_hanging_row_ends_its_worker_and_is_not_tried_again(toy_recipe: dict[str, Any]) -> None:
    """The watchdog exits the process, so the first attempt runs in a child."""
    source = toy_source("a", shot=500, faults={"audio:3": "hang"})
    monitor = Monitor()
    for _ in range(2):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            monitor.expire = lambda *call, out=write: os.write(out, json.dumps(call).encode()) and None  # type: ignore
            advance(toy_recipe, source, monitor)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 70
        unit_id, stage, rows = json.loads(os.read(read, 65536))
        monitor.expire(unit_id, stage, rows)
    assert len(rows) == 1, "a batch that hangs is tried row by row before anyone is blamed"
    done = advance(toy_recipe, source, monitor)
    assert [status for status, _ in statuses(done.clips)].count("error") == 1
    assert ("error", "timeout") in statuses(done.clips)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_recipe")
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=toy_recipes(), sources=toy_sources())
def test_hours_add_up_under_random_faults_and_gates(
    tmp_path_factory: Any, recipe: dict[str, Any], sources: list[Source]
) -> None:
    with settled(recipe, sources, tmp_path_factory.mktemp("run")) as ledger:
        for level in Level:
            found = verdicts(ledger, level)
            assert {verdict.status for verdict in found.values()} <= {"keep", "reject", "error"}
        sheet = balance(ledger)
        assert sheet.difference_us == 0
        assert sum(sheet.assets.values()) == len(sources)
        known = {row["source_id"]: row["duration_us"] or 0 for row in ledger.rows(Level.ASSET)}
        assert sheet.in_us == sum(known.values())
        parts = [sheet.kept_us, sheet.cut_away_us, *sheet.rejected_us.values(), *sheet.errors_us.values()]
        assert min(parts) >= 0


def test_ledger_reads_do_not_depend_on_commit_order(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    sources = [toy_source(name) for name in ("a", "b", "c")]
    sheets = []
    for folder, order in (("x", sources), ("y", sources[::-1])):
        with settled(toy_recipe, order, tmp_path / folder) as ledger:
            sheets.append((balance(ledger), verdicts(ledger, Level.CLIP)))
    assert sheets[0] == sheets[1]
    assert sheets[0][0].rejected_us["duplicates.is_first.equals"] == 2 * 20_000_000


def test_what_a_collect_says_is_asked_again_when_the_run_grows(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The source that stands for the others may change: the one turned away comes back, and later stages follow."""
    names = sorted(("a", "b", "c"), key=source_id)
    with settled(toy_recipe, [toy_source(names[1])], tmp_path) as ledger:
        assert [verdict.status for verdict in verdicts(ledger, Level.ASSET).values()] == ["keep"]
    with settled(toy_recipe, [toy_source(name) for name in names], tmp_path) as ledger:
        found = verdicts(ledger, Level.ASSET)
        assert [found[source_id(name)].status for name in names] == ["keep", "reject", "reject"]
        clips = ledger.rows(Level.CLIP)
        kept = {row["source_id"] for row in clips if row["verdict.status"] == "keep"}
        assert kept == {source_id(names[0])}
        assert {row["late.of"] for row in clips if row["source_id"] in kept and row["late.hash"]} == kept
        version = ledger.table.version()
    with settled(toy_recipe, [toy_source(name) for name in names], tmp_path) as ledger:
        assert ledger.table.version() == version, "nothing changed, so nothing is measured or written again"


def test_an_error_behind_a_collect_costs_its_row(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    with settled(toy_recipe, [toy_source("a", faults={"late:0": "bug"})], tmp_path) as ledger:
        found = [(verdict.status, verdict.reason) for verdict in verdicts(ledger, Level.CLIP).values()]
        assert found.count(("error", "unexpected")) == 5, "clip 0 of every shot"
        assert balance(ledger).difference_us == 0


def test_credentials_reach_the_download_and_nothing_else(toy_recipe: dict[str, Any]) -> None:
    done = advance(
        toy_recipe, replace(toy_source("https://host/v.mp4"), fetch_uri="https://user:secret@host/v.mp4?sig=secret")
    )
    assert done.source.fetch_uri.endswith("sig=secret"), "it travels with the unit"
    plan = make_plan(parse_recipe(toy_recipe))
    told = [table.to_pylist() for table in unit_tables(plan, done, "x").values()]
    assert "secret" not in json.dumps(told)
