"""Steps that are not finite change nothing, on all ranks alike; what stands out is told; what is written is valid JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.ranks import World, open_world
from model.training.config import HealthConfig
from model.training.health import Spikes, gradient_norms, longest_run
from model.training.start import train
from model.training.state import complete, state_tensors
from model.training.trackers import JsonLines, finite, forget_after, open_trackers
from model.training.train import Training
from schemas.errors import DamagedSampleError, ModelError, RecipeError
from tests.model.latent_shards import random_clip, recipe, run_ranks, write_latent_shards
from tests.model.rank_jobs import poison, train_with_nan, whole

pytestmark = pytest.mark.xdist_group("ranks")  # whoever has the process that ranks are forked off


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 24 random clips."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(24)])
    return folder


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


def lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def states(training: Training) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    tensors = state_tensors(training.model, training.optimizer, None)
    return {name: whole(tensor) for name, tensor in tensors.items()}


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment(data: Path, tmp_path: Path, world: World) -> None:
    config = recipe(data, num_steps=4, plan={"num_packs": 2}, output={"checkpoint_every_steps": 4})
    with Training(config, tmp_path, world) as training:
        while training.has_more:
            step, before = training.next_step(), states(training)
            with poison(training, step.number == 3):
                training.report(step, training.learn(step))
            is_same = {name: torch.equal(value, before[name]) for name, value in states(training).items()}
            assert all(is_same.values()) if step.number == 3 else not is_same["model.head.head.weight"]
        training.save(step)
    (notes,) = (json.loads((path / "state.json").read_text()) for path in complete(tmp_path / "checkpoints"))
    assert (notes["step"], notes["num_updates"]) == (4, 3)
    found = lines(tmp_path)
    assert [line["skipped_steps"] for line in found] == [0, 0, 1, 0]
    assert [line["grad_norm"] is None for line in found] == [False, False, True, False]
    assert [line["loss"] is None for line in found] == [False, False, True, False]
    with Training(config, tmp_path, world) as training:
        assert {float(state["step"]) for state in training.optimizer.state.values()} == {3.0}


@pytest.mark.slow
def test_too_many_in_a_row_end_training_and_the_last_sound_checkpoint_is_kept(
    data: Path, tmp_path: Path, world: World
) -> None:
    output = {"checkpoint_every_steps": 1, "num_checkpoints_kept": 1, "is_asynchronous": False}
    config = recipe(data, num_steps=20, plan={"num_packs": 2}, health={"max_skipped_steps": 4}, output=output)

    def train_on(training: Training) -> None:
        while training.has_more:
            step = training.next_step()
            with poison(training, step.number >= 5):
                training.report(step, training.learn(step))
            training.save(step)

    with (
        Training(config, tmp_path, world) as training,
        pytest.raises(ModelError, match="4 steps in a row up to step 8"),
    ):
        train_on(training)
    assert (tmp_path / "checkpoints" / "good").resolve().name == "step-00000003"
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9)), "the last line is written before it ends"


@pytest.mark.slow
def test_two_ranks_leave_out_the_same_step_and_stay_alike(data: Path, tmp_path: Path) -> None:
    config = recipe(data, num_steps=4, plan={"num_packs": 2}, parallel={"precision": "float64"})
    run_ranks(train_with_nan, 2, tmp_path, config, tmp_path / "two", 3, 1)
    train_with_nan(0, config, tmp_path / "one", 3, 0)
    two, one = (torch.load(tmp_path / f"{name}.pt") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-12, atol=1e-12 * float(value.abs().max()))
    found = lines(tmp_path / "two")
    assert [line["skipped_steps"] for line in found] == [0, 0, 1, 0]
    assert {line["slowest_rank"]["rank"] for line in found} <= {0, 1}
    assert all(line["slowest_rank"]["over_median"] >= 1 for line in found)
    assert all(line["slowest_rank"]["host"] for line in found)


@pytest.mark.slow
def test_a_learning_rate_that_explodes_ends_with_a_sentence(data: Path, tmp_path: Path) -> None:
    config = recipe(data, num_steps=30, plan={"num_packs": 2}, optim={"learning_rate": 1e20, "warmup_steps": 0},
                    health={"max_skipped_steps": 3}, output={"checkpoint_every_steps": 1})  # fmt: skip
    with pytest.raises(ModelError, match=r"gradients of \d+ steps in a row.*lower learning rate"):
        train(config, tmp_path)
    assert lines(tmp_path)


def test_norms_by_part_make_up_the_whole(data: Path, tmp_path: Path, world: World) -> None:
    with Training(recipe(data, plan={"num_packs": 2}), tmp_path, world) as training:
        training.accumulate(training.next_step())
        by_part = {part: float(norm) for part, norm in gradient_norms(training.model).items()}
        whole_norm = sum(float(whole(p.grad).square().sum()) for p in training.model.parameters()) ** 0.5
    assert {"align_video", "align_audio", "fusion", "head", "head_audio", "text_embedding"} <= by_part.keys()
    assert sum(norm**2 for norm in by_part.values()) ** 0.5 == pytest.approx(whole_norm, rel=1e-5)


def test_a_spike_is_told_and_a_new_level_is_not() -> None:
    spikes, rng = Spikes(HealthConfig(spike_window_steps=50, spike_deviations=8)), np.random.default_rng(0)
    calm = [2 + 0.1 * value for value in rng.standard_normal(60)]
    assert not any(spikes.look("loss", value) for value in calm)
    assert "loss 9 is" in spikes.look("loss", 9.0)
    assert not spikes.look("loss", float("nan"))
    told = [bool(spikes.look("loss", 4 + 0.1 * value)) for value in rng.standard_normal(80)]
    assert told[0]
    assert not any(told[40:])
    falling = Spikes(HealthConfig())
    assert not any(falling.look("loss", 5 * 0.99**step) for step in range(300))


def test_runs_of_bad_steps_are_counted_across_intervals() -> None:
    assert longest_run(np.array([True, True, False, True]), 3) == (5, 1)
    assert longest_run(np.array([False, False]), 9) == (9, 0)
    assert longest_run(np.array([True] * 4), 1) == (5, 5)


def test_latents_that_are_not_finite_are_damage() -> None:
    from safetensors.torch import save

    from model.data.reader import RawSample
    from model.encoding.latents import read_latents, write_latents

    sample = random_clip(1)
    assert sample.audio is not None
    stored = {"audio_latents": sample.audio.half(), "text_states": sample.text.bfloat16()}
    stored |= {"voice_rows": torch.zeros(0, dtype=torch.int32), "voices": torch.zeros(0, 0)}
    read_latents(RawSample("x", 0, {"safetensors": memoryview(write_latents(sample))}))
    stored["audio_latents"][0, 0] = torch.nan
    with pytest.raises(DamagedSampleError, match=r"audio_latents.*not finite"):
        read_latents(RawSample("x", 0, {"safetensors": memoryview(save(stored))}))


def test_lines_are_valid_json_and_none_is_lost_to_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = JsonLines(tmp_path)
    tracker.log("metrics", {"step": 1, "loss": float("nan"), "by": [float("inf"), 2.0]})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "by": [None, 2.0]}
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "nowhere" / "x")
    tracker.log("metrics", {"step": 2})
    assert "cannot be written" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    tracker.log("metrics", {"step": 3})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    forget_after(tmp_path, 2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert finite({"a": (1, float("-inf"))}) == {"a": [1, None]}


def test_weights_and_biases_gets_the_same_numbers_and_goes_on_with_its_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is stood in for: it is not among the package's own."""
    runs: list[SimpleNamespace] = []

    def init(**given: Any) -> SimpleNamespace:
        logged: list[tuple[int, dict[str, float]]] = []
        run = SimpleNamespace(given=given, logged=logged, is_finished=False)
        run.log = lambda line, step: logged.append((step, line))
        run.finish = lambda: setattr(run, "is_finished", True)
        runs.append(run)
        return run

    config = recipe(data, num_steps=1, plan={"num_packs": 2}, output={"wandb": {"project": "p", "mode": "offline"}})
    with pytest.raises(RecipeError, match="wandb is not installed"):
        open_trackers(tmp_path, config, 0)
    util = SimpleNamespace(generate_id=lambda: "run7")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, util=util))
    for step in (1, 2):
        trackers = open_trackers(tmp_path, config, step - 1)
        for tracker in trackers:
            tracker.log("metrics", {"step": step, "loss": 1.5, "by": {"a": 2.0, "host": "x"}, "none": None})
            tracker.log("validation", {"step": step, "loss": 3.0})
            tracker.close()
    assert [run.given["id"] for run in runs] == ["run7", "run7"]
    assert runs[0].given["mode"] == "offline"
    assert runs[0].logged == [
        (1, {"step": 1, "loss": 1.5, "by/a": 2.0}),
        (1, {"validation/step": 1, "validation/loss": 3.0}),
    ]
    assert runs[0].is_finished


@pytest.mark.slow
def test_a_signal_has_the_next_steps_profiled(data: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    config = recipe(data, plan={"num_packs": 2}, health={"profile_steps": 2})
    with open_world() as world, Training(config, tmp_path, world) as training:
        os.kill(os.getpid(), signal.SIGUSR2)
        for _ in range(3):
            training.learn(training.next_step())
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == ["step-00000002-rank00000.json.gz"]
    assert signal.getsignal(signal.SIGUSR2) is before
