"""What training does for its device, as far as a CPU can show it: copies, kernels chosen by measurement, states elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.network.config import NavaConfig
from model.network.lora import is_adapter
from model.network.nava import Nava, pack
from model.ranks import World, open_world
from model.training.kernels import Kernel, choose_kernel, kernels_here, time_kernels
from model.training.train import Training
from model.training.transfer import DeviceCopies, IdleTime, each_tensor
from model.weights.convert import write_safetensors
from model.weights.formats import TensorSpec
from schemas.errors import ModelError
from tests.model.latent_shards import SMALL, TINY, random_clip, recipe, write_latent_shards
from tests.model.rank_jobs import whole

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards, and `base.safetensors`, weights to freeze."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(24)])
    model = Nava(SMALL)
    model.init_weights(torch.Generator().manual_seed(5))
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    write_safetensors(folder / "base.safetensors", specs, weights.items())
    return folder


def trained(config: object, folder: Path, world: World) -> dict[str, torch.Tensor]:
    with Training(config, folder, world) as training:
        training.run()
        return {name: whole(p).cpu() for name, p in training.model.named_parameters()}


def test_every_tensor_of_a_pack_is_copied_and_nothing_else_is_touched() -> None:
    packed = pack([random_clip(i) for i in (1, 3, 4)], TINY)
    seen: list[str] = []

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        """A copy, whose device is written down."""
        seen.append(tensor.device.type)
        return tensor.clone()

    doubled = each_tensor(packed, noted)
    num_tensors = len(seen)
    each_tensor(packed.to("meta"), noted)
    assert num_tensors > 10
    assert seen == ["cpu"] * num_tensors + ["meta"] * num_tensors, "each_tensor misses none of those that are moved"
    assert doubled.config is packed.config
    assert doubled.layout is not packed.layout
    sent, arrived = DeviceCopies(CPU).send(packed)
    received = DeviceCopies(CPU).receive(sent, arrived)
    assert torch.equal(received.video_patches, packed.video_patches)
    idle = IdleTime(CPU)
    idle.begins()
    idle.ends()
    assert idle.take_s() is None


def test_the_kernel_that_trains_is_the_fastest_that_runs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    network = NavaConfig.preset("nava_tiny")
    assert choose_kernel("auto", network, torch.float32, 60, world) == "auto"
    assert choose_kernel("measured", network, torch.float32, 60, world) == "sdpa"
    assert "attention: sdpa takes " in capsys.readouterr().out
    times = time_kernels([Kernel("varlen"), Kernel("varlen", "FA3"), Kernel("sdpa")], network, torch.float32, 60, CPU)
    assert list(times) == [Kernel("sdpa")]
    said = capsys.readouterr().out
    assert "attention: varlen does not run here: attention backend 'varlen' got torch.float32 on cpu" in said
    assert "varlen with FA3 does not run here" in said
    with pytest.raises(ModelError, match="no attention kernel runs here"):
        time_kernels([Kernel("varlen")], network, torch.float32, 60, CPU)
    assert Kernel("varlen") in kernels_here("cuda")


@pytest.mark.slow
def test_states_in_host_memory_learn_the_same(data: Path, tmp_path: Path, world: World) -> None:
    found = [
        trained(
            recipe(data, num_steps=2, plan={"num_packs": 2}, parallel={"offload": offload}),
            tmp_path / str(offload),
            world,
        )
        for offload in (False, True)
    ]
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["bfloat16", "float8"])
def test_frozen_weights_in_fewer_bits_stay_as_they_are_while_adapters_learn(
    data: Path, tmp_path: Path, world: World, frozen: str
) -> None:
    network = {"weights": str(data / "base.safetensors"), "lora": {"rank": 2}, "frozen": frozen}
    config = recipe(data, num_steps=2, plan={"num_packs": 2}, network=network, parallel={"precision": "bfloat16"},
                    optim={"learning_rate": 0.02})  # fmt: skip
    with Training(config, tmp_path, world) as training:
        before = {name: whole(p) for name, p in training.model.named_parameters()}
        training.run()
        after = {name: whole(p) for name, p in training.model.named_parameters()}
    matrices = [name for name, p in before.items() if "_blocks." in name and name.endswith(".weight") and p.dim() == 2]
    kept = torch.bfloat16 if frozen == "bfloat16" else torch.float8_e4m3fn
    assert {before[name].dtype for name in matrices} == {kept}
    changed = {name for name, value in before.items() if not torch.equal(after[name].float(), value.float())}
    assert changed
    assert all(is_adapter(name) for name in changed)
    assert all(before[name].dtype == torch.float32 for name in changed), "what is trained keeps its master weights"
