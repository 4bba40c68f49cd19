"""Questions that pages and commands share: conditions, sources, marks, comparison, SQL, trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ask.clips import ClipLists
from pipeline.ask.compare import compare, differences
from pipeline.ask.condition import Condition, parsed_conditions
from pipeline.ask.marks import LEAST, Mark, MarkFile, broken, exported, gate_marks, suggested, wilson
from pipeline.ask.queries import Run
from pipeline.ask.query_box import ask_sql, checked
from pipeline.ask.sources import SourceLists
from pipeline.ask.training import trained
from pipeline.show.marks import marks_text
from schemas.errors import LedgerError, RecipeError
from tests.pipeline.toy_run import make_run, toy_source

TYPES = {"a.x": pl.Float64(), "a.kind": pl.String(), "a.is": pl.Boolean()}
ROWS = pl.DataFrame({"a.x": [1.0, 2.0, None], "a.kind": ["Speech", "music", None], "a.is": [True, False, None]})


@pytest.fixture
def lists(whole_run: Path, cache: Path) -> ClipLists:
    return ClipLists(Run(str(whole_run), cache))


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("a.x<2", [0]), ("a.x <= 2", [0, 1]), ("a.x>1", [1]), ("a.x>=1", [0, 1]), ("a.x=2", [1]), ("a.x!=2", [0]),
        ("a.x=", [2]), ("a.x!=", [0, 1]), ("a.kind=music", [1]), ("a.kind~SPE", [0]), ("a.is=no", [1]), ("a.is!=false", [0]),
    ],
)  # fmt: skip
def test_conditions_say_what_they_read_like(text: str, hits: list[int]) -> None:
    says = Condition.parse(text).expression(TYPES)
    assert ROWS.with_row_index().filter(says)["index"].to_list() == hits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.x", "FIELD OPERATOR VALUE"), ("__import__('os')", "is no condition"), ("a.x<", "is no condition"),
        ("a.y<1", "Did you mean 'a.x'"), ("a.x<much", "is none"), ("a.kind<b", "no order"), ("a.is=maybe", "true or false"),
    ],
)  # fmt: skip
def test_conditions_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        Condition.parse(text).expression(TYPES)


def test_several_conditions_stand_in_one_text() -> None:
    assert [str(each) for each in parsed_conditions("a.x<2, a.kind~b;a.is=true")] == ["a.x<2", "a.kind~b", "a.is=true"]
    assert parsed_conditions(" ") == ()


def test_sources_add_up_to_the_balance(lists: ClipLists) -> None:
    page = SourceLists(lists).page(sort="lost")
    assert (page.num_all, page.num_found) == (4, 4)
    assert (
        page.kept_us
        == lists.run.ledger.scan("clip").filter(pl.col("verdict.status") == "keep").collect()["duration_us"].sum()
    )
    assert page.rows[0].kept_us == 0
    assert [row.uri for row in SourceLists(lists).page(text="/0.MP4").rows] == [
        r.uri for r in page.rows if "/0.mp4" in r.uri
    ]
    first = SourceLists(lists).page(limit=3)
    rest = SourceLists(lists).page(limit=3, after=first.next_after)
    assert len({row.source_id for row in (*first.rows, *rest.rows)}) == 4


# --- marks


def test_the_interval_of_a_share() -> None:
    """Figures of R's prop.test without its correction."""
    found = wilson(1, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0179, 0.4042)
    assert wilson(0, 0) is None
    assert round(wilson(10, 10).low, 4) == 0.7225
    assert wilson(10, 10).high <= 1.0


def test_the_last_mark_of_a_clip_counts(tmp_path: Path) -> None:
    marks = MarkFile(tmp_path / "deep" / "marks.jsonl")
    assert marks.all() == {}
    marks.add("c1", "good", "fine")
    marks.add("c1", "bad", "x" * 900)
    marks.add("c2", "unsure")
    assert {name: mark.opinion for name, mark in marks.all().items()} == {"c1": "bad", "c2": "unsure"}
    assert len(marks.all()["c1"].note) == 500
    with pytest.raises(LedgerError, match="good, bad, unsure"):
        marks.add("c1", "fine")
    marks.path.write_text("nonsense\n")
    with pytest.raises(LedgerError, match=r"marks\.jsonl:1 is no mark"):
        marks.all()


