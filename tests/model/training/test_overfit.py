"""A tiny network learns eight clips by heart through the real trainer, and hears whose voice it was given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.flow import NUM_STEPS, sigma_grid
from model.network.nava import Nava
from model.network.tokens import Sample
from model.ranks import open_world
from model.training.train import Training
from tests.model.latent_shards import SMALL, TINY, by_euler, recipe, write_latent_shards

NUM_TRAINING_STEPS = 120
GRID = (2, 4, 4)
NUM_LATENTS = 8


def eight_clips() -> list[Sample]:
    """Four captions with two voices each. The caption decides the picture, caption and voice together the sound."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    voices = [draw(TINY.speaker_dim) for _ in range(2)]
    clips = []
    for caption in range(4):
        text, video = draw(4, TINY.text_dim), draw(TINY.video_channels, 1, 1, 1).expand(-1, *GRID)
        for who, voice in enumerate(voices):
            audio = draw(1, TINY.audio_channels).expand(NUM_LATENTS, -1)
            clips.append(Sample(f"{caption}{who}", text, video, audio, speakers=[voice], placeholders=[2]))
    return clips


def generated_audio(model: Nava, samples: list[Sample]) -> list[Tensor]:
    """Sound that each sample's caption and voice lead to from the same noise, by ten Euler steps over sigma."""
    generator = torch.Generator().manual_seed(9)
    video = torch.randn(TINY.video_channels, *GRID, generator=generator)
    audio = torch.randn(NUM_LATENTS, TINY.audio_channels, generator=generator)
    state = [replace(sample, video=video, audio=audio) for sample in samples]
    sigmas = [*sigma_grid()[:: NUM_STEPS // 10].tolist(), 0.0]
    return [sample.audio for sample in by_euler(model, state, sigmas)]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_clips_are_learnt_and_voices_are_told_apart(tmp_path: Path) -> None:
    clips = eight_clips()
    write_latent_shards(tmp_path / "data", clips, num_shards=1)
    never: dict[str, Any] = {f"{name}_prob": 0.0 for name in ("clean_first_frame", "cross_modal_mask")}
    config = recipe(
        tmp_path / "data",
        num_steps=NUM_TRAINING_STEPS,
        plan={"num_packs": 1, "token_budget": 192},
        flow={**never, "text_dropout_prob": 0.0, "timbre_dropout_prob": 0.0},
        optim={
            "learning_rate": 1.2e-2,
            "warmup_steps": 10,
            "final_fraction": 0.02,
            "ema_decay": 0.0,
            "betas": (0.8, 0.9),
        },
        output={"log_every_steps": 20, "checkpoint_every_steps": 10_000},
    )
    with open_world() as world, Training(config, tmp_path / "run", world) as training:
        while training.has_more:
            step = training.next_step()
            training.report(step, training.learn(step))
        weights = {name: p.full_tensor().detach() for name, p in training.model.named_parameters()}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.1 * losses[0], losses

    model = Nava(SMALL)
    model.load_state_dict(weights)
    own, other = clips[0], clips[1]
    swapped = replace(own, speakers=other.speakers)
    sound, neighbour = generated_audio(model, [own, clips[4]])
    assert distance(sound, own.audio) < 0.25 * distance(sound, other.audio)
    swapped_sound, _ = generated_audio(model, [swapped, clips[4]])
    assert distance(swapped_sound, other.audio) < 0.25 * distance(swapped_sound, own.audio)
    unchanged, changed = generated_audio(model, [own, replace(clips[4], speakers=other.speakers)])
    assert torch.equal(unchanged, sound), "a voice bound to another clip of the pack is not heard"
    assert distance(changed, neighbour) > 0.1
    unbound = generated_audio(model, [replace(own, speakers=(), placeholders=()), clips[4]])
    also_unbound = generated_audio(model, [replace(swapped, speakers=(), placeholders=()), clips[4]])
    assert torch.equal(unbound[0], also_unbound[0]), "without a line to say, no voice is read"
