"""Thresholds are scored against sound that was moved or exchanged by known amounts."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ask.calibrate import calibrate, clips_of_run
from pipeline.ask.queries import Run
from pipeline.demo import ball_clip, talking_clip
from schemas.errors import RecipeError
from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.engines.face_tracks import FaceTrack, Tracks
from stages.media.waveform import Waveform
from stages.sync.calibrate import Options
from stages.sync.film import CONTEXT_S, Film, Speech
from stages.sync.thresholds import (
    OFFSETS_MS,
    Case,
    CaseKind,
    ClassRates,
    OffsetErrors,
    Rates,
    rates_of,
    recommend,
    text_of,
)
from tests.ray_runs import part_of_run


def case(clip: str, kind: CaseKind, offset_ms: float | None, confidence: float) -> Case:
    return Case(clip=clip, kind=kind, offset_ms=offset_ms, confidence=confidence)


def cell(rates: ClassRates, confidence: float, offset_ms: float) -> Rates:
    wanted = (confidence, offset_ms)
    return next(row for row in rates.rows if (row.confidence_min, row.offset_abs_max_ms) == wanted)


def test_rates_count_what_each_threshold_gets_wrong() -> None:
    cases = []
    for n in range(10):  # in sync, confidences 1 to 10, all 50 ms off
        cases.append(case(f"c{n}", "untouched", 50.0, n + 1.0))
        cases += [case(f"c{n}", "shifted", 400.0, 9.0), case(f"c{n}", "shifted", 30.0, 2.0)]
        cases.append(case(f"c{n}", "swapped", -100.0 if n < 5 else 900.0, 3.0))
    cases.append(case("c0", "shifted", None, 0.0))  # could not be measured: not in the rates
    rates = rates_of("speech", "speech", cases, 0.05)
    assert (rates.num_clips, rates.num_measured, rates.num_shifted, rates.num_swapped) == (10, 10, 20, 10)
    loose = cell(rates, 0.0, 120.0)
    assert (loose.false_keep_shifted, loose.false_keep_swapped, loose.false_keep) == (0.5, 0.5, 0.5)
    assert loose.false_drop == 0
    assert cell(rates, 0.0, 40.0).false_drop == 1
    assert cell(rates, 2.5, 80.0).false_keep == 0
    assert cell(rates, 3.5, 120.0).false_keep == 0
    assert cell(rates, 3.5, 120.0).false_drop == pytest.approx(0.3)
    best = rates.recommended
    assert best is not None
    assert (best.confidence_min, best.offset_abs_max_ms, best.is_within) == (2.5, 80.0, True)
    assert best.false_drop == pytest.approx(0.2)
    low, high = best.false_drop_interval
    assert (low, high) == (pytest.approx(0.057, abs=0.001), pytest.approx(0.510, abs=0.001))  # Wilson, 2 of 10
    assert rates.offset_ms == OffsetErrors(median_abs=50.0, p90_abs=50.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"),
            st.sampled_from(["untouched", "shifted", "swapped"]),
            st.floats(-1300, 1300),
            st.floats(0, 9),
        ),
        min_size=1,
    )
)
def test_a_stricter_threshold_keeps_less_and_drops_more(made: list[tuple[str, CaseKind, float, float]]) -> None:
    rates = rates_of(None, "speech", [case(*one) for one in made], 0.05)
    for row in rates.rows:
        for stricter in rates.rows:
            if all(
                (
                    stricter.confidence_min >= row.confidence_min,
                    stricter.offset_abs_max_ms <= row.offset_abs_max_ms,
                )
            ):
                assert (stricter.false_keep or 0) <= (row.false_keep or 0) + 1e-9
                assert stricter.false_drop >= row.false_drop - 1e-9
                assert stricter.false_drop_interval[0] <= stricter.false_drop <= 1


def test_nothing_is_recommended_that_tells_nothing_apart() -> None:
    random = np.random.default_rng(1)
    kinds: tuple[CaseKind, ...] = ("untouched", "shifted", "shifted", "swapped")
    cases = [
        case(f"c{n}", kind, float(random.uniform(-1300, 1300)), float(random.uniform(2, 4)))
        for n in range(30)
        for kind in kinds
    ]
    rates = rates_of("music", "event", cases, 0.05)
    assert rates.recommended is None
    few = rates_of("music", "event", [case("a", "untouched", 0.0, 9.0), case("a", "shifted", 400.0, 1.0)], 0.05)
    assert few.recommended is None
    assert recommend([], 0.05) is None
    assert rates_of("speech", "speech", [case("a", "untouched", None, 0.0)], 0.05).rows == ()


def film_of(seconds: tuple[float, float], sound: tuple[float, float]) -> Film:
    times = np.arange(seconds[0], seconds[1], 0.04)
    face = FaceTrack(times, np.zeros((len(times), 69, 3), np.float32), np.zeros((len(times), 4), np.float32), 1.0)
    seen = Tracks([face], times, seconds[1], 320, 240, np.ones(len(times), np.float32))
    samples = np.arange(round((sound[1] - sound[0]) * 16000), dtype=np.float32)
    spans = [SpeechSpan(start_s=seconds[0] + 1, end_s=seconds[0] + 2, text="yes", speaker="A")]
    heard = Speech(sound=Waveform(samples, 16000, Fraction(sound[0])), stretches=[Stretch(0.0, 1.0)], spans=spans)
    return Film(name="f", seen=seen, heard=heard)


def test_sound_is_moved_and_the_picture_kept_only_under_sound() -> None:
    late = film_of((10.0, 15.0), (10.0, 15.0)).under(film_of((10.0, 15.0), (10.0, 15.0)).heard, 0.6)
    assert (late.start_s, late.end_s) == (pytest.approx(10.6, abs=0.04), 15.0)
    assert len(late.seen.faces[0].times_s) == len(late.seen.times_s) == len(late.seen.change)
    assert late.heard.sound.start == Fraction(106, 10)
    assert late.heard.sound.samples[0] == 0
    assert float(late.heard.sound.end) == 15.0
    assert late.heard.stretches == [Stretch(0.6, 1.6)]
    assert late.heard.spans[0].start_s == pytest.approx(11.6)


def test_sound_around_a_clip_is_kept_alike_on_both_sides() -> None:
    amid = film_of((10.0, 15.0), (0.0, 60.0))
    moved = amid.under(amid.heard, -1.0)
    assert (moved.start_s, moved.end_s) == (10.0, 15.0)
    assert (float(moved.heard.sound.start), float(moved.heard.sound.end)) == (10 - CONTEXT_S, 15 + CONTEXT_S)
    near_end = film_of((10.0, 15.0), (0.0, 15.5))
    moved = near_end.under(near_end.heard, 0.0)
    assert (float(moved.heard.sound.start), float(moved.heard.sound.end)) == (9.5, 15.5)


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of four people in sync, a bouncing ball, and a file that is none."""
    folder = tmp_path_factory.mktemp("talkers")
    for who, seed in (("ann", 3), ("ben", 5), ("cat", 8), ("dan", 11), ("ann", 31)):
        talking_clip(folder / f"{who}{seed}.mp4", who=who, duration_s=5.0, seed=seed)
    ball_clip(folder / "ball.mp4", duration_s=4.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


WHEN = {"sync.kind": "speech", "sync.status": "measured"}
QUICKSTART = {"offset_ms": {"abs_max": 160.0, "when": WHEN}, "confidence": {"min": 3.0, "when": WHEN}}
"""What the demo's recipe asks of sync."""


@pytest.mark.slow
def test_a_folder_of_videos_is_calibrated(talkers: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "calibrate", str(talkers), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, check=True, timeout=250, capture_output=True, text=True)
    assert "6/6 clips measured" in done.stderr
    answer = json.loads((tmp_path / "out.json").read_text())
    assert [Path(name).name for name in answer["skipped"]] == ["broken.mp4"]
    talk, ball = answer["classes"]
    assert (talk["sound_kind"], talk["sync_kind"], talk["num_measured"]) == ("single_speaker", "speech", 5)
    assert (talk["num_shifted"], talk["num_swapped"]) == (50, 15)
    errors = [abs(c["offset_ms"] - 1000 * c["shift_s"]) for c in talk["cases"] if c["kind"] == "shifted"]
    assert np.median(errors) < 60
    assert len({c["clip"] for c in talk["cases"]}) == 5
    best = talk["recommended"]
    assert best["is_within"]
    assert (best["false_drop"], best["num_clips"]) == (0.0, 5)
    loosest = talk["rows"][len(OFFSETS_MS) - 1]
    assert (loosest["confidence_min"], loosest["offset_abs_max_ms"]) == (0.0, OFFSETS_MS[-1])
    assert loosest["false_keep"] > 0.1 > best["false_keep"]
    assert f"--set gates.sync.confidence.min={best['confidence_min']:g}" in done.stdout
    assert (ball["sync_kind"], ball["num_measured"], ball["num_swapped"]) == ("event", 1, 0)
    assert "no recommendation from fewer than 5" in done.stdout


@pytest.mark.slow
def test_a_run_is_calibrated_on_its_own_clips(demo_run: Path, tmp_path: Path) -> None:
    run = str(part_of_run(demo_run, ["monologue_720p.mp4", "sound_late_600ms.mp4"], tmp_path / "run"))
    told: list[str] = []
    answer = calibrate(run, report=told.append)
    assert answer.num_clips == len(told) == 1
    assert answer.passed_gates == QUICKSTART
    (part,) = answer.classes
    assert (part.sync_kind, part.num_measured, part.num_swapped) == ("speech", 1, 0)
    text = text_of(answer)
    assert "offset_ms abs_max 160" in text
    assert "confidence min 3" in text
    assert "--include-rejected" in text
    wider = calibrate(run, Options(include_rejected=True), report=told.append)
    assert (wider.num_clips, wider.passed_gates) == (2, {})
    (part,) = wider.classes
    assert (part.num_measured, part.num_swapped) == (2, 2)
    untouched = sorted(c.offset_ms for c in part.cases if c.kind == "untouched" and c.offset_ms is not None)
    assert untouched == [pytest.approx(0, abs=60), pytest.approx(600, abs=60)]
    assert len(clips_of_run(Run(run), Options(include_rejected=True, num_clips=1))) == 1


def test_what_cannot_be_calibrated_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing to see")
    with pytest.raises(RecipeError, match="no clip with picture and sound"):
        calibrate(str(tmp_path))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nstages: {download: {}, probe: {}}\n")
    with pytest.raises(RecipeError, match="no stage sync"):
        calibrate(str(tmp_path), recipe=str(recipe))
