"""Networks that are functions of published tensors: tiny ones under the published names, held against torch's own layers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

from model.evaluate.imagebind import imagebind_metrics
from model.evaluate.local import local_metrics
from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.pictures.aesthetics import AestheticMetrics
from model.evaluate.pictures.musiq import Musiq, musiq_metrics
from model.evaluate.records import EvalCase, EvalItem
from model.evaluate.synchformer import synchformer_metrics
from pipeline.demo.write import Encoding, encode
from schemas.errors import MediaError, ModelError
from schemas.networks.synchformer import SIDE_PX, _bands, _segments, on_one_clock, shown
from tests.model.evaluate.tiny_networks import musiq_tensors
from tests.schemas.networks.tiny import (
    imagebind_tensors,
    synchformer_tensors,
    write_aesthetics,
    write_aesthetics_of_clip,
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 12 frames with sound, the second of other pictures and another tone, and one picture."""
    from PIL import Image

    root, random = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for at, name in enumerate(("one", "two")):
        frames = random.integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
        sound = 0.5 * np.sin(np.arange(24_000) * (0.02 + 0.1 * at))
        encode(root / f"{name}.mp4", iter(frames), sound.astype(np.float32), Encoding(64, 48))
        Image.fromarray(frames[0]).save(root / f"{name}.png")
    return root


def test_imagebind_tells_films_apart(tmp_path: Path, films: Path) -> None:
    torch.manual_seed(1)
    torch.save(imagebind_tensors()[0], tmp_path / "imagebind_huge.pth")
    (metric,) = imagebind_metrics(tmp_path / "imagebind_huge.pth", "own")
    one, two = (metric.read(EvalCase(EvalItem(item_id="i"), films / f"{name}.mp4")).value for name in ("one", "two"))
    assert -1 <= one != two <= 1
    assert "no sound that can be decoded" in metric.read(EvalCase(EvalItem(item_id="i"), films / "one.png")).why


def test_musiq_is_what_torch_makes_of_the_same_tensors(tmp_path: Path, films: Path) -> None:
    torch.manual_seed(2)
    tensors, block = musiq_tensors()
    torch.save(tensors, tmp_path / "musiq_koniq_ckpt.pth")
    network = Musiq(tmp_path / "musiq_koniq_ckpt.pth")
    tokens = torch.randn(1, 5, 12)
    with torch.inference_mode():
        torch.testing.assert_close(network._encode(tokens), layer_norm(block(tokens), (12,), eps=1e-6))
        patch = torch.randn(1, 3, 32, 32)
        kernel = tensors["conv_root.weight"][3].numpy()
        kernel = (kernel - kernel.mean()) / (kernel.std(ddof=1) + 1e-5)
        corner = np.pad(patch[0].numpy(), ((0, 0), (2, 3), (2, 3)))
        found = network._convolved(patch, "conv_root", stride=2)[0, 3]
        assert found.shape == (16, 16)
        assert float(found[0, 0]) == pytest.approx(float((corner[:, :7, :7] * kernel).sum()), rel=1e-4)
        assert float(found[5, 2]) == pytest.approx(float((corner[:, 10:17, 4:11] * kernel).sum()), rel=1e-4)
        wide = network._tokens(torch.zeros(1, 3, 33, 320), scale=2)
    assert wide.shape == (2 * 10, 12), "a patch that is begun counts"
    grid = tensors["transformer_encoder.posembed_input.position_emb"][0]
    expected = torch.stack([grid[0] - grid[1], grid[50] - grid[53]])
    shown = network._tokens(torch.zeros(1, 3, 64, 320), scale=2)
    torch.testing.assert_close((shown[[0, 10]] - shown[[1, 13]]), expected)
    (metric,) = musiq_metrics(tmp_path / "musiq_koniq_ckpt.pth", "own")
    one, two = (metric.read(EvalCase(EvalItem(item_id="i"), films / f"{name}.png")).value for name in ("one", "two"))
    assert one != two
    chances = tensors | {"head.0.weight": torch.zeros(10, 12), "head.0.bias": torch.zeros(10)}
    torch.save(chances, tmp_path / "musiq_ava_ckpt.pth")
    assert Musiq(tmp_path / "musiq_ava_ckpt.pth").of_film(films / "one.png") == pytest.approx(5.5), "all ten alike"
    with pytest.raises(ModelError, match="several networks for musiq"):
        local_metrics(tmp_path, "own")


