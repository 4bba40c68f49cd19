"""DOVER on tiny tensors under the published names. Figures are what torchvision's own made of the same tensors, run once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from model.evaluate.local import local_metrics
from model.evaluate.pictures import dover
from model.evaluate.pictures.dover import PIXEL_MEAN, PIXEL_STD, Dover, chosen_frames, opinions, pieced, scaled
from model.evaluate.pictures.swin_video import APART, fragments_apart, places_apart, strangers, window_of, windows
from model.evaluate.records import EvalCase, EvalItem
from pipeline.demo.write import Encoding, encode
from schemas.errors import MediaError, ModelError
from tests.model.evaluate import published_shapes as shapes

BIAS = "technical_backbone.layers.0.blocks.1.attn"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dover")
    torch.save(shapes.drawn(shapes.dover(), seed=6), root / "DOVER.pth")
    return root


def test_features_are_those_of_torchvision_where_fragments_are_no_matter(tmp_path: Path) -> None:
    tensors = shapes.drawn(shapes.dover(), seed=6)
    alike = {name: tensors[name.replace("fragment", "relative")] for name in tensors if "fragment_position" in name}
    torch.save(tensors | alike, tmp_path / "DOVER.pth")
    film = torch.randn(1, 3, 32, 56, 56, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found = Dover(tmp_path / "DOVER.pth")._swin.features(film)
    assert found.shape == (1, 16, 7, 7, 48)
    assert float(found.abs().mean()) == pytest.approx(1.4152483, rel=1e-5)
    assert found[0, ::5, 3, 3, 7].tolist() == pytest.approx([-0.4036750, -0.3384950, -0.3559111, -0.3662259], abs=2e-5)


def test_two_places_attend_by_how_many_fragments_they_are_apart(root: Path) -> None:
    """Of a film of 16 x 14 x 14 places, two of each fragment: by hand for some pairs of shifted windows."""
    tensors = shapes.drawn(shapes.dover(), seed=6)
    within, between = (tensors[f"{BIAS}.{name}_position_bias_table"] for name in ("fragment", "relative"))
    sides = (16, 14, 14)
    size, shift = window_of(sides, is_shifted=True)
    assert (size, shift) == ((8, 7, 7), (4, 3, 3))
    bias = Dover(root / "DOVER.pth")._swin._bias(BIAS, sides, is_shifted=True)
    assert bias.shape == (8, 3, 392, 392)
    for one, other in (((0, 0, 0), (0, 0, 1)), ((2, 1, 3), (5, 4, 3)), ((7, 6, 6), (0, 0, 0)), ((3, 3, 3), (3, 3, 3))):
        places = [at[0] * 49 + at[1] * 7 + at[2] for at in (one, other)]
        rows = [[(at[axis] + shift[axis]) * 7 // 14 for axis in (1, 2)] for at in (one, other)]
        steps = sum(abs(a - b) for a, b in zip(*rows, strict=True))
        apart = [a - b for a, b in zip(one, other, strict=True)]
        row = (apart[0] + 7) * 169 + (apart[1] + 6) * 13 + apart[2] + 6
        expected = between[row] * steps + within[row] * (1 - steps)
        torch.testing.assert_close(bias[0, :, places[0], places[1]], expected)


def test_a_shift_brings_strangers_together_in_the_last_windows_alone() -> None:
    told = strangers((16, 14, 14), (8, 7, 7), (4, 3, 3))
    assert [bool((window == APART).any()) for window in told] == [False] + [True] * 7
    assert window_of((16, 7, 7), is_shifted=True) == ((8, 7, 7), (4, 0, 0))
    last = strangers((16, 7, 7), (8, 7, 7), (4, 0, 0))
    assert [int((window == APART).sum()) for window in last] == [0, 2 * 196 * 196]
    assert places_apart((8, 7, 7))[0, -1] == 0
    assert fragments_apart((8, 7, 7), (8, 7, 7), (0, 0, 0))[0, 0, -1] == 12, "7 by 7 fragments of one place"
    laid = windows(torch.arange(16 * 14 * 14).reshape(1, 16, 14, 14, 1), (8, 7, 7))
    assert laid[0, 1, 0, 0] == 7
    assert laid[0, 4, 0, 0] == 8 * 14 * 14


def test_the_whole_film_is_seen_as_transformers_convnext_sees_its_pictures(tmp_path: Path) -> None:
    """With kernels that look at no time but their own, every second frame is a picture for itself."""
    from transformers import ConvNextConfig, ConvNextModel

    tensors = shapes.drawn(shapes.dover(), seed=7)
    for name, each in tensors.items():
        if "dwconv.weight" in name and each.shape[2] == 3:
            each[:, :, [0, 2]] = 0
    tensors["aesthetic_backbone.downsample_layers.0.0.weight"][:, :, 1] = 0
    torch.save(tensors, tmp_path / "DOVER.pth")
    config = ConvNextConfig(depths=[2, 2], hidden_sizes=[8, 16], num_stages=2, layer_scale_init_value=1.0)
    whole = ConvNextModel(config).eval()
    state = {}
    for name in whole.state_dict():
        own = name.replace("embeddings.patch_embeddings", "downsample_layers.0.0").replace("layernorm.", "norm.")
        own = own.replace("embeddings.norm", "downsample_layers.0.1").replace("layer_scale_parameter", "gamma")
        own = own.replace("encoder.stages.1.downsampling_layer", "downsample_layers.1").replace("encoder.", "")
        each = tensors[f"aesthetic_backbone.{own.replace('.layers.', '.')}"]
        state[name] = each[:, :, each.shape[2] // 2 if each.shape[2] == 3 else 0] if each.ndim == 5 else each
    whole.load_state_dict(state)
    film = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found = Dover(tmp_path / "DOVER.pth")._convnext(film)
        maps = whole(film[0, :, ::2].transpose(0, 1)).last_hidden_state
    expected = torch.nn.functional.layer_norm(
        maps.permute(0, 2, 3, 1), (16,), state["layernorm.weight"], state["layernorm.bias"], 1e-6
    )
    assert found.shape == (1, 2, 4, 4, 16)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def test_frames_are_of_three_stretches_and_of_all_the_film() -> None:
    found = chosen_frames(300, np.random.default_rng(0))
    assert len(found) == 3 * 32 + 32
    stretches, whole = np.array(found[:96]).reshape(3, 32), np.array(found[96:])
    assert (np.diff(stretches) == 2).all()
    assert [int(each[0]) // 100 for each in stretches] == [0, 1, 2]
    assert int(stretches.max()) < 300
    assert (whole // 9 == np.arange(32)).all()
    assert chosen_frames(300, np.random.default_rng(0)) == found
    assert chosen_frames(24, np.random.default_rng(0))[:13] == [*range(0, 24, 2), 0], "a short film starts over"
    with pytest.raises(MediaError, match="1 frames"):
        chosen_frames(1, np.random.default_rng(0))


def test_fragments_are_cut_as_they_are_and_small_pictures_enlarged() -> None:
    mean, std = np.array(PIXEL_MEAN), np.array(PIXEL_STD)
    row, column = np.indices((448, 672))
    frame = np.stack([row // 64, column // 96, np.zeros_like(row)], -1).astype(np.uint8)
    found = pieced([frame, frame], np.random.default_rng(0)).permute(1, 2, 3, 0).numpy() * std + mean
    assert found.shape == (2, 224, 224, 3)
    expected = np.indices((224, 224)) // 32
    np.testing.assert_allclose(found[0, ..., :2], np.moveaxis(expected, 0, -1), atol=1e-4)
    np.testing.assert_array_equal(found[0], found[1], "the same places in each frame")
    small = np.full((100, 60, 3), 7, np.uint8)
    for made in (pieced([small], np.random.default_rng(0)), scaled([small])):
        assert made.shape == (3, 1, 224, 224)
        np.testing.assert_allclose(made.permute(1, 2, 3, 0).numpy() * std + mean, 7, atol=1e-4)


def test_scales_are_the_authors() -> None:
    assert opinions({"technical": 0.1107, "aesthetic": -0.08285}) == dict.fromkeys(
        ("technical", "aesthetic", "overall"), 0.5
    )
    told = opinions({"technical": 0.1107 + 0.07355, "aesthetic": -0.08285})
    assert told["technical"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert told["overall"] == pytest.approx(1 / (1 + np.exp(-0.6104)))
    assert opinions({"technical": -1e6, "aesthetic": 1e6})["technical"] == 0


@pytest.mark.slow
def test_a_film_is_judged_the_same_in_every_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fragments of 8 px instead of 32, which take a sixteenth of the time."""
    monkeypatch.setattr(dover, "FRAGMENT_PX", 8)
    monkeypatch.setattr(dover, "SIDE_PX", 56)
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 80, 3), dtype=np.uint8)
    encode(tmp_path / "film.mp4", iter(frames), None, Encoding(80, 64, fps=Fraction(8)))
    metrics, _ = local_metrics(root, "own")
    assert [each.name for each in metrics] == ["dover_technical", "dover_aesthetic", "dover_overall"]
    again = Dover(root / "DOVER.pth").of_file(tmp_path / "film.mp4")
    for metric in metrics:
        value = metric.read(EvalCase(EvalItem(item_id="i"), tmp_path / "film.mp4")).value
        assert 0 <= value <= 1
        assert again[metric.name.removeprefix("dover_")] == value
        assert len(metric.sha256) == 64


def test_it_stands_under_own_alone_and_another_network_is_refused(root: Path, tmp_path: Path) -> None:
    assert not local_metrics(root, "mova")[0]
    mobile = {name: each for name, each in shapes.drawn(shapes.dover()).items() if "gamma" not in name}
    torch.save(mobile, tmp_path / "DOVER.pth")
    with pytest.raises(ModelError, match=r"has no tensor 'aesthetic_backbone\.stages\.0\.0\.gamma'"):
        Dover(tmp_path / "DOVER.pth").aesthetic(torch.zeros(3, 2, 32, 32))
