"""Facts: what the ledger says, to the last bit, whatever became of the ledger or of the cache."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import synthetic_ledger
from pipeline.ask import facts as module
from pipeline.ask.facts import Facts, columns
from pipeline.ask.find import locate
from pipeline.ask.queries import Run, balance
from pipeline.ask.stats import stats
from pipeline.ask.what_if import what_if
from pipeline.config import parse_recipe
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from schemas.fields import f, struct
from schemas.recipe import apply_overrides
from schemas.records import Level, Source
from tests.pipeline import toy_stages
from tests.pipeline.test_answers import OVERRIDES, first_pass
from tests.pipeline.toy_run import make_run, settled, toy_source
from tests.strategies import toy_recipes, toy_sources

Recipe = dict[str, Any]
SOURCES = [toy_source("a.mp4"), toy_source("b.mp4", shot=90), toy_source("c.mp4", faults={"probe": "item"})]


def kept(run: Run, folder: Path, said: Callable[[str], None] = lambda line: None) -> Run:
    """The run as it is now, its questions answered from a cache however small it is."""
    opened = Run(run.dir.uri)
    opened.facts = Facts(opened.ledger, opened.plan, folder, least_rows=0, report=said)
    return opened


def from_ledger(run: Run) -> Run:
    """The run as it is now, its questions answered by the ledger."""
    opened = Run(run.dir.uri)
    opened.facts = Facts(opened.ledger, opened.plan, Path(run.dir.uri), least_rows=10**9)
    return opened


def rows_of(run: Run, level: Level) -> pl.DataFrame:
    return run.facts.scan(level).sort("source_id", "row_id").collect()


def check(run: Run, folder: Path, overrides: Sequence[str] = ("gates.audio.value.min=0",)) -> dict[Level, Path]:
    """Holds the cache against the ledger; the cache's files."""
    cached, plain = kept(run, folder), from_ledger(run)
    for level in Level:
        assert rows_of(cached, level).equals(rows_of(plain, level))
    assert stats(cached) == stats(plain)
    assert what_if(cached, overrides) == what_if(plain, overrides)
    paths = {level: cached.facts.path(level) for level in Level}
    return {level: path for level, path in paths.items() if path is not None}


@pytest.fixture
def run(tmp_path: Path, toy_recipe: Recipe) -> Run:
    return make_run(toy_recipe, SOURCES, tmp_path / "run")


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=toy_recipes(), sources=toy_sources(), is_interrupted=st.booleans(), overrides=OVERRIDES)
def test_questions_to_facts_and_ledger_have_the_same_answers(
    toy_recipe: Recipe,
    tmp_path_factory: Any,
    recipe: Recipe,
    sources: list[Source],
    is_interrupted: bool,
    overrides: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    run = (first_pass if is_interrupted else make_run)(recipe, sources, folder)
    assert set(check(run, tmp_path_factory.mktemp("cache"), overrides)) >= {Level.ASSET}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """(run in the schema of the quickstart recipe, cache): 300 clips in three commits, values drawn at random."""
    folder = tmp_path_factory.mktemp("real")
    synthetic_ledger.write(str(folder / "run"), synthetic_ledger.Size(300, sources_per_commit=10))
    return Run(str(folder / "run")), folder / "cache"


def test_a_thousand_fields_are_those_of_the_ledger(real: tuple[Run, Path]) -> None:
    run = kept(*real)
    rng, ledger = random.Random(0), run.ledger
    tables = {level: (rows_of(run, level), ledger.rows(level)) for level in Level}
    for _ in range(1000):
        level = rng.choice(list(Level))
        facts, rows = tables[level]
        assert len(facts) == len(rows)
        at, name = rng.randrange(len(rows)), rng.choice([each for each in facts.columns if each in rows[0]])
        value, expected = facts[name][at], rows[at][name]
        assert (value, type(value)) == (expected, type(expected)), f"{level} {rows[at]['row_id']} {name}"


def test_every_scalar_has_its_own_type_and_no_list_is_there(real: tuple[Run, Path]) -> None:
    run = kept(*real)
    types = run.ledger.scan(Level.CLIP).collect_schema()
    found = run.facts.scan(Level.CLIP).collect_schema()
    assert all(types[name] == kind for name, kind in found.items() if kind != pl.Categorical and name in types)
    assert not any(kind.is_nested() for kind in found.values())
    assert found["sync.offset_ms"] == pl.Float64
    assert {"clip.spans[].language", "clip.num_speakers", "cut.sha256", "failed_gates"} <= set(found)


@pytest.mark.slow
def test_a_bound_decides_as_it_does_in_the_ledger_at_every_value_there_is(real: tuple[Run, Path]) -> None:
    """Rounded to 32 bits, half of these values would lie on the other side of a bound that is one of them."""
    cached, plain = kept(*real), from_ledger(real[0])
    values = plain.facts.scan(Level.CLIP).select("audio.loudness_lufs").collect().to_series().drop_nulls().to_list()
    assert any(pl.Series([value], dtype=pl.Float32).item() != value for value in values)
    for value in random.Random(1).sample(values, 3):
        for bound in (value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf)):
            gates = [f"gates.audio.loudness_lufs.min={bound!r}"]
            assert what_if(cached, gates) == what_if(plain, gates)


