"""Published networks from local folders: tiny ones of the same classes are written here, and read as theirs would be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch

from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.local import local_metrics, network_metrics
from model.evaluate.metric import Metric, SeenFile
from model.evaluate.networks import ClapMetrics
from model.evaluate.protocols import Rules
from model.evaluate.records import EvalCase, EvalItem, EvalSet
from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError
from schemas.measured import MeasuredFile
from schemas.networks.folders import spectrograms_by_numpy
from tests.model.evaluate.tiny_networks import FOLDERS, musiq_tensors
from tests.schemas.networks.tiny import imagebind_tensors


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
    metrics, sets = network_metrics(root / "models", "own")
    return {each.name: each for each in metrics}, {each.name: each for each in sets}


def test_every_kind_is_found_and_says_which_weights_it_has(found: tuple[dict[str, Metric], dict[str, Any]]) -> None:
    metrics, sets = found
    assert set(metrics) == {"clap", "sim_wavlm", "dino_identity", "kl_ast", "aesthetic"}
    assert set(sets) == {"fd_clap", "is_ast"}
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
    clap = ClapMetrics(root / "models" / "clap")
    sound, rate_hz = soundfile.read(root / "one.wav")
    soundfile.write(root / "quiet.wav", 0.2 * sound, rate_hz, subtype="FLOAT")
    assert clap.of_file(root / "quiet.wav") == pytest.approx(clap.of_file(root / "one.wav"), abs=2e-3)
    soundfile.write(root / "long.wav", np.tile(sound, 4), rate_hz)
    assert (
        ClapMetrics(root / "models" / "clap").of_file(root / "long.wav").tolist()
        == clap.of_file(root / "long.wav").tolist()
    )


def test_identical_sets_of_sounds_have_no_distance(root: Path, found: tuple[dict[str, Metric], dict[str, Any]]) -> None:
    assert "fd_pair_clap" not in found[0]
    (pair,) = (each for each in local_metrics(root / "models", "versebench")[0] if each.name == "fd_pair_clap")
    item = EvalItem(item_id="i", reference=root / "one.wav")
    assert pair.read(EvalCase(item, root / "one.wav")).value == pytest.approx(0, abs=1e-9)
    assert pair.read(EvalCase(item, root / "two.wav")).value > 1e-6
    metric = found[1]["fd_clap"]
    vectors = np.stack([metric.describe(SeenFile(root / f"{name}.wav", None)) for name in ("one", "two", "three")])
    assert metric.distance(vectors, vectors) == pytest.approx(0, abs=1e-6)
    assert metric.describe(SeenFile(root / "one.png", None)) is None


def test_all_networks_of_a_folder_measure_a_set_in_one_go(root: Path, found: Any, tmp_path: Path) -> None:
    """Every loader on a film with sound; SyncNet's distances come from the stage that has it, which is not run here."""
    for name, tensors in {"imagebind_huge.pth": imagebind_tensors, "musiq_koniq_ckpt.pth": musiq_tensors}.items():
        torch.save(tensors()[0], root / "models" / name)
    (root / "models" / "syncnet_v2.model").write_bytes(b"")
    random, made = np.random.default_rng(5), tmp_path / "made"
    made.mkdir()
    for name in ("one", "two"):
        sound = 0.3 * np.sin(np.arange(28_800) * random.uniform(0.02, 0.2))
        frames = random.integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
        encode(made / f"{name}.mp4", iter(frames), sound.astype(np.float32), Encoding(64, 48))
    items = tuple(
        EvalItem(
            item_id=name, text="Sit.", sounds=("a dog barks",), voice=root / "one.wav", first_frame=root / "one.png",
            reference=root / f"{name}.wav",
        )
        for name in ("one", "two", "three")
    )  # fmt: skip
    metrics, sets = local_metrics(root / "models", "own")
    told = {"track": 0, "num_windows": 7, "means": [9.0] * 30 + [7.0]}

    def measured(files: Any, stages: Any, *_: Any, **__: Any) -> dict[Path, MeasuredFile]:
        clip = {"clip": {"duration_us": 10**6}, "sync": {"status": "measured", "distances": [told]}}
        return {path: MeasuredFile(uri=str(path), made_by="m", clips=(clip,)) for path in files if stages}

    options = EvalOptions("own", Rules("local networks", metrics, sets))
    with patch("model.evaluate.evaluate.measure_files", measured):
        report, scores = evaluate(EvalSet("s", "list", items), made, tmp_path / "out", options, say=lambda _: None)
    figures = {each.metric: each for each in report.figures}
    names = {"clap", "sim_wavlm", "dino_identity", "kl_ast", "aesthetic", "ib", "musiq", "lse_c", "lse_d"}
    assert set(figures) == names | {"fd_clap", "is_ast"}
    assert {name: figures[name].num_items for name in figures} == dict.fromkeys(figures, 2)
    assert {name: figures[name].num_missing for name in figures} == dict.fromkeys(figures, 1)
    assert (figures["lse_d"].value, figures["lse_c"].value) == (7.0, 2.0)
    assert not {score.why for score in scores if score.state == "unmeasured"}
    assert len({each.provenance.sha256 for each in report.figures}) == 8, "each says which weights it has"


def test_what_is_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no network: .* syncnet_v2\.model"):
        local_metrics(tmp_path, "own")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        network_metrics(tmp_path, "own")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a 'bert', which measures nothing"):
        network_metrics(tmp_path, "own")
