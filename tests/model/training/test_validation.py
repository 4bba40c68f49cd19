"""The held-out loss: the same clips, noise and numbers at any time and any number of ranks; and what a resume refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from model.encoding.tiny_codec import write_tiny_codecs
from model.evaluate.media import mono_sound
from model.evaluate.sets import find_samples, read_set
from model.network.flow import FlowObjective, clip_generators
from model.network.nava import pack
from model.ranks import World, open_world
from model.sampling.sampler import Latents
from model.training.config import TrainConfig
from model.training.losses import NUM_NOISE_LEVELS
from model.training.resume import compare_recipes
from model.training.scoring import MadeClip
from model.training.start import train
from model.training.state import state_tensors
from model.training.train import Training
from model.training.validation import Validator
from schemas.errors import PlanError, RecipeError
from tests.model.evaluate.tiny_networks import write_wavlm
from tests.model.latent_shards import SMALL, random_clip, recipe, run_ranks, write_latent_shards
from tests.model.rank_jobs import in_turn, validate, whole

pytestmark = pytest.mark.xdist_group("ranks")  # whoever has the process that ranks are forked off


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 16 clips to train on and 9 that are held out."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(25)], held_out=9)
    return folder


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


def config_of(data: Path, **changes: Any) -> TrainConfig:
    validation = {"every_steps": 2, "num_clips": 8, **changes.pop("validation", {})}
    return recipe(data, num_steps=4, plan={"num_packs": 2}, validation=validation, **changes)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def test_the_line_is_what_each_clip_gives_alone(data: Path, tmp_path: Path, world: World) -> None:
    with Training(config_of(data, parallel={"precision": "float64"}), tmp_path, world) as training:
        validator = training.validator
        assert isinstance(validator, Validator)
        assert len(validator.rows) == 8
        line, again = (validator.measure(training.model, 0) for _ in range(2))
        assert line == again
        objective, sums, shares = FlowObjective(training.config.flow), np.zeros(2), np.zeros(2)
        levels = objective.even_indices(8)
        for row, level in zip(validator.rows, levels, strict=True):
            clip = random_clip(int(validator._reader.index.clip_id(row).removeprefix("clip")))
            stored = type(clip)(clip.clip_id, text=clip.text.bfloat16().float(), video=_halved(clip.video),
                                audio=_halved(clip.audio), speakers=clip.speakers, placeholders=clip.placeholders)  # fmt: skip
            noised = objective.noise([stored], clip_generators(0, 0, [clip.clip_id]), [level])
            with torch.no_grad():
                terms = objective.loss(
                    training.model(pack(noised.samples, training.model.config), noised.timesteps), noised
                )
            for i, (mse, share) in enumerate(
                ((terms.video_mse, terms.video_shares), (terms.audio_mse, terms.audio_shares))
            ):
                sums[i] += float(mse[0] * share[0])
                shares[i] += float(share[0])
    assert [line["loss_video"], line["loss_audio"]] == pytest.approx(sums / shares, rel=1e-5)
    assert line["num_clips"] == 8
    assert sum(level is not None for level in line["loss_audio_by_noise"]) > NUM_NOISE_LEVELS // 2


def _halved(latent: torch.Tensor | None) -> torch.Tensor | None:
    return None if latent is None else latent.half().float()


@pytest.mark.slow
def test_any_number_of_ranks_and_any_packs_give_the_same_line(data: Path, tmp_path: Path) -> None:
    by_budget = {
        budget: recipe(data, plan={"num_packs": 2, "token_budget": budget}, validation={"every_steps": 2},
                       parallel={"precision": "float64"})
        for budget in (60, 35)
    }  # fmt: skip
    validate(0, by_budget[60], tmp_path / "one")
    jobs = [(validate, (config, tmp_path / f"two-{budget}")) for budget, config in by_budget.items()]
    run_ranks(in_turn, 2, tmp_path, jobs)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(found) == 5
    for line in found[1:]:
        assert line["loss"] == pytest.approx(found[0]["loss"], rel=1e-9)
        assert line["num_clips"] == found[0]["num_clips"] == 9


@pytest.mark.slow
def test_training_validates_and_is_not_changed_by_it(data: Path, tmp_path: Path, world: World) -> None:
    train(config_of(data, validation={"num_samples": 1, "sample_steps": 1}), tmp_path / "with")
    assert len(list((tmp_path / "with" / "generated").glob("*/*.safetensors"))) == 2
    train(config_of(data, validation={"every_steps": None}), tmp_path / "without")
    assert [line["step"] for line in lines(tmp_path / "with")] == [2, 4]
    assert all(line["num_clips"] == 8 and line["loss"] > 0 for line in lines(tmp_path / "with"))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    assert losses[0] == losses[1]
    saved = []
    for name in ("with", "without"):
        with Training(config_of(data, validation={"every_steps": None}), tmp_path / name, world) as training:
            tensors = state_tensors(training.model, training.optimizer, training.ema)
            assert all(isinstance(tensor, DTensor) for tensor in tensors.values())
            saved.append({key: whole(tensor) for key, tensor in tensors.items()})
    assert all(torch.equal(saved[1][key], value) for key, value in saved[0].items())


@pytest.mark.slow
def test_clips_are_generated_by_the_average_from_the_same_noise(data: Path, tmp_path: Path, world: World) -> None:
    config = config_of(data, validation={"num_samples": 1, "sample_steps": 2}, optim={"ema_decay": 0.5})
    with Training(config, tmp_path, world) as training:
        training.learn(training.next_step())
        assert training.ema is not None
        weights = {name: whole(p) for name, p in training.model.named_parameters()}
        averages = {name: whole(average) for name, average in training.ema.averages.items()}
        with training.ema.swapped():
            assert all(torch.equal(whole(p), averages[name]) for name, p in training.model.named_parameters())
        training.validator.generate(training.model, training.ema, 1)
        training.validator.generate(training.model, training.ema, 2)
        assert all(torch.equal(whole(p), weights[name]) for name, p in training.model.named_parameters())
        assert all(torch.equal(whole(average), averages[name]) for name, average in training.ema.averages.items())
        for average in training.ema.averages.values():
            average.add_(0.1)
        training.validator.generate(training.model, training.ema, 3)
    first, again, other = (load_file(path) for path in sorted(tmp_path.glob("generated/step-*/*.safetensors")))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not all(torch.equal(other[name], value) for name, value in first.items())


@pytest.mark.slow
def test_samples_are_scored_against_their_clips_and_what_cannot_be_is_null_and_said(
    data: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_codecs(tmp_path / "codecs", SMALL)
    write_wavlm(tmp_path / "models" / "wavlm")
    scored = {"num_samples": 2, "sample_steps": 1, "codecs": tmp_path / "codecs", "models": tmp_path / "models"}
    with Training(config_of(data, validation=scored), tmp_path, world) as training:
        training.look(training.validator)
        (line,) = lines(tmp_path)
        assert "cannot be scored" not in capsys.readouterr().out
        torn = Latents(None, torch.zeros(4, 3))
        clips = [MadeClip("torn", has_voice=True, real=torn, made=torn)]
        missing = training.validator._scorer.score(clips, tmp_path / "generated", 1)
    assert line["num_clips"] == 8
    assert set(line["samples"]) >= {"av_align", "sound_rms_db", "picture_ssim", "sim_wavlm"}
    real, found = (tmp_path / "generated" / name for name in ("real", "step-00000000"))
    names = sorted(path.name for path in real.iterdir())
    assert sorted(path.name for path in found.glob("*.mp4")) == names
    assert sorted(path.name for path in find_samples(read_set(real), found)[0].values()) == names
    levels = [10 * np.log10(np.square(mono_sound(found / name, 48_000)[0], dtype=float).mean()) for name in names]
    assert line["samples"]["sound_rms_db"] == pytest.approx(np.mean(levels), rel=1e-6)
    assert missing == dict.fromkeys(line["samples"])
    assert "torn.mp4 cannot be scored" in capsys.readouterr().out


def test_scores_without_codecs_or_samples_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"set validation\.codecs"):
        config_of(data, validation={"num_samples": 1, "models": "models"})
    with pytest.raises(ValueError, match=r"set validation\.num_samples"):
        config_of(data, validation={"codecs": "codecs"})


def test_what_cannot_be_validated_is_refused_at_the_start(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"is trained on \(data\.split: train\)"):
        train(config_of(data, validation={"split": "train"}), tmp_path)
    with pytest.raises(PlanError, match="split 'test'"):
        train(config_of(data, validation={"split": "test"}), tmp_path)


def test_levels_are_spread_as_training_draws_them() -> None:
    objective = FlowObjective(recipe(Path("x")).flow)
    generator = torch.Generator().manual_seed(0)
    drawn = sorted(objective._draw_index(generator) for _ in range(4000))
    spread = objective.even_indices(40)
    assert spread == sorted(spread)
    assert spread == pytest.approx([drawn[50 + 100 * i] for i in range(40)], abs=25)


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.slow
def test_a_recipe_that_makes_another_experiment_is_refused_on_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(data, num_steps=1, plan={"num_packs": 2}), tmp_path)
    other = recipe(data, num_steps=2, plan={"num_packs": 2}, seed=3, optim={"learning_rate": 0.05, "warmup_steps": 3})
    with pytest.raises(RecipeError, match=r"another recipe\. seed: 0 -> 3\.(?s:.*)--allow-changes"):
        train(other, tmp_path)
    assert train(other, tmp_path, allow_changes=True) == 2
    said = capsys.readouterr().out
    assert "another recipe than before: seed: 0 -> 3" in said
    assert "optim.learning_rate: 0.001 -> 0.05" in said
    notes = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert notes["recipe"]["network"]["preset"] == "nava_tiny"
    assert notes["recipe"]["seed"] == 3
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.001 / 3, 0.05 * 2 / 3]), "the new rate is the one that counts"


@pytest.mark.parametrize(
    ("section", "change", "outcome"),
    [
        ("flow", {"shift": 3.0}, "refused"),
        ("optim", {"betas": (0.9, 0.95)}, "refused"),
        ("optim", {"ema_decay": 0.5}, "refused"),
        ("parallel", {"precision": "float64"}, "refused"),
        ("network", {"changes": {"max_text_tokens": 32}}, "refused"),
        ("optim", {"final_fraction": 0.5}, "said"),
        ("output", {"log_every_steps": 7}, "silent"),
        ("parallel", {"recompute": "full"}, "silent"),
        ("data", {"num_workers": 9}, "silent"),
        ("network", {"attention_backend": "sdpa"}, "silent"),
    ],
)
def test_what_may_change_and_what_may_not(section: str, change: dict[str, Any], outcome: str) -> None:
    stored = json.loads(recipe(Path("x")).model_dump_json())
    given = json.loads(recipe(Path("x"), **{section: change}).model_dump_json())
    if outcome == "refused":
        with pytest.raises(RecipeError, match=f"{section}.{next(iter(change))}"):
            compare_recipes(stored, given, allow_changes=False)
    said = compare_recipes(stored, given, allow_changes=True)
    assert bool(said) == (outcome != "silent")
    del stored["health"], stored[section][next(iter(change))]
    assert compare_recipes(stored, given, allow_changes=False) == [], "keys of another version are not compared"