def test_the_row_of_a_key_is_found_in_both(run: Run, tmp_path: Path) -> None:
    cached, plain = kept(run, tmp_path / "cache"), from_ledger(run)
    keys = [row["row_id"] for level in Level for row in run.ledger.rows(level)[:1]]
    for key in [*keys, *(each[:14] for each in keys), "b.mp4", run.ledger.rows(Level.ASSET)[0]["asset_id"]]:
        assert locate(cached, key) == locate(plain, key)


def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data files that are read from now on."""
    read: list[str] = []
    really = Facts._read

    def spied(self: Facts, names: Sequence[str], level: Level) -> pl.LazyFrame:
        read.extend(names)
        return really(self, names, level)

    monkeypatch.setattr(Facts, "_read", spied)
    return read


@pytest.mark.slow
def test_only_files_that_the_ledger_gained_are_read(
    run: Run, tmp_path: Path, toy_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New sources, then a compaction, then other gates, which replace the rows of all units but errors."""
    cache, read = tmp_path / "cache", files_read(monkeypatch)

    def there() -> set[str]:
        return {uri.removeprefix(f"{run.ledger.uri}/") for uri in Run(run.dir.uri).ledger.table.file_uris()}

    before = check(run, cache)
    old = there()
    assert set(read) == old
    read.clear()
    assert check(run, cache) == before
    assert read == []
    make_run(toy_recipe, [*SOURCES, toy_source("d.mp4")], tmp_path / "run")
    after = check(run, cache)
    assert all(after[level] != before[level] for level in Level)
    assert set(read) == there() - old
    assert len(there() & old) == len(Level)
    read.clear()
    with LedgerWriter(run.ledger.uri, run.plan) as writer:
        assert writer.compact(len(Level))
    check(run, cache)
    assert set(read) == there()
    make_run(apply_overrides(toy_recipe, ["gates.audio.value.min=2"]), SOURCES, tmp_path / "run")
    check(run, cache, ["gates.audio={}"])


