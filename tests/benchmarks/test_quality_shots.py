"""The yardstick itself: hits, misses and false reports are counted as its text says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_shots import Truth, compare, is_one_shot, is_scored, score_shots, summarise, truth_of
from benchmarks.quality_shots_montage import make_montage
from stages.shot_split.content import Boundary


def cut(frame: int) -> Boundary:
    return Boundary(frame, frame, "hard", 1.0)


def test_cuts_count_once_and_within_one_frame() -> None:
    row = compare([cut(10), cut(11), cut(52), cut(90)], Truth("x", [10, 50, 89], []))
    assert row["hard_hits"] == 2
    assert row["hard_missed"] == [50]
    assert row["hard_false"] == [11, 52]


def test_excused_ranges_are_held_against_nobody() -> None:
    truth = Truth("x", [100], [(20, 40)], [(60, 61)])
    row = compare([Boundary(22, 30, "gradual", 1.0), cut(62), cut(100), Boundary(150, 160, "gradual", 1.0)], truth)
    assert row["gradual_hits"] == 1
    assert row["hard_false"] == []
    assert row["gradual_false"] == [(150, 160)]
    assert compare([cut(18)], truth)["gradual_hits"] == 1
    assert compare([cut(17)], truth)["gradual_missed"] == [(20, 40)]


def test_summary_pools_over_videos() -> None:
    rows = [
        {**compare([cut(10)], Truth("a", [10, 50], [])), "num_frames": 100, "length_s": 4.0, "cpu_s": 0.5, "looks": 1},
        {**compare([cut(70)], Truth("b", [], [(1, 5)])), "num_frames": 100, "length_s": 4.0, "cpu_s": 0.5, "looks": 2},
    ]
    found = summarise(rows)
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(0.5)
    assert found["gradual_recall"] == 0
    assert found["frames_per_cpu_s"] == pytest.approx(200)
    assert found["looks_per_min"] == pytest.approx(22.5)
    assert len(found["faults"]) == 2


def test_manifest_items_become_truth() -> None:
    item = {
        "path": "a.mp4",
        "probe": {"decoded_video_frames": 200},
        "ground_truth": {
            "hard_cuts": [30],
            "soft_transitions": [
                {"type": "dissolve", "first_frame": 90, "last_frame": 104},
                {"type": "black", "first_frame": 0, "last_frame": 4},
            ],
            "not_cuts": [{"frame": 120, "why": "caption"}],
        },
    }
    truth = truth_of(item)
    assert is_scored(item)
    assert truth.gradual == [(90, 105)]
    assert sorted(truth.ignored) == [(0, 5), (90, 105), (120, 121)]
    assert not is_scored({**item, "ground_truth": {"transcript": "x"}})


def test_montages_are_reproducible_and_their_truth_lies_in_order() -> None:
    rng = np.random.default_rng(0)
    sources = {name: (rng.integers(0, 255, (120, 36, 64, 3), dtype=np.uint8), 25.0) for name in "abc"}
    for seed in range(8):
        one, other = (make_montage(sources, np.random.default_rng(seed), 8) for _ in range(2))
        assert np.array_equal(one.frames, other.frames)
        assert one.hard_cuts == other.hard_cuts
        edges = sorted([(c, c) for c in one.hard_cuts] + [(a, b) for a, b, _ in one.gradual])
        assert len(edges) == 7
        assert all(b <= c for (_, b), (c, _) in pairwise(edges))
        assert edges[0][0] > 0
        assert edges[-1][1] < len(one.frames)


def one_shot(path: str, **truth: list[int]) -> dict[str, object]:
    return {"path": path, "probe": {"decoded_video_frames": 90}, "ground_truth": truth}


def test_films_are_made_of_videos_that_are_known_to_be_one_shot() -> None:
    assert is_one_shot(one_shot("nonspeech/a.mp4", cuts=[]))
    assert is_one_shot(one_shot("talking/a.mp4"))
    assert not is_one_shot(one_shot("nonspeech/a.mp4"))
    assert not is_one_shot(one_shot("multishot/a.mp4", cuts=[30]))
    assert not is_one_shot(one_shot("talking/split_screen_a.mp4", cuts=[]))
    assert not is_one_shot({**one_shot("talking/a.mp4"), "probe": {"decoded_video_frames": 20}})


@pytest.mark.slow
def test_scores_a_folder_with_a_manifest(media_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality_shots_kinds.FILM_S", 3.5)
    wanted = {
        "multishot/psd_frame_counter_3_shots.mp4",
        "talking/talking_man_world_map.mp4",
        "talking/talking_woman_red_jacket_glasses.mp4",
    }
    items = [i for i in json.loads((media_dir / "manifest.json").read_text())["items"] if i["path"] in wanted]
    (tmp_path / "manifest.json").write_text(json.dumps({"items": items}))
    for item in items:
        target = tmp_path / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(media_dir / item["path"])
    scores = score_shots(tmp_path, ["content", "scenedetect_adaptive"], 1, ["slides", "blends"])
    assert scores["manifest"]["content"]["videos"] == 3
    assert scores["manifest"]["content"]["f1"] == 1.0
    made = scores["generated"]["content"]
    assert set(made) == {"all", "slides", "blends"}
    assert made["all"]["hard_cuts"] == made["slides"]["hard_cuts"] + made["blends"]["hard_cuts"] > 0
    assert made["slides"]["f1"] == 1.0
    json.dumps(scores)
