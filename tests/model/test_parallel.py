"""Sharded training equals plain training: gradients, weights, averages; at any number of ranks, copies and micro-steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.batching import EpochPlan
from model.data import SampleReader, open_shards
from model.flow import FlowObjective, clip_generators
from model.index import ShardIndex
from model.latents import read_latents, restrict
from model.nava import Nava, pack
from model.optim import learning_rate_factor
from model.parallel import make_mesh, open_world, parallelize
from model.train_config import ParallelConfig, TrainConfig
from schemas.errors import PlanError
from tests.model.latent_shards import TINY, random_clip, recipe, run_ranks, write_latent_shards
from tests.model.rank_jobs import gradients_and_weights

NUM_STEPS = 20


def plain_training(config: TrainConfig, num_steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradients of the first step, weights after all): one process, no sharding, all packs of a step in one loop."""
    dtype = getattr(torch, config.parallel.precision)
    index = ShardIndex.open(config.data.index_path, split="train")
    reader = SampleReader(index, open_shards(config.data.shards))
    plan = EpochPlan(index, config.plan, config.shape)
    objective = FlowObjective(config.flow)
    model = Nava(TINY)
    model.init_weights(torch.Generator().manual_seed(config.seed))
    model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.optim.betas, weight_decay=0.0)
    gradients: dict[str, Tensor] = {}
    for number, packs in zip(range(1, num_steps + 1), plan.all_packs(), strict=False):
        batches = []
        for planned in packs:
            refs = [plan.sample(item) for item in planned.items]
            clips = [restrict(read_latents(reader.read(ref.row)), ref.use) for ref in refs]
            generators = clip_generators(config.seed, number, [clip.clip_id for clip in clips])
            batches.append(objective.noise(objective.sample_modes(clips, generators), generators))
        terms = [objective.loss(model(pack(n.samples, TINY), n.timesteps), n) for n in batches]
        divisors = torch.stack([t.divisors() for t in terms]).sum(0)
        optimizer.zero_grad()
        sum(objective.total(t, divisors) for t in terms).backward()
        if number == 1:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        for group in optimizer.param_groups:
            factor = learning_rate_factor(number - 1, config.optim, config.num_steps)
            group["lr"] = config.optim.learning_rate * factor
        optimizer.step()
    return gradients, {name: p.detach().clone() for name, p in model.named_parameters()}


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of any tensor over the largest value of that tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n].double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-30))
        for n, e in expected.items()
    )


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainConfig, Path, int]]:
    """What two ranks did in one go: both precisions sharded, and float64 in two copies with gradients scattered early."""
    folder = tmp_path_factory.mktemp("ranks")
    write_latent_shards(folder / "data", [random_clip(i) for i in range(24)])
    copies = {"precision": "float64", "num_replicas": 2, "sync_every_micro_step": True, "recompute": "full"}
    parallels = {"float32": {"precision": "float32"}, "float64": {"precision": "float64"}, "copies": copies}
    done = {}
    for name, parallel in parallels.items():
        num_steps = 3 if name == "copies" else NUM_STEPS
        config = recipe(folder / "data", num_steps=num_steps, parallel=parallel)
        done[name] = config, folder / name, num_steps
    run_ranks(gradients_and_weights, 2, folder, list(done.values()))
    return done


@pytest.mark.parametrize(
    ("name", "gradient_bar", "weight_bar"),
    [("float32", 2e-6, None), ("float64", 1e-13, 1e-12), ("copies", 1e-13, 1e-12)],
)
def test_two_ranks_equal_one_plain_process(
    jobs: dict[str, tuple[TrainConfig, Path, int]], name: str, gradient_bar: float, weight_bar: float | None
) -> None:
    """No bar for float32 weights: AdamW's division amplifies rounding."""
    config, folder, num_steps = jobs[name]
    gradients, weights = plain_training(config, num_steps)
    found = torch.load(folder.with_suffix(".pt"))
    worst_gradient, worst_weight = worst(found["gradients"], gradients), worst(found["weights"], weights)
    print(f"{name}: gradients {worst_gradient:.1e}, weights after {num_steps} steps {worst_weight:.1e}")
    assert worst_gradient < gradient_bar
    if weight_bar is not None:
        assert worst_weight < weight_bar
    assert all((found["averages"][n] - w).abs().max() > 0 for n, w in found["weights"].items() if w.dim() > 1)


def test_compiled_blocks_share_graphs_and_keep_names_and_results(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    samples = [[random_clip(i) for i in numbers] for numbers in ((1, 2), (4, 5, 7), (3, 8), (10, 11, 13, 14))]
    plain = Nava(TINY)
    plain.init_weights(torch.Generator().manual_seed(0))
    compiled = Nava(TINY)
    compiled.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    config = ParallelConfig(precision="float32", recompute="none").model_copy(update={"compile_backend": counter})
    with open_world() as world:
        parallelize(compiled, make_mesh(world, config), config)
        assert set(dict(compiled.named_parameters())) == set(dict(plain.named_parameters()))
        for clips in samples:
            packed, timesteps = pack(clips, TINY), torch.full((len(clips),), 500.0)
            for kind in ("video", "audio"):
                pairs = zip(
                    getattr(compiled(packed, timesteps), kind), getattr(plain(packed, timesteps), kind), strict=True
                )
                assert all(a is None or torch.allclose(a, b, atol=1e-5) for a, b in pairs)
        with pytest.raises(PlanError, match="divisor"):
            make_mesh(world, ParallelConfig(num_replicas=3))
    assert counter.frame_count <= 2 * 2, "one graph for each kind of block, and at most one more for other lengths"
