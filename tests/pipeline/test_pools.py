"""Pools: which clips rules find, hours in balance, and what a trainer reads of a run through three of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import stages
from model.data.batching import EpochPlan, PlanStream
from model.data.index import ShardIndex
from model.data.plan_config import MixPart, PlanConfig
from pipeline.ask.clips import ClipLists, ClipQuestion
from pipeline.ask.queries import Run
from pipeline.cli import app
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.pools import PoolRules, load_rules, select
from pipeline.pools.choose import balanced
from pipeline.pools.pool_rules import SHIPPED
from pipeline.run import run as curate
from pipeline.takedown import TakedownRequest, chosen, takedown
from schemas.arrow_file import read_table
from schemas.budget import ModelShape
from schemas.errors import LedgerError, PlanError, RecipeError, ShardError
from schemas.recipe import packaged
from tests.pipeline import toy_people
from tests.pipeline.toy_people import person_source

REAL = dict(stages.CATALOG)
LANGUAGES = ("en", "zh", "en", "en", "de", "en")
SOURCES = [
    person_source(f"https://example.com/{at}.mp4", voices={}, faces=[], language=LANGUAGES[at % 6]) for at in range(12)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("pools") / "run"
    with patch.dict(stages.CATALOG, toy_people.CATALOG, clear=True):
        curate(parse_recipe(toy_people.RECIPE), SOURCES, str(folder), here, quiet=True)
        yield Run(str(folder), folder.parent / "cache")


def ids_in(pool: Path) -> list[str]:
    return read_table(pool / "clips.arrow")["clip_id"].to_pylist()


def kept(run: Run) -> set[str]:
    lists = ClipLists(run)
    return set(lists.spine["row_id"].filter(pl.Series(lists.matching(ClipQuestion(status="keep")))))


@pytest.mark.slow
def test_a_pool_is_what_its_conditions_say_and_nothing_else(run: Run, tmp_path: Path) -> None:
    select(run, str(tmp_path / "all"), PoolRules())
    assert set(ids_in(tmp_path / "all")) == kept(run)
    assert ids_in(tmp_path / "all") == sorted(ids_in(tmp_path / "all"))
    found = select(run, str(tmp_path / "some"), PoolRules(query=("faces.kind=music; faces.score>=0.5",)))
    scores = {row["row_id"]: row["faces.score"] for row in run.ledger.rows("clip", None, ["faces.score", "faces.kind"])}
    kinds = {row["row_id"]: row["faces.kind"] for row in run.ledger.rows("clip", None, ["faces.kind"])}
    wanted = {name for name in kept(run) if scores[name] >= 0.5 and kinds[name] == "music"}
    assert set(ids_in(tmp_path / "some")) == wanted
    assert found.us == len(wanted) * 1_000_000
    with pytest.raises(LedgerError, match=r"faces\.kind"):
        select(run, str(tmp_path / "no"), PoolRules(query=("faces.kindd=music",)))
    with pytest.raises(RecipeError, match="fulfils"):
        select(run, str(tmp_path / "no"), PoolRules(query=("faces.score>7",)))


def test_hours_are_shared_evenly_and_what_is_missing_goes_to_the_others(run: Run, tmp_path: Path) -> None:
    num = len(kept(run))
    seconds = 12
    found = select(run, str(tmp_path / "pool"), PoolRules(hours=seconds / 3600, balance=("faces.language",)))
    sums = dict(found.clips.group_by("faces.language").agg(pl.col("us").sum()).iter_rows())
    assert sums == {"en": 4_000_000, "zh": 4_000_000, "de": 4_000_000}
    free = select(run, str(tmp_path / "free"), PoolRules(hours=seconds / 3600))
    assert set(free.clips["clip_id"]) == set(sorted(kept(run))[:seconds]), "the ids decide, which are hashes"
    more = select(run, str(tmp_path / "more"), PoolRules(hours=(num - 4) / 3600, balance=("faces.language",)))
    sums = dict(more.clips.group_by("faces.language").agg(pl.len()).iter_rows())
    everything = {name: us / 1_000_000 for (_, name), us in more.all_us.items()}
    assert sums == {"zh": everything["zh"], "de": everything["de"], "en": everything["en"] - 4}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 9)), min_size=1, max_size=60),
    st.floats(0.5, 200),
)
def test_shares_are_those_of_water_in_cups(rows: Sequence[tuple[str, str, int]], budget: float) -> None:
    """The budget is met but for one clip a group; nobody has less than another who is not already emptied."""
    clips = pl.DataFrame(
        {"clip_id": [f"c{at:05d}" for at in range(len(rows))], "us": [row[2] for row in rows],
         "one": [row[0] for row in rows], "two": [row[1] for row in rows]}
    )  # fmt: skip
    taken = balanced(clips, budget, ("one", "two"))
    num_groups, longest = clips.select("one", "two").n_unique(), max(row[2] for row in rows)
    assert set(taken["clip_id"]) <= set(clips["clip_id"])
    slack = num_groups * longest
    assert abs(taken["us"].sum() - min(budget, clips["us"].sum())) <= slack
    sizes = dict(clips.group_by("one").agg(pl.col("us").sum()).iter_rows())
    got = dict.fromkeys(sizes, 0) | dict(taken.group_by("one").agg(pl.col("us").sum()).iter_rows())
    for one, size in sizes.items():
        if size - got[one] > slack:
            assert got[one] >= max(got.values()) - 2 * slack
    assert balanced(clips, 1e9, ("one", "two")).equals(clips)


def test_a_pool_keeps_its_rules_and_is_renewed_by_them(run: Run, tmp_path: Path) -> None:
    select(run, str(tmp_path / "pool"), PoolRules(name="mine", query=("faces.kind=speech",), hours=0.004))
    before = (tmp_path / "pool" / "clips.arrow").read_bytes()
    again = select(run, str(tmp_path / "pool"))
    assert again.rules == PoolRules(name="mine", query=("faces.kind=speech",), hours=0.004)
    assert (tmp_path / "pool" / "clips.arrow").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "film.mp4").touch()
    with pytest.raises(RecipeError, match="is no pool"):
        select(run, str(tmp_path / "other"), PoolRules())
    with pytest.raises(RecipeError, match="no rules yet"):
        select(run, str(tmp_path / "new"))


def test_the_command_tells_what_a_pool_holds(run: Run, tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["select", run.dir.uri, "--out", str(tmp_path / "pool"), "--query", "faces.score>=0.2", "--hours", "0.005",
              "--balance", "faces.language"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "18 clips, 0:00:18 of 0.005 h asked for" in told.output
    assert "faces.language" in told.output
    assert (tmp_path / "pool" / "pool.yaml").exists()


def shape() -> ModelShape:
    from model.network.config import NavaConfig

    return ModelShape.from_config(NavaConfig.preset("nava_tiny"))


def test_a_plan_draws_from_each_pool_what_it_holds_by_weight(run: Run, tmp_path: Path) -> None:
    pools = {}
    for name, query in (("music", "faces.kind=music"), ("speech", "faces.kind=speech")):
        select(run, str(tmp_path / name), PoolRules(query=(query,)))
        pools[name] = set(ids_in(tmp_path / name))
    index = ShardIndex.open(Path(run.dir.uri) / "index")
    parts = (
        MixPart(name="sound", weight=3, use="audio", pool=str(tmp_path / "music")),
        MixPart(name="joint", weight=1, pool=str(tmp_path / "speech")),
    )
    config = PlanConfig(num_packs=2, token_budget=4096, mixture=parts)
    plan = EpochPlan(index, config, shape())
    assert [part.num_rows for part in plan.summaries] == [len(pools["music"]), len(pools["speech"])]
    stream, drawn = PlanStream(plan, range(2), None), []
    for _ in range(20):
        drawn += [plan.sample(item) for pack in next(stream) for item in pack.items]
    in_music = [index.clip_id(each.row) in pools["music"] for each in drawn]
    assert all((each.use == "audio") == is_music for each, is_music in zip(drawn, in_music, strict=True))
    assert np.mean(in_music) == pytest.approx(0.75, abs=0.1)
    digest = plan.digest
    select(run, str(tmp_path / "music"), PoolRules(query=("faces.kind=music",), hours=0.002))
    assert EpochPlan(index, config, shape()).digest != digest, "another pool is another plan"
    plain = PlanConfig(
        num_packs=2, token_budget=4096, mixture=tuple(p.model_copy(update={"pool": None}) for p in parts)
    )
    assert "pool" not in plain.identity
    with pytest.raises(ShardError, match="nava-curate select"):
        EpochPlan(index, PlanConfig(token_budget=4096, mixture=(MixPart(name="a", weight=1, pool="nowhere"),)), shape())
    nothing = ShardIndex.from_table(index.table.slice(0, 1))
    with pytest.raises(PlanError, match="matches none"):
        EpochPlan(nothing, PlanConfig(token_budget=4096, mixture=(parts[0], parts[1])), shape())


@pytest.mark.parametrize("name", packaged(SHIPPED))
def test_shipped_rules_ask_for_what_the_default_recipe_measures(name: str) -> None:
    from pipeline.ask.condition import parsed_conditions
    from pipeline.config import load_recipe
    from pipeline.plan import make_plan

    with patch.dict(stages.CATALOG, REAL, clear=True):
        plan = make_plan(load_recipe("quickstart"))
    known = {path for level in ("asset", "clip") for path, _ in plan.fields(level)} | {"source"}
    rules = load_rules(name)
    assert {each.field for text in rules.query for each in parsed_conditions(text)} <= known
    assert set(rules.balance) <= known
    assert rules.description


def test_a_takedown_renews_pools(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir.uri, tmp_path / "run")
    copy = Run(str(tmp_path / "run"), tmp_path / "cache")
    select(copy, str(tmp_path / "pool"), PoolRules(hours=0.005))
    (first, *_) = ids_in(tmp_path / "pool")
    found = chosen(copy, TakedownRequest(keys=(first,)))
    gone = {row["row_id"] for row in copy.ledger.rows("clip", pl.col("source_id") == found[0].source_id)}
    takedown(copy, found, "asked to", pools=[str(tmp_path / "pool")])
    assert not gone & set(ids_in(tmp_path / "pool"))
    assert first in gone
    assert len(ids_in(tmp_path / "pool")) == 18, "others fill the hours"
