"""Every form of export, read back by the library that reads it, or by a parser written from its documentation."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

import stages
from pipeline.ask.queries import Run
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.export import export
from pipeline.pools import PoolRules, select
from pipeline.run import run as curate
from schemas.errors import RecipeError
from stages.download.companions import is_own
from tests.pipeline import toy_people
from tests.pipeline.test_takedown import samples_of
from tests.pipeline.toy_people import person_source

SOURCES = [
    person_source("https://example.com/talk.mp4", voices={}, faces=[], says='<day>, "all" — 早'),
    person_source("https://example.com/bells.mp4", voices={}, faces=[], licence="CC-BY-4.0"),
]
SPOKEN = 'Somebody says: "good day , "all" — 早"'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("export") / "run"
    with patch.dict(stages.CATALOG, toy_people.CATALOG, clear=True):
        recipe = parse_recipe(toy_people.RECIPE | {"gates": {}})
        curate(recipe, SOURCES, str(folder), here, quiet=True)
        yield Run(str(folder), folder.parent / "cache")


@pytest.fixture(scope="module")
def samples(run: Run) -> dict[str, dict[str, bytes]]:
    return samples_of(run)


def written(run: Run, out: Path, form: str) -> Path:
    done = export(run, out, form)
    assert (done.num_records, done.duration_s) == (8, 8.0)
    assert is_own(out), "an export is no recording to curate"
    return out


def is_spoken(note: dict[str, bytes]) -> bool:
    return bool(json.loads(note["json"])["clip"]["spans"])


def test_ltx2_is_an_array_of_captions_and_paths_beside_it(run: Run, samples: Any, tmp_path: Path) -> None:
    rows = json.loads((written(run, tmp_path, "ltx2") / "dataset.json").read_text())
    assert {row["clip_id"] for row in rows} == set(samples)
    for row in rows:
        assert (tmp_path / row["media_path"]).read_bytes() == samples[row["clip_id"]]["mp4"]
        assert row["caption"] == (SPOKEN if is_spoken(samples[row["clip_id"]]) else "")
        assert row["audio_present"] is True


def test_musubi_is_a_line_per_video_with_absolute_paths(run: Run, samples: Any, tmp_path: Path) -> None:
    lines = (written(run, tmp_path, "musubi") / "metadata.jsonl").read_text().splitlines()
    rows = {Path(row["video_path"]).stem: row for row in map(json.loads, lines)}
    assert rows.keys() == samples.keys()
    for name, row in rows.items():
        assert Path(row["video_path"]).is_absolute()
        assert Path(row["video_path"]).read_bytes() == samples[name]["mp4"]
        assert Path(row["audio_path"]).read_bytes() == samples[name]["flac"]
        assert row["caption"] == (SPOKEN if is_spoken(samples[name]) else "")


def test_diffusion_pipe_finds_a_text_of_the_same_name(run: Run, samples: Any, tmp_path: Path) -> None:
    told = tomllib.loads((written(run, tmp_path, "diffusion-pipe") / "dataset.toml").read_text())
    (folder,) = (Path(each["path"]) for each in told["directory"])
    for name, sample in samples.items():
        assert (folder / f"{name}.mp4").read_bytes() == sample["mp4"]
        assert (folder / f"{name}.txt").read_text() == (SPOKEN if is_spoken(sample) else "")


def test_lhotse_reads_its_cuts(run: Run, samples: Any, tmp_path: Path) -> None:
    from lhotse import CutSet

    cuts = CutSet.from_file(written(run, tmp_path, "lhotse") / "cuts.jsonl.gz").to_eager()
    assert set(cuts.ids) == set(samples)
    for cut in cuts:
        assert cut.load_audio().shape == (2, 48_000)
        assert cut.sampling_rate == 48_000
        assert [each.text for each in cut.supervisions] == (
            ['good <day>, "all" — 早'] if is_spoken(samples[cut.id]) else []
        )
        for span in cut.supervisions:
            assert (span.start, span.end, span.speaker, span.language) == (0.1, pytest.approx(0.8), "A", "en")
            assert next((w.symbol, w.start, w.duration) for w in span.alignment["word"]) == ("good", 0.1, 0.2)
    spoken = cuts.filter(lambda cut: len(cut.supervisions) > 0)
    assert len(spoken.trim_to_supervisions(keep_overlapping=False).to_eager()) == 4
    assert Path(next(iter(cuts)).custom["video"]).is_file()


def test_a_videofolder_has_its_table_beside_it(run: Run, samples: Any, tmp_path: Path) -> None:
    rows = pq.read_table(written(run, tmp_path, "hf") / "metadata.parquet").to_pylist()
    by_file = {row["file_name"]: row for row in rows}
    videos = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4")]
    assert sorted(by_file) == sorted(videos), "every video has its row, and no other"
    for row in rows:
        assert (tmp_path / row["file_name"]).read_bytes() == samples[row["clip_id"]]["mp4"]
        assert len(row["speech"]) == is_spoken(samples[row["clip_id"]])
        assert row["licence"] == (None if row["speech"] else "CC-BY-4.0")


def test_parquet_has_media_inside_and_says_which_columns_they_are(run: Run, samples: Any, tmp_path: Path) -> None:
    (path,) = (written(run, tmp_path, "parquet") / "data").glob("*.parquet")
    assert path.name == "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert (features["video"]["_type"], features["audio"]["_type"]) == ("Video", "Audio")
    for row in table.to_pylist():
        assert row["video"]["bytes"] == samples[row["clip_id"]]["mp4"]
        assert row["audio"]["bytes"] == samples[row["clip_id"]]["flac"]
    assert not (tmp_path / "media").exists(), "nothing lies there twice"


def test_csv_is_read_by_a_csv_reader(run: Run, samples: Any, tmp_path: Path) -> None:
    with open(written(run, tmp_path, "csv") / "clips.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["clip_id"] for row in rows} == set(samples)
    assert {row["caption"] for row in rows} == {SPOKEN, ""}
    assert all((tmp_path / row["path"]).is_file() and row["audio_present"] == "True" for row in rows)


def test_a_pool_exports_its_clips_alone(run: Run, tmp_path: Path) -> None:
    pool = select(run, str(tmp_path / "pool"), PoolRules(query=("clip.has_speech=true",)))
    done = export(run, tmp_path / "out", "csv", pool=str(tmp_path / "pool"))
    assert done.num_records == len(pool.clips) == 4
    assert len(list((tmp_path / "out" / "media").iterdir())) == 4
    with pytest.raises(RecipeError, match="Did you mean 'musubi'"):
        export(run, tmp_path / "out", "musubu")
