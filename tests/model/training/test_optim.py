"""Learning rate, weight decay, clipping and the running average, each against its definition."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from model.network.config import NavaConfig
from model.network.lora import train_only
from model.network.nava import Nava
from model.training.config import OptimConfig
from model.training.health import leave_out_unless_finite, num_updates
from model.training.memory import states_per_gpu
from model.training.optim import Ema, build_optimizer, build_schedule, clip_gradients, learning_rate_factor, moments
from schemas.errors import RecipeError
from tests.model.latent_shards import recipe


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


def test_muon_moves_the_matrices_of_blocks_and_leaves_out_steps_as_adamw_does() -> None:
    model = Nava(NavaConfig.preset("nava_tiny", num_align_layers=1, num_fusion_layers=1))
    model.init_weights(torch.Generator().manual_seed(0))
    config = OptimConfig(kind="muon", learning_rate=0.01, warmup_steps=4)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, 8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).sign()
    leave_out_unless_finite(optimizer, torch.tensor(float("nan")))
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert num_updates(optimizer) == 0
    leave_out_unless_finite(optimizer, torch.tensor(1.0))
    optimizer.step()
    schedule.step()
    assert num_updates(optimizer) == 1
    kinds = {name: set(moments(optimizer, p)) for name, p in model.named_parameters()}
    by_muon = {name for name, kept in kinds.items() if kept == {"momentum_buffer"}}
    assert {"double_blocks.0.cross_attn.q_audio.weight", "single_blocks.0.ffn.2.weight"} <= by_muon
    assert not by_muon & {
        "head.head.weight",
        "text_embedding.0.weight",
        "single_blocks.0.norm3.weight",
        "time_projection.1.bias",
    }
    for name, p in model.named_parameters():
        moved = p.detach() - before[name]
        if name in by_muon:  # orthogonal, of the size that Muon's authors scale it to; five iterations come near it
            sizes = torch.linalg.svdvals(moved) / (0.01 / 4 * 0.2 * max(p.shape) ** 0.5)
            assert 0.3 < float(sizes.min()) <= float(sizes.max()) < 1.4, name
        else:
            torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01 / 4), rtol=1e-3, atol=1e-6)


def test_memory_counts_one_moment_of_what_muon_moves() -> None:
    config = recipe(Path("nowhere"))
    optim = config.optim.model_copy(update={"kind": "muon"})
    states = [states_per_gpu(c, 1) for c in (config, config.model_copy(update={"optim": optim}))]
    model = Nava(config.network.network())
    optimizer = build_optimizer(model, optim)
    kept = sum(value.nbytes for p in model.parameters() for value in moments(optimizer, p).values())
    assert states[1] == 3 * sum(p.nbytes for p in model.parameters()) + kept, "weights, gradients, average"
    assert states[0] - states[1] == 2 * sum(p.nbytes for p in model.parameters()) - kept > 0


def test_muon_without_matrices_or_with_nothing_else_is_refused() -> None:
    with pytest.raises(RecipeError, match="are 0 such matrices and 2 other tensors"):
        build_optimizer(torch.nn.Linear(2, 2), OptimConfig(kind="muon"))
    model = Nava(NavaConfig.preset("nava_tiny"))
    train_only(model, ("*ffn.0.weight",))
    with pytest.raises(RecipeError, match="such matrices and 0 other tensors"):
        build_optimizer(model, OptimConfig(kind="muon"))


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
