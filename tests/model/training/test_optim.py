"""Learning rate, weight decay, clipping and the running average, each against its definition."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from model.network.config import NavaConfig
from model.network.nava import Nava
from model.training.config import OptimConfig
from model.training.optim import Ema, build_optimizer, build_schedule, clip_gradients, learning_rate_factor


def test_learning_rate_warms_up_and_falls_on_a_cosine() -> None:
    config = OptimConfig(warmup_steps=10, final_fraction=0.1)
    factors = [learning_rate_factor(step, config, 110) for step in range(111)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert learning_rate_factor(500, config, 110) == pytest.approx(0.1)
    constant = OptimConfig(warmup_steps=0, final_fraction=1)
    assert {learning_rate_factor(step, constant, 10) for step in range(10)} == {1.0}


def test_the_schedule_sets_the_rate_of_the_step_to_come() -> None:
    config = OptimConfig(learning_rate=0.5, warmup_steps=4)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config)
    schedule = build_schedule(optimizer, config, 8)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5])


def test_weight_decay_spares_everything_but_matrices_and_kernels() -> None:
    model = Nava(NavaConfig.preset("nava_tiny"))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept, decayed = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert kept | decayed == set(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert {"speaker_embedding.null_token", "head.modulation", "double_blocks.0.norm3.weight"} <= kept
    assert {"patch_embedding.weight", "double_blocks.0.self_attn.q.weight", "head.head.weight"} <= decayed
    assert len(build_optimizer(model, OptimConfig()).param_groups) == 1


def test_clipping_scales_to_the_norm_and_reports_what_it_was() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = clip_gradients(parameters, 1.0)
    assert float(norm) == pytest.approx(2 * math.sqrt(7))
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)) == pytest.approx(1, rel=1e-5)
    assert float(clip_gradients(parameters, 5.0)) == pytest.approx(1, rel=1e-5)
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)) == pytest.approx(1, rel=1e-5)


def test_the_average_follows_its_definition_and_outlives_changes_in_place() -> None:
    model = torch.nn.Linear(2, 1)
    ema = Ema(model, decay=0.5)
    expected = model.weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.averages["weight"], expected)
    assert ema.num_updates == 20
    assert not torch.equal(ema.averages["weight"], model.weight)
