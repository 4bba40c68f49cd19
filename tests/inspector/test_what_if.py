"""Bounds that move: the answer from memory is the ledger's, the curve is exact, the sample is near."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.synthetic_ledger import PASSING, Size, write
from pipeline.ask import measures as module
from pipeline.ask.clips import ClipLists
from pipeline.ask.facts import Facts
from pipeline.ask.find import find
from pipeline.ask.one_clip import chain_of_clip
from pipeline.ask.queries import US_PER_HOUR, Run
from pipeline.ask.read_measures import measures
from pipeline.ask.stats import NUM_BINS, stats
from pipeline.ask.what_if import what_if
from pipeline.config import load_recipe
from tests.pipeline.toy_run import make_run, toy_source

NUM_CLIPS = 1_000
SLIDERS = {
    "sync.offset_ms.abs_max": (0.0, 450.0),
    "sync.confidence.min": (7.5, 8.5),
    "picture.brightness.min": (0.0, 0.55),
    "audio.silence_ratio.max": (0.09, 1.0),
    "picture.true_fps.min": (24.0, 26.0),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A thousand clips in the real schema, a third of which gates turn away: those gates whose measures are drawn to fit."""
    folder = tmp_path_factory.mktemp("synthetic")
    recipe = load_recipe("quickstart")
    fitting = {
        stage: {
            field: gate
            for field, gate in fields.items()
            if f"{stage}.{field}" in PASSING or stage in ("probe", "duplicates")
        }
        for stage, fields in recipe.gates.items()
    }
    write(str(folder / "run"), Size(NUM_CLIPS), recipe.model_copy(update={"gates": fitting}))
    return Run(str(folder / "run"), folder / "cache")


def drawn(rng: np.random.Generator) -> dict[str, float | None]:
    """Some sliders moved anywhere."""
    names = rng.choice(list(SLIDERS), rng.integers(1, 4), replace=False)
    return {str(name): float(rng.uniform(*SLIDERS[name])) for name in names}


@pytest.mark.slow
def test_the_answer_is_that_of_the_ledger(run: Run) -> None:
    table, rng = measures(run), np.random.default_rng(1)
    for _ in range(6):
        bounds = drawn(rng)
        then = what_if(run, [f"gates.{name}={bound!r}" for name, bound in bounds.items()])
        told = table.answer(bounds)
        assert (told.now_us, told.low_us, told.high_us) == (then.now_us, then.low_us, then.high_us), bounds
        assert told.estimate_us == then.estimate_us
        assert told.low_us != told.now_us or not then.low_us - then.now_us


@pytest.mark.slow
def test_the_curve_is_exact_for_any_slider(run: Run) -> None:
    table, rng = measures(run), np.random.default_rng(2)
    for _ in range(40):
        bounds = drawn(rng)
        name = str(rng.choice(list(bounds)))
        assert table.dragged(name, bounds).low_us == table.answer(bounds).low_us, (name, bounds)


def test_histograms_and_gates_are_those_of_stats(run: Run) -> None:
    table, plain = measures(run), stats(run)
    told = table.answer({})
    assert told.low_us == told.now_us == plain.sheet.kept_us
    for path, shown in plain.histograms.items():
        assert told.kept_us[path][:-1] / US_PER_HOUR == pytest.approx(shown.kept)
        assert {axis.path: axis.edges.tolist() for axis in table.axes}[path] == shown.edges
    for gate, now in zip(plain.gates, told.gates, strict=True):
        assert now.gross_us == round(gate.gross_hours * US_PER_HOUR)
        assert now.alone_us == round(gate.marginal_hours * US_PER_HOUR)
    for path, by in plain.labels.items():
        assert {name: us[0] for name, us in told.labels[path].items()} == {
            name: round(hours.kept * US_PER_HOUR) for name, hours in by.items()
        }


def test_moved_histograms_are_those_of_the_clips_kept_then(run: Run) -> None:
    table = measures(run)
    bounds = {"picture.brightness.min": 0.5}
    told = table.answer(bounds)
    (gate,) = (each for each in table.gates if each.check.name == "picture.brightness.min")
    kept = table.is_kept & (gate.read() >= 0.5)
    for path, codes in table.codes.items():
        expected = np.bincount(codes[kept], table.us[kept], NUM_BINS + 1)
        assert told.kept_us[path].tolist() == expected.astype(np.int64).tolist()


def test_a_sample_is_near(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 400)
    table = measures(run)
    bounds = {"picture.brightness.min": 0.5}
    near, exact = table.dragged("picture.brightness.min", bounds), table.answer(bounds)
    assert near.sampled == (400, len(table.us))
    share = exact.low_clips / len(table.us)
    sigma = np.sqrt(share * (1 - share) / 400) * len(table.us)
    assert abs(near.low_clips - exact.low_clips) < 3 * sigma
    assert near.low_us == exact.low_us


@pytest.mark.slow
def test_a_clip_is_found_by_the_place_of_its_facts(run: Run, tmp_path: Path) -> None:
    cached = Run(run.dir.uri)
    cached.__dict__["facts"] = Facts(cached.ledger, cached.plan, tmp_path, least_rows=1)
    lists = ClipLists(cached)
    for clip_id in lists.spine["row_id"].gather_every(97):
        found = chain_of_clip(lists, clip_id)
        if (lists.spine["row_id"] == clip_id).sum() == 1:
            assert found == find(cached, clip_id)
    assert chain_of_clip(lists, "c" + 20 * "0") is None
    assert chain_of_clip(ClipLists(run), lists.spine["row_id"][0]) is None, "without a cache the ledger is asked"


def test_a_gate_that_is_dropped_turns_nothing_away(run: Run) -> None:
    table = measures(run)
    told = table.answer({"picture.brightness.min": None})
    assert told.low_us + (told.high_us - told.low_us) > told.now_us
    assert next(gate for gate in told.gates if gate.name == "picture.brightness.min").gross_us == 0


def test_what_was_settled_early_is_an_interval_and_the_audit_lane_an_estimate(
    toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = copy.deepcopy(toy_recipe)
    recipe["audit_fraction"] = 0.5
    recipe["gates"]["sync"] = {"offset_ms": {"abs_max": 20}}
    made = make_run(recipe, [toy_source(f"{number}.mp4") for number in range(6)], tmp_path / "run")
    table = measures(made)
    for bounds in ({"audio.value.min": -1.0}, {"audio.value.min": 0.5, "sync.offset_ms.abs_max": 5.0}):
        told = table.answer(bounds)
        then = what_if(made, [f"gates.{name}={bound}" for name, bound in bounds.items()])
        assert (told.low_us, told.high_us, told.estimate_us) == (then.low_us, then.high_us, then.estimate_us)
    assert not table.answer({"audio.value.min": -1.0}).is_exact
