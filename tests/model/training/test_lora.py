"""Adapters and partial training: frozen weights keep their bits, checkpoints hold what was trained, merged weights agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.network.lora import is_adapter
from model.network.nava import Nava, pack
from model.ranks import World, open_world
from model.training.config import TrainConfig
from model.training.start import train
from model.training.state import complete
from model.training.train import Training
from model.weights.convert import convert, load_weights, write_safetensors
from model.weights.dcp_files import read_metadata
from model.weights.formats import TensorSpec
from schemas.errors import ModelError, RecipeError
from tests.model.latent_shards import SMALL, random_clip, recipe, write_latent_shards
from tests.model.rank_jobs import whole

pytestmark = pytest.mark.slow
LORA = {"rank": 3, "alpha": 6.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 24 random clips, and `base.safetensors`, the weights to begin with."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(24)])
    model = Nava(SMALL)
    model.init_weights(torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.head.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(6))
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    write_safetensors(folder / "base.safetensors", specs, weights.items())
    return folder


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


def config_of(data: Path, num_steps: int = 4, **network: Any) -> TrainConfig:
    start = {"weights": str(data / "base.safetensors"), **network}
    return recipe(data, num_steps=num_steps, plan={"num_packs": 2}, network=start, optim={"learning_rate": 0.02})


def velocity(model: Any) -> list[torch.Tensor]:
    clips = [random_clip(i) for i in (1, 3, 4)]
    with torch.no_grad():
        out = model(pack(clips, SMALL), torch.tensor([900.0, 500.0, 100.0]))
    return [part for part in [*out.video, *out.audio] if part is not None]


def test_adapters_learn_while_the_weights_keep_their_bits(data: Path, tmp_path: Path, world: World) -> None:
    config = config_of(data, lora=LORA)
    with Training(config, tmp_path / "run", world) as training:
        before = {name: whole(p) for name, p in training.model.named_parameters()}
        base = velocity(training.model)
        while training.has_more:
            step = training.next_step()
            training.report(step, training.learn(step))
        training.save(step)
        after = {name: whole(p) for name, p in training.model.named_parameters()}
        adapted = velocity(training.model)
    plain = Nava(SMALL)
    load_weights(plain, data / "base.safetensors", SMALL)
    assert all(torch.equal(a, b) for a, b in zip(base, velocity(plain), strict=True)), "at first they add nothing"
    assert all(torch.equal(after[name], value) for name, value in before.items() if not is_adapter(name))
    assert not any(torch.equal(after[name], value) for name, value in before.items() if name.endswith("lora_b"))
    (checkpoint,) = complete(tmp_path / "run" / "checkpoints")
    held = read_metadata(checkpoint).state_dict_metadata
    assert held
    assert all(is_adapter(name) for name in held)

    done = convert(checkpoint, tmp_path / "merged.safetensors", SMALL)
    assert done.num_parameters == sum(value.numel() for name, value in before.items() if not is_adapter(name))
    model = Nava(SMALL)
    load_weights(model, tmp_path / "merged.safetensors", SMALL)
    for merged_part, adapted_part in zip(velocity(model), adapted, strict=True):
        torch.testing.assert_close(merged_part, adapted_part, rtol=1e-4, atol=1e-5)
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(adapted, base, strict=True))
    convert(checkpoint, tmp_path / "averaged.safetensors", SMALL, layout="ema")


def test_training_of_adapters_goes_on_where_it_was(data: Path, tmp_path: Path, world: World) -> None:
    config = config_of(data, lora=LORA)
    train(config, tmp_path / "whole")
    with Training(config, tmp_path / "parts", world) as training:
        for _ in range(2):
            step = training.next_step()
            training.report(step, training.learn(step))
        training.save(step)
    with pytest.raises(RecipeError, match=r"network\.lora\.rank: 3 -> 4"):
        train(config_of(data, lora={**LORA, "rank": 4}), tmp_path / "parts")
    train(config, tmp_path / "parts")
    adapters = []
    for name in ("whole", "parts"):
        with Training(config, tmp_path / name, world) as training:
            assert training.step == 4
            adapters.append({n: whole(p) for n, p in training.model.named_parameters() if is_adapter(n)})
    assert all(torch.equal(adapters[1][name], value) for name, value in adapters[0].items())


def test_only_what_is_named_is_trained(data: Path, tmp_path: Path, world: World) -> None:
    with Training(config_of(data, train_only=["head.*", "head_audio.*"]), tmp_path, world) as training:
        before = {name: whole(p) for name, p in training.model.named_parameters()}
        step = training.next_step()
        training.report(step, training.learn(step))
        training.save(step)
        changed = {name for name, p in training.model.named_parameters() if not torch.equal(whole(p), before[name])}
        trained = velocity(training.model)
    assert changed
    assert all(name.startswith(("head.", "head_audio.")) for name in changed)
    (checkpoint,) = complete(tmp_path / "checkpoints")
    model = Nava(SMALL)
    load_weights(model, checkpoint, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(velocity(model), trained, strict=True))


def test_patterns_that_match_nothing_and_missing_weights_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no matrix of the network matches \*\.nothing"):
        train(config_of(data, lora={"targets": ["*.nothing"]}), tmp_path)
    with pytest.raises(ModelError, match=r"no parameter of the network matches tail\.\*"):
        train(config_of(data, train_only=["tail.*"]), tmp_path)
    with pytest.raises(ValueError, match=r"network\.weights, which is not given"):
        config_of(data, lora=LORA, weights=None)