def both_of(path: Path) -> tuple[torch.Tensor, np.ndarray]:
    frames, times_s = read_pictures(path, SIDE_PX, "rgb24")
    nearest, sound = on_one_clock(times_s, *mono_sound(path, 16_000))
    return shown([frames[at] for at in nearest]), sound


@pytest.mark.slow
def test_pictures_and_sound_are_taken_on_one_clock(tmp_path: Path) -> None:
    """A flash and a click at 2.0 s of 30 frames a second are in frame 50 of 25 a second and at 2 s of the sound."""
    frames = np.zeros((144, 48, 64, 3), np.uint8)
    frames[60:] = 255
    sound = np.zeros(5 * 48_000, np.float32)
    sound[2 * 48_000 :][:480] = 0.9
    encode(tmp_path / "flash.mp4", iter(frames), sound, Encoding(64, 48, fps=Fraction(30)))
    seen, heard = both_of(tmp_path / "flash.mp4")
    assert seen.shape[1:] == (3, 224, 224)
    assert len(seen) == 120
    assert int((seen.mean((1, 2, 3)) > 0).nonzero()[0]) == 50
    assert int(np.abs(heard).argmax()) / 16_000 == pytest.approx(2.0, abs=0.02)
    assert _segments(seen).shape == (14, 3, 16, 224, 224)
    bands = _bands(heard)
    assert bands.shape == (14, 128, 66)
    assert [at for at in range(14) if bands[at].max() > 0.5] == [5, 6], "segments of 0.64 s, one every 0.32 s"
    torch.manual_seed(5)
    torch.save(synchformer_tensors()[0], tmp_path / "synchformer_state_dict.pth")
    (size,), _ = local_metrics(tmp_path, "mova")
    (signed,) = synchformer_metrics(tmp_path / "synchformer_state_dict.pth", "versebench")
    case = EvalCase(EvalItem(item_id="i"), tmp_path / "flash.mp4")
    told = size.read(case).value
    assert 0 <= told <= 2
    assert round(told / 0.2, 6).is_integer(), "one of 21 classes"
    assert (size.name, signed.name) == ("desync_s", "signed_desync_s")
    encode(tmp_path / "short.mp4", iter(frames[:50]), sound, Encoding(64, 48, fps=Fraction(30)))
    with pytest.raises(MediaError, match=r"fewer than 4\.8 s"):
        both_of(tmp_path / "short.mp4")


def test_an_aesthetic_head_is_one_map_of_the_direction(tmp_path: Path, films: Path) -> None:
    torch.manual_seed(3)
    write_aesthetics(tmp_path)
    network = AestheticMetrics(tmp_path)
    head = torch.load(tmp_path / "aesthetic_predictor_v2_5.pth", weights_only=True)
    vector = torch.randn(1, 16)
    told = vector / vector.norm()
    for number in range(0, 10, 2):
        told = told @ head[f"scoring_head.{number}.weight"].T + head[f"scoring_head.{number}.bias"]
    assert network.opinion(vector) == pytest.approx(float(told), rel=1e-5)
    assert network.opinion(3 * vector) == pytest.approx(float(told), rel=1e-5)
    assert network.of_film(films / "one.png") != network.of_film(films / "two.png")
    (tmp_path / "clip").mkdir()
    write_aesthetics_of_clip(tmp_path / "clip")
    of_clip = AestheticMetrics(tmp_path / "clip")
    assert of_clip.kind == "clip_vision_model"
    assert of_clip.of_film(films / "one.png") != of_clip.of_film(films / "two.png")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "aesthetic_predictor_v2_5.pth")
    with pytest.raises(ModelError, match="expected 5 layers"):
        AestheticMetrics(tmp_path).opinion(vector)
    (tmp_path / "aesthetic_predictor_v2_5.pth").unlink()
    with pytest.raises(ModelError, match="has 0 files for a head"):
        AestheticMetrics(tmp_path)
