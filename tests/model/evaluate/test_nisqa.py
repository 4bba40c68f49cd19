"""NISQA from a tiny file under the published names. Figures are what the authors' own code made of the same file, run once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from model.evaluate.local import local_metrics
from model.evaluate.metric import Metric
from model.evaluate.records import EvalCase, EvalItem, Reading
from model.evaluate.sounds.nisqa import OPINIONS, Nisqa, nisqa_metrics
from schemas.errors import ModelError
from tests.model.evaluate.published_shapes import Shapes, batch_norm, drawn, layer

RATE_HZ = 48_000
SETTINGS = {
    "ms_seg_length": 15, "ms_n_mels": 48, "ms_max_segments": 60, "ms_n_fft": 4096, "ms_hop_length": 0.01,
    "ms_win_length": 0.02, "ms_fmax": 20_000, "ms_seg_hop_length": 4, "cnn_c_out_1": 4, "cnn_c_out_2": 6, "cnn_c_out_3": 8,
    "cnn_kernel_size": (3, 3), "cnn_dropout": 0.2, "cnn_pool_1": [24, 7], "cnn_pool_2": [12, 5], "cnn_pool_3": [6, 3],
    "td_sa_d_model": 12, "td_sa_nhead": 1, "td_sa_num_layers": 2, "td_sa_h": 10, "td_sa_dropout": 0.1, "pool_att_h": 14,
    "pool_att_dropout": 0.1,
}  # fmt: skip
"""Those of the published file that the network is built by, but narrower, and with 60 windows instead of 1300."""


def nisqa_tensors(num_opinions: int = 5) -> dict[str, Tensor]:
    """What `model_state_dict` holds, by its published names."""
    shapes: Shapes = {}
    for number, (given, made) in enumerate(((1, 4), (4, 6), (6, 8), (8, 8), (8, 8), (8, 8)), start=1):
        shapes |= layer(f"cnn.model.conv{number}", made, given, 3, 3) | batch_norm(f"cnn.model.bn{number}", made)
    attention = "time_dependency.model"
    shapes |= layer(f"{attention}.norm1", 12) | layer(f"{attention}.linear", 12, 6 * 8)
    for number in (0, 1):
        name = f"{attention}.layers.{number}"
        shapes |= {f"{name}.self_attn.in_proj_weight": (36, 12), f"{name}.self_attn.in_proj_bias": (36,)}
        shapes |= layer(f"{name}.self_attn.out_proj", 12, 12) | layer(f"{name}.norm1", 12) | layer(f"{name}.norm2", 12)
        shapes |= layer(f"{name}.linear1", 10, 12) | layer(f"{name}.linear2", 12, 10)
    for number in range(num_opinions):
        name = f"pool_layers.{number}.model"
        shapes |= layer(f"{name}.linear1", 14, 12) | layer(f"{name}.linear2", 1, 14) | layer(f"{name}.linear3", 1, 12)
    seen = {f"cnn.model.bn{number}.num_batches_tracked": torch.tensor(1) for number in range(1, 7)}
    return drawn(shapes) | seen


def write(path: Path, state: dict[str, Tensor], **settings: Any) -> Path:
    torch.save({"args": SETTINGS | {"model": "NISQA_DIM"} | settings, "model_state_dict": state, "epoch": 1}, path)
    return path


def speech_like(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tone that comes and goes, in noise."""
    times_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = 0.02 * np.random.default_rng(4).standard_normal(len(times_s))
    return (0.3 * np.sin(2 * np.pi * 180 * times_s) * (np.sin(2 * np.pi * 3 * times_s) > 0) + noise).astype(np.float32)


@pytest.mark.slow
def test_nisqa(tmp_path: Path) -> None:
    network = Nisqa(write(tmp_path / "nisqa.tar", nisqa_tensors()))
    found = network.of_sound(speech_like(2.0))
    assert list(found) == ["mos", "noisiness", "discontinuity", "coloration", "loudness"]
    expected = [-0.4887878, 0.8415401, -0.9398350, -1.3462473, 0.7163596]
    assert list(found.values()) == pytest.approx(expected, rel=1e-5), "nisqa 2.0.post2"


@pytest.mark.slow
def test_what_is_heard_is_the_samples_sound_whole(tmp_path: Path) -> None:
    write(tmp_path / "nisqa.tar", nisqa_tensors())
    metrics, sets = local_metrics(tmp_path, "own")
    assert [each.name for each in metrics] == [f"nisqa_{name}" for name in OPINIONS]
    assert not sets
    sounds = {"one": speech_like(1.0), "half": speech_like(0.5), "none": np.zeros(RATE_HZ), "short": speech_like(0.1)}
    sounds["long"] = speech_like(3.0)
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, RATE_HZ)

    def read(metric: Metric, name: str) -> Reading:
        return metric.read(EvalCase(EvalItem(item_id="i", text="Well."), tmp_path / f"{name}.wav"))

    values = [read(each, "one").value for each in metrics]
    assert len(set(values)) == 5, "five opinions"
    assert all(read(each, "half").value != value for each, value in zip(metrics, values, strict=True))
    assert read(metrics[0], "none").why == "none.wav is silent."
    assert read(metrics[0], "short").why == "short.wav: 0.11 s, of 0.15 to 2.54 s."
    assert read(metrics[0], "long").why == "long.wav: 3.01 s, of 0.15 to 2.54 s."
    assert metrics[0].applies(EvalItem(item_id="i", text="Well."))
    assert not metrics[0].applies(EvalItem(item_id="i"))
    assert nisqa_metrics(tmp_path / "nisqa.tar", "mova") == ()


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nisqa.tar"
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"nisqa\.tar cannot be read as plain weights"):
        local_metrics(tmp_path, "own")
    torch.save(nisqa_tensors(), path)
    with pytest.raises(ModelError, match="has no 'model_state_dict' beside 'args'"):
        local_metrics(tmp_path, "own")
    write(path, nisqa_tensors(num_opinions=1))
    with pytest.raises(ModelError, match=r"has no tensor 'pool_layers\.4\.model\.linear3\.weight'"):
        local_metrics(tmp_path, "own")


@pytest.mark.slow
def test_a_file_that_does_not_fit_its_settings_is_refused(tmp_path: Path) -> None:
    wide = write(tmp_path / "nisqa.tar", nisqa_tensors(), td_sa_d_model=16)
    with pytest.raises(ModelError, match=r"nisqa\.tar is no whole NISQA 2\.0: size mismatch"):
        Nisqa(wide).of_sound(speech_like(1.0))
    state = nisqa_tensors()
    del state["cnn.model.conv6.bias"]
    with pytest.raises(ModelError, match=r"Missing key\(s\) in state_dict: \"cnn\.model\.conv6\.bias\""):
        Nisqa(write(tmp_path / "nisqa.tar", state)).of_sound(speech_like(1.0))
