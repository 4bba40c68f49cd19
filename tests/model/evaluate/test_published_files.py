"""Networks that are functions of published tensors: tiny ones under the published names, held against torch's own layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, conv3d, layer_norm, normalize

from model.evaluate.aesthetics import Aesthetics
from model.evaluate.imagebind import ImageBind, _frames_of, _starts, imagebind_metrics
from model.evaluate.local import local_metrics
from model.evaluate.musiq import Musiq, musiq_metrics
from model.evaluate.records import EvalCase, EvalItem
from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError
from tests.model.evaluate.tiny_networks import imagebind_tensors, musiq_tensors, write_aesthetics


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


def test_imagebind_is_what_torch_makes_of_the_same_tensors(tmp_path: Path, films: Path) -> None:
    torch.manual_seed(1)
    tensors, blocks = imagebind_tensors()
    torch.save(tensors, tmp_path / "imagebind_huge.pth")
    network = ImageBind(tmp_path / "imagebind_huge.pth")
    given = {"vision": torch.randn(2, 3, 2, 224, 224), "audio": torch.randn(2, 1, 128, 204)}
    for kind, inputs in given.items():  # with gradients: torch's fast path leaves the learned key out
        own = f"modality_preprocessors.{kind}"
        dim = tensors[f"{own}.cls_token"].shape[-1]
        if kind == "vision":
            patches = conv3d(inputs, tensors[f"{own}.rgbt_stem.proj.1.weight"], stride=(2, 14, 14)).flatten(2)
        else:
            patches = conv2d(inputs, tensors[f"{own}.rgbt_stem.proj.weight"], stride=10).flatten(2)
        patches = layer_norm(patches.mT, (dim,)) if kind == "audio" else patches.mT
        tokens = torch.cat([tensors[f"{own}.cls_token"].expand(2, 1, dim), patches], 1)
        tokens = tokens + tensors[f"{own}.pos_embedding_helper.pos_embed"]
        tokens = layer_norm(tokens, (dim,), eps=1e-6) if kind == "vision" else tokens
        told = layer_norm(blocks[kind](tokens)[:, 0], (dim,), eps=1e-6)
        expected = normalize(told @ tensors[f"modality_heads.{kind}.2.weight"].T, dim=1)
        torch.testing.assert_close(network.vectors(kind, inputs), expected.detach(), rtol=1e-4, atol=1e-5)
    (metric,) = imagebind_metrics(tmp_path / "imagebind_huge.pth", "own")
    one, two = (metric.read(EvalCase(EvalItem(item_id="i"), films / f"{name}.mp4")).value for name in ("one", "two"))
    assert -1 <= one != two <= 1
    assert "no sound that can be decoded" in metric.read(EvalCase(EvalItem(item_id="i"), films / "one.png")).why


def test_clips_lie_evenly_and_have_a_first_and_a_last_frame() -> None:
    times_s = np.arange(100) / 25
    assert _starts(4.0, 5) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [_frames_of(times_s, at) for at in (0.0, 2.0)] == [[0, 49], [50, 99]]
    assert _starts(1.0, 3) == [0.0, 0.0, 0.0]


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


def test_an_aesthetic_head_is_one_map_of_the_direction(tmp_path: Path, films: Path) -> None:
    torch.manual_seed(3)
    write_aesthetics(tmp_path)
    network = Aesthetics(tmp_path)
    head = torch.load(tmp_path / "aesthetic_predictor_v2_5.pth", weights_only=True)
    vector = torch.randn(1, 16)
    told = vector / vector.norm()
    for number in range(0, 10, 2):
        told = told @ head[f"scoring_head.{number}.weight"].T + head[f"scoring_head.{number}.bias"]
    assert network.opinion(vector) == pytest.approx(float(told), rel=1e-5)
    assert network.opinion(3 * vector) == pytest.approx(float(told), rel=1e-5)
    assert network.of_film(films / "one.png") != network.of_film(films / "two.png")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "aesthetic_predictor_v2_5.pth")
    with pytest.raises(ModelError, match="expected 5 layers"):
        Aesthetics(tmp_path).opinion(vector)
    (tmp_path / "aesthetic_predictor_v2_5.pth").unlink()
    with pytest.raises(ModelError, match="has 0 files for a head"):
        Aesthetics(tmp_path)
