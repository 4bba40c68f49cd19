"""Published networks from local folders: tiny ones of the same classes are written here, and read as theirs would be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from model.evaluate.local import local_metrics, network_metrics
from model.evaluate.metric import Metric, SeenFile
from model.evaluate.networks import Clap, spectrograms_by_numpy
from model.evaluate.records import EvalCase, EvalItem
from schemas.errors import ModelError
from tests.model.evaluate.tiny_networks import FOLDERS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with a network of each kind, and three sounds and two pictures."""
    from PIL import Image

    spectrograms_by_numpy()
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, write in FOLDERS.items():
        (root / "models" / name).mkdir(parents=True)
        write(root / "models" / name)
    random = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        tone = np.sin(np.arange(24_000) * random.uniform(0.1, 1.0)) + 0.3 * random.standard_normal(24_000)
        soundfile.write(root / f"{name}.wav", 0.3 * tone, 16_000)
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> tuple[dict[str, Metric], dict[str, Any]]:
    metrics, sets = network_metrics(root / "models")
    return {each.name: each for each in metrics}, {each.name: each for each in sets}


def test_every_kind_is_found_and_says_which_weights_it_has(found: tuple[dict[str, Metric], dict[str, Any]]) -> None:
    metrics, sets = found
    assert set(metrics) == {"clap", "sim_wavlm", "dino_identity", "kl_ast", "aesthetic"}
    assert set(sets) == {"fd_clap"}
    assert len({each.sha256 for each in metrics.values()}) == 5
    assert all(len(each.sha256) >= 64 and not each.is_as_published for each in metrics.values())


def test_the_same_is_alike_and_another_is_less(root: Path, found: tuple[dict[str, Metric], dict[str, Any]]) -> None:
    metrics, _ = found
    one, two = root / "one.wav", root / "two.wav"
    item = EvalItem(item_id="i", voice=one, reference=one, sounds=("a dog barks",), first_frame=root / "one.png")
    same, other = EvalCase(item, one), EvalCase(item, two)
    assert metrics["sim_wavlm"].read(same).value == pytest.approx(1)
    assert metrics["sim_wavlm"].read(other).value < 1 - 1e-4
    assert metrics["kl_ast"].read(same).value == pytest.approx(0, abs=1e-9)
    assert metrics["kl_ast"].read(other).value > 1e-4
    pictures = [replace(same, sample=root / f"{name}.png") for name in ("one", "two")]
    assert metrics["dino_identity"].read(pictures[0]).value == pytest.approx(1)
    assert metrics["dino_identity"].read(pictures[1]).value < 1 - 1e-4
    clap = metrics["clap"].read(same).value
    assert -1 <= clap <= 1
    assert clap == metrics["clap"].read(same).value
    assert clap != metrics["clap"].read(replace(same, item=replace(item, sounds=("rain",)))).value
    assert "no sound that can be decoded" in metrics["sim_wavlm"].read(pictures[0]).why


def test_loudness_is_no_matter_to_clap_and_long_sound_is_heard_from_its_beginning(root: Path) -> None:
    clap = Clap(root / "models" / "clap")
    sound, rate_hz = soundfile.read(root / "one.wav")
    soundfile.write(root / "quiet.wav", 0.2 * sound, rate_hz, subtype="FLOAT")
    assert clap.of_sound(root / "quiet.wav") == pytest.approx(clap.of_sound(root / "one.wav"), abs=2e-3)
    soundfile.write(root / "long.wav", np.tile(sound, 4), rate_hz)
    assert (
        Clap(root / "models" / "clap").of_sound(root / "long.wav").tolist() == clap.of_sound(root / "long.wav").tolist()
    )


def test_identical_sets_of_sounds_have_no_distance(root: Path, found: tuple[dict[str, Metric], dict[str, Any]]) -> None:
    metric = found[1]["fd_clap"]
    vectors = np.stack([metric.describe(SeenFile(root / f"{name}.wav", None)) for name in ("one", "two", "three")])
    assert metric.distance(vectors, vectors) == pytest.approx(0, abs=1e-6)
    assert metric.describe(SeenFile(root / "one.png", None)) is None


def test_what_is_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no network: .* syncnet_v2\.model"):
        local_metrics(tmp_path, "own")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        network_metrics(tmp_path)
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a 'bert', which measures nothing"):
        network_metrics(tmp_path)
