"""The objective: what is drawn, what is scored, and that every correction of the release can be switched off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.network.flow import (
    FlowObjective,
    Noised,
    clip_generators,
    interpolate,
    sigma_grid,
    timestep_weights,
)
from model.network.flow_config import FlowConfig
from model.network.nava import Nava, Sample, Velocity, pack


@pytest.fixture
def many(make_sample: Callable[..., Sample]) -> list[Sample]:
    """Four hundred joint samples of two voices, small enough to draw from quickly."""
    one = make_sample("x", grid=(2, 2, 2), audio=2, text=5, placeholders=[1, 3])
    return [replace(one, clip_id=str(i)) for i in range(400)]


def generators(samples: list[Sample], seed: int = 0) -> list[torch.Generator]:
    return clip_generators(seed, 0, [s.clip_id for s in samples])


def test_weights_and_grid_have_the_properties_of_the_specification() -> None:
    sigmas = sigma_grid()
    weights = timestep_weights(sigmas)
    assert sigmas[0] == 1
    assert (sigmas.diff() < 0).all()
    assert (sigmas > 0.834).sum() == pytest.approx(500, abs=2)
    assert sigmas.mean() == pytest.approx(0.75, abs=0.01)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] == 0
    assert weights.max() == pytest.approx(2.07, abs=0.005)
    assert sigmas[weights.argmax()] == pytest.approx(0.5, abs=0.01)
    assert weights[-1] == pytest.approx(0.125, abs=0.001)
    assert (weights < 0.40).double().mean() == pytest.approx(0.25, abs=0.02)


def test_noising_follows_the_path_and_the_target_leads_back(make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample("a"), make_sample("b", grid=None), make_sample("c", audio=0)]
    noised = FlowObjective(FlowConfig()).noise(samples, generators(samples))
    for i, (clean, given) in enumerate(zip(samples, noised.samples, strict=True)):
        sigma = noised.timesteps[i] / 1000
        for kind, targets in (("video", noised.video_targets), ("audio", noised.audio_targets)):
            x0, xt, target = getattr(clean, kind), getattr(given, kind), targets[i]
            assert (x0 is None) == (xt is None) == (target is None)
            if x0 is not None:
                torch.testing.assert_close(xt - sigma * target, x0, atol=1e-5, rtol=0)
                assert (target + x0).std() == pytest.approx(1, abs=0.3)  # the noise


def test_a_given_first_frame_is_clean_and_unscored(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample("a", is_first_frame_clean=True)
    for is_scored in (False, True):
        objective = FlowObjective(FlowConfig(score_clean_frame=is_scored))
        noised = objective.noise([sample], generators([sample]))
        assert torch.equal(noised.samples[0].video[:, 0], sample.video[:, 0])
        assert not torch.equal(noised.samples[0].video[:, 1], sample.video[:, 1])
        wrong = noised.video_targets[0].clone()
        wrong[:, 0] += 100
        terms = objective.loss(Velocity([wrong], [noised.audio_targets[0]]), noised)
        assert (terms.video_mse[0] > 0) == is_scored
        assert terms.video_shares[0] == (3 if is_scored else 2) * 4 * 6


def test_modes_are_drawn_per_sample_at_their_rates(many: list[Sample]) -> None:
    moded = FlowObjective(FlowConfig()).sample_modes(many, generators(many))
    num = len(many)
    assert sum(s.is_first_frame_clean for s in moded) / num == pytest.approx(0.5, abs=0.1)
    assert sum(s.is_cross_modal_masked for s in moded) / num == pytest.approx(0.2, abs=0.08)
    assert sum(len(s.text) == 0 for s in moded) / num == pytest.approx(0.1, abs=0.06)
    voices = [voice for s in moded for voice in s.speakers]
    assert sum(voice is None for voice in voices) / len(voices) == pytest.approx(0.1, abs=0.05)
    assert all(s.placeholders == () and s.speakers == () for s in moded if len(s.text) == 0)
    assert all(len(s.speakers) == len(s.placeholders) for s in moded)


def test_the_official_switch_draws_modes_for_the_whole_batch(many: list[Sample]) -> None:
    objective = FlowObjective(FlowConfig.official())
    batches = [many[i : i + 4] for i in range(0, 80, 4)]
    seen = set()
    for batch in batches:
        moded = objective.sample_modes(batch, generators(batch))
        modes = {(s.is_first_frame_clean, s.is_cross_modal_masked) for s in moded}
        assert len(modes) == 1
        seen |= modes
    assert len(seen) > 1


def test_text_dropout_works_at_batch_size_one_and_officially_does_not(many: list[Sample]) -> None:
    def num_dropped(config: FlowConfig) -> int:
        objective = FlowObjective(config)
        return sum(len(objective.sample_modes([s], generators([s]))[0].text) == 0 for s in many)

    assert 15 < num_dropped(FlowConfig()) < 75
    assert num_dropped(FlowConfig.official()) == 0
    assert num_dropped(FlowConfig(text_dropout_prob=0)) == 0


def test_modes_apply_only_where_they_mean_something(make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample("a", grid=None), make_sample("v", audio=0), make_sample("still", grid=(1, 4, 4))]
    always = FlowConfig(clean_first_frame_prob=1, cross_modal_mask_prob=1)
    moded = FlowObjective(always).sample_modes(samples, generators(samples))
    assert [s.is_first_frame_clean for s in moded] == [False, True, False]
    assert [s.is_cross_modal_masked for s in moded] == [False, False, True]


def test_a_sample_is_noised_alike_in_any_batch(many: list[Sample]) -> None:
    objective = FlowObjective(FlowConfig())

    def prepared(samples: list[Sample]) -> Noised:
        draws = generators(samples, seed=5)
        return objective.noise(objective.sample_modes(samples, draws), draws)

    together, alone = prepared(many[:6]), prepared([many[4]])
    assert torch.equal(together.samples[4].video, alone.samples[0].video)
    assert together.samples[4].is_first_frame_clean == alone.samples[0].is_first_frame_clean
    assert together.timesteps[4] == alone.timesteps[0]
    other_epoch = clip_generators(5, 1, [many[4].clip_id])
    assert not torch.equal(objective.noise([many[4]], other_epoch).samples[0].audio, alone.samples[0].audio)


def test_importance_sampling_keeps_the_expected_loss_and_lowers_its_variance(many: list[Sample]) -> None:
    """The loss as a function of t alone: sum w(t) f(t) / K against its two estimators."""

    def f(t: Tensor) -> Tensor:
        return 1 + (t / 1000 - 0.3) ** 2

    exact = (timestep_weights(sigma_grid()) * f(sigma_grid() * 1000)).mean().item()
    spread = {}
    for is_importance in (True, False):
        objective = FlowObjective(FlowConfig(importance_sampling=is_importance))
        noised = objective.noise(many, generators(many))
        estimates = noised.weights * f(noised.timesteps)
        spread[is_importance] = estimates.std().item()
        assert estimates.mean().item() == pytest.approx(exact, abs=4 * spread[is_importance] / 20)
    assert spread[True] < 0.3 * spread[False]


def constant_error(samples: list[Sample], error: float) -> tuple[Velocity, Noised]:
    """Velocities that are off by `error` (times the sample number + 1) everywhere, with weights 1, 2, 3 ..."""
    targets = {kind: [getattr(s, kind) for s in samples] for kind in ("video", "audio")}
    velocity = {
        kind: [None if x is None else x + error * (i + 1) for i, x in enumerate(xs)] for kind, xs in targets.items()
    }
    weights = torch.arange(1.0, len(samples) + 1)
    noised = Noised(samples, torch.full((len(samples),), 500.0), weights, targets["video"], targets["audio"])
    return Velocity(velocity["video"], velocity["audio"]), noised


def test_the_token_mean_is_the_same_however_the_batch_is_split(make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample("a"), make_sample("b", grid=None, audio=30), make_sample("c", grid=(2, 2, 4), audio=2)]
    objective = FlowObjective(FlowConfig())
    velocity, noised = constant_error(samples, 0.5)
    whole = objective.loss(velocity, noised)
    parts = []
    for i in range(3):
        one = Noised(samples[i : i + 1], *(x[i : i + 1] for x in list(vars(noised).values())[1:]))
        parts.append(objective.loss(Velocity(velocity.video[i : i + 1], velocity.audio[i : i + 1]), one))
    divisors = torch.stack([terms.divisors() for terms in parts]).sum(0)
    assert divisors.tolist() == [72 + 16, 9 + 30 + 2]
    split = sum(objective.total(terms, divisors) for terms in parts)
    torch.testing.assert_close(split, objective.total(whole))
    video = (1 * 0.25 * 72 + 3 * 2.25 * 16) / 88
    audio = (1 * 0.25 * 9 + 2 * 1.0 * 30 + 3 * 2.25 * 2) / 41
    assert objective.total(whole).item() == pytest.approx(video + 0.2 * audio, rel=1e-5)


def test_the_official_mean_is_over_samples(make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample("a"), make_sample("c", grid=(2, 2, 4), audio=2)]
    objective = FlowObjective(FlowConfig.official())
    velocity, noised = constant_error(samples, 1.0)
    total = objective.total(objective.loss(velocity, noised))
    assert total.item() == pytest.approx((1 * 1 * 1.2 + 2 * 4 * 1.2) / 2, rel=1e-5)


def test_the_official_switch_rounds_latents_and_noise(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample("a")
    noised = FlowObjective(FlowConfig.official()).noise([sample], generators([sample]))
    assert noised.video_targets[0].dtype == torch.bfloat16
    assert noised.samples[0].video.dtype == torch.float32
    exact = FlowObjective(FlowConfig()).noise([sample], generators([sample]))
    assert exact.video_targets[0].dtype == torch.float32


def test_interpolation_ends_at_data_and_noise() -> None:
    clean, noise = torch.randn(3), torch.randn(3)
    assert torch.equal(interpolate(clean, noise, 0.0), clean)
    assert torch.equal(interpolate(clean, noise, 1.0), noise)


@pytest.mark.slow
def test_a_tiny_network_learns_a_clip_by_heart(make_sample: Callable[..., Sample], tiny_nava: Nava) -> None:
    """One joint and one audio clip, thirty steps: the loss on fixed noise falls to a third."""
    samples = [make_sample("a", grid=(2, 4, 4), audio=6, placeholders=[2]), make_sample("b", grid=None, audio=12)]
    objective = FlowObjective(FlowConfig())
    model = Nava(tiny_nava.config)
    model.load_state_dict(tiny_nava.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    noised = objective.noise(samples, generators(samples))
    losses = []
    for _ in range(30):
        velocity = model(pack(noised.samples, model.config), noised.timesteps)
        loss = objective.total(objective.loss(velocity, noised))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