@pytest.mark.slow
def test_rows_that_stay_are_told_from_those_that_were_replaced(
    tmp_path: Path, toy_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four commits the first and the third hold errors, which are measured anew."""
    broken = {"audio:0": "item"}
    lots = [toy_source("a.mp4", faults=broken)], [toy_source("b.mp4", shot=90)], [toy_source("c.mp4", faults=broken)]
    for lot in (*lots, [toy_source("d.mp4", clip=30)]):
        run = make_run(toy_recipe, lot, tmp_path / "run")
    check(run, tmp_path / "cache")
    read = files_read(monkeypatch)
    with settled(toy_recipe, [*lots[0], *lots[2]], tmp_path / "run", retry_errors=True):
        check(run, tmp_path / "cache")
    assert len(read) == len(Level)


def test_another_recipe_finds_its_own_columns(run: Run, tmp_path: Path, toy_recipe: Recipe) -> None:
    """Data files of an earlier recipe lack columns of a later one; those are null, as they are in the ledger."""
    short = copy.deepcopy(toy_recipe)
    del short["stages"]["sync"], short["gates"]["sync"]
    other = make_run(short, SOURCES, tmp_path / "other")
    assert "sync.offset_ms" not in rows_of(kept(other, tmp_path / "cache"), Level.CLIP).columns
    with LedgerWriter(other.ledger.uri, run.plan):
        other.dir.write("recipe.yaml", run.dir.read("recipe.yaml"))
    check(other, tmp_path / "cache")
    assert rows_of(kept(other, tmp_path / "cache"), Level.CLIP)["sync.offset_ms"].null_count() == 21


def test_a_field_that_a_stage_has_gained_since_is_no_hindrance(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = struct(*toy_stages.Audio.adds, f("hum_db", pa.float64(), unit="db", doc="a new measure"))
    monkeypatch.setattr(toy_stages.Audio, "adds", grown)
    check(run, tmp_path / "cache")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": _cut,
    "one bit": _one_bit,
    "nothing": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(2).randbytes(4096)),
    "gone": Path.unlink,
    "a note that is none": lambda path: next(path.parent.glob("clip.json")).write_text("[1, 2"),
    "a note of something else": lambda path: next(path.parent.glob("clip.json")).write_text('{"name": 3}'),
    "a note that names too much": lambda path: _renamed(path.parent / "clip.json"),
}


def _renamed(note: Path) -> None:
    note.write_text(json.dumps(json.loads(note.read_text()) | {"maker": "somebody else"}))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_made_again(run: Run, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = check(run, tmp_path / "cache")[Level.CLIP]
    whole = path.read_bytes()
    damage(path)
    assert check(run, tmp_path / "cache")[Level.CLIP].read_bytes() == whole


@pytest.mark.slow
def test_a_cache_of_another_ledger_is_not_believed(run: Run, tmp_path: Path, toy_recipe: Recipe) -> None:
    """Even where it lies in the place of this one: a run folder may be removed and another one made under its name."""
    check(run, tmp_path / "cache")
    shutil.rmtree(tmp_path / "run")
    again = make_run(toy_recipe, [toy_source("z.mp4", shot=30, clip=10)], tmp_path / "run")
    check(again, tmp_path / "cache")


def test_deleting_the_cache_changes_nothing(run: Run, tmp_path: Path) -> None:
    first = stats(kept(run, tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    assert stats(kept(run, tmp_path / "cache")) == first


def test_a_cache_that_cannot_be_written_leaves_the_answers_to_the_ledger(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    opened = kept(run, tmp_path / "file", said.append)
    assert stats(opened) == stats(from_ledger(run))
    assert len(said) == 1
    assert "every question reads the ledger" in said[0]


def test_small_runs_leave_nothing_behind_and_nothing_is_written_into_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = sorted((tmp_path / "run").rglob("*"))
    small = Run(run.dir.uri)
    assert stats(small) == stats(from_ledger(run))
    assert not (tmp_path / "home").exists()
    stats(kept(run, small.cache))
    assert len(list((tmp_path / "home" / "nava").rglob("facts-*.arrow"))) == len(Level)
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_what_is_private_stays_in_the_ledger(toy_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f("name", pa.string(), doc="what it is called")
    added = struct(
        f("value", pa.float64(), doc="score"),
        f("person", struct(name), doc="who speaks", private=True),
        f("room", struct(name, f("key", pa.string(), doc="how to get in", private=True)), doc="where"),
    )
    monkeypatch.setattr(toy_stages.Audio, "adds", added)
    told = columns(make_plan(parse_recipe(toy_recipe)), Level.CLIP)
    assert [each for each in told if each.startswith("audio.")] == ["audio.hash", "audio.value", "audio.room.name"]


def test_what_takes_long_says_so() -> None:
    said = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATIENCE_S", 0.01)
        with module._patient(lambda line: said.set(), "reading"):
            assert said.wait(30)


@pytest.mark.slow
def test_a_file_that_was_replaced_stays_for_whoever_reads_it(run: Run, tmp_path: Path, toy_recipe: Recipe) -> None:
    cache = tmp_path / "cache"
    old = check(run, cache)[Level.CLIP]
    reading = kept(run, cache).facts.scan(Level.CLIP)
    make_run(toy_recipe, [*SOURCES, toy_source("d.mp4")], tmp_path / "run")
    assert check(run, cache)[Level.CLIP] != old
    assert len(reading.collect()) == 21
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OUTLIVED_S", -1.0)
        make_run(toy_recipe, [*SOURCES, toy_source("e.mp4")], tmp_path / "run")
        check(run, cache)
    assert not old.exists()


def test_a_balance_is_the_same_from_both(run: Run, tmp_path: Path) -> None:
    assert balance(kept(run, tmp_path / "cache").facts) == balance(run.ledger)
