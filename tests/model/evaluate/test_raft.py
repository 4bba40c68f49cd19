"""RAFT on tiny tensors under the published names. Figures are what torchvision's own made of the same tensors, run once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from model.evaluate.local import local_metrics
from model.evaluate.pictures.raft import Raft, _enlarged, _looked_up
from model.evaluate.records import EvalCase, EvalItem
from pipeline.demo.write import Encoding, encode
from schemas.errors import MediaError, ModelError
from tests.model.evaluate.published_shapes import raft_tensors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raft")
    torch.save(raft_tensors(), root / "raft-things.pth")
    return root


def test_flow_is_that_of_torchvision(root: Path) -> None:
    network = Raft(root / "raft-things.pth")
    one, other = torch.rand(2, 1, 3, 136, 152, generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.inference_mode():
        found = network.flow(one, network._encoded(one, "fnet"), network._encoded(other, "fnet"))
    assert found.shape == (1, 2, 136, 152)
    assert float(found.abs().mean()) == pytest.approx(3.0984590, rel=1e-5)
    assert found[0, 0, 40, ::50].tolist() == pytest.approx([-3.3542821, -3.8811038, -3.6540608, -2.5754736], rel=1e-4)
    assert found[0, 1, 40, ::50].tolist() == pytest.approx([1.8823317, 2.7771149, 2.7232857, 2.3799167], rel=1e-4)


def test_what_lies_around_a_place_is_looked_up_column_by_column() -> None:
    """Of a scale that says 10 y + x everywhere, half a place to the right and down, and nothing beyond its edges."""
    scale = (10.0 * torch.arange(30)[:, None] + torch.arange(30)).reshape(1, 1, 30, 30)
    found = _looked_up([scale], torch.full((1, 2, 1, 1), 12.5)).flatten().reshape(9, 9)
    assert float(found[4, 4]) == pytest.approx(10 * 12.5 + 12.5, rel=1e-5)
    assert float(found[5, 4] - found[4, 4]) == pytest.approx(1, rel=1e-3)
    assert float(found[4, 5] - found[4, 4]) == pytest.approx(10, rel=1e-3)
    assert not _looked_up([scale], torch.full((1, 2, 1, 1), 99.0)).any()


def test_an_even_flow_stays_even_but_at_the_edges() -> None:
    flow = torch.tensor([1.0, -2.0])[None, :, None, None].expand(1, 2, 5, 6)
    found = _enlarged(flow, torch.randn(1, 576, 5, 6))
    assert found.shape == (1, 2, 40, 48)
    torch.testing.assert_close(
        found[..., 8:-8, 8:-8], torch.tensor([8.0, -16.0])[None, :, None, None].expand(1, 2, 24, 32)
    )


def test_a_films_flow_is_the_mean_over_its_frames(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (3, 128, 160, 3), dtype=np.uint8)
    encode(tmp_path / "film.mp4", iter(frames), None, Encoding(160, 128, fps=Fraction(8)))
    Image.fromarray(frames[0]).save(tmp_path / "one.png")
    Image.fromarray(frames[0, :100]).save(tmp_path / "flat.png")
    ((metric,), _) = local_metrics(root, "versebench")
    assert (metric.name, metric.unit, metric.better, len(metric.sha256)) == ("raft_flow", "px", "neither", 64)
    read = {
        name: metric.read(EvalCase(EvalItem(item_id="i"), tmp_path / name))
        for name in ("film.mp4", "one.png", "flat.png")
    }
    assert 0 < read["film.mp4"].value < 20
    assert metric.read(EvalCase(EvalItem(item_id="i"), tmp_path / "film.mp4")) == read["film.mp4"]
    assert "shows no motion" in read["one.png"].why
    assert "100 px high or wide" in read["flat.png"].why


def test_pictures_are_halved_and_filled_to_whole_places(root: Path) -> None:
    network = Raft(root / "raft-things.pth")
    assert network.prepared(np.zeros((704, 1280, 3), np.uint8)).shape == (1, 3, 352, 640)
    assert network.prepared(np.zeros((1281, 701, 3), np.uint8)).shape == (1, 3, 640, 352)
    edge = np.zeros((130, 160, 3), np.uint8)
    edge[-1] = 255
    assert network.prepared(edge)[0, 0, :, 0].tolist() == [-1.0] * 132 + [1.0] * 4, (
        "3 rows above, 3 below like the last"
    )
    with pytest.raises(MediaError, match="90 px high or wide"):
        network.prepared(np.zeros((360, 2400, 3), np.uint8))


def test_another_network_is_refused_by_its_names(tmp_path: Path) -> None:
    torch.save({"fnet.conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "raft-things.pth")
    with pytest.raises(ModelError, match=r"has no tensor 'fnet\.conv1\.bias'"):
        Raft(tmp_path / "raft-things.pth")._encoded(torch.zeros(1, 3, 16, 16), "fnet")
