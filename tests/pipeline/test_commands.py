"""Commands as a person meets them: what they print at 80 columns, in an ASCII locale, and for other programs."""

from __future__ import annotations

import csv
import io
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.ask.queries import Run
from pipeline.cli import app
from pipeline.config import parse_recipe
from pipeline.show.screen import drawable, hms, plural, table
from schemas.errors import NavaError
from tests.pipeline.toy_run import make_run, toy_source

SOURCES = [toy_source("good.mp4"), toy_source("other.mp4", shot=250)]
REASON = "audio.value.min"
WIDE = 10_000
"""Columns of no terminal: what is for programs is not cut."""


@pytest.fixture
def run(tmp_path: Path, toy_recipe: dict[str, Any]) -> Run:
    """Two sources of 20 s in 5 and in 2 shots; every second clip of a shot has a score of 0 and is rejected."""
    return make_run(toy_recipe, SOURCES, tmp_path / "run")


def told(*words: str, columns: int = 80) -> str:
    """What a command prints, no line longer than the terminal."""
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()), default=0) <= columns
    return done.stdout


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_clips_of_a_reason_are_those_that_the_balance_counts(run: Run) -> None:
    listed = rows(told("clips", run.dir.uri, "--reason", REASON, "--csv", columns=WIDE))
    stats = json.loads(told("stats", run.dir.uri, "--json", columns=WIDE))
    assert {row["reason"] for row in listed} == {REASON}
    assert sum(int(row["duration_us"]) for row in listed) == stats["hours"]["exact_us"]["rejected"][REASON]
    assert len(listed) == stats["clips"]["rejected"]


