"""The adapter under faults: a bad row costs itself, every row settles, and the hours add up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ask.queries import balance
from pipeline.config import parse_recipe
from pipeline.execute.adapter import Worker
from pipeline.execute.monitor import Monitor
from pipeline.ledger import Ledger, ledger_schema, rows_of
from pipeline.plan import make_plan
from schemas.errors import EngineError, PlanError
from schemas.ids import source_id

FAULTS = st.sampled_from(["item", "bug", "returned", "keys", "nan", "type", "unmeasured"])


def unit(name: str, **facts: Any) -> dict[str, Any]:
    metadata = json.dumps({"frames": 500, "shot": 100, "clip": 40} | facts)
    return {"source_id": source_id(name), "uri": name, "licence": None, "metadata": metadata}


def advance(recipe: dict[str, Any], source: dict[str, Any], monitor: Monitor | None = None) -> dict[str, Any]:
    """The unit after all worker groups, through the Arrow schema between them as on a cluster."""
    import pyarrow as pa

    monitor = monitor or Monitor()
    plan = make_plan(parse_recipe(recipe))
    table = pa.Table.from_pylist([source], schema=plan.unit_schema())
    for group in range(len(plan.groups)):
        table = Worker(plan.recipe.model_dump(mode="json"), group, "", monitor)(table)
    return table.to_pylist()[0]  # type: ignore[no-any-return]


def statuses(done: dict[str, Any], level: str) -> list[tuple[str, str | None]]:
    return [(row["verdict"]["status"], row["verdict"]["reason"]) for row in done[level]]


def test_without_faults_gates_decide(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, unit("a"))
    assert done["verdict"]["status"] == "keep"
    assert statuses(done, "clips") == [("keep", None), ("reject", "audio.value.min")] * 5
    assert done["clips"][1]["sync"] is None, "a rejected clip is not measured further"
    assert done["clips"][1]["verdict"]["message"] == "audio.value 0 < 0.5"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("item", "engine_failed"), ("returned", "engine_failed"), ("bug", "unexpected"), ("keys", "unexpected"),
     ("nan", "unexpected"), ("type", "unexpected")],
)  # fmt: skip
def test_one_bad_clip_in_a_batch_costs_only_itself(toy_recipe: dict[str, Any], kind: str, reason: str) -> None:
    done = advance(toy_recipe, unit("a", shot=500, faults={"audio:4": kind}))
    found = statuses(done, "clips")
    assert found[4] == ("error", reason)
    assert [status for at, (status, _) in enumerate(found) if at != 4] == ["keep", "reject"] * 2 + [
        "reject",
        "keep",
    ] * 3 + ["reject"]


@pytest.mark.parametrize("cause", [EngineError("no weights at /nowhere."), OSError("no such driver")])
def test_a_stage_that_cannot_start_ends_the_run_and_settles_nothing(
    toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    import toy_stages

    def fail(*_: Any) -> None:
        raise cause

    monkeypatch.setattr(toy_stages.Audio, "setup", fail)
    monitor = Monitor()
    with pytest.raises(PlanError, match="stage audio cannot start"):
        advance(toy_recipe, unit("a"), monitor)
    assert str(cause) in monitor.snapshot()["refusal"]


def test_an_error_of_the_asset_settles_it_and_its_children(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, unit("a", faults={"probe": "media"}))
    assert (done["verdict"]["status"], done["verdict"]["reason"], done["clips"]) == ("error", "not_decodable", [])
    assert "no picture in here" in done["verdict"]["message"]


def test_a_missing_measurement_is_an_error_not_a_score(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, unit("a", faults={"sync:0": "unmeasured"}))
    assert ("error", "sync.offset_ms.missing") in statuses(done, "clips")


def test_audited_clips_are_measured_to_the_end_but_never_kept(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe | {"audit_fraction": 1.0}, unit("a"))
    rejected = [row for row in done["clips"] if row["verdict"]["status"] == "reject"]
    assert len(rejected) == 5
    assert all(row["sync"] is not None and row["verdict"]["is_audit"] for row in rejected)


def test_a_row_found_in_flight_after_two_worker_deaths_settles_as_error(toy_recipe: dict[str, Any]) -> None:
    source = unit("a", shot=500)
    clip = advance(toy_recipe, dict(source))["clips"][0]["clip"]["clip_id"]
    monitor = Monitor()
    for _ in range(2):
        monitor.begin(source["source_id"])
        monitor.enter(source["source_id"], "audio", [clip])
    done = advance(toy_recipe, dict(source), monitor)
    assert statuses(done, "clips")[0] == ("error", "worker_crash")
    assert statuses(done, "clips")[2] == ("keep", None)


def test_a_hanging_row_ends_its_worker_and_is_not_tried_again(toy_recipe: dict[str, Any]) -> None:
    """The watchdog exits the process, so the first attempt runs in a child."""
    source = unit("a", shot=500, faults={"audio:3": "hang"})
    monitor = Monitor()
    for _ in range(2):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            monitor.expire = lambda *call, out=write: os.write(out, json.dumps(call).encode()) and None  # type: ignore
            advance(toy_recipe, dict(source), monitor)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 70
        unit_id, stage, rows = json.loads(os.read(read, 65536))
        monitor.expire(unit_id, stage, rows)
    assert len(rows) == 1, "a batch that hangs is tried row by row before anyone is blamed"
    done = advance(toy_recipe, dict(source), monitor)
    assert [status for status, _ in statuses(done, "clips")].count("error") == 1
    assert ("error", "timeout") in statuses(done, "clips")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hours_add_up_under_random_faults(
    toy_recipe: dict[str, Any], tmp_path_factory: Any, data: st.DataObject
) -> None:
    sources = []
    for number in range(data.draw(st.integers(1, 4))):
        faults = data.draw(
            st.dictionaries(
                st.sampled_from(
                    ["download", "probe", "shot_split", "clip:0", "clip:1", "audio:0", "audio:2", "sync:0"]
                ),
                FAULTS | st.just("media"),
                max_size=3,
            )
        )
        sources.append(
            unit(
                f"v{number}", frames=data.draw(st.integers(1, 700)), shot=data.draw(st.integers(10, 300)),
                clip=data.draw(st.integers(5, 90)), video=data.draw(st.booleans()), faults=faults,
            )
        )  # fmt: skip
    if data.draw(st.booleans()):
        sources.append(sources[0] | {"uri": "copy", "source_id": source_id("copy")})
    plan = make_plan(parse_recipe(toy_recipe))
    ledger = Ledger(str(tmp_path_factory.mktemp("ledger")), ledger_schema(plan))
    ledger.create("hash")
    for source in sources:
        done = advance(toy_recipe, dict(source))
        assert all(
            row["verdict"]["status"] in ("keep", "reject", "error") for row in [done, *done["shots"], *done["clips"]]
        )
        assert ledger.commit(done["source_id"], rows_of(done))
        assert not ledger.commit(done["source_id"], rows_of(done)), "a second commit of a unit is a no-op"
    sheet = balance(ledger)
    assert sheet.difference_us == 0
    assert sum(sheet.assets.values()) == len(sources)
    known = {row["source_id"]: row["duration_us"] or 0 for row in ledger.table("asset").to_pylist()}
    assert sheet.in_us == sum(known.values())
    assert min([sheet.kept_us, sheet.cut_away_us, *sheet.rejected_us.values(), *sheet.errors_us.values()]) >= 0


def test_ledger_reads_do_not_depend_on_commit_order(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(parse_recipe(toy_recipe))
    done = [advance(toy_recipe, unit(name)) for name in ("a", "b", "c")]
    sheets = []
    for folder, order in (("x", done), ("y", done[::-1])):
        ledger = Ledger(str(tmp_path / folder), ledger_schema(plan))
        ledger.create("hash")
        for item in order:
            ledger.commit(item["source_id"], rows_of(item))
        sheets.append((balance(ledger), [row["source_id"] for row in ledger.settled("clip").to_pylist()]))
    assert sheets[0] == sheets[1]
    assert sheets[0][0].rejected_us["duplicate"] == 2 * 20_000_000


def test_reopened_units_are_measured_anew_and_others_stay(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    plan = make_plan(parse_recipe(toy_recipe))
    ledger = Ledger(str(tmp_path), ledger_schema(plan))
    ledger.create("hash")
    faulty = {"a": {"probe": "media"}, "b": {"audio:1": "item"}, "c": {}}
    units = {name: unit(name, faults=faults) for name, faults in faulty.items()}
    for source in units.values():
        ledger.commit(source["source_id"], rows_of(advance(toy_recipe, dict(source))))
    whole = ledger.table("clip").filter(pc.field("source_id") == units["c"]["source_id"])
    assert ledger.with_errors() == sorted(units[name]["source_id"] for name in "ab")
    ledger.reopen(ledger.with_errors())
    assert [ledger.has(source["source_id"]) for source in units.values()] == [False, False, True]
    assert ledger.table("clip").equals(whole)
    assert Ledger(str(tmp_path)).with_errors() == []
    mended = unit("a")
    assert ledger.commit(mended["source_id"], rows_of(advance(toy_recipe, dict(mended))))
    assert not ledger.commit(mended["source_id"], rows_of(advance(toy_recipe, dict(mended))))
    assert balance(ledger).assets["keep"] == 2


def test_credentials_reach_the_download_and_nothing_else(toy_recipe: dict[str, Any]) -> None:
    done = advance(toy_recipe, unit("https://host/v.mp4") | {"fetch_uri": "https://user:secret@host/v.mp4?sig=secret"})
    assert done["fetch_uri"].endswith("sig=secret"), "it travels with the unit"
    assert "secret" not in json.dumps(rows_of(done))
