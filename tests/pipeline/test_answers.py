"""Questions over leaves: equal to the microsecond to plain loops over rows, on runs with faults, copies and interruptions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ask.find import find
from pipeline.ask.queries import US_PER_HOUR, Run, balance
from pipeline.ask.stats import NOT_MEASURED, stats
from pipeline.ask.status import status
from pipeline.ask.what_if import what_if
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.execute.lease import Lease
from pipeline.ledger import Ledger
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from pipeline.run import write_facts
from pipeline.show.plain import stats_plain
from pipeline.store import RunDir
from schemas.errors import LedgerError
from schemas.ids import source_id
from schemas.recipe import apply_overrides
from schemas.records import Level, Source
from tests.pipeline.plain_answers import plain_balance, plain_gates, plain_what_if
from tests.pipeline.toy_run import make_run, toy_source
from tests.strategies import toy_recipes, toy_sources

Recipe = dict[str, Any]
OVERRIDES = st.lists(
    st.sampled_from(
        [
            "gates.audio.value={min: 0}", "gates.audio.value={min: 2}", "gates.audio={}", "gates.probe={}",
            "gates.sync.offset_ms={abs_max: 5}", "gates.sync.offset_ms={abs_max: 80, missing: reject}",
            "gates.sync={}", "gates.duplicates={}", "gates.duplicates.is_first={equals: true}",
            "gates.probe.has_video={equals: true}",
            "gates.sync.offset_ms={abs_max: 5, when: {audio.value: 1}}",
        ]
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda text: text.split("=")[0].split(".")[1],
)  # fmt: skip
THOROUGH = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def first_pass(recipe: Recipe, sources: Sequence[Source], folder: Path) -> Run:
    """A run that was interrupted before its Collect."""
    plan, directory = make_plan(parse_recipe(recipe)), RunDir(folder)
    with LedgerWriter(directory.url("ledger"), plan) as writer:
        write_facts(directory, plan, sources)
        with here(plan, directory) as executor:
            for settled in executor.carry(Lease(0, tuple(sources))):
                writer.add(settled.source_id, settled.rows(), is_there=False)
    return Run(str(folder))


def with_copy(*sources: Source) -> list[Source]:
    return [*sources, replace(sources[0], uri="copy.mp4", source_id=source_id("copy.mp4"))]


def damaged(run: Run, kind: str, where: pl.Expr, change: dict[str, pl.Expr]) -> Run:
    """The run with some columns of some rows written anew, behind the writer's back."""
    from deltalake import write_deltalake

    rows = pl.scan_delta(run.ledger.table).collect()
    hit = (pl.col("kind") == kind) & where
    new = rows.with_columns(pl.when(hit).then(to).otherwise(name).alias(name) for name, to in change.items())
    assert not new.equals(rows)
    write_deltalake(run.ledger.table, new.select(rows.columns).to_arrow(), mode="overwrite")
    return Run(run.dir.uri)


@pytest.mark.slow
@THOROUGH
@given(recipe=toy_recipes(), sources=toy_sources(), is_interrupted=st.booleans(), overrides=OVERRIDES)
def test_balance_stats_and_what_if_equal_plain_loops(
    toy_recipe: Recipe,
    tmp_path_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    sources: list[Source],
    is_interrupted: bool,
    overrides: list[str],
) -> None:
    monkeypatch.setattr("pipeline.ask.stats.PIECE", 3)
    folder = tmp_path_factory.mktemp("run")
    run = first_pass(recipe, sources, folder) if is_interrupted else make_run(recipe, sources, folder)
    answer, sheet = stats(run), balance(run.ledger)
    assert answer.sheet == sheet == plain_balance(run)
    assert sheet.difference_us == 0
    parts = [sheet.kept_us, sheet.cut_away_us, *sheet.rejected_us.values(), *sheet.errors_us.values()]
    assert min(parts) >= 0
    assert answer.num_provisional == (len(sources) if is_interrupted else 0)
    found = {gate.gate: (gate.gross_hours, gate.marginal_hours) for gate in answer.gates}
    assert found == {
        name: (all_us / US_PER_HOUR, alone / US_PER_HOUR) for name, (all_us, alone) in plain_gates(run).items()
    }
    how_far = status(run)
    assert (how_far.in_us, how_far.kept_us) == (sheet.in_us, sheet.kept_us)
    assert (how_far.assets, how_far.clips) == (sheet.assets, sheet.clips)
    assert how_far.num_left == answer.num_provisional
    foretold = what_if(run, overrides)
    expected = plain_what_if(run, overrides)
    assert {name: getattr(foretold, name) for name in expected} == expected
    assert foretold.now_us == sheet.kept_us


@pytest.mark.slow
@THOROUGH
@given(recipe=toy_recipes(), sources=toy_sources(), overrides=OVERRIDES)
def test_a_run_under_the_other_gates_keeps_what_was_foretold(
    toy_recipe: Recipe, tmp_path_factory: Any, recipe: Recipe, sources: list[Source], overrides: list[str]
) -> None:
    """Stages without gates behind the last gate are left out: whether they fail, no gate can foretell."""
    recipe = copy.deepcopy(recipe)
    del recipe["stages"]["late"]
    run = make_run(recipe, sources, tmp_path_factory.mktemp("run"))
    answer = what_if(run, overrides)
    other = apply_overrides(recipe, overrides)
    kept_us = balance(make_run(other, sources, tmp_path_factory.mktemp("other")).ledger).kept_us
    assert answer.low_us <= kept_us <= answer.high_us


