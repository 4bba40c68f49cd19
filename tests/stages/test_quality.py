"""Picture quality on ladders of known faults, and bars and fields of known sizes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.demo.face import photograph
from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError, RecipeError
from schemas.networks.aesthetics import SIDE_PX, Aesthetics
from schemas.timing import Span
from stages.base import Context
from stages.media.decoder import Frames
from stages.quality.brisque import Brisque
from stages.quality.faults import bars, blockiness, blur, is_combed, noise
from stages.quality.stage import QUALITY, Quality, QualityConfig, QualityWatch, centre, most_detailed
from tests.rows import clip_row, span_of_file
from tests.schemas.networks.tiny import write_aesthetics, write_clap

GREY = cv2.cvtColor(photograph("chelsea.png"), cv2.COLOR_RGB2GRAY)[:288, :448]


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8) if sigma else picture


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(picture + np.random.default_rng(1).normal(0, sigma, picture.shape), 0, 255).astype(np.uint8)


def squeezed(picture: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0), np.uint8)


@pytest.mark.parametrize(
    ("worsen", "rungs", "fault"),
    [(blurred, (0, 1, 2, 4), blur), (noisy, (0, 5, 15, 40), noise), (squeezed, (95, 30, 15, 6), blockiness)],
)
def test_faults_and_brisque_rise_along_a_ladder(
    worsen: Callable[..., np.ndarray], rungs: tuple[float, ...], fault: Callable[..., float]
) -> None:
    brisque = Brisque.load()
    pictures = [worsen(GREY, rung) for rung in rungs]
    for measure in (fault, brisque.score):
        found = [measure(picture) for picture in pictures]
        assert found == sorted(found), measure
        assert found[-1] > found[0]


def test_brisque_looks_where_most_detail_is() -> None:
    """A person before a wall, lower left, in a picture between bars."""
    soft = blurred(cv2.resize(GREY, (1200, 1000), interpolation=cv2.INTER_CUBIC), 6)
    soft[600:888, 40:488] = GREY
    boxed = np.pad(soft, ((90, 0), (0, 0)))
    place = most_detailed(boxed, (0, 90, 0, 0))
    assert place.shape == (448, 448)
    assert blur(place) < blur(centre(boxed, (0, 90, 0, 0)))
    assert Brisque.load().score(place) < Brisque.load().score(centre(boxed, (0, 90, 0, 0))) - 10
    np.testing.assert_array_equal(most_detailed(GREY, None), GREY)


def test_noise_is_told_in_grey_levels() -> None:
    flat = np.full((256, 256), 120, np.uint8)
    assert noise(noisy(flat, 10)) == pytest.approx(10, rel=0.1)


def test_a_flat_or_tiny_picture_has_no_score() -> None:
    assert Brisque.load().score(np.full((64, 64), 7, np.uint8)) is None
    assert Brisque.load().score(GREY[:20, :20]) is None


def test_fields_of_different_times_are_combed() -> None:
    woven = GREY.copy()
    woven[1::2] = np.roll(GREY, 8, 1)[1::2]
    assert is_combed(woven)
    assert not is_combed(GREY)
    assert not is_combed(np.roll(GREY, 8, 1))


def test_bars_of_any_level_are_cut_off_and_soft_edges_are_not() -> None:
    boxed = np.full((400, 448), 16, np.uint8)
    boxed[60:340] = GREY[:280]
    boxed[5:15, 10:18] = 235  # a logo in the bar
    assert bars(boxed) == (0, 60, 0, 60)
    white = np.full((288, 600), 250, np.uint8)
    white[:, 100:500] = GREY[:, 20:420]
    assert bars(white) == (100, 0, 100, 0)
    assert bars(GREY) == (0, 0, 0, 0)
    assert bars(np.full((50, 50), 9, np.uint8)) is None
    assert bars(np.repeat(np.uint8([[9], [200]]), 50, axis=0).repeat(40, axis=1)) is None, (
        "two bars and nothing between"
    )


def test_a_clip_has_what_was_seen_in_it(tmp_path: Path) -> None:
    watch = QualityWatch(Context(tmp_path))
    boxed = np.pad(GREY, ((36, 36), (0, 0)))
    pictures = np.stack([boxed, boxed, np.zeros_like(boxed)])
    watch.see(Frames(pictures, np.array([0, 25, 50]), 75, 1, 25, np.zeros(3, bool)))
    found = watch.of(Span(0, 60, 1, 25), 896, 720)
    assert set(found) == {field.name for field in QUALITY}
    assert (found["bars"], found["crop_x_px"], found["crop_y_px"]) == ("letterbox", 0, 72)
    assert (found["crop_width_px"], found["crop_height_px"], found["crop_ratio"]) == (896, 576, 0.8)
    black = watch.of(Span(50, 75, 1, 25), 896, 720)
    assert (black["bars"], black["brisque"], black["interlaced_ratio"]) == (None, None, 0)
    assert watch.of(Span(30, 45, 1, 25), 896, 720)["bars"] == "letterbox", "the picture before stands for a short clip"


@pytest.mark.slow
def test_a_clip_pleases_as_much_as_the_network_says_of_its_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_aesthetics(tmp_path / "siglip")
    frames = np.random.default_rng(0).integers(0, 255, (40, 1, 1, 3)).astype(np.uint8).repeat(48, 1).repeat(64, 2)
    encode(tmp_path / "a.mp4", iter(frames), np.zeros(8 * 48_000, np.float32), Encoding(64, 48, fps=Fraction(5)))
    ctx = Context(tmp_path)
    probe = ctx.media.probe(tmp_path / "a.mp4")
    alone, asking = Quality(QualityConfig()), Quality(QualityConfig(aesthetic=str(tmp_path / "siglip")))
    shown = ctx.media.frames(tmp_path / "a.mp4", long_side_px=SIDE_PX).images
    network = Aesthetics(tmp_path / "siglip")
    assert len({network.of_pictures([picture]) for picture in shown[::5]}) == 8, "or any pictures would do"
    for stage in (alone, asking):
        stage.setup(ctx)
    for start_s, end_s, at in (
        (Fraction(3, 5), 4, (5, 10, 15)),
        (Fraction(6, 5), Fraction(8, 5), (5,)),
        (0, 8, (0, 10, 20, 25, 35)),
    ):
        row = clip_row(tmp_path / "a.mp4", span_of_file(probe, start_s, end_s), probe=probe)
        own, told = alone.measure(row), asking.measure(row)
        assert told["aesthetic"] == pytest.approx(network.of_pictures(shown[list(at)]), rel=1e-9)
        assert own == told | {"aesthetic": None}
    ctx.media.close()


def begin(folder: Path, tmp_path: Path) -> None:
    Quality(QualityConfig(aesthetic=str(folder))).setup(Context(tmp_path))


def test_an_aesthetic_network_that_is_not_there_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"stages\.quality\.aesthetic: .*gone.* does not exist\. Set it to .* leave it empty"
    ):
        begin(tmp_path / "gone", tmp_path)


@pytest.mark.slow
def test_another_network_or_head_ends_it_as_well(tmp_path: Path) -> None:
    write_clap(tmp_path / "clap")
    with pytest.raises(ModelError, match=r"expected a network of type siglip or .*, got 'clap'"):
        begin(tmp_path / "clap", tmp_path)
    write_aesthetics(tmp_path / "siglip")
    path = tmp_path / "siglip" / "aesthetic_predictor_v2_5.pth"
    torch.save(torch.load(path, weights_only=True) | {"scoring_head.0.weight": torch.zeros(8, 12)}, path)
    with pytest.raises(ModelError, match="a head for vectors of 12, expected 16"):
        begin(tmp_path / "siglip", tmp_path)
