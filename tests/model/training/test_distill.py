"""Distillation through the real trainer: a tiny teacher, its student of four passes, checkpoints, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from model.network.flow import FlowObjective
from model.network.nava import Nava
from model.network.tokens import Sample, pack
from model.ranks import World, open_world
from model.sampling.config import Guidance
from model.sampling.sample import load_model
from model.sampling.sampler import SampleRequest, sample
from model.training.config import TrainConfig
from model.training.distill import Distillation
from model.training.memory import states_per_gpu
from model.training.resume import compare_recipes
from model.training.start import open_training
from model.training.state import complete
from model.weights.convert import write_safetensors
from model.weights.formats import TensorSpec
from schemas.errors import RecipeError
from tests.model.latent_shards import SMALL, TINY, recipe, write_latent_shards
from tests.model.rank_jobs import whole

GRID, NUM_LATENTS, DEVIATION = (1, 8, 8), 16, 0.5
NUM_STEPS, NUM_TEACHER_STEPS = 20, 120
PLAIN = Guidance(video_text=1, audio_text=1, has_alignment=False, has_timbre=False)


class Caption(NamedTuple):
    """A caption, and the means of what is seen and heard under it."""

    text: Tensor
    picture: Tensor
    sound: Tensor


def two_captions() -> list[Caption]:
    """Always the same."""
    draws = torch.Generator().manual_seed(5)
    sizes = ((3, TINY.text_dim), (TINY.video_channels, 1, 1, 1), (1, TINY.audio_channels))
    return [Caption(*(torch.randn(size, generator=draws) for size in sizes)) for _ in range(2)]


def two_clips(generator: torch.Generator) -> list[Sample]:
    """A clip of each caption: normally distributed about its means."""
    clips = []
    for number, (text, picture, sound) in enumerate(two_captions()):
        video = picture + DEVIATION * torch.randn(TINY.video_channels, *GRID, generator=generator)
        audio = sound + DEVIATION * torch.randn(NUM_LATENTS, TINY.audio_channels, generator=generator)
        clips.append(Sample(str(number), text, video, audio))
    return clips


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A recipe that distils a teacher which has learnt from clips that are new each time."""
    folder = tmp_path_factory.mktemp("distilled")
    never = {
        f"{name}_prob": 0.0 for name in ("clean_first_frame", "cross_modal_mask", "text_dropout", "timbre_dropout")
    }
    flow = {**never, "audio_weight": 1.0}
    distill = {"fake_updates": 2, "teacher": "master", "guidance": PLAIN.model_dump()}
    config = recipe(
        folder,
        num_steps=NUM_STEPS,
        network={"weights": str(folder / "teacher.safetensors")},
        plan={"num_packs": 1, "token_budget": 64},
        flow=flow,
        optim={
            "learning_rate": 4e-3,
            "warmup_steps": 0,
            "final_fraction": 0.05,
            "ema_decay": 0.8,
            "betas": (0.0, 0.99),
        },
        output={"log_every_steps": 4, "checkpoint_every_steps": NUM_STEPS - 4},
        validation={"every_steps": NUM_STEPS, "num_samples": 1},
        distill=distill,
    )
    generator = torch.Generator().manual_seed(0)
    held_out = replace(two_clips(torch.Generator().manual_seed(1))[0], clip_id="held_out")
    write_latent_shards(folder, [*two_clips(generator), held_out], num_shards=1, held_out=1)
    model, objective = Nava(SMALL), FlowObjective(config.flow)
    model.init_weights(generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=NUM_TEACHER_STEPS)
    for _ in range(NUM_TEACHER_STEPS):
        noised = objective.noise(two_clips(generator), [generator] * 2)
        objective.total(objective.loss(model(pack(noised.samples, SMALL), noised.timesteps), noised)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    write_safetensors(folder / "teacher.safetensors", specs, weights.items())
    return config


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


@pytest.fixture(scope="module")
def distilled(
    config: TrainConfig, world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """Where it ran, and every tensor at its end, those of the teacher too."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run(config, folder, world)


def run(config: TrainConfig, folder: Path, world: World) -> dict[str, Tensor]:
    """Every tensor after the last step, the teacher's too."""
    with open_training(config, folder, world) as training:
        assert isinstance(training, Distillation)
        training.run()
        teacher = {f"teacher.{name}": whole(p) for name, p in training.teacher.named_parameters()}
        return teacher | {name: whole(value) for name, value in training.tensors().items()}


def distances(model: Nava) -> tuple[float, float]:
    """How far pictures made in four passes are from those under the same caption: by deviations of channels, by means too."""
    means, deviations = [], []
    for text, picture, _ in two_captions():
        made = []
        for seed in range(3):
            request = SampleRequest(
                text=text, negative_text=text[:0], video_grid=GRID, num_audio_latents=NUM_LATENTS, num_steps=4, shift=5.0,
                solver="few_steps", seed=seed, guidance=PLAIN,
            )  # fmt: skip
            video = sample(model, request).video
            assert video is not None
            made.append(video.flatten(1))
        pixels = torch.cat(made, dim=1)
        means.append(pixels.mean(1) - picture.flatten())
        deviations.append(pixels.std(1) - DEVIATION)
    by_deviations, by_both = torch.cat(deviations), torch.cat([*deviations, *means])
    return float(by_deviations.square().mean().sqrt()), float(by_both.square().mean().sqrt())


@pytest.mark.slow
def test_pictures_of_four_passes_come_nearer_to_what_the_teacher_has_learnt(
    config: TrainConfig, distilled: tuple[Path, dict[str, Tensor]]
) -> None:
    """Undistilled, four passes make pictures that are too much alike. Sound is left out: the tiny network learns it slowly."""
    folder, _ = distilled
    assert config.network.weights is not None
    ended = complete(folder / "checkpoints")[-1]
    before, after = (
        distances(load_model(path, SMALL, "cpu", torch.float32)) for path in (config.network.weights, ended)
    )
    print(f"undistilled {before}, distilled {after}")
    assert after[0] < 0.85 * before[0]
    assert after[1] < before[1]
    assert (folder / "generated" / f"step-{NUM_STEPS:08d}" / "held_out.safetensors").is_file()
    assert not (folder / "validation.jsonl").exists()
    lines = [json.loads(line) for line in (folder / "distill.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    assert all(line["num_updates"] == 2 and line["loss_video"] > 0 and line["loss_audio"] > 0 for line in lines)


@pytest.mark.slow
def test_the_teacher_keeps_its_bits_and_what_is_interrupted_goes_on_bit_for_bit(
    config: TrainConfig, distilled: tuple[Path, dict[str, Tensor]], world: World, tmp_path: Path
) -> None:
    folder, ended = distilled
    before = complete(folder / "checkpoints")[0]
    assert before.name == f"step-{NUM_STEPS - 4:08d}"
    shutil.copytree(before, tmp_path / "checkpoints" / before.name)
    resumed = run(config, tmp_path, world)
    assert resumed.keys() == ended.keys()
    assert all(torch.equal(resumed[name], value) for name, value in ended.items())
    assert {name.partition(".")[0] for name in ended} == {"teacher", "model", "optimizer", "ema", "fake"}
    assert config.network.weights is not None
    teacher = load_model(config.network.weights, SMALL, "cpu", torch.float32)
    for name, value in teacher.state_dict().items():
        assert torch.equal(ended[f"teacher.{name}"], value)
    head = [ended[f"{part}head.head.weight"] for part in ("teacher.", "model.", "fake.model.", "ema.")]
    assert not any(torch.equal(one, other) for one, other in combinations(head, 2))


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    weights = {"weights": str(tmp_path / "teacher.safetensors")}
    for changes, message in (
        ({}, "network.weights, which is not given"),
        ({"network": weights, "plan": {"context_parallel": 2}}, "leave plan.context_parallel at 1"),
        ({"network": weights, "validation": {"every_steps": 1}}, "set validation.num_samples"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(tmp_path, distill={}, **changes)
    config = recipe(tmp_path, network=weights, distill={})
    stored, given = config.model_dump(mode="json"), config.model_dump(mode="json")
    given["distill"]["fake_updates"] = 1
    with pytest.raises(RecipeError, match=r"distill\.fake_updates: 5 -> 1"):
        compare_recipes(stored, given, allow_changes=False)
    assert config.relative_cost == pytest.approx((3 + 2.5 + 7 / 5) / 3)
    assert states_per_gpu(config, 1) > 2 * states_per_gpu(config.model_copy(update={"distill": None}), 1) * 4 / 5
