"""Solvers against the recorded schedules and trajectories of the release, and against an exact solution."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.sampler import Euler, UniPC, euler_sigmas

GOLDEN = Path(os.environ.get("NAVA_TEST_GOLDEN", Path(__file__).parents[3] / "shared/golden/nava_tiny"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = GOLDEN / "flow_match.safetensors"
    if not path.exists():
        pytest.skip("golden flow_match.safetensors is not beside the checkout (NAVA_TEST_GOLDEN)")
    return load_file(path)


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
