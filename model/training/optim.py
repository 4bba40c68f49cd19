"""How weights move: fused AdamW, learning rate over time, gradient clipping, the running average."""

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


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Fused AdamW; weight decay, if any, on matrices and kernels but not on biases, norms, modulation and tokens."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = name.endswith(".weight") and parameter.dim() > 1
        (decayed if is_matrix and config.weight_decay else kept).append(parameter)
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


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
