"""How weights move: fused AdamW, or Muon for matrices, learning rate over time, gradient clipping, the running average."""

# mypy: disallow-subclassing-any=False
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from model.training.config import OptimConfig
from schemas.errors import RecipeError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of the gradients of a parameter."""


class MuonAdamW(AdamW):
    """`torch.optim.Muon` for `matrices`, fused AdamW for the rest, both at the learning rate that AdamW's schedule sets.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one rate serves both. It knows
    no steps that are left out on the device: where `found_inf` is set, the host waits for it each step.
    """

    def __init__(self, groups: list[dict[str, Any]], matrices: list[nn.Parameter], config: OptimConfig) -> None:
        super().__init__(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
        self.matrices = frozenset(matrices)
        self.muon = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self, closure: None = None) -> None:
        """Move all weights, or none if `found_inf` says so."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None or not found_inf.item():
            for group in self.muon.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            self.muon.step()
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all weights."""
        self.muon.zero_grad(set_to_none)
        super().zero_grad(set_to_none)


def is_for_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves it, if it is the optimiser: matrices inside blocks; embeddings, heads and adapters are left to AdamW."""
    return "_blocks." in name and name.endswith(".weight") and parameter.dim() == 2


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """What `optim.kind` says; weight decay, if any, on matrices and kernels but not on biases, norms, modulation and tokens.

    Raises RecipeError when Muon is asked for and has no matrix, or leaves AdamW nothing.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = name.endswith(".weight") and parameter.dim() > 1
        if config.kind == "muon" and is_for_muon(name, parameter):
            matrices.append(parameter)
        else:
            (decayed if is_matrix and config.weight_decay else kept).append(parameter)
    both: list[dict[str, Any]] = [
        {"params": kept, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": config.weight_decay},
    ]
    groups = [group for group in both if group["params"]]
    if config.kind == "adamw":
        return AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(
            f"torch {torch.__version__} has no Muon, 2.9 has.", remedy="Take a newer one, or optim.kind=adamw."
        )
    if not matrices or not groups:
        raise RecipeError(
            f"optim.kind=muon moves matrices of blocks and leaves the rest to AdamW; what is trained are {len(matrices)} such "
            f"matrices and {sum(len(group['params']) for group in groups)} other tensors.",
            remedy="Take optim.kind=adamw, or train more of the network (network.train_only, network.lora).",
        )
    return MuonAdamW(groups, matrices, config)


def moments(optimizer: AdamW, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimiser remembers of a parameter's gradients, by name, the live tensors; before its first step zeros."""
    if isinstance(optimizer, MuonAdamW) and parameter in optimizer.matrices:
        state = optimizer.muon.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return {"momentum_buffer": state["momentum_buffer"]}
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state |= {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    return {moment: state[moment] for moment in MOMENTS}


def learning_rate_factor(step: int, config: OptimConfig, num_steps: int) -> float:
    """Learning rate of step 0, 1, ... over the peak: linear warm-up, then a cosine down to `final_fraction`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    return config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * progress)) / 2


def build_schedule(optimizer: AdamW, config: OptimConfig, num_steps: int) -> LambdaLR:
    """Sets the learning rate of the next step each time `step` is called."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, config, num_steps))


def resume_schedule(schedule: LambdaLR, state: dict[str, Any], config: OptimConfig) -> None:
    """Take up the step of a saved schedule; the rates are those of the recipe of today, if it was changed."""
    schedule.load_state_dict({**state, "base_lrs": [config.learning_rate] * len(schedule.base_lrs)})
    rates = [
        rate * factor(schedule.last_epoch) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    schedule._last_lr = rates
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all gradients over all ranks before clipping, a scalar on the device; gradients are scaled in place."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Ema:
    """Exponential moving average of the weights, sharded exactly as they are, in the same numbers.

    The decay grows as (1 + n) / (10 + n) up to `decay` over the first n updates, so that the initial weights are soon
    forgotten (the schedule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights. Cost: one fused pass over this rank's shards, no communication."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = [_local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, [_local(weight) for weight in self._weights.values()], 1 - decay)
        self.num_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """While open, the weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            held = _local(weight).clone()
            _local(weight).copy_(_local(self.averages[name]))
            _local(self.averages[name]).copy_(held)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