def test_clips_are_sorted_cut_off_and_listed_as_ids(run: Run) -> None:
    uri = run.dir.uri
    found = json.loads(told("clips", uri, "--where", "audio.value<0.5", "--json", columns=WIDE))
    ids = told("clips", uri, "--where", "audio.value<0.5", "--ids").split()
    assert [clip["clip_id"] for clip in found["clips"]] == ids
    assert found["num_found"] == len(ids) < found["num_all"]
    by_gate = told("clips", uri, "--sort", f"margin:{REASON}", "--limit", "3")
    assert len([line for line in by_gate.splitlines() if line.startswith("c")]) == 3 + 1
    assert "the first 3 are shown" in by_gate.replace("\n", " ")
    assert {row["source"] for row in rows(told("clips", uri, "--source", "other", "--csv", columns=WIDE))} == {
        "other.mp4"
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--reason", "audio.valu.min"), "Did you mean 'audio.value.min'?"),
        (("--status", "maybe"), "Known: keep, reject, error."),
        (("--sort", "audio.valeu"), "Did you mean 'audio.value'?"),
    ],
)
def test_a_question_about_nothing_says_what_there_is(run: Run, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(NavaError, match=says.replace("?", r"\?")):
        CliRunner().invoke(app, ["clips", run.dir.uri, *words], catch_exceptions=False)


def test_two_runs_are_compared_by_reasons_and_recipes(run: Run, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    gates = {name: gate for name, gate in toy_recipe["gates"].items() if name != "audio"}
    other = make_run({**toy_recipe, "gates": gates}, SOURCES, tmp_path / "other")
    text = told("compare", run.dir.uri, other.dir.uri)
    rejected = rows(told("clips", run.dir.uri, "--reason", REASON, "--csv", columns=WIDE))
    us = sum(int(row["duration_us"]) for row in rejected)
    assert hms(us, millis=True, is_signed=True) in text
    assert f"{len(rejected)} changed verdicts" in text
    assert "gates.audio.value.min" in text


def test_the_program_tells_what_it_is() -> None:
    assert metadata.version("nava-engine") in told("--version")
    assert told("-h") == told("--help")


def test_recipes_and_stages_are_told_and_a_recipe_fits_its_schema() -> None:
    import jsonschema
    import yaml

    assert {"quickstart", "talking_heads"} <= {line.split(" ")[0] for line in told("recipes").splitlines()}
    recipe = yaml.safe_load(told("recipes", "quickstart", columns=WIDE))
    parse_recipe(recipe)
    schema = json.loads(told("schema", "recipe", columns=WIDE))
    jsonschema.validate(recipe, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**recipe, "stages": {"clip": {"min_seconds": 2}}}, schema)
    assert "duplicates" in told("stages")
    assert "audio.snr_db.min" in told("stages", "audio")


def test_an_ascii_terminal_gets_ascii_bars() -> None:
    assert drawable("█▃ – ±2 ü", "ascii") == "#- - +-2 ü"
    assert drawable("█▃", "utf-8") == "█▃"


def test_counts_times_and_tables() -> None:
    assert (plural(1, "shard"), plural(1200, "shard")) == ("1 shard", "1,200 shards")
    assert (hms(3_600_000_000), hms(-61_500_000, millis=True)) == ("1:00:00", "-0:01:01.500")
    lines = table(("id", "what"), [("c123456789012345", "word " * 60)], uncut={0}, is_whole=True)
    assert "".join(lines[1:]).split() == ["c123456789012345", *["word"] * 60]


def test_why_holds_a_clip_against_every_gate(run: Run) -> None:
    (good, bad) = (
        told("clips", run.dir.uri, "--status", status, "--ids", "--limit", "1").strip() for status in ("keep", "reject")
    )
    kept, rejected = (told("why", clip, "--run", run.dir.uri) for clip in (good, bad))
    assert f"clip {good}  kept" in kept
    assert [line.split() for line in kept.splitlines() if line.startswith(("audio.", "sync."))] == [
        ["audio.value", "1", "≥", "0.5", "+0.5"],
        ["sync.offset_ms", "10", "ms", "≤", "±80", "+70"],
    ]
    assert "audio.value 0 < 0.5" in " ".join(rejected.split())
    assert "FAILS" in rejected
    assert "not reached: sync.offset_ms.abs_max" in rejected
    assert "start_pts=" in told("why", bad, "--run", run.dir.uri, "--all", columns=WIDE)


def test_why_of_a_source_is_an_outline_in_the_order_of_time(run: Run) -> None:
    lines = told("why", "good.mp4", "--run", run.dir.uri).splitlines()
    starts = [line.split()[2].split("–")[0] for line in lines if line.strip().startswith(("shot", "clip"))]
    assert len(starts) == 5 + 10
    assert starts == sorted(starts)


def test_stats_fit_a_screen_and_full_tells_more(run: Run) -> None:
    screen, full = told("stats", run.dir.uri), told("stats", run.dir.uri, "--full")
    assert len(screen.splitlines()) <= 24
    assert "adds up exactly" in screen
    assert REASON in screen
    assert "cpu s/min" in full
    assert "cpu s/min" not in screen


def test_hours_are_told_by_the_values_of_a_field(run: Run) -> None:
    found = json.loads(told("stats", run.dir.uri, "--by", "source", "--json", columns=WIDE))
    clips = json.loads(told("stats", run.dir.uri, "--json", columns=WIDE))["clips"]
    assert {group["value"] for group in found["groups"]} == {"good.mp4", "other.mp4"}
    assert sum(group["clips"]["total"] for group in found["groups"]) == clips["total"]
    assert sum(group["clips"]["kept"] for group in found["groups"]) == clips["kept"]
    assert "good.mp4" in told("stats", run.dir.uri, "--by", "source")
    with pytest.raises(NavaError, match="histogram"):
        CliRunner().invoke(app, ["stats", run.dir.uri, "--by", "audio.value"], catch_exceptions=False)


@pytest.mark.parametrize("words", [("--drop", "audio.value"), ("--drop", REASON), ("--set", "gates.audio.value=null")])
def test_a_gate_can_be_left_away(run: Run, words: tuple[str, str]) -> None:
    """What it turned away was never measured further: an interval, up to all there is."""
    now = json.loads(told("stats", run.dir.uri, "--json", columns=WIDE))["clips"]
    then = json.loads(told("stats", run.dir.uri, *words, "--json", columns=WIDE))
    assert then["clips"] == {"now": now["kept"], "low": now["kept"], "high": now["total"]}
    assert [gate["gate"] for gate in then["gates"]] == ["sync.offset_ms.abs_max"]


def test_what_if_names_the_clips_that_go_and_what_gates_then_turn_away(run: Run) -> None:
    kept = told("clips", run.dir.uri, "--status", "keep", "--ids").split()
    then = json.loads(told("stats", run.dir.uri, "--set", "gates.sync.offset_ms.abs_max=5", "--json", columns=WIDE))
    assert then["clips"] == {"now": len(kept), "low": 0, "high": 0}
    assert set(then["lost"]) <= set(kept)
    assert then["lost"]
    assert not then["gained"]
    (gate,) = (each for each in then["gates"] if each["gate"] == "sync.offset_ms.abs_max")
    assert gate["marginal_hours"] == pytest.approx(-then["delta"]["low"])
    assert kept[0] in told("stats", run.dir.uri, "--set", "gates.sync.offset_ms.abs_max=5")


def test_a_figure_of_a_source_names_its_clips_instead(run: Run, tmp_path: Path) -> None:
    words = ["why", "good.mp4", "--run", run.dir.uri, "--figure", str(tmp_path / "f.png")]
    clip = told("clips", run.dir.uri, "--source", "good", "--ids").split()[0]
    with pytest.raises(NavaError, match=clip):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "f.png").exists()