def test_marks_judge_gates_from_thirty_on(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    """Half of the toy clips fail a gate: all of those are bad here, and two good ones among them."""
    run = make_run(toy_recipe, [toy_source(f"{number}.mp4", tag=number) for number in range(4)], tmp_path / "run")
    rows = sorted(run.ledger.rows("clip", columns=["verdict.status"]), key=lambda row: row["row_id"])
    failed = [row["row_id"] for row in rows if row["verdict.status"] == "reject"]
    passed = [row["row_id"] for row in rows if row["verdict.status"] == "keep"]
    told = {name: Mark(name, "bad") for name in failed} | {name: Mark(name, "good") for name in passed}
    told |= {name: Mark(name, "good") for name in failed[:2]}
    assert len(told) == 40
    few = dict(list(told.items())[: LEAST - 1])
    assert gate_marks(run, few) == []
    by_gate = {each.gate: each for each in gate_marks(run, told)}
    gate = by_gate["audio.value.min"]
    assert (gate.precision.share, gate.precision.num) == (0.9, 20)
    assert (gate.recall.share, gate.recall.num) == (1.0, 18)
    assert by_gate["sync.offset_ms.abs_max"].precision is None
    best = suggested(run, told)[0]
    assert (best.path, best.operator, best.bound) == ("audio.value", "min", 0.5)
    assert (best.bad_away, best.num_bad, best.good_away, best.num_good) == (18, 18, 2, 22)
    wrong = broken(run, list(told.values()))
    assert {each.clip_id for each in wrong} == set(failed[:2])
    text, is_sound = marks_text("check", run, told)
    assert not is_sound
    assert "38 marks hold, 2 do not" in text
    lines = [json.loads(line) for line in marks_text("export", run, told)[0].splitlines()]
    assert lines == exported(run, told.values())
    assert {line["measured"]["audio.value"] for line in lines} == {0.0, 1.0}
    assert "90%" in marks_text("gates", run, told)[0]
    assert "gates.audio.value.min=0.5" in marks_text("suggest", run, told)[0]
    with pytest.raises(RecipeError, match="Did you mean 'export'"):
        marks_text("exprt", run, told)
    with pytest.raises(RecipeError, match="nava-curate inspect"):
        marks_text("check", run, {})


# --- comparison


def test_two_runs_differ_by_what_each_turns_away(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    sources = [toy_source("a.mp4"), toy_source("b.mp4", frames=250)]
    loose = {**toy_recipe, "gates": {**toy_recipe["gates"], "audio": {"value": {"min": -1}}}}
    before = ClipLists(make_run(toy_recipe, sources, tmp_path / "before"))
    after = ClipLists(make_run(loose, sources[:1], tmp_path / "after"))
    found = compare(before, after)
    assert sum(step.us for step in (*found.lost, *found.gained)) == found.after_us - found.before_us
    assert [(step.reason, step.num_clips) for step in found.gained] == [("audio.value.min", 5)]
    assert [(step.reason, step.num_clips) for step in found.lost] == [("not in the other run", 3)]
    assert found.num_flips == len(found.flips) == 8
    assert ("gates.audio.value.min", 0.5, -1) in found.recipe


def test_differences_of_recipes() -> None:
    assert list(differences({"a": {"b": 1, "c": 2}, "d": []}, {"a": {"b": 1, "e": 3}, "d": []})) == [
        ("a.c", 2, None),
        ("a.e", None, 3),
    ]


# --- SQL


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')", "SELECT * FROM Read_Parquet ('x')", "select * from scan_ipc('x')",
        "drop table facts", "select 1; select 2", "create table x as select * from facts", "explain select 1",
        "insert into facts values (1)", "show tables", "/* select */ delete from facts", "", "x" * 6000,
    ],
)  # fmt: skip
def test_only_one_select_is_answered(sql: str) -> None:
    with pytest.raises(LedgerError):
        checked(sql)


def test_words_in_texts_and_comments_are_no_statements() -> None:
    assert checked("select 'drop; read_csv(' /* ; drop */from facts;") == "select 'drop; read_csv('  from facts"


def test_a_select_is_answered_by_a_process_that_can_open_nothing(lists: ClipLists, tmp_path: Path) -> None:
    sql = "with long as (select row_id, duration_us from facts where duration_us > 3500000) select count(*) n from long"
    assert ask_sql(lists, sql, tmp_path).rows == ((1,),)
    with pytest.raises(LedgerError, match=r"relation 'files' was not found"):
        ask_sql(lists, "select * from files", tmp_path)


# --- trainings


def test_hard_clips_are_those_whose_errors_lie_above_others_as_noisy(lists: ClipLists, tmp_path: Path) -> None:
    """The noisier a sample the smaller its error; one clip has twice the error of the others throughout."""
    ids = sorted(row["row_id"] for row in lists.run.ledger.rows("clip"))
    rng = np.random.default_rng(0)
    rows = []
    for step in range(200):
        for number, clip_id in enumerate(ids):
            timestep = float(rng.uniform(0, 1000))
            error = (1.1 - timestep / 1000) * (2.0 if number == 1 else 1.0)
            window = f"{clip_id}-w01" if step % 2 else clip_id
            rows.append({"step": step, "clip_id": window, "timestep": timestep, "video_mse": error, "audio_mse": None})
    (tmp_path / "samples").mkdir()
    schema = pa.schema(
        [("step", pa.int64()), ("clip_id", pa.string()), ("timestep", pa.float32()), ("video_mse", pa.float32()),
         ("audio_mse", pa.float32())]
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "samples" / "1.parquet")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"kind": "note"}\n{"step": 2, "loss": 1.0}\n')
    (tmp_path / "plan.json").write_text('{"buckets": []}')
    found = trained(lists, tmp_path, dict.fromkeys(ids, "one"))
    assert (found.num_samples, found.num_clips, found.num_unknown) == (200 * len(ids), len(ids), 0)
    assert found.hardest[0].clip_id == ids[1]
    others = [each.difficulty for each in found.hardest[1:]]
    assert found.hardest[0].difficulty / np.mean(others) == pytest.approx(2.0, rel=0.05)
    assert [line["loss"] for line in found.steps] == [2.0, 1.0]
    assert found.shards == (("one", 200 * len(ids)),)
    assert found.plan == {"buckets": []}
    with pytest.raises(LedgerError, match="holds neither"):
        trained(lists, tmp_path / "samples" / "none")
