"""The memory estimate: held to one run of a whole network, to what a process really takes, and to published figures."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.cli import app
from model.network.config import NavaConfig
from model.training.config import TrainConfig, load_recipe
from model.training.memory import count_activations, memory_per_gpu, most_tokens, run_activations
from model.training.plan_stage import cards_text, check_parameters, plan_stage, ways_to_fit, what_would_fit
from model.training.recompute import POLICIES
from schemas.budget import Recompute
from schemas.errors import PlanError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("memory")]  # counts are kept by who has made them
ROOT = Path(__file__).resolve().parents[3]
TOKENS_OF_THE_AUDIT, TOKENS_OF_THE_RECIPES = 65_424, 65_536
BLOCKS = {"dim": 128, "ffn_dim": 512, "num_heads": 4, "num_align_layers": 2, "num_fusion_layers": 3}
SMALL = NavaConfig.preset("nava_tiny").model_copy(update=BLOCKS)
NUM_TOKENS = 1500


def release(num_gb: float, **changes: object) -> TrainConfig:
    """The second stage of the 6.3B network on cards of that many GB."""
    content = load_recipe("stage2_joint").model_dump(mode="json")
    content["hardware"] |= {"name": f"{num_gb:.0f} GB card", "memory_bytes": int(num_gb * 1e9)}
    content["plan"] |= changes.pop("plan", {})
    content["parallel"] |= changes.pop("parallel", {})
    return TrainConfig.model_validate(content)


@pytest.mark.parametrize("recompute", POLICIES)
def test_a_few_blocks_tell_what_all_of_them_take(recompute: Recompute) -> None:
    counted = count_activations(SMALL, recompute, torch.float32, NUM_TOKENS)
    whole = run_activations(SMALL, recompute, torch.float32, NUM_TOKENS)
    assert counted.kept == pytest.approx(whole.kept, rel=0.005)
    assert counted.peak == pytest.approx(whole.peak, rel=0.02)


def test_the_release_takes_what_the_audit_counted_on_all_its_blocks() -> None:
    """A pack of the recipes is 0.2 % larger than the audit's, and other tests ask for it too."""
    network, larger = NavaConfig.preset("nava_6b"), TOKENS_OF_THE_RECIPES / TOKENS_OF_THE_AUDIT
    qkv = count_activations(network, "attention_qkv", torch.bfloat16, TOKENS_OF_THE_RECIPES)
    full = count_activations(network, "full", torch.bfloat16, TOKENS_OF_THE_RECIPES)
    assert qkv.kept == pytest.approx(88.4e9 * larger, rel=0.03)
    assert full.kept == pytest.approx(27.9e9 * larger, rel=0.035)
    assert qkv.peak == pytest.approx(107e9 * larger, rel=0.05)
    assert full.peak == pytest.approx(48e9 * larger, rel=0.06)


