"""The training loop on one process: metrics, samples, stopping on request, finite plans, damage; and recipes."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.ranks import open_world
from model.training.config import RECIPES, TrainConfig, load_recipe
from model.training.losses import NUM_NOISE_LEVELS, losses
from model.training.metrics import read_samples
from model.training.start import train
from model.training.train import Training
from schemas.budget import NAVA_6B
from schemas.errors import NavaError, PlanError, RecipeError
from schemas.recipe import packaged
from tests.model.latent_shards import random_clip, recipe, write_latent_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 24 random clips."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(24)], has_sizes=True)
    return folder


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_is_reported_follows_from_the_errors_of_every_sample(data: Path, tmp_path: Path) -> None:
    config = recipe(data, output={"log_every_steps": 2, "has_tensorboard": True})
    assert train(config, tmp_path) == 6
    table, reports = read_samples(tmp_path).to_pandas(), lines(tmp_path)
    assert [line["step"] for line in reports] == [2, 4, 6]
    assert sorted(table["step"].unique()) == [1, 2, 3, 4, 5, 6]
    assert table["video_mse"].isna().equals(table["use"] == "audio")
    clips = {clip.clip_id: clip for clip in (random_clip(i) for i in range(24))}
    for line in reports:
        rows = table[(table["step"] == line["step"]) | (table["step"] == line["step"] - 1)]
        shares = [len(clips[clip_id].audio) for clip_id in rows["clip_id"]]
        expected = sum(rows["audio_mse"] * shares) / sum(shares)
        assert line["loss_audio"] == pytest.approx(expected, rel=1e-5)
        assert line["loss"] == pytest.approx(line["loss_video"] + 0.2 * line["loss_audio"])
        assert line["padding"] == 0
        assert line["imbalance"] == pytest.approx(1)
        assert line["tokens_per_s"] * line["seconds_per_step"] * 2 == pytest.approx(rows["tokens"].sum(), rel=1e-6)
        assert line["mfu"] is None
        assert len(line["loss_video_by_noise"]) == NUM_NOISE_LEVELS
    assert list((tmp_path / "tensorboard").iterdir())


def test_pictures_are_trained_on_as_one_frame_without_sound_and_voices(data: Path, tmp_path: Path) -> None:
    mixture = [
        {"name": "stills", "weight": 2, "use": "image"},
        {"name": "film", "weight": 1, "modality": "audio_video"},
    ]
    config = recipe(data, num_steps=2, plan={"mixture": mixture}, flow={"text_dropout_prob": 0.0})
    with open_world() as world, Training(config, tmp_path, world) as training:
        micro_steps = [micro for _ in range(2) for micro in training.next_step().micro_steps]
        pairs = [pair for micro in micro_steps for pair in zip(micro.noised.samples, micro.refs, strict=True)]
        stills = [(sample, ref) for sample, ref in pairs if ref.use == "image"]
        assert 0 < len(stills) < len(pairs)
        for sample, ref in stills:
            assert sample.video.shape[1] == 1
            assert sample.video[0, 0].numel() == 4 * ref.tokens
            assert (sample.audio, sample.speakers, sample.placeholders) == (None, (), ())
            assert len(sample.text) == 3 + int(sample.clip_id[4:]) % 5
            assert not sample.is_first_frame_clean
    assert train(config, tmp_path / "run") == 2
    table = read_samples(tmp_path / "run").to_pandas().set_index("use").loc["image"]
    assert table["audio_mse"].isna().all()
    assert (table["video_mse"] > 0).all()


def test_pictures_of_clips_that_are_encoded_while_training_are_refused(data: Path) -> None:
    online = {"online": {"codecs": "codecs"}}
    with pytest.raises(ValueError, match="takes a frame of stored latents"):
        recipe(data, data=online, plan={"mixture": [{"name": "stills", "weight": 1, "use": "image"}]})


def test_losses_by_noise_level_add_up() -> None:
    sums = torch.rand(2, NUM_NOISE_LEVELS, 2).double().numpy()
    sums[0, 3] = 0
    found = losses(sums, 1.0, 0.2)
    assert found["loss_video_by_noise"][3] is None
    assert found["loss_audio"] == pytest.approx(sums[1, :, 0].sum() / sums[1, :, 1].sum())
    assert found["loss"] == pytest.approx(found["loss_video"] + 0.2 * found["loss_audio"])


@pytest.mark.slow
def test_a_request_to_stop_ends_after_the_step_with_a_checkpoint(data: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with open_world() as world, Training(recipe(data), tmp_path, world) as training:
        training.learn(training.next_step())
        assert training.has_more
        os.kill(os.getpid(), signal.SIGTERM)
        training.learn(training.next_step())
        assert not training.has_more
        assert training.is_save_due
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_finite_plan_trains_on_everything_once_and_ends(data: Path, tmp_path: Path) -> None:
    config = recipe(data, num_steps=1000, plan={"num_epochs": 1})
    num_steps = train(config, tmp_path)
    assert num_steps < 20
    counts = Counter(read_samples(tmp_path)["clip_id"].to_pylist())
    assert counts == {f"clip{i:03d}": 1 for i in range(24)}
    assert all(line["loss"] == line["loss"] for line in lines(tmp_path)), (
        "a rank without work contributes zero, not nan"
    )
    assert any(line["padding"] > 0 for line in lines(tmp_path)) == (lines(tmp_path)[-1]["padding"] > 0)


@pytest.mark.slow
def test_a_kill_after_a_checkpoint_leaves_no_gap_and_no_double_line(data: Path, tmp_path: Path) -> None:
    config = recipe(data, num_steps=7, plan={"num_packs": 2})
    with open_world() as world, Training(config, tmp_path, world) as training:
        for number in range(1, 6):
            step = training.next_step()
            training.report(step, training.learn(step))
            if number == 3:
                training.save(step)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    train(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    train(config, tmp_path / "whole")
    columns = ["step", "clip_id", "timestep", "video_mse", "audio_mse"]
    assert read_samples(tmp_path).select(columns).equals(read_samples(tmp_path / "whole").select(columns))
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in lines(tmp_path)] == [line[name] for line in lines(tmp_path / "whole")]


def test_a_world_size_that_does_not_divide_is_refused_before_the_network_is_built(data: Path) -> None:
    config = recipe(data)
    plan = EpochPlan(ShardIndex.open(config.data.index_path), config.plan, config.shape)
    with pytest.raises(PlanError, match="Use one of these world sizes: 1, 2, 4"):
        plan.teams_of_rank(0, 3)


@pytest.mark.parametrize("name", packaged(RECIPES))
def test_packaged_recipes_are_valid(name: str) -> None:
    config = load_recipe(name)
    assert config.name == name
    assert (config.shape == NAVA_6B) != name.startswith("tiny")


def test_recipes_are_changed_by_key_and_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    config = load_recipe("tiny", ["optim.learning_rate=0.5", "data.shards=s3://bucket/latents/shards", "seed=3"])
    assert (config.optim.learning_rate, config.seed) == (0.5, 3)
    assert config.data.index_path == "s3://bucket/latents/index"
    for setting, message in (
        ("optim.learning_rat=1", r"tiny: optim\.learning_rat: unknown key\. Did you mean 'learning_rate'\?"),
        ("plan.mixture=[{name: a, wieght: 1}]", r"plan\.mixture\.0\.wieght: .* Did you mean 'weight'"),
        ("data.online.codec=x", r"Did you mean 'codecs'"),
        ("network.changes.text_dims=48", r"Did you mean 'text_dim'"),
        ("network.preset=nava_5b", "Use one of nava_6b"),
        ("optim.eps=0", r"optim\.eps: Input should be greater than 0 \(got 0\)"),
        ("optim", "expected KEY.KEY=VALUE"),
        ("name.x=1", "'name' holds a value"),
        ("plan={num_packs: 4, token_budget: 60, context_parallel: 4}", "must divide the network.s 2 attention heads"),
    ):
        with pytest.raises(NavaError, match=message):
            load_recipe("tiny", [setting])
    with pytest.raises(RecipeError, match="Did you mean 'stage2_joint'"):
        load_recipe("stage2")
    path = tmp_path / "own.yaml"
    path.write_text(config.model_dump_json())
    assert load_recipe(str(path)) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()).digest() == config.digest()
