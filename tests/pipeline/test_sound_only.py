"""Sound without a picture becomes samples: one shot, clips cut between words, the asset's own samples in the shard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile

import stages
from pipeline.ask.queries import Run, balance
from pipeline.ask.verify import problems
from pipeline.config import load_recipe, parse_recipe
from pipeline.execute.here import here
from pipeline.export import export
from pipeline.pack import read_index
from pipeline.plan import make_plan
from pipeline.run import run as curate
from schemas.ids import asset_id
from schemas.timing import Span
from stages.clip import sound_marks
from stages.download.sources import expand_sources
from stages.shot_split.stage import sound_alone
from tests.pipeline.light_run import LIGHT
from tests.pipeline.test_takedown import samples_of

RATE_HZ = 48_000
REAL = dict(stages.CATALOG)
RECIPE: dict[str, Any] = {
    "name": "sound",
    "stages": {name: config for name, config in LIGHT["stages"].items() if name != "picture"},
    "gates": {"probe": {"has_audio": {"equals": True}}},
}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, np.ndarray]]:
    """(run, int16 [n, 2]): nine seconds of bells, lossless, with nothing to see."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "media").mkdir()
    at = np.arange(9 * RATE_HZ) / RATE_HZ
    bell = np.exp(-3 * (at % 1.0)) * np.sin(2 * np.pi * 880 * at)
    sound = (np.stack([bell, 0.5 * bell], axis=1) * 20_000).astype(np.int16)
    soundfile.write(folder / "media" / "bells.flac", sound, RATE_HZ, subtype="PCM_16")
    silent = {"transcribe": "benchmarks.chaos_stages:NoWords", "diarize": "benchmarks.chaos_stages:Nobody"}
    with patch.dict(stages.CATALOG, silent):
        recipe = parse_recipe(RECIPE | {"stages": RECIPE["stages"] | {"transcribe": {}, "diarize": {}}})
        curate(recipe, expand_sources([str(folder / "media")]), str(folder / "run"), here, quiet=True)
        yield Run(str(folder / "run"), folder / "cache"), sound


@pytest.mark.slow
def test_every_hour_of_sound_is_accounted_for_and_verified(heard: tuple[Run, np.ndarray]) -> None:
    sheet = balance(heard[0].ledger)
    assert (sheet.in_us, sheet.difference_us) == (9_000_000, 0)
    assert sheet.kept_us == 9_000_000, "windows of two to ten seconds divide nine evenly"
    assert list(problems(heard[0], is_deep=True)) == []


def test_the_shard_holds_the_assets_own_samples(heard: tuple[Run, np.ndarray]) -> None:
    run, sound = heard
    samples = samples_of(run)
    clips = sorted(run.ledger.rows("clip"), key=lambda row: row["clip.start_pts"])
    parts = [soundfile.read(io.BytesIO(samples[row["row_id"]]["flac"]), dtype="int16")[0] for row in clips]
    assert np.abs(np.concatenate(parts).astype(int) - sound).max() <= 1
    assert all(sample["mp4"] == b"" for sample in samples.values())
    (name,) = (each.removesuffix(".arrow") for each in run.dir.names("index") if each.endswith(".arrow"))
    (row,) = read_index(run.dir, name).to_pylist()
    assert (row["has_video"], row["has_audio"], row["video_tokens"], row["num_frames"]) == (False, True, 0, 0)
    assert row["audio_tokens"] == 225, "25 a second"
    assert json.loads(samples[row["clip_id"]]["json"])["cut"]["mode"] == "sound"


def test_its_exports_name_the_sound(heard: tuple[Run, np.ndarray], tmp_path: Path) -> None:
    assert export(heard[0], tmp_path / "nava", "nava").num_records == 1
    (line,) = (tmp_path / "nava" / "data.jsonl").read_text().splitlines()
    assert Path(json.loads(line)["video_info"][0]["data_path"]).suffix == ".flac"
    export(heard[0], tmp_path / "ltx", "ltx2")
    assert json.loads((tmp_path / "ltx" / "dataset.json").read_text()) == [], "that trainer wants pictures"


def test_a_shot_of_sound_is_exact_to_the_microsecond() -> None:
    asset = asset_id("00" * 32)
    (shot,) = sound_alone({"has_audio": True, "audio_start_s": 0.021333, "duration_us": 4_567_891}, asset)
    assert (shot["start_pts"], shot["duration_us"], shot["num_frames"]) == (21_333, 4_567_891, 0)
    marks = sound_marks(Span(shot["start_pts"], shot["end_pts"], 1, 1_000_000))
    assert (marks[0], marks[-1]) == (shot["start_pts"], shot["end_pts"])
    assert set(np.diff(marks[:-1])) == {40_000}
    assert sound_alone({"has_audio": False, "audio_start_s": None, "duration_us": 1}, asset) == []


def test_the_shipped_recipe_asks_nothing_of_pictures() -> None:
    with patch.dict(stages.CATALOG, REAL):
        plan = make_plan(load_recipe("sound_only"))
    assert not {check.path for check in plan.checks} & {"probe.has_video"}
