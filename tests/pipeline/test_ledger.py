"""The record: what a run went through is told by its rows, nothing is written twice or by halves, damage is named."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import pipeline.ledger
from pipeline.config import parse_recipe
from pipeline.ledger import Ledger, structs_of, unit_tables
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from schemas.errors import LedgerError
from schemas.records import COST, Level
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import advance, settled
from tests.pipeline.toy_run import toy_source as unit

Recipe = dict[str, Any]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Stage -> rows it was asked about since the counter was last cleared."""
    counts: Counter[str] = Counter()
    for cls in (toy_stages.Probe, toy_stages.Audio, toy_stages.Sync, toy_stages.Late):

        def counted(self: Any, batch: Sequence[Any], asked: Any = cls.process) -> Any:
            counts[self.name] += len(batch)
            return asked(self, batch)

        monkeypatch.setattr(cls, "process", counted)
    return counts


def with_gate(recipe: Recipe, stage: str, field: str, **bound: float) -> Recipe:
    changed = copy.deepcopy(recipe)
    changed["gates"][stage][field] = bound
    return changed


def rows_of(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """All rows but what they cost, in a fixed order."""
    return {
        level: [{name: value for name, value in row.items() if name != "cost"} for row in ledger.rows(level)]
        for level in Level
    }


def statuses(ledger: Ledger, level: str = Level.CLIP) -> Counter[tuple[str, str | None]]:
    frame = ledger.scan(level).select("verdict.status", "verdict.reason").collect()
    return Counter(frame.iter_rows())


class TestGrowth:
    """20 s each, 5 shots of 2 clips, every second clip rejected by audio."""

    def test_the_same_command_again_does_nothing(
        self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str]
    ) -> None:
        with settled(toy_recipe, [unit("a"), unit("b", x=1)], tmp_path) as ledger:
            before, version = rows_of(ledger), ledger.table.version()
        measured.clear()
        with settled(toy_recipe, [unit("a"), unit("b", x=1)], tmp_path) as ledger:
            assert not measured
            assert (rows_of(ledger), ledger.table.version()) == (before, version)

    def test_another_gate_measures_only_what_it_lets_through(
        self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str]
    ) -> None:
        with settled(toy_recipe, [unit("a")], tmp_path):
            measured.clear()
        loose = with_gate(toy_recipe, "audio", "value", min=0.0)
        with settled(loose, [unit("a")], tmp_path) as ledger:
            assert measured == {"sync": 5, "late": 5}
            assert statuses(ledger) == {("keep", None): 10}
            grown = rows_of(ledger)
        with settled(loose, [unit("a")], tmp_path / "fresh") as ledger:
            assert rows_of(ledger) == grown, "a run that grew is the run that was asked for"
        measured.clear()
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            assert not measured, "and back again without measuring anything"
            assert statuses(ledger) == {("keep", None): 5, ("reject", "audio.value.min"): 5}

    def test_a_new_version_of_a_stage_reaches_those_that_read_it(
        self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with settled(toy_recipe, [unit("a")], tmp_path):
            measured.clear()
        monkeypatch.setattr(toy_stages.Audio, "version", "2")
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            assert measured == {"audio": 10, "sync": 5}, "sync reads audio; late reads neither"
            assert statuses(ledger)["keep", None] == 5

    def test_a_new_split_replaces_the_rows_below_it(
        self, toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            old = {row["row_id"] for row in ledger.rows(Level.CLIP)}
        monkeypatch.setattr(toy_stages.Clip, "version", "2")
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            new = [row["row_id"] for row in ledger.rows(Level.CLIP)]
            assert len(new) == len(set(new)) == 10
            assert set(new) == old, "the toy gives the same clips, once"

    def test_a_stage_the_recipe_gained_completes_the_run(
        self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str]
    ) -> None:
        short = copy.deepcopy(toy_recipe)
        for name in ("duplicates", "late"):
            del short["stages"][name]
        del short["gates"]["duplicates"]
        with settled(short, [unit("a"), unit("b")], tmp_path) as ledger:
            assert statuses(ledger, Level.ASSET) == {("keep", None): 2}
            measured.clear()
        with settled(toy_recipe, [unit("a"), unit("b")], tmp_path) as ledger:
            assert measured == {"late": 5}
            assert statuses(ledger, Level.ASSET) == {("keep", None): 1, ("reject", "duplicates.is_first.equals"): 1}

    def test_rows_are_read_that_lack_a_field_a_stage_has_gained(
        self, toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            monkeypatch.setattr(toy_stages.Audio, "adds", pa.struct([*toy_stages.Audio.adds, ("new", pa.float64())]))
            plan = make_plan(parse_recipe(toy_recipe))
            audio = [structs_of(plan, Level.CLIP, row)["audio"] for row in ledger.rows(Level.CLIP)]
            assert {each["new"] for each in audio if each} == {None}
            assert all(each["value"] is not None for each in audio if each)

    def test_a_record_without_counted_pictures_is_read_and_goes_on(
        self, toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = pa.struct([field for field in COST if field.name != "frames_decoded"])
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.ledger, "COST_COLUMN", pa.field("cost", pa.list_(known)))
            with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
                assert all("frames_decoded" not in each for row in ledger.rows(Level.ASSET) for each in row["cost"])
        loose = with_gate(toy_recipe, "audio", "value", min=0.0)
        with settled(loose, [unit("a"), unit("b", x=1)], tmp_path) as ledger:
            (old, new) = sorted(ledger.rows(Level.ASSET), key=lambda row: row["source.uri"])
        counted = {each["stage"]: each["frames_decoded"] for each in old["cost"]}
        assert (counted["probe"], counted["sync"]) == (None, 0), "what was measured again is counted"
        assert {each["frames_decoded"] for each in new["cost"]} == {0}

    def test_inputs_over_the_life_of_a_run_are_a_union(
        self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str]
    ) -> None:
        with settled(toy_recipe, [unit("a")], tmp_path):
            measured.clear()
        with settled(toy_recipe, [unit("b", x=1)], tmp_path) as ledger:
            assert measured["probe"] == 1
            assert statuses(ledger, Level.ASSET) == {("keep", None): 2}

    def test_errors_stay_until_somebody_asks(self, toy_recipe: Recipe, tmp_path: Path, measured: Counter[str]) -> None:
        with settled(toy_recipe, [unit("a", faults={"sync:0": "item", "late:0": "bug"})], tmp_path) as ledger:
            assert statuses(ledger)["error", "engine_failed"] == 5
            measured.clear()
        with settled(toy_recipe, [unit("a")], tmp_path) as ledger:
            assert not measured
        with settled(toy_recipe, [unit("a")], tmp_path, retry_errors=True) as ledger:
            assert measured == {"sync": 5, "late": 5}
            assert statuses(ledger) == {("keep", None): 5, ("reject", "audio.value.min"): 5}


class TestWriter:
    @pytest.fixture
    def tables(self, toy_recipe: Recipe) -> Any:
        plan = make_plan(parse_recipe(toy_recipe))

        def make(name: str) -> tuple[str, Any]:
            done = advance(toy_recipe, unit(name))
            return done.source.source_id, unit_tables(plan, done, plan.identity(0))

        return plan, make

    def test_a_second_writer_loses_and_nothing_is_lost(self, tmp_path: Path, tables: Any) -> None:
        plan, make = tables
        uri = str(tmp_path / "ledger")
        with LedgerWriter(uri, plan) as first:
            late = LedgerWriter(uri, plan)
            first.add(*make("a"), is_there=False)
            assert first.flush()
            late.add(*make("b"), is_there=False)
            with pytest.raises(LedgerError, match="another run has begun"):
                late.flush()
            first.add(*make("c"), is_there=False)
        assert len(Ledger(uri).passed()) == 2

    def test_an_answer_that_got_lost_is_no_failure(
        self, tmp_path: Path, tables: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import deltalake

        plan, make = tables
        really = deltalake.write_deltalake

        def forgetful(*arguments: Any, **options: Any) -> None:
            really(*arguments, **options)
            raise OSError("connection reset by peer")

        with LedgerWriter(str(tmp_path / "ledger"), plan) as writer:
            monkeypatch.setattr(deltalake, "write_deltalake", forgetful)
            writer.add(*make("a"), is_there=False)
            assert writer.flush()
            monkeypatch.setattr(deltalake, "write_deltalake", really)
            writer.add(*make("b"), is_there=False)
        assert len(Ledger(str(tmp_path / "ledger")).passed()) == 2

    def test_a_store_that_is_away_is_named_and_nothing_is_settled(
        self, tmp_path: Path, tables: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import deltalake

        plan, make = tables

        def away(*_: Any, **__: Any) -> None:
            raise OSError("No space left on device")

        writer = LedgerWriter(str(tmp_path / "ledger"), plan)
        monkeypatch.setattr(deltalake, "write_deltalake", away)
        writer.add(*make("a"), is_there=False)
        with pytest.raises(LedgerError, match="No space left") as caught:
            writer.flush()
        assert "same command goes on" in caught.value.remedy
        assert len(Ledger(str(tmp_path / "ledger")).passed()) == 0

    def test_compaction_changes_no_answer(self, tmp_path: Path, tables: Any) -> None:
        plan, make = tables
        uri = str(tmp_path / "ledger")
        with LedgerWriter(uri, plan) as writer:
            for name in "abcde":
                writer.add(*make(name), is_there=False)
                writer.flush()
            before, files = rows_of(Ledger(uri)), len(writer.ledger.table.file_uris())
            assert writer.compact(most_files=3)
            assert len(writer.ledger.table.file_uris()) < files
            assert rows_of(Ledger(uri)) == before
            writer.add(*make("a"), is_there=True)
        assert rows_of(Ledger(uri)) == before, "a unit is replaced by itself"

    def test_many_units_are_one_commit(self, tmp_path: Path, tables: Any) -> None:
        plan, make = tables
        with LedgerWriter(str(tmp_path / "ledger"), plan) as writer:
            before = writer.ledger.table.version()
            for name in "abc":
                writer.add(*make(name), is_there=False)
        assert Ledger(str(tmp_path / "ledger")).table.version() == before + 1

    def test_docs_stay_out_of_the_written_schema(self, tmp_path: Path, tables: Any) -> None:
        plan, make = tables
        with LedgerWriter(str(tmp_path / "ledger"), plan) as writer:
            writer.add(*make("a"), is_there=False)
        for file in (tmp_path / "ledger").rglob("*.parquet"):
            assert b"how the row settled" not in file.read_bytes()


class TestDamage:
    @pytest.fixture
    def ledger(self, toy_recipe: Recipe, tmp_path: Path) -> Path:
        with settled(toy_recipe, [unit("a")], tmp_path):
            return tmp_path / "ledger"

    def test_a_torn_commit_is_named(self, ledger: Path) -> None:
        newest = sorted((ledger / "_delta_log").glob("*.json"))[-1]
        newest.write_text(newest.read_text()[:50])
        with pytest.raises(LedgerError, match="cannot be read"):
            Ledger(str(ledger)).passed()

    def test_a_ledger_of_another_version_is_refused_with_one_sentence(self, tmp_path: Path) -> None:
        import pyarrow as pa
        from deltalake import DeltaTable

        DeltaTable.create(str(tmp_path), pa.schema([("kind", pa.string())]), description="0123456789abcdef")
        with pytest.raises(LedgerError, match="another version"):
            Ledger(str(tmp_path)).passed()

    def test_no_ledger_says_what_to_give(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="no ledger") as caught:
            Ledger(str(tmp_path / "nothing")).passed()
        assert "run --out" in caught.value.remedy


@pytest.mark.slow
def test_what_a_kill_leaves_is_completed(toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was not flushed is gone, whatever was is whole; the same command ends as if undisturbed."""
    sources = [unit(str(number), x=number) for number in range(7)]
    with settled(toy_recipe, sources, tmp_path / "calm") as ledger:
        expected = rows_of(ledger)
    monkeypatch.setattr("pipeline.ledger_writer.FLUSH_UNITS", 2)
    asked = toy_stages.Sync.process

    for killed_at in (1, 12, 23):
        calls = iter(range(1000))

        def fatal(self: Any, batch: Sequence[Any], calls: Any = calls, at: int = killed_at) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return asked(self, batch)

        with monkeypatch.context() as patched:
            patched.setattr(toy_stages.Sync, "process", fatal)
            patched.setattr(LedgerWriter, "__exit__", lambda *_: None)
            with pytest.raises(KeyboardInterrupt), settled(toy_recipe, sources, tmp_path / "killed"):
                pass
    with settled(toy_recipe, sources, tmp_path / "killed") as ledger:
        assert rows_of(ledger) == expected
        assert ledger.scan(Level.ASSET).select(pl.len()).collect().item() == len(sources)
    assert json.loads(json.dumps(len(expected[Level.CLIP]))) == 70


def test_a_collect_of_clips_sees_what_was_measured_of_them_and_of_all_above(toy_recipe: Recipe, tmp_path: Path) -> None:
    paths = ("clip.start_pts", "shot.end_pts", "probe.duration_us")
    with settled(toy_recipe, [unit("a"), unit("b", x=1)], tmp_path) as ledger:
        found = ledger.collectable(Level.CLIP, paths).collect()
        shots = {row["row_id"]: row for row in ledger.rows(Level.SHOT)}
        assets = {row["source_id"]: row for row in ledger.rows(Level.ASSET)}
        assert found.rows() == [
            (
                row["row_id"],
                row["source_id"],
                row["clip.start_pts"],
                shots[row["parent_id"]]["shot.end_pts"],
                assets[row["source_id"]]["probe.duration_us"],
            )
            for row in sorted(ledger.rows(Level.CLIP), key=lambda row: str(row["row_id"]))
        ]
        assert not any(found.null_count().row(0))
