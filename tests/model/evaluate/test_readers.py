"""Readers of published files on tiny ones. Figures here are what the authors' own code made of the same tensors, run once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from model.evaluate.local import local_metrics, with_local
from model.evaluate.metric import SeenFile
from model.evaluate.pictures.maniqa import APART, Maniqa, strangers
from model.evaluate.protocols import PROTOCOLS
from model.evaluate.records import EvalCase, EvalItem
from model.evaluate.sounds.audiobox import Audiobox
from model.evaluate.sounds.panns import Cnn14
from model.evaluate.sounds.passt import PEAK, Passt, divergence_held
from model.evaluate.sounds.unispeech import WavlmEcapa
from schemas.errors import ModelError
from tests.model.evaluate import published_shapes as shapes

CONFIG = {"target_transform": shapes.SCALES, "use_weighted_layer_sum": True, "normalize_embed": True}


def tone(seconds: float, rate_hz: int, hz: float = 440.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tone in noise."""
    count = int(seconds * rate_hz)
    noise = 0.1 * np.random.default_rng(3).standard_normal(count)
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(count) / rate_hz) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with all networks, and sounds and pictures, two of each."""
    from PIL import Image

    root = tmp_path_factory.mktemp("readers")
    models = root / "models"
    (models / "audiobox-aesthetics").mkdir(parents=True)
    save_file(shapes.drawn(shapes.audiobox()), models / "audiobox-aesthetics" / "model.safetensors")
    (models / "audiobox-aesthetics" / "config.json").write_text(json.dumps(CONFIG))
    torch.save(shapes.drawn(shapes.maniqa()), models / "ckpt_koniq10k.pt")
    torch.save(shapes.drawn(shapes.passt()), models / "passt-s-f128-p16-s10-ap.476-swa.pt")
    kept = {"iteration": 1, "model": shapes.cnn14_tensors()}
    torch.save(kept, models / "Cnn14_mAP=0.431.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": shapes.drawn(shapes.unispeech())}, models / "wavlm_large_finetune.pth")
    random = np.random.default_rng(0)
    for name, hz in (("one", 440.0), ("two", 1_500.0)):
        soundfile.write(root / f"{name}.wav", tone(3.0, 16_000, hz), 16_000)
        Image.fromarray(random.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(root / f"{name}.png")
    return root


def test_maniqa(root: Path) -> None:
    crops = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        scores = Maniqa(root / "models" / "ckpt_koniq10k.pt").scores(crops * 2 - 1)
    assert scores.tolist() == pytest.approx([32.098545, 38.287323, 39.792431], rel=1e-5)


def test_maniqa_leaves_nothing_behind_on_another_device(root: Path) -> None:
    network = Maniqa(root / "models" / "ckpt_koniq10k.pt", "meta")
    assert network.scores(torch.empty(2, 3, 64, 64, device="meta")).device.type == "meta"


def test_a_shift_brings_strangers_together() -> None:
    """Of four windows of a picture of eight patches the first holds neighbours alone, the last four parts of four places."""
    told = strangers(8, shift=2)
    assert told.shape == (4, 16, 16)
    assert [int((window == APART).sum()) for window in told] == [0, 128, 128, 192]
    assert not strangers(8, shift=0).any()


def test_audiobox(root: Path) -> None:
    network = Audiobox(root / "models" / "audiobox-aesthetics" / "model.safetensors")
    expected = {"CE": 3.3428247, "CU": 4.2919016, "PC": 4.0857410, "PQ": 8.1452751}
    assert network.of_sound(tone(12.0, 16_000)) == pytest.approx(expected, rel=1e-6)


def test_audiobox_is_read_from_its_other_file_and_not_without_its_scales(root: Path, tmp_path: Path) -> None:
    tensors = shapes.drawn(shapes.audiobox())
    kept = {"state_dict": {f"model.{name}": each for name, each in tensors.items()}, "target_transform": shapes.SCALES}
    torch.save({**kept, "model_cfg": {}}, tmp_path / "checkpoint.pt")
    sound = tone(1.0, 16_000)
    same = Audiobox(root / "models" / "audiobox-aesthetics" / "model.safetensors").of_sound(sound)
    assert Audiobox(tmp_path / "checkpoint.pt").of_sound(sound) == pytest.approx(same, rel=1e-6)
    torch.save({**kept, "model_cfg": {"normalize_embed": False}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match=r"configured with \{'normalize_embed': False\}"):
        Audiobox(tmp_path / "checkpoint.pt")
    save_file(tensors, tmp_path / "alone.safetensors")
    with pytest.raises(ModelError, match="without mean and deviation of CE, CU, PC, PQ"):
        Audiobox(tmp_path / "alone.safetensors")


def test_passt(root: Path) -> None:
    """Of sound of 12 s two windows are heard, the second filled up, and the mean of what is said of both."""
    network = Passt(root / "models" / "passt-s-f128-p16-s10-ap.476-swa.pt")
    sound = tone(12.0, 32_000)
    windows = np.stack([sound[:320_000], np.pad(sound[160_000:], (0, 96_000))])
    expected = [
        [0.3810817, 1.6505616, 0.2632063, 0.6488006, 1.6527121],
        [-0.0317794, 1.9393568, 0.0267471, 0.4306918, 1.8958316],
    ]
    level = PEAK / float(np.abs(sound).max())
    with torch.inference_mode():
        logits = network.logits(torch.from_numpy(windows))
        louder = network.logits(torch.from_numpy(windows * np.float32(level)))
    for told, known in zip(logits.tolist(), expected, strict=True):
        assert told == pytest.approx(known, abs=1e-5)
    assert network.of_sound(sound) == pytest.approx(louder.double().mean(0).softmax(0).numpy(), abs=1e-6)


def test_cnn14(root: Path) -> None:
    with torch.inference_mode():
        chances = Cnn14(root / "models" / "Cnn14_mAP=0.431.pth").chances(torch.from_numpy(tone(3.0, 32_000))[None])
    assert chances[0].tolist() == pytest.approx([0.4498048, 0.4878554, 0.7226830, 0.4369191, 0.9228657], rel=2e-6)


def test_unispeech(root: Path) -> None:
    with torch.inference_mode():
        vectors = WavlmEcapa(root / "models" / "wavlm_large_finetune.pth").vectors(
            torch.from_numpy(tone(2.0, 16_000))[None]
        )
    expected = [1.6629634, 4.9731221, -0.4075833, 1.2965804, 4.4528275, 3.1492639, -1.6672893, -0.6741249]
    assert vectors[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_what_is_measured_is_the_same_twice_and_another_of_another_file(root: Path) -> None:
    metrics, sets = local_metrics(root / "models", "own")
    audiobox = {f"audiobox_{name}" for name in ("ce", "cu", "pc", "pq")}
    assert {each.name for each in metrics} == {"maniqa", "kl_passt", "sim_unispeech"} | audiobox
    assert [each.name for each in sets] == ["is_panns"]
    again = {each.name: each for each in local_metrics(root / "models", "own")[0]}
    for metric in metrics:
        kind = "png" if metric.name == "maniqa" else "wav"
        one, two = (case(root, f"{name}.{kind}") for name in ("one", "two"))
        value = metric.read(one).value
        assert again[metric.name].read(one).value == pytest.approx(value, rel=1e-6)
        assert metric.read(two).value != pytest.approx(value, rel=1e-5)
        assert "can be decoded" in metric.read(case(root, "one.wav" if kind == "png" else "one.png")).why
    known = {each.name: each.read(case(root, "one.wav")).value for each in metrics if each.name != "maniqa"}
    assert known["sim_unispeech"] == pytest.approx(1)
    assert known["kl_passt"] == pytest.approx(-1e-6 * shapes.CLASSES, abs=1e-6), "the owner's floor under the sample"
    vectors = [sets[0].describe(SeenFile(root / f"{name}.wav", None)) for name in ("one", "two")]
    assert [vector.sum() for vector in vectors] == pytest.approx([1, 1])
    assert sets[0].distance(np.stack([vectors[0]] * 2), np.empty(0)) == pytest.approx(1)
    assert sets[0].distance(np.stack(vectors), np.empty(0)) > 1


def case(root: Path, name: str) -> EvalCase:
    """A sample of an item that comes with the first sound."""
    return EvalCase(EvalItem(item_id="i", reference=root / "one.wav", voice=root / "one.wav"), root / name)


def test_versebench_takes_figures_of_the_items_that_its_owner_does(root: Path) -> None:
    rules = with_local(PROTOCOLS["versebench"], root / "models", "versebench")
    applies = {each.name: each.applies for each in rules.metrics}
    sounding = {"sounds": ("rain",), "reference": root / "one.wav"}
    items = [EvalItem(item_id="i", subset=subset, **told) for subset in ("set1", "set3", "") for told in ({}, sounding)]
    assert [applies["audiobox_pq"](item) for item in items] == [True, True, False, False, True, True]
    assert [applies["kl_passt"](item) for item in items] == [False, True, False, False, False, True]
    assert all(applies["maniqa"](item) for item in items)
    assert [each.name for each in rules.combined] == ["as", "overall"]
    assert not rules.by_models


def test_divergence_is_of_the_real_from_the_made() -> None:
    made, real = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert divergence_held(made, real) == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-6), rel=1e-5)


def test_too_small_and_too_short_are_named(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (80, 40)).save(tmp_path / "small.png")
    soundfile.write(tmp_path / "short.wav", tone(0.05, 16_000), 16_000)
    found = {each.name: each for each in local_metrics(root / "models", "own")[0]}
    assert "40 px high or wide" in found["maniqa"].read(case(tmp_path, "small.png")).why
    for name in ("kl_passt", "sim_unispeech"):
        assert "0.05 s of sound" in found[name].read(case(tmp_path, "short.wav")).why
