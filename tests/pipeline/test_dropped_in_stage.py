"""The stage of CONTRIBUTING, dropped in as one file and one catalogue line, appears everywhere as its fields say."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import stages
from pipeline.ask.find import find
from pipeline.ask.queries import Run
from pipeline.ask.stats import Hours, stats
from pipeline.ask.verify import problems
from pipeline.config import parse_recipe
from pipeline.demo import ball_clip
from pipeline.execute.here import here
from pipeline.run import run
from pipeline.show.text import stats_text, why_text
from stages.download.sources import expand_sources

GUIDE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe that uses the stage, which lies in a file of its own."""
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "class Flicker(" in block
    ]
    (tmp_path / "flicker.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(stages.CATALOG, "flicker", "flicker:Flicker")
    names = ("download", "probe", "shot_split", "transcribe", "diarize", "clip", "flicker", "cut")
    return {
        "name": "dropped",
        "stages": {name: {"engine": "content"} if name == "shot_split" else {} for name in names},
        "gates": {"flicker": {"flicker_ratio": {"max": 0.5}}},
    }


@pytest.mark.slow
def test_a_dropped_in_stage_is_everywhere(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    ball_clip(tmp_path / "media" / "ball.mp4", duration_s=3.0)
    run(parse_recipe(recipe), expand_sources([str(tmp_path / "media")]), str(tmp_path / "run"), here, quiet=True)
    opened = Run(str(tmp_path / "run"))
    assert not list(problems(opened))

    (row,) = opened.ledger.rows("clip")
    assert row["verdict.status"] == "keep"
    assert row["flicker.num_frames"] == len(row["flicker.luma"]) == row["clip.num_frames"]

    answer = stats(opened)
    assert answer.labels["flicker.kind"] == {"steady": Hours(pytest.approx(3 / 3600), 0.0)}
    assert answer.histograms["flicker.flicker_ratio"].unit == "ratio"
    assert "flicker.num_frames" not in answer.histograms
    assert [gate.gate for gate in answer.gates] == ["flicker.flicker_ratio.max"]
    assert {"flicker.kind", "steady"} <= set(stats_text(answer).split())

    told = why_text(find(opened, row["row_id"]), opened.plan)
    assert "flicker_ratio=" in told
    assert "num_frames=" in told
    assert "luma" not in told

    (shard,) = (tmp_path / "run" / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        note = json.load(tar.extractfile(f"{row['row_id']}.json"))
    assert note["flicker"] == {key: row[f"flicker.{key}"] for key in ("flicker_ratio", "kind")}
