"""Clips near an evaluation set are found by each way and no others are, and pools leave them out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from typer.testing import CliRunner

import stages
from model.evaluate.contamination import contamination_notes
from pipeline.ask.queries import Run
from pipeline.cli import app
from pipeline.config import parse_recipe
from pipeline.decontaminate import comparing_recipe, near, words_of
from pipeline.execute.here import here
from pipeline.near_marks import read_near, write_near
from pipeline.pools import PoolRules, select
from pipeline.run import run as curate
from pipeline.takedown import TakedownRequest, chosen, takedown
from schemas.errors import RecipeError
from schemas.held_against import HeldAgainst
from tests.pipeline import toy_people
from tests.pipeline.toy_people import person_source

LONG = "morning to the nine of you who came so early to the river"
SOURCES = [
    person_source(f"https://example.com/{at}.mp4", voices={"A": at}, faces=[], says=f"words number {at} of many")
    for at in range(4)
]
SOURCES += [person_source("https://example.com/long.mp4", voices={"A": 9}, faces=[], says=f"then {LONG} said he")]
ITEMS = [
    {"uri": "https://eval.org/seen.mp4", "voices": {"A": 50}, "shows": "https://example.com/0.mp4", "says": "nothing"},
    {"uri": "https://eval.org/heard.mp4", "voices": {"A": 51}, "sounds": "https://example.com/1.mp4"},
    {"uri": "https://eval.org/voice.mp4", "voices": {"B": 2}, "says": "nothing like it"},
    {"uri": "https://eval.org/said.mp4", "voices": {"A": 53}, "says": f"He said, {LONG.upper()}!"},
    {"uri": "https://eval.org/short.mp4", "voices": {"A": 54}, "says": "WORDS, number 3 of many."},
]
FACTS = {"frames": 100, "shot": 50, "clip": 25, "faces": []}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("near") / "run"
    with patch.dict(stages.CATALOG, toy_people.CATALOG, clear=True):
        curate(parse_recipe(toy_people.RECIPE | {"gates": {}}), SOURCES, str(folder), here, quiet=True)
        yield Run(str(folder), folder.parent / "cache")


@pytest.fixture(scope="module")
def items(run: Run) -> Path:
    """A list of the items, which the command measures as the run was."""
    path = Path(run.dir.uri).parent / "items.jsonl"
    path.write_text("".join(json.dumps(FACTS | {"name": item["uri"]} | item) + "\n" for item in ITEMS))
    return path


def decontaminate(run: Run, items: Path, *options: str) -> str:
    work = str(Path(run.dir.uri).parent / "work")
    told = CliRunner().invoke(app, ["decontaminate", run.dir.uri, "--against", str(items), "--work", work, *options])
    assert told.exit_code == 0, told.output
    return told.output


def of_sources(run: Run) -> set[tuple[str, str]]:
    """(last part of the source's name, way) of every mark."""
    clips = pl.DataFrame(run.ledger.rows("clip", None, ["source_id"])).select("row_id", "source_id")
    found = read_near(run.dir).join(clips, left_on="clip_id", right_on="row_id")
    uris = {source.source_id: source.uri for source in SOURCES}
    return {(uris[name].rpartition("/")[2], by) for name, by in found.select("source_id", "by").iter_rows()}


@pytest.mark.slow
def test_each_way_finds_its_own_and_nothing_else(run: Run, items: Path, tmp_path: Path) -> None:
    told = decontaminate(run, items)
    assert of_sources(run) == {
        ("0.mp4", "seen"), ("1.mp4", "heard"), ("2.mp4", "voice"), ("3.mp4", "said"), ("long.mp4", "said"),
    }  # fmt: skip
    assert "20 clips marked" in told
    with pytest.raises(RecipeError, match="fulfils"):
        select(run, str(tmp_path / "none"), PoolRules(query=("clip.has_speech=true",)))
    assert len(select(run, str(tmp_path / "all"), PoolRules(with_near=True)).clips) == 20
    decontaminate(run, items, "--by", "seen,voice")
    assert of_sources(run) == {("0.mp4", "seen"), ("2.mp4", "voice")}, "another look at a set replaces the one before"
    found = select(run, str(tmp_path / "pool"), PoolRules())
    assert (len(found.clips), found.num_near) == (12, 8)
    (told,) = contamination_notes(items, [tmp_path / "pool"])
    assert told.endswith(
        "was held against this set by seen, voice and not by heard, said: 0 clips of the pool are near an item"
    )
    (told,) = contamination_notes(items, [Path(run.dir.uri)])
    assert (
        "8 clips of the run, which pools leave out unless asked to keep them, are near an item (seen 4, voice 4)"
        in told
    )


def test_a_run_is_near_itself_and_marks_of_sets_stand_side_by_side(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir.uri, tmp_path / "run")
    copy = Run(str(tmp_path / "run"), tmp_path / "cache")
    found = near(copy, run)
    assert {by: len(rows) for (by,), rows in found.group_by("by")} == {"seen": 20, "heard": 20, "said": 20, "voice": 20}
    (tmp_path / "run" / "contaminated.arrow").unlink(missing_ok=True)
    write_near(copy.dir, found.head(3), HeldAgainst(name="one"))
    write_near(copy.dir, found.tail(2), HeldAgainst(name="two"))
    assert read_near(copy.dir)["set"].to_list().count("one") == 3
    (first, *_) = read_near(copy.dir)["clip_id"].to_list()
    takedown(copy, chosen(copy, TakedownRequest(keys=(first,))), "asked to")
    assert first not in read_near(copy.dir)["clip_id"].to_list()
    (told,) = contamination_notes(tmp_path, [Path(copy.dir.uri)])
    assert "was held against one, two, not against this set" in told, "what was looked for is known when clips are gone"


def test_what_is_compared_decides_what_of_a_recipe_is_run(run: Run) -> None:
    recipe = comparing_recipe(run.plan)
    assert list(recipe.stages) == ["download", "shot_split", "clip", "voices", "prints"]
    assert not recipe.gates


def test_words_are_compared_without_case_and_marks_in_any_script() -> None:
    assert words_of("Don\u2019t, STOP \u2014 he's\u2009there: 10\u202f%!") == ("dont", "stop", "hes", "there", "10")
    assert words_of("早上好，李先生") == tuple("早上好李先生")
    assert words_of("Grüße Straße") == ("grüsse", "strasse")
    assert words_of("...") == ()
