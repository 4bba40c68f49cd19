"""ODE solvers of the flow: the noise grid of a run and one update per network call.

    sigma   noise level in [0, 1]; the network is called at t = 1000 sigma, x = (1 - sigma) x0 + sigma noise
    v       velocity noise - x0, so x0 = x - sigma v

Both solvers are used alike: for each t in `timesteps`, call the network and hand its velocity to `step`.
Grids and updates are those of the official release; tests hold them to its recorded trajectories.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
LAST_TRAINED_SIGMA = 0.003 / 1.002
"""Where the training grid ends before its shift (FlowMatchScheduler of the release)."""


class Solver(Protocol):
    """What `sample` needs of a solver."""

    timesteps: Tensor

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level."""
        ...


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards 1 by `shift`: shift s / (1 + (shift - 1) s)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def euler_sigmas(num_steps: int, shift: float = 5.0) -> Tensor:
    """[num_steps] fp32 noise levels of the Euler solver, descending from 1; the closing 0 is not included."""
    grid = torch.linspace(1.0, LAST_TRAINED_SIGMA, num_steps + 1, dtype=torch.float64)[:-1]
    return shift_sigmas(grid, shift).float()


def unipc_sigmas(num_steps: int, shift: float = 5.0) -> Tensor:
    """[num_steps + 1] fp32 noise levels of UniPC, the last one 0.

    The shift is applied twice, to the first level (1 - 1/1000) and to the grid that starts from it, because the release
    gives it at construction and leaves `set_timesteps` to apply it again.
    """
    top = shift_sigmas(torch.tensor(1 - 1 / NUM_TRAIN_TIMESTEPS, dtype=torch.float64), shift).float().item()
    grid = torch.linspace(top, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([shift_sigmas(grid, shift), torch.zeros(1, dtype=torch.float64)]).float()


class Euler:
    """First-order solver: one straight line per step."""

    def __init__(self, num_steps: int, shift: float = 5.0) -> None:
        self.sigmas = euler_sigmas(num_steps, shift)
        self.timesteps = self.sigmas * NUM_TRAIN_TIMESTEPS
        self._index = 0

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level; the last step lands on 0."""
        here = self.sigmas[self._index].item()
        self._index += 1
        there = self.sigmas[self._index].item() if self._index < len(self.sigmas) else 0.0
        return sample + velocity * (there - here)


class UniPC:
    """Second-order predictor-corrector of Zhao et al. (arXiv 2302.04867), variant B2, on predicted x0.

    Every network call serves twice: it first corrects the step that led here, then predicts the next one. The first and
    the last step are of first order. The network sees whole-numbered timesteps (`timesteps` is int64), as in the release.
    An instance walks the grid once; make a new one for each sample and modality.
    """

    def __init__(self, num_steps: int, shift: float = 5.0) -> None:
        self.sigmas = unipc_sigmas(num_steps, shift)
        self.timesteps = (self.sigmas[:-1] * NUM_TRAIN_TIMESTEPS).to(torch.int64)
        self._levels: list[float] = self.sigmas.double().tolist()
        self._index = 0
        self._order = 1
        self._x0_history: list[Tensor] = []
        self._sample_before: Tensor | None = None

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level, from the velocity at this one (same shape, any floating dtype)."""
        num_steps = len(self._levels) - 1
        if self._index >= num_steps:
            raise IndexError(f"UniPC was made for {num_steps} steps and has taken them all: make a new one per sample")
        x0 = sample - self._levels[self._index] * velocity
        if self._sample_before is not None:
            sample = self._correct(self._sample_before, x0)
        self._x0_history = [*self._x0_history[-1:], x0]
        self._order = min(2, num_steps - self._index, len(self._x0_history))
        self._sample_before = sample
        self._index += 1
        return self._predict(sample)

    def _predict(self, sample: Tensor) -> Tensor:
        """UniP: from level index-1 to level index, with the slope of the two newest x0 when the order is 2."""
        here, there = self._levels[self._index - 1], self._levels[self._index]
        x0 = self._x0_history[-1]
        step_log_snr = _log_snr(there) - _log_snr(here)
        phi_1 = math.expm1(-step_log_snr)
        moved = there / here * sample - (1 - there) * phi_1 * x0
        if self._order == 1:
            return moved
        ratio = (_log_snr(self._levels[self._index - 2]) - _log_snr(here)) / step_log_snr
        slope = (self._x0_history[-2] - x0) / ratio
        return moved - (1 - there) * phi_1 * 0.5 * slope

    def _correct(self, sample_before: Tensor, x0_now: Tensor) -> Tensor:
        """UniC: the last step again, now knowing the x0 predicted at its end."""
        here, there = self._levels[self._index - 1], self._levels[self._index]
        x0 = self._x0_history[-1]
        step_log_snr = _log_snr(there) - _log_snr(here)
        phi_1 = math.expm1(-step_log_snr)
        moved = there / here * sample_before - (1 - there) * phi_1 * x0
        change = x0_now - x0
        if self._order == 1:
            return moved - (1 - there) * phi_1 * 0.5 * change
        ratio = (_log_snr(self._levels[self._index - 2]) - _log_snr(here)) / step_log_snr
        slope = (self._x0_history[-2] - x0) / ratio
        weight_slope, weight_change = _corrector_weights(ratio, -step_log_snr, phi_1)
        return moved - (1 - there) * phi_1 * (weight_slope * slope + weight_change * change)


def _log_snr(sigma: float) -> float:
    """log((1 - sigma) / sigma), infinite at sigma 0."""
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


def _corrector_weights(ratio: float, h: float, phi_1: float) -> tuple[float, float]:
    """Weights that solve [[1, 1], [ratio, 1]] w = b, the order conditions of UniC-2 (eq. 8 of the paper, B2)."""
    phi_2 = phi_1 / h - 1
    phi_3 = phi_2 / h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    weight_slope = (b_1 - b_2) / (1 - ratio)
    return weight_slope, b_1 - weight_slope
