"""Sharded training equals plain training: gradients, weights, averages; at any number of ranks, copies and micro-steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.network.nava import Nava, pack
from model.ranks import open_world
from model.training.config import OptimConfig, ParallelConfig, TrainConfig
from model.training.optim import build_optimizer
from model.training.parallel import make_mesh, parallelize
from schemas.errors import PlanError
from tests.model.latent_shards import SHALLOW, TINY, random_clip, recipe, run_ranks, write_latent_shards
from tests.model.plain_training import plain_training, worst
from tests.model.rank_jobs import MuonMatrix, gradients_and_weights, in_turn, muon_steps

pytestmark = pytest.mark.xdist_group("ranks")  # whoever has the process that ranks are forked off

NUM_STEPS = 6


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainConfig, Path, int]]:
    """What two ranks did in one go: both precisions sharded, and float64 in two copies with gradients scattered early.

    One of them with two blocks of each kind, as what is gathered ahead of its use is that of the next block.
    """
    folder = tmp_path_factory.mktemp("ranks")
    write_latent_shards(folder / "data", [random_clip(i) for i in range(24)])
    copies = {"precision": "float64", "num_replicas": 2, "sync_every_micro_step": True, "recompute": "full"}
    parallels = {"float32": {"precision": "float32"}, "float64": {"precision": "float64"}, "copies": copies}
    done = {}
    for name, parallel in parallels.items():
        num_steps, depth = (NUM_STEPS, {}) if name == "float64" else (2, SHALLOW)
        config = recipe(folder / "data", num_steps=num_steps, parallel=parallel, network={"changes": depth})
        done[name] = config, folder / name, num_steps
    work = [(gradients_and_weights, (list(done.values()),)), (muon_steps, (folder / "muon.pt",))]
    run_ranks(in_turn, 2, folder, work)
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gradient_bar", "weight_bar"),
    [("float32", 2e-6, None), ("float64", 1e-13, 1e-12), ("copies", 1e-13, 1e-12)],
)
def test_two_ranks_equal_one_plain_process(
    jobs: dict[str, tuple[TrainConfig, Path, int]], name: str, gradient_bar: float, weight_bar: float | None
) -> None:
    """No bar for float32 weights: AdamW's division amplifies rounding."""
    config, folder, num_steps = jobs[name]
    plain = plain_training(config, num_steps)
    found = torch.load(folder.with_suffix(".pt"))
    worst_gradient, worst_weight = worst(found["gradients"], plain.gradients), worst(found["weights"], plain.weights)
    print(f"{name}: gradients {worst_gradient:.1e}, weights after {num_steps} steps {worst_weight:.1e}")
    assert worst_gradient < gradient_bar
    if weight_bar is not None:
        assert worst_weight < weight_bar
    assert all((found["averages"][n] - w).abs().max() > 0 for n, w in found["weights"].items() if w.dim() > 1)


@pytest.mark.slow
def test_muon_moves_a_sharded_matrix_as_a_whole_one(jobs: dict[str, tuple[TrainConfig, Path, int]]) -> None:
    """Its products are of bfloat16: some hundredths of what a matrix moves by are rounding."""
    folder = jobs["float32"][1].parent
    whole = MuonMatrix()
    start = whole.weights()
    whole.steps(build_optimizer(whole, OptimConfig(kind="muon")))
    found, expected = torch.load(folder / "muon.pt"), whole.weights()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        moved = (weight - start[name]).norm()
        assert moved > 0
        assert (found[name] - weight).norm() < 0.05 * moved, name


@pytest.mark.slow
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
