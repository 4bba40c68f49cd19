"""Files scored without gates and run: everything is measured, nothing twice, and no vectors unless they are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import stages
from pipeline.cli import app
from pipeline.config import load_recipe, parse_recipe
from pipeline.score import score, scoring_recipe
from schemas.errors import RecipeError
from schemas.fields import f, struct
from schemas.measured import MeasuredFile, read_measured
from schemas.records import Row, Source
from stages.base import Measure, StageConfig
from tests.pipeline.toy_run import toy_source

QUIET: list[str] = []


class Voiced(Measure[StageConfig]):
    """A vector of every clip, private, beside what may be shown."""

    name, version, level, reads = "voiced", "1", "clip", ("clip",)
    adds = struct(
        f("embedding", pa.list_(pa.float32()), doc="who", private=True), f("value", pa.float64(), doc="how much")
    )
    Config = StageConfig

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """One struct per row."""
        return [{"embedding": [1.0, 0.0], "value": 3.0} for _ in batch]


@pytest.fixture
def recipe(toy_recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with patch.dict(stages.CATALOG, {"voiced": "tests.pipeline.test_score:Voiced"}):
        yield toy_recipe


def scored(
    recipe: dict[str, Any], out: Path, sources: Sequence[Source], *wanted: str, **how: Any
) -> tuple[Any, list[MeasuredFile]]:
    done = score(scoring_recipe(parse_recipe(recipe), wanted), sources, out, report=QUIET.append, **how)
    return done, list(read_measured(out))


def test_all_is_measured_whatever_gates_would_say(recipe: dict[str, Any], tmp_path: Path) -> None:
    done, found = scored(recipe, tmp_path / "out.jsonl", [toy_source("a"), toy_source("b", video=False)], "audio")
    assert (done.num_measured, done.num_there, done.num_errors) == (2, 0, 0)
    for each in found:
        assert [clip["audio"]["value"] for clip in each.clips] == [1.0, 0.0] * 5
        assert set(each.asset) == {"download"}, "probe is read by nothing that is asked for"
        assert set(each.stages) == {"download", "shot_split", "clip", "audio"}
        assert each.error is None


def test_what_is_there_is_not_measured_again(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    scored(recipe, out, [toy_source("a")], "audio")
    out.write_text(out.read_text() + '{"uri": "cut o')
    done, found = scored(recipe, out, [toy_source("a"), toy_source("b")], "audio")
    assert (done.num_measured, done.num_there) == (1, 1)
    assert sorted(each.uri for each in found) == ["a", "b"]
    done, found = scored(recipe, out, [toy_source("a"), toy_source("b")], "sync")
    assert (done.num_measured, done.num_there) == (2, 0), "other stages are another question"
    assert [each.clips[0]["sync"]["offset_ms"] for each in found] == [10.0, 10.0]


def test_a_bad_file_is_told_and_tried_again(recipe: dict[str, Any], tmp_path: Path) -> None:
    out, bad = tmp_path / "out.jsonl", toy_source("bad", faults={"probe": "media"})
    done, found = scored(recipe, out, [bad, toy_source("a")], "probe", "audio")
    assert done.num_errors == 1
    assert {each.uri: each.error for each in found} == {"a": None, "bad": "no picture in here."}
    done, found = scored(recipe, out, [bad, toy_source("a")], "probe", "audio")
    assert (done.num_measured, done.num_there) == (1, 1)


def test_vectors_are_written_only_when_asked_for(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    _, (plain,) = scored(recipe, out, [toy_source("a")], "voiced")
    assert plain.clips[0]["voiced"] == {"value": 3.0}
    done, (full,) = scored(recipe, out, [toy_source("a")], "voiced", with_vectors=True)
    assert done.num_measured == 1, "lines without vectors do not do for those with"
    assert full.clips[0]["voiced"] == {"embedding": [1.0, 0.0], "value": 3.0}


def test_what_cannot_be_scored_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    for wanted, said in [("audoi", "Did you mean 'audio'"), ("duplicates", "compares a whole run")]:
        with pytest.raises(RecipeError, match=said):
            scoring_recipe(parse_recipe(recipe), [wanted])
    with pytest.raises(RecipeError, match="no files to score"):
        scored(recipe, tmp_path / "out.jsonl", [], "audio")


def test_stages_bring_along_what_they_read() -> None:
    chosen = scoring_recipe(load_recipe("quickstart"), ["audio"])
    assert list(chosen.stages) == ["download", "probe", "shot_split", "transcribe", "diarize", "clip", "audio"]
    assert chosen.gates == {}
    assert list(scoring_recipe(load_recipe("quickstart"), ["probe"]).stages) == ["download", "probe"]
    with pytest.raises(RecipeError, match="writes media"):
        scoring_recipe(load_recipe("quickstart"), ["cut"])


def test_the_command_follows_the_file(tmp_path: Path) -> None:
    import soundfile

    path, out = tmp_path / "tone.wav", tmp_path / "out.jsonl"
    command = ["score", str(tmp_path), "--stages", "probe", "--out", str(out)]
    soundfile.write(path, np.zeros(8_000), 16_000)
    (tmp_path / "noise.mp4").write_bytes(b"nothing of a film")
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    found = {Path(each.uri).name: each for each in read_measured(out)}
    assert found["tone.wav"].asset["probe"]["duration_us"] == 500_000
    assert found["tone.wav"].sha256 == json.loads(found["tone.wav"].line())["sha256"]
    assert found["noise.mp4"].error
    assert "1 with errors" in told.output
    soundfile.write(path, np.zeros(16_000), 16_000)
    os.utime(path, ns=(1, 1))
    assert CliRunner().invoke(app, command).exit_code == 0
    again = {Path(each.uri).name: each for each in read_measured(out)}
    assert again["tone.wav"].asset["probe"]["duration_us"] == 1_000_000
