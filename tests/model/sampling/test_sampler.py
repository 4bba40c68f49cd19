"""Solvers against recorded schedules and trajectories and an exact solution; guidance and the loop by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.network.config import NavaConfig
from model.network.nava import Nava, Sample, pack
from model.sampling.config import Guidance, SampleConfig
from model.sampling.sampler import Euler, FewSteps, SampleRequest, UniPC, euler_sigmas, guide_audio, guide_video, sample
from schemas.errors import ModelError


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(golden_dir / "flow_match.safetensors")


@pytest.mark.parametrize("num_steps", [25, 50])
def test_euler_grid_is_the_recorded_one(golden: dict[str, Tensor], num_steps: int) -> None:
    solver = Euler(num_steps)
    torch.testing.assert_close(euler_sigmas(num_steps), golden[f"euler_{num_steps}/sigmas"], rtol=1e-6, atol=0)
    torch.testing.assert_close(solver.timesteps, golden[f"euler_{num_steps}/timesteps"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_steps", [4, 25, 50])
def test_unipc_grid_is_the_recorded_one(golden: dict[str, Tensor], num_steps: int) -> None:
    solver = UniPC(num_steps)
    torch.testing.assert_close(solver.sigmas, golden[f"unipc_{num_steps}/sigmas"], rtol=1e-6, atol=0)
    assert torch.equal(solver.timesteps, golden[f"unipc_{num_steps}/timesteps"])


def test_unipc_walks_the_recorded_trajectory(golden: dict[str, Tensor]) -> None:
    sample = golden["unipc_toy/x_init"]
    solver = UniPC(10)
    for index, t in enumerate(solver.timesteps):
        sample = solver.step(torch.sin(1.7 * sample) + 0.3 * sample * t / 1000, sample)
        torch.testing.assert_close(sample, golden["unipc_toy/trajectory"][index], rtol=1e-5, atol=1e-6)


def _exact_velocity(sample: Tensor, sigma: float, std: float) -> Tensor:
    """Velocity of the flow whose data is N(0, std^2): E[noise - x0 | x], linear in x."""
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    return sample * (sigma - (1 - sigma) * std**2) / variance


def _error(solver: Euler | UniPC, std: float = 0.5) -> float:
    """Distance from the exact end point of the Gaussian flow, which scales the start by std / std(start)."""
    sample = torch.tensor([1.0, -0.3, 2.0], dtype=torch.float64)
    first = solver.sigmas[0].item()
    exact = sample * std / math.sqrt((1 - first) ** 2 * std**2 + first**2)
    num_steps = len(solver.timesteps)
    for sigma in solver.sigmas[:num_steps].double().tolist():
        sample = solver.step(_exact_velocity(sample, sigma, std), sample)
    return float((sample - exact).abs().max())


def test_solvers_converge_to_the_exact_end_point() -> None:
    assert _error(Euler(200)) < _error(Euler(20)) / 5
    assert _error(UniPC(40)) < _error(UniPC(10)) / 10
    assert _error(UniPC(40)) < _error(Euler(40)) / 5


def test_a_spent_solver_refuses_another_step() -> None:
    solver = UniPC(2)
    sample = torch.ones(3)
    for _ in solver.timesteps:
        sample = solver.step(torch.zeros(3), sample)
    with pytest.raises(IndexError, match="2 steps"):
        solver.step(torch.zeros(3), sample)


def test_guidance_keeps_both_conventions_of_the_release() -> None:
    v, n, m, tau = (torch.tensor(x) for x in (10.0, 7.0, 8.0, 9.5))
    guidance = Guidance(video_text=3, audio_text=2, video_alignment=5, audio_alignment=4, timbre=6)
    assert guide_video(v, n, m, guidance) == 10 + 3 * 3 + 5 * 2
    assert guide_video(v, n, None, guidance) == 7 + 3 * 3
    assert guide_audio(v, n, m, tau, guidance) == 10 + 2 * 3 + 4 * 2 + 6 * 0.5
    assert guide_audio(v, n, m, None, guidance) == 10 + 2 * 3 + 4 * 2
    assert guide_audio(v, n, None, tau, guidance) == 10 + 2 * 3 + 6 * 0.5
    assert guide_audio(v, n, None, None, guidance) == 7 + 2 * 3


def test_defaults_are_the_release_s() -> None:
    guidance = Guidance()
    assert (guidance.video_text, guidance.audio_text) == (3, 2)
    assert (guidance.video_alignment, guidance.audio_alignment, guidance.timbre) == (3, 2, 3)
    config = SampleConfig()
    assert (config.num_steps, config.shift, config.solver) == (50, 5.0, "unipc")


class CountingNava(Nava):
    """Counts its calls."""

    num_calls = 0

    def forward(self, packed, t_B):  # type: ignore[no-untyped-def]
        self.num_calls += 1
        return super().forward(packed, t_B)


@pytest.fixture(scope="module")
def model() -> CountingNava:
    torch.manual_seed(0)
    network = CountingNava(NavaConfig.preset("nava_tiny"))
    network.init_weights()
    torch.nn.init.normal_(network.head.head.weight, std=0.1)  # zero at the start of training: nothing to sample
    return network.eval()


def _request(**changes: object) -> SampleRequest:
    draws = torch.Generator().manual_seed(5)
    request = SampleRequest(
        text=torch.randn(12, 48, generator=draws),
        negative_text=torch.randn(5, 48, generator=draws),
        video_grid=(3, 4, 6),
        num_audio_latents=9,
        placeholders=(3, 9),
        speakers=[torch.randn(192, generator=draws), None],
        num_steps=3,
        shift=5.0,
        solver="unipc",
        seed=0,
        guidance=Guidance(),
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def test_one_step_is_the_guided_sum_of_four_passes(model: CountingNava) -> None:
    request = _request(num_steps=1, solver="euler", seed=7)
    got = sample(model, request)
    video = torch.randn(6, 3, 4, 6, generator=torch.Generator().manual_seed(14))
    audio = torch.randn(9, 10, generator=torch.Generator().manual_seed(15))
    bound = {"placeholders": request.placeholders, "speakers": request.speakers}
    kinds = [
        Sample("v", request.text, video, audio, **bound),
        Sample("n", request.negative_text, video, audio),
        Sample("m", request.text, video, audio, is_cross_modal_masked=True, **bound),
        Sample("t", request.text, video, audio, placeholders=request.placeholders, speakers=None),
    ]
    with torch.no_grad():
        velocities = [model(pack([kind], model.config), torch.tensor([1000.0])) for kind in kinds]
    v, n, m, tau = (velocity.video[0] for velocity in velocities)
    torch.testing.assert_close(got.video, video - (v + 3 * (v - n) + 3 * (v - m)))
    v, n, m, tau = (velocity.audio[0] for velocity in velocities)
    torch.testing.assert_close(got.audio, audio - (v + 2 * (v - n) + 2 * (v - m) + 3 * (v - tau)))


@pytest.mark.parametrize(
    ("changes", "num_calls"),
    [
        ({}, 4),
        ({"speakers": None}, 3),
        ({"speakers": [None, None]}, 3),
        ({"guidance": Guidance(has_timbre=False)}, 3),
        ({"guidance": Guidance(has_timbre=False, has_alignment=False)}, 2),
        ({"num_audio_latents": 0}, 2),
        ({"video_grid": None}, 3),
    ],
)
def test_only_passes_that_matter_are_computed(model: CountingNava, changes: dict[str, object], num_calls: int) -> None:
    model.num_calls = 0
    got = sample(model, _request(num_steps=2, **changes))
    assert model.num_calls == 2 * num_calls
    assert (got.video is None) == (changes.get("video_grid", 0) is None)
    assert (got.audio is None) == (changes.get("num_audio_latents", 9) == 0)


def test_few_steps_have_the_release_s_levels_and_land_on_x0_from_whatever_noise() -> None:
    solver, x0 = FewSteps(4, 5.0, seed=3), torch.randn(2000, generator=torch.Generator().manual_seed(0))
    assert solver.sigmas.tolist() == pytest.approx([1.0, 15 / 16, 5 / 6, 5 / 8])
    assert solver.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])
    state = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    noises = [state]
    for sigma, following in pairwise([*solver.sigmas.tolist(), 0.0]):
        state = solver.step((state - x0) / sigma, state)
        if following:
            noises.append((state - (1 - following) * x0) / following)
    torch.testing.assert_close(state, x0, atol=1e-5, rtol=0)
    assert all(float(noise.std()) == pytest.approx(1, abs=0.05) for noise in noises)
    likeness = torch.corrcoef(torch.stack(noises)) - torch.eye(4)
    assert float(likeness.abs().max()) < 0.1, "noise is new each time"


def test_few_steps_ask_the_condition_alone_and_follow_the_seed(model: CountingNava) -> None:
    model.num_calls = 0
    request = _request(num_steps=4, solver="few_steps")
    first = sample(model, request)
    assert model.num_calls == 4
    assert torch.equal(sample(model, replace(request, guidance=Guidance(video_text=9.0))).video, first.video)
    other = sample(model, replace(request, seed=1))
    assert not torch.equal(other.audio, first.audio)
    picture = torch.randn(6, 1, 4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sample(model, replace(request, first_frame=picture)).video[:, :1], picture)


def test_the_seed_decides(model: CountingNava) -> None:
    first, again, other = (sample(model, _request(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.audio, again.audio)
    assert not torch.allclose(first.video, other.video)
    alone = sample(model, _request(seed=1, video_grid=None, guidance=Guidance(has_alignment=False)))
    assert not torch.allclose(first.audio, alone.audio)


def test_a_given_first_frame_stays_and_steers_the_rest(model: CountingNava) -> None:
    frame = torch.randn(6, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    with_frame, without = sample(model, _request(first_frame=frame)), sample(model, _request())
    assert torch.equal(with_frame.video[:, :1], frame)
    assert not torch.allclose(with_frame.video[:, 1:], without.video[:, 1:])


def test_a_voiceless_alignment_pass_is_the_release_s_accident(model: CountingNava) -> None:
    ours = sample(model, _request())
    official = sample(model, _request(guidance=Guidance(is_alignment_voiceless=True)))
    assert not torch.allclose(ours.audio, official.audio)
    same = _request(speakers=None)
    torch.testing.assert_close(
        sample(model, same).audio, sample(model, replace(same, guidance=Guidance(is_alignment_voiceless=True))).audio
    )


def test_a_request_that_does_not_bind_is_refused(model: CountingNava) -> None:
    with pytest.raises(ModelError, match="2 speech placeholders but 1 voices"):
        sample(model, _request(speakers=[None]))
