"""LSE-C and LSE-D of stored distances, as each protocol takes them, held against numbers computed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.lip_distances import distance_metrics
from model.evaluate.local import local_metrics
from model.evaluate.metric import Metric
from model.evaluate.protocols import Rules
from model.evaluate.records import EvalCase, EvalItem, EvalSet, Protocol
from schemas.measured import MeasuredFile

RANDOM = np.random.default_rng(3)
LONG, SHORT, SECOND = (RANDOM.uniform(6, 14, 31) for _ in range(3))
ITEM = EvalItem(item_id="a", subset="set3", text="Open the box.")


def face(track: int, num_windows: int, means: Any) -> dict[str, Any]:
    return {"track": track, "num_windows": num_windows, "means": means.tolist()}


def clip(seconds: float, *faces: dict[str, Any]) -> dict[str, Any]:
    told = {"kind": "speech", "status": "measured" if faces else "no_face", "distances": list(faces)}
    return {"clip": {"duration_us": round(seconds * 1e6)}, "sync": told}


CLIPS = (clip(5, face(0, 40, SECOND), face(1, 120, LONG)), clip(1, face(0, 20, SHORT)), clip(3))


def case(*clips: dict[str, Any]) -> EvalCase:
    return EvalCase(ITEM, Path("x.mp4"), MeasuredFile(uri="x.mp4", made_by="m", clips=clips))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "syncnet_v2.model"
    path.write_bytes(b"looked at by the stage alone")
    return path


def metrics(weights: Path, protocol: Protocol) -> dict[str, Metric]:
    return {each.name: each for each in distance_metrics(weights, protocol)}


def test_each_protocol_takes_the_faces_it_names(weights: Path) -> None:
    own, mova, verse = (metrics(weights, name) for name in ("own", "mova", "versebench"))
    made = case(*CLIPS)
    by_windows = (120 * LONG.min() + 20 * SHORT.min()) / 140
    assert own["lse_d"].read(made).value == pytest.approx(by_windows)
    sharp = [sorted(means)[15] - min(means) for means in (LONG, SHORT, SECOND)]
    assert own["lse_c"].read(made).value == pytest.approx((120 * sharp[0] + 20 * sharp[1]) / 140)
    assert mova["lse_d"].read(made).value == pytest.approx(LONG.min()), "96 windows and more"
    assert mova["lse_c"].read(made).value == pytest.approx(sharp[0])
    assert verse["lse_c"].read(made).value == pytest.approx(sharp[2]), "first face, two seconds and more"
    assert set(verse) == {"lse_c"}
    assert distance_metrics(weights, "seedtts") == ()
    assert mova["lse_c"].read(case(CLIPS[1])).why == "its faces or clips are shorter than the protocol asks for"
    assert own["lse_c"].read(case(CLIPS[2])).why == "no_face"


def test_distances_are_measured_apart_from_the_own_scale(weights: Path, tmp_path: Path) -> None:
    """Beside the packaged engine and never instead of it: the same stage, asked a second time with SyncNet's settings."""
    found, sets = local_metrics(weights.parent, "own")
    assert not sets
    (tmp_path / "a.mp4").write_bytes(b"film")
    path = (tmp_path / "a.mp4").absolute()
    asked: list[tuple[str, ...]] = []

    def measured(files: Any, stages: Any, out: Path, *, workers: int, settings: Any) -> dict[Path, MeasuredFile]:
        asked.append((out.name.partition(".")[0], *stages, *settings))
        clips = CLIPS if "stages.sync.engine=syncnet" in settings else ()
        return {path: MeasuredFile(uri=str(path), made_by="m", clips=clips)} if stages else {}

    given = EvalSet("s", "folder", (EvalItem(item_id="a"), EvalItem(item_id="b")))
    options = EvalOptions("own", Rules("distances", found), settings=("stages.sync.device=cuda",))
    with patch("model.evaluate.evaluate.measure_files", measured):
        report, scores = evaluate(given, tmp_path, tmp_path / "out", options, say=lambda _: None)
    assert asked[-1][:4] == ("samples", "sync", "stages.sync.device=cuda", "stages.sync.engine=syncnet")
    assert {each.metric: each.num_missing for each in report.figures} == {"lse_c": 1, "lse_d": 1}
    assert scores[-2].value == pytest.approx((120 * LONG.min() + 20 * SHORT.min()) / 140)
    assert len(report.figures[0].provenance.sha256) == 64
    other = tuple(replace(each, sha256="f" * 64) for each in found)
    settings = found[0].settings
    assert Rules("", other).key_of(settings) != options.rules.key_of(settings), "other weights are measured anew"