PROGRAM = """
import sys, torch
from pathlib import Path
from model.network.config import NavaConfig
from model.network.nava import Nava
from model.training.memory import _drop_gradient, _example_pack
from model.training.recompute import set_recompute
torch.set_num_threads(1)
network = NavaConfig.model_validate_json(sys.argv[1])

def status(name):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)).split()[1]) * 1024

def step(model, packed):
    velocity = model(packed, torch.zeros(packed.num_samples))
    loss = sum(v.float().square().sum() for v in [*velocity.video, *velocity.audio] if v is not None)
    del velocity
    kept = status("VmRSS")
    loss.backward()
    return kept

for recompute in sys.argv[3:]:
    model = Nava(network)
    model.init_weights(torch.Generator().manual_seed(0))
    set_recompute(model, recompute)
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in model.parameters()]
    step(model, _example_pack(network, 200))
    packed = _example_pack(network, int(sys.argv[2]))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kept = step(model, packed)
    print(kept - before, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_real_step_on_a_cpu_takes_what_was_estimated() -> None:
    """Large blocks of memory are given back as soon as they are free, so the peak of the process is that of its tensors."""
    policies: tuple[Recompute, ...] = ("attention_qkv", "none")
    giving_back = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, SMALL.model_dump_json(), str(NUM_TOKENS), *policies],
        check=True, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | giving_back,
    )  # fmt: skip
    for recompute, line in zip(policies, done.stdout.splitlines(), strict=True):
        kept, peak = map(int, line.split())
        estimate = count_activations(SMALL, recompute, torch.float32, NUM_TOKENS)
        assert estimate.kept == pytest.approx(kept, rel=0.1)
        assert estimate.peak == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("name", ["stage1_audio", "stage2_joint", "stage3_finetune"])
def test_packaged_recipes_fit_the_gpus_that_they_name(name: str) -> None:
    config = load_recipe(name)
    assert config.hardware.name == "H200"
    for num_gpus in (8, 64, 128):
        assert memory_per_gpu(config, num_gpus).total_bytes <= config.hardware.memory_bytes


@pytest.mark.parametrize(
    ("num_gpus", "num_gb", "told"),
    [
        (1, 24, "network.frozen=float8"),
        (
            1,
            80,
            "--set parallel.recompute=full --set parallel.offload=true (all weights, from 126 GB of host memory a GPU)",
        ),
        (8, 80, "It fits with --set parallel.recompute=full"),
        (64, 80, "It fits with --set parallel.recompute=full"),
        (8, 141, ""),
    ],
)
def test_the_release_on_cards_of_these_sizes(num_gpus: int, num_gb: float, told: str) -> None:
    config = release(num_gb)
    if not told:
        assert plan_stage(config, (num_gpus,), memory_only=True).splitlines()[2].endswith("yes")
        return
    with pytest.raises(PlanError, match=f"need about .* GB per GPU on {num_gpus} GPUs; {num_gb} GB card") as refused:
        plan_stage(config, (num_gpus,), memory_only=True)
    assert told in refused.value.remedy
    for way in ways_to_fit(config, num_gpus)[:1]:
        settings = [setting for setting in shlex.split(" ".join(way.settings)) if setting != "--set"]
        changed = load_recipe("stage2_joint", settings).model_copy(update={"hardware": config.hardware})
        plan_stage(changed, (num_gpus,), memory_only=True)


def test_the_release_fits_eight_gpus_and_not_one() -> None:
    config = load_recipe("stage2_joint")
    assert check_parameters(config) == 6_296_995_520
    command = ["plan", "stage2_joint", "--memory-only"]
    page = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert [line.split()[-1] for line in page.splitlines()[2:5]] == ["yes"] * 3
    with pytest.raises(PlanError, match="need about 246 GB per GPU on 1 GPUs"):
        CliRunner().invoke(app, [*command, "--gpus", "1"], catch_exceptions=False)
    with pytest.raises(PlanError, match=r"It fits with --set parallel\.sync_every_micro_step=true"):
        CliRunner().invoke(
            app, [*command, "--gpus", "8", "--set", "parallel.sync_every_micro_step=false"], catch_exceptions=False
        )


def test_cards_of_all_sizes_are_answered_in_one_table() -> None:
    page = cards_text(release(141))
    answers = {line[:14].strip(): line[14:] for line in page.splitlines() if " GB " in line and "packs of" not in line}
    assert answers["8 x 141 GB"].endswith("fits")
    assert "refused: activations of 105 GB" in answers["64 x 80 GB"]
    assert "refused: states of 126 GB" in answers["1 x 24 GB"]
    assert page.count("all weights, packs of 65,536 tokens") == 2


def test_what_would_fit_counts_down_to_the_pack_that_does() -> None:
    config = release(40)
    said = what_would_fit(config, 64)
    assert "--set parallel.recompute=full --set plan.token_budget=" in said
    tokens = int(said.partition("token_budget=")[2].partition(",")[0])
    fitting = release(40, plan={"token_budget": tokens}, parallel={"recompute": "full"})
    assert memory_per_gpu(fitting, 64).total_bytes <= 40e9
    assert most_tokens(fitting, 64, 40e9) == pytest.approx(tokens, abs=2048)


def test_copies_whole_gradients_and_averages_are_counted() -> None:
    base = memory_per_gpu(release(141), 64)
    parameters = 6_296_995_520
    assert base.states_bytes == pytest.approx(parameters * 20 / 64, abs=1)
    assert memory_per_gpu(release(141, parallel={"num_replicas": 8}), 64).states_bytes == pytest.approx(
        parameters * 20 / 8, abs=1
    )
    whole = memory_per_gpu(release(141, parallel={"sync_every_micro_step": False}), 64)
    assert whole.gradients_bytes - base.gradients_bytes == 4 * parameters
    without = release(141).model_copy(update={"optim": release(141).optim.model_copy(update={"ema_decay": 0.0})})
    assert memory_per_gpu(without, 64).states_bytes == pytest.approx(parameters * 16 / 64, abs=1)


def test_adapters_leave_the_frozen_states_out() -> None:
    content = release(80).model_dump(mode="json")
    content["network"] |= {"lora": {"rank": 16}}
    need = memory_per_gpu(TrainConfig.model_validate(content), 1)
    assert 4 * 6_296_995_520 < need.states_bytes < 1.1 * 4 * 6_296_995_520
    content["network"]["frozen"] = "float8"
    held = memory_per_gpu(TrainConfig.model_validate(content), 1)
    assert 0.25 < held.states_bytes / need.states_bytes < 0.36, "blocks in 8 bits, the rest in 16"
    content["parallel"]["offload"] = True
    elsewhere = memory_per_gpu(TrainConfig.model_validate(content), 1)
    assert (elsewhere.states_bytes, elsewhere.host_bytes) == (0, held.states_bytes)
