"""What a network from a path says of clips, on a tiny one whose weights are set by hand: the brighter, the less safe."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError, RecipeError
from schemas.networks.folders import WEIGHTS
from stages.base import Context
from stages.safety.classifier import FRONT_END
from stages.safety.stage import SAFETY, Safety, SafetyConfig
from tests.rows import clip_row, span_of_file
from tests.schemas.networks.tiny import SMALL, write_clap

SHARPNESS = 2.0


def nsfw_of(grey: float) -> float:
    """What the network of `write_vit` says of a picture of one grey: 0 is black, 255 white, 127.5 has 0.5."""
    level = grey / 127.5 - 1
    return float(1 / (1 + np.exp(-SHARPNESS * np.sqrt(8) * level / np.sqrt(level**2 + 1))))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT that takes the mean of its pictures, as every token is given what all see."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder, side = tmp_path_factory.mktemp("vit"), 16
    labels = {0: "normal", 1: "nsfw"}
    config = ViTConfig(**SMALL, image_size=2 * side, patch_size=side, id2label=labels)
    network = ViTForImageClassification(config)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            tensor.fill_(1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
        seen = network.vit.embeddings.patch_embeddings.projection
        seen.weight[0], seen.weight[1] = 1 / (3 * side**2), -1 / (3 * side**2)
        seen.bias[2], seen.bias[3] = 1.0, -1.0
        attention = network.vit.encoder.layer[0].attention
        for layer in (attention.attention.value, attention.output.dense):
            layer.weight.copy_(torch.eye(16))
        network.classifier.weight[:, 0] = torch.tensor([-SHARPNESS / 2, SHARPNESS / 2])
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 2 * side, "width": 2 * side}).save_pretrained(folder)
    return folder


def begun(ctx: Context, path: Path | str, **settings: Any) -> Safety:
    stage = Safety(SafetyConfig(path=str(path), **settings))
    stage.setup(ctx)
    return stage


@pytest.mark.slow
def test_clips_are_told_apart_by_one_picture_a_second(vit: Path, tmp_path: Path) -> None:
    greys = [40] * 20 + [40] * 5 + [220] + [40] * 4 + [150] + [40] * 4 + [40] * 4 + [255]
    frames = (np.full((48, 64, 3), grey, np.uint8) for grey in greys)
    encode(tmp_path / "a.mp4", frames, np.zeros(8 * 48_000, np.float32), Encoding(64, 48, fps=Fraction(5)))
    ctx = Context(tmp_path)
    probe = ctx.media.probe(tmp_path / "a.mp4")
    stage, inverse = begun(ctx, vit), begun(ctx, vit, label="normal")
    dark, bright = (
        clip_row(tmp_path / "a.mp4", span_of_file(probe, *span), probe=probe) for span in ((0, 4), (Fraction(19, 5), 8))
    )
    told = stage.measure(dark)
    assert set(told) == {field.name for field in SAFETY}
    assert told == {"nsfw": pytest.approx(nsfw_of(40), abs=0.01), "nsfw_share": 0.0, "num_pictures": 4}
    told = stage.measure(bright)
    assert told["nsfw"] == pytest.approx(nsfw_of(220), abs=0.01), "white is between the pictures that are looked at"
    assert (told["nsfw_share"], told["num_pictures"]) == (0.4, 5), "its first picture, and one at 4, 5, 6 and 7 s"
    told = inverse.measure(dark)
    assert (told["nsfw"], told["nsfw_share"]) == (pytest.approx(1 - nsfw_of(40), abs=0.01), 1.0)
    unseen = stage.measure(clip_row(tmp_path / "a.mp4", probe=probe | {"has_video": False}))
    assert unseen == {"nsfw": None, "nsfw_share": None, "num_pictures": 0}
    ctx.media.close()


@pytest.mark.slow
def test_labels_that_exclude_each_other_add_up_and_others_need_not(vit: Path, tmp_path: Path) -> None:
    picture = np.full((48, 64, 3), 200, np.uint8)
    one = begun(Context(tmp_path), vit).network.of_picture(picture)
    assert one.tolist() == pytest.approx([1 - nsfw_of(200), nsfw_of(200)], abs=1e-3)
    many = changed(vit, tmp_path / "many", problem_type="multi_label_classification")
    by_itself = begun(Context(tmp_path), many).network.of_picture(picture)
    odds = np.sqrt(one[1] / one[0])
    assert by_itself.tolist() == pytest.approx([1 / (1 + odds), odds / (1 + odds)], rel=1e-4)


def changed(vit: Path, folder: Path, **settings: Any) -> Path:
    """The same network with other settings in its config.json."""
    folder.mkdir()
    for path in vit.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize("path", ["", "/nowhere/gone"])
def test_a_network_that_is_not_there_ends_the_run_before_it_begins(tmp_path: Path, path: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"stages\.safety\.path: expected .* got '{path}'\. Set it .* leave the stage out"
    ):
        begun(Context(tmp_path), path)


@pytest.mark.slow
def test_a_network_that_cannot_tell_ends_it_as_well(vit: Path, tmp_path: Path) -> None:
    ctx = Context(tmp_path)
    with pytest.raises(
        ModelError, match=r"expected a label 'porn' in id2label, got \['normal', 'nsfw'\]\. Name the label"
    ):
        begun(ctx, vit, label="porn")
    write_clap(tmp_path / "clap")
    with pytest.raises(ModelError, match=r"expected a network called \.\.\.ForImageClassification, got ClapModel"):
        begun(ctx, tmp_path / "clap")
    headless = changed(vit, tmp_path / "headless")
    tensors = load_file(headless / WEIGHTS)
    save_file(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")},
        headless / WEIGHTS,
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"has no tensor 'classifier\.bias' \(2 missing\)"):
        begun(ctx, headless)
    unprepared = changed(vit, tmp_path / "unprepared")
    (unprepared / FRONT_END).unlink()
    with pytest.raises(ModelError, match=rf"has no {FRONT_END}, without which"):
        begun(ctx, unprepared)
