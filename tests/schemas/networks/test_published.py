"""Networks as functions of published tensors: tiny ones under the published names, held against torch's own layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import conv2d, conv3d, layer_norm, normalize, scaled_dot_product_attention

from schemas.networks.imagebind import ImageBind, _frames_of, _starts
from schemas.networks.synchformer import Synchformer
from tests.schemas.networks.tiny import SYNC_DIM, imagebind_tensors, synchformer_tensors


def test_imagebind_is_what_torch_makes_of_the_same_tensors(tmp_path: Path) -> None:
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


def test_clips_lie_evenly_and_have_a_first_and_a_last_frame() -> None:
    times_s = np.arange(100) / 25
    assert _starts(4.0, 5) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [_frames_of(times_s, at) for at in (0.0, 2.0)] == [[0, 49], [50, 99]]
    assert _starts(1.0, 3) == [0.0, 0.0, 0.0]


def test_synchformer_is_what_others_make_of_the_same_tensors(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTModel

    torch.manual_seed(4)
    tensors, gathering = synchformer_tensors(num_places=4)
    torch.save(tensors, tmp_path / "synchformer_state_dict.pth")
    network, dim = Synchformer(tmp_path / "synchformer_state_dict.pth"), SYNC_DIM
    given = torch.randn(3, 5, dim)
    first = tensors["vfeat_extractor.spatial_attn_agg.cls_token"].expand(3, 1, dim)
    with torch.inference_mode():
        gathered = network.gathered(given, "vfeat_extractor.spatial_attn_agg")
        torch.testing.assert_close(gathered, gathering(torch.cat([first, given], 1))[:, 0], rtol=1e-4, atol=1e-5)
        tokens, num_times, num_places = torch.randn(2, 1 + 6, dim), 2, 3
        place = torch.tensor([-1, *(at % num_places for at in range(6))])
        time = torch.tensor([-1, *(at // num_places for at in range(6))])
        for part, group in (("timeattn", place), ("attn", time)):
            name = f"vfeat_extractor.blocks.0.{part}"
            packed = tokens @ tensors[f"{name}.qkv.weight"].T + tensors[f"{name}.qkv.bias"]
            heads = [each.unflatten(2, (12, -1)).transpose(1, 2) for each in packed.chunk(3, -1)]
            may_see = (group[:, None] == group) | (group == -1) | (group[:, None] == -1)
            found = scaled_dot_product_attention(*heads, attn_mask=may_see).transpose(1, 2).flatten(2)
            expected = found @ tensors[f"{name}.proj.weight"].T + tensors[f"{name}.proj.bias"]
            told = network.divided(tokens, name, num_times, is_over_time=part == "timeattn")
            torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-5)
        config = ASTConfig(hidden_size=dim, num_hidden_layers=1, num_attention_heads=12, intermediate_size=2 * dim)
        config.max_length = 66
        ast, prefix = ASTModel(config).eval(), "afeat_extractor.ast."
        ast.load_state_dict(
            {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        )
        bands = torch.randn(2, 128, 66)
        heard = ast(bands.transpose(1, 2)).last_hidden_state[:, 2:].unflatten(1, (12, 6))
        expected = torch.stack(
            [network.gathered(heard[:, :, at], "afeat_extractor.freq_attn_agg") for at in range(6)], 1
        )
        torch.testing.assert_close(network.of_sounds(bands), expected, rtol=1e-4, atol=1e-5)
        assert network.of_pictures(torch.randn(1, 3, 16, 32, 32)).shape == (1, 8, dim)
        assert network.logits(torch.randn(14, 3, 16, 32, 32), torch.randn(14, 128, 66)).shape == (21,)


def test_all_that_a_network_computes_is_where_it_was_put(tmp_path: Path) -> None:
    """Tensors without numbers stand for a GPU: torch refuses to compute with them and those of the CPU at once."""
    torch.save(imagebind_tensors()[0], tmp_path / "imagebind.pth")
    torch.save(synchformer_tensors(num_places=4)[0], tmp_path / "synchformer.pth")
    bound = ImageBind(tmp_path / "imagebind.pth", "meta")
    assert bound.vectors("vision", torch.zeros(1, 3, 2, 224, 224)).is_meta
    assert bound.vectors("audio", torch.zeros(1, 1, 128, 204)).is_meta
    former = Synchformer(tmp_path / "synchformer.pth", "meta")
    assert former.logits(torch.zeros(14, 3, 16, 32, 32), torch.zeros(14, 128, 66)).is_meta