DAMAGES = {
    "a clip is twice as long as its span": ("clip", pl.lit(True), {"duration_us": pl.col("duration_us") // 2}),
    "a clip lies over the next one": (
        "clip",
        pl.col("clip.index") == 0,
        {"clip.start_pts": pl.col("clip.start_pts") + 5, "clip.end_pts": pl.col("clip.end_pts") + 5},
    ),
    "a shot lies over the next one": ("shot", pl.col("shot.index") == 0, {"shot.end_pts": pl.col("shot.end_pts") + 5}),
    "a clip lies in no shot": ("clip", pl.col("clip.index") == 0, {"parent_id": pl.lit("nowhere")}),
    "a shot with clips was not kept": (
        "shot",
        pl.col("shot.index") == 0,
        {"verdict.status": pl.lit("reject"), "verdict.reason": pl.lit("a gate")},
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_ledger_that_does_not_add_up_says_so(toy_recipe: Recipe, tmp_path: Path, damage: Any) -> None:
    run = make_run(toy_recipe, [toy_source("a.mp4", frames=510, shot=100, clip=30)], tmp_path)
    assert balance(run.ledger).difference_us == 0
    broken = damaged(run, *damage)
    assert balance(broken.ledger).difference_us != 0
    assert stats_plain(stats(broken))["hours"]["exact_us"]["difference"] != 0


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("asset", {"duration_us": pl.lit(1_000_000)}, "longer than the source"),
        ("clip", {"clip.end_pts": pl.col("clip.end_pts") + 400}, "longer than"),
    ],
)
def test_children_longer_than_what_they_came_from_are_an_error(
    toy_recipe: Recipe, tmp_path: Path, kind: str, change: dict[str, pl.Expr], says: str
) -> None:
    run = make_run(toy_recipe, [toy_source("a.mp4")], tmp_path)
    with pytest.raises(LedgerError, match=says):
        balance(damaged(run, kind, pl.lit(True), change).ledger)


def test_a_source_that_is_there_twice_is_an_error(toy_recipe: Recipe, tmp_path: Path) -> None:
    from deltalake import write_deltalake

    run = make_run(toy_recipe, [toy_source("a.mp4")], tmp_path)
    write_deltalake(run.ledger.table, pl.scan_delta(run.ledger.table).collect().to_arrow(), mode="append")
    with pytest.raises(LedgerError, match="in the ledger twice"):
        balance(Ledger(run.ledger.uri))


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_bytes_given_twice_count_once(toy_recipe: Recipe, tmp_path: Path, is_interrupted: bool) -> None:
    recipe = copy.deepcopy(toy_recipe)
    if not is_interrupted:
        del recipe["gates"]["duplicates"]
    make = first_pass if is_interrupted else make_run
    once = make(recipe, [toy_source("a.mp4")], tmp_path / "once")
    twice = make(recipe, with_copy(toy_source("a.mp4")), tmp_path / "twice")
    one, both = stats(once), stats(twice)
    assert both.sheet.rejected_us.pop("duplicate") == 20_000_000
    assert both.sheet.in_us - one.sheet.in_us == 20_000_000
    assert replace(both.sheet, in_us=0, assets={}, shots={}, clips={}) == replace(
        one.sheet, in_us=0, assets={}, shots={}, clips={}
    )
    assert both.sheet.clips["keep"] == one.sheet.clips["keep"]
    assert (both.gates, both.labels, both.histograms) == (one.gates, one.labels, one.histograms)
    assert what_if(twice, ["gates.audio={}"]).high_us == what_if(once, ["gates.audio={}"]).high_us


def test_why_tells_of_bytes_given_twice_the_one_that_was_kept(toy_recipe: Recipe, tmp_path: Path) -> None:
    sources = with_copy(toy_source("a.mp4"))
    run = make_run(toy_recipe, sources, tmp_path)
    first, other = sorted(sources, key=lambda source: source.source_id)
    clip_id = run.ledger.rows(Level.CLIP)[0]["row_id"]
    chain = find(run, clip_id)
    assert [type(row).__name__ for row in chain.rows] == ["Asset", "Shot", "Clip"]
    assert chain.rows[0].source == replace(first, fetch_uri=None)  # type: ignore[union-attr]
    assert chain.also == (other.uri,)
    (whole,) = [find(run, other.uri)]
    assert whole.rows[0].verdict.reason == "duplicates.is_first.equals"
    assert whole.also == ()
    asset_id = run.ledger.rows(Level.ASSET)[0]["asset_id"]
    assert find(run, asset_id).rows[0].source_id == first.source_id  # type: ignore[union-attr]


def test_labels_and_histograms_share_the_hours_of_clips(tmp_path: Path, toy_recipe: Recipe) -> None:
    answer = stats(make_run(toy_recipe, [toy_source("a.mp4", clip=30), toy_source("b.mp4", clip=60)], tmp_path))
    clips_us = 5 * 3 * 1_200_000 + 5 * 2_400_000
    for by_label in answer.labels.values():
        assert sum(each.kept + each.other for each in by_label.values()) * US_PER_HOUR == pytest.approx(clips_us)
    assert set(answer.labels["clip.num_speakers"]) == {NOT_MEASURED}
    assert set(answer.labels["clip.spans[].language"]) == {"none"}
    lengths = answer.histograms["clip.duration_us"]
    assert sum(lengths.kept) + sum(lengths.other) + lengths.not_measured == pytest.approx(clips_us / US_PER_HOUR)
    assert lengths.edges[0] == 1_200_000
    assert lengths.edges[-1] == 2_400_000
    assert lengths.kept[0] * US_PER_HOUR == pytest.approx(2 * 5 * 1_200_000)
    assert lengths.kept[-1] * US_PER_HOUR == pytest.approx(5 * 2_400_000)
