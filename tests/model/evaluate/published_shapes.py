"""Tiny checkpoints under the names of published ones: names and shapes, and tensors drawn for them, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
DIM = 24
"""Twelve heads of two channels, as many heads as the published vision transformers have."""
NUM_PLACES = 64
"""Patches of a picture of 64 px."""
CLASSES = 5


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tensors of these shapes that keep the size of what goes through them."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5
        tensors[name] = tensor.abs() + 0.5 if name.endswith("running_var") else tensor
    return tensors


def layer(name: str, *shape: int) -> Shapes:
    """A layer with a bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, dim: int) -> Shapes:
    return layer(name, dim) | {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,)}


def vision_block(name: str, dim: int) -> Shapes:
    attention = layer(f"{name}.attn.qkv", 3 * dim, dim) | layer(f"{name}.attn.proj", dim, dim)
    mlp = layer(f"{name}.mlp.fc1", 2 * dim, dim) | layer(f"{name}.mlp.fc2", dim, 2 * dim)
    return layer(f"{name}.norm1", dim) | attention | layer(f"{name}.norm2", dim) | mlp


def maniqa() -> Shapes:
    """ckpt_koniq10k.pt."""
    shapes: Shapes = {"vit.cls_token": (1, 1, DIM), "vit.pos_embed": (1, 1 + NUM_PLACES, DIM)}
    shapes |= layer("vit.patch_embed.proj", DIM, 3, 8, 8)
    for number in range(10):
        shapes |= vision_block(f"vit.blocks.{number}", DIM)
    for stage, dim in ((1, DIM), (2, DIM // 2)):
        for block in (0, 1):
            for part in "qkv":
                shapes |= layer(f"tablock{stage}.{block}.c_{part}", NUM_PLACES, NUM_PLACES)
        shapes |= layer(f"conv{stage}", dim, 4 * DIM if stage == 1 else DIM, 1, 1)
        for number in (0, 1):
            name = f"swintransformer{stage}.layers.{number}"
            for block in (0, 1):
                shapes |= vision_block(f"{name}.blocks.{block}", dim)
                shapes[f"{name}.blocks.{block}.attn.relative_position_bias_table"] = (49, 4)
            shapes |= layer(f"{name}.conv", dim, dim, 3, 3)
    for head in ("fc_score", "fc_weight"):
        shapes |= layer(f"{head}.0", DIM // 2, DIM // 2) | layer(f"{head}.3", 1, DIM // 2)
    return shapes


def wavlm(prefix: str, is_large: bool) -> Shapes:
    """WavLM: 7 convolutions, 2 layers of 2 heads."""
    dim, wide = 16, 8
    shapes: Shapes = {"mask_emb": (dim,)}
    for number, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        convolution = f"feature_extractor.conv_layers.{number}"
        shapes[f"{convolution}.0.weight"] = (wide, wide if number else 1, kernel)
        shapes |= layer(f"{convolution}.2.1", wide) if is_large else {} if number else layer(f"{convolution}.2", wide)
    shapes |= layer("layer_norm", wide) | layer("post_extract_proj", dim, wide)
    shapes |= {"encoder.pos_conv.0.weight_g": (1, 1, 8), "encoder.pos_conv.0.weight_v": (dim, dim // 2, 8)}
    shapes |= {"encoder.pos_conv.0.bias": (dim,)} | layer("encoder.layer_norm", dim)
    for number in (0, 1):
        name = f"encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= layer(f"{name}.self_attn.{part}", dim, dim)
        shapes |= layer(f"{name}.self_attn.grep_linear", 8, dim // 2) | {f"{name}.self_attn.grep_a": (1, 2, 1, 1)}
        shapes |= layer(f"{name}.fc1", dim, dim) | layer(f"{name}.fc2", dim, dim)
        shapes |= layer(f"{name}.self_attn_layer_norm", dim) | layer(f"{name}.final_layer_norm", dim)
    shapes["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (32, 2)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def audiobox() -> Shapes:
    """model.safetensors of Audiobox-aesthetics."""
    shapes = wavlm("wavlm_model.", is_large=False)
    for name in ("CE", "CU", "PC", "PQ"):
        shapes |= {f"layer_weights.{name}": (3,)} | layer(f"proj_layer.{name}.0", 16, 16)
        shapes |= layer(f"proj_layer.{name}.1", 16) | layer(f"proj_layer.{name}.3", 1, 16)
    return shapes


SCALES = {name: {"mean": 5.0 + at, "std": 1.0 + at / 10} for at, name in enumerate(("CE", "CU", "PC", "PQ"))}


def passt() -> Shapes:
    """passt-s-f128-p16-s10-ap.476-swa.pt."""
    shapes: Shapes = {"cls_token": (1, 1, DIM), "dist_token": (1, 1, DIM), "new_pos_embed": (1, 2, DIM)}
    shapes |= {"freq_new_pos_embed": (1, DIM, 12, 1), "time_new_pos_embed": (1, DIM, 1, 99)}
    shapes |= layer("patch_embed.proj", DIM, 1, 16, 16) | vision_block("blocks.0", DIM) | layer("norm", DIM)
    return shapes | layer("head.0", DIM) | layer("head.1", CLASSES, DIM) | layer("head_dist", CLASSES, DIM)


def cnn14() -> Shapes:
    """Cnn14_mAP=0.431.pth."""
    shapes, before = batch_norm("bn0", 64), 1
    for number in range(1, 7):
        for at in (1, 2):
            shapes |= {f"conv_block{number}.conv{at}.weight": (8, before, 3, 3)}
            shapes |= batch_norm(f"conv_block{number}.bn{at}", 8)
            before = 8
    return shapes | layer("fc1", 8, 8) | layer("fc_audioset", CLASSES, 8)


def cnn14_tensors() -> dict[str, Tensor]:
    """All of Cnn14; each band is 8 frequencies, so that sounds differ in them."""
    bands = torch.eye(64).repeat_interleave(8, 0)
    return drawn(cnn14(), seed=3) | {"logmel_extractor.melW": torch.cat([bands, torch.zeros(1, 64)])}


def unispeech() -> Shapes:
    """wavlm_large_finetune.pth."""
    shapes = wavlm("feature_extract.model.", is_large=True) | {"feature_weight": (3,)}
    shapes |= layer("layer1.conv", 16, 16, 5) | batch_norm("layer1.bn", 16)
    for name in ("layer2", "layer3", "layer4"):
        for part in ("Conv1dReluBn1", "Conv1dReluBn2"):
            shapes |= layer(f"{name}.{part}.conv", 16, 16, 1) | batch_norm(f"{name}.{part}.bn", 16)
        for number in range(7):
            inner = f"{name}.Res2Conv1dReluBn"
            shapes |= layer(f"{inner}.convs.{number}", 2, 2, 3) | batch_norm(f"{inner}.bns.{number}", 2)
        shapes |= layer(f"{name}.SE_Connect.linear1", 4, 16) | layer(f"{name}.SE_Connect.linear2", 16, 4)
    shapes |= layer("conv", 24, 48, 1) | layer("pooling.linear1", 4, 24, 1) | layer("pooling.linear2", 24, 4, 1)
    return shapes | batch_norm("bn", 48) | layer("linear", 8, 48)


def raft() -> Shapes:
    """raft-things.pth, a part of it as wide."""
    shapes: Shapes = {}
    for name in ("fnet", "cnet"):
        shapes |= layer(f"{name}.conv1", 8, 3, 7, 7) | layer(f"{name}.conv2", 16, 16, 1, 1)
        norms, before = {"norm1": 8}, 8
        for number, dim in ((1, 8), (2, 12), (3, 16)):
            for at in (0, 1):
                block = f"layer{number}.{at}"
                shapes |= layer(f"{name}.{block}.conv1", dim, before, 3, 3) | layer(
                    f"{name}.{block}.conv2", dim, dim, 3, 3
                )
                norms |= {f"{block}.norm1": dim, f"{block}.norm2": dim}
                if dim != before:
                    shapes |= layer(f"{name}.{block}.downsample.0", dim, before, 1, 1)
                    norms |= {f"{block}.norm3": dim}
                before = dim
        for norm, dim in norms.items() if name == "cnet" else ():
            shapes |= batch_norm(f"{name}.{norm}", dim)
    unit = "update_block"
    shapes |= layer(f"{unit}.encoder.convc1", 8, 324, 1, 1) | layer(f"{unit}.encoder.convc2", 8, 8, 3, 3)
    shapes |= layer(f"{unit}.encoder.convf1", 8, 2, 7, 7) | layer(f"{unit}.encoder.convf2", 4, 8, 3, 3)
    shapes |= layer(f"{unit}.encoder.conv", 6, 12, 3, 3) | layer(f"{unit}.flow_head.conv1", 8, 8, 3, 3)
    shapes |= layer(f"{unit}.flow_head.conv2", 2, 8, 3, 3)
    for gate in "zrq":
        shapes |= layer(f"{unit}.gru.conv{gate}1", 8, 24, 1, 5) | layer(f"{unit}.gru.conv{gate}2", 8, 24, 5, 1)
    return shapes | layer(f"{unit}.mask.0", 8, 8, 3, 3) | layer(f"{unit}.mask.2", 576, 8, 1, 1)


def raft_tensors() -> dict[str, Tensor]:
    """All of RAFT, as several cards saved it; steps are small, so that motion stays within the picture."""
    tensors = drawn(raft(), seed=5)
    for part in ("weight", "bias"):
        tensors[f"update_block.flow_head.conv2.{part}"] *= 0.02
    return {f"module.{name}": each for name, each in tensors.items()}


def dover() -> Shapes:
    """DOVER.pth, two stages of each of its networks, a part of them as wide."""
    swin, convnext = "technical_backbone", "aesthetic_backbone"
    shapes = layer(f"{swin}.patch_embed.proj", DIM, 3, 2, 4, 4) | layer(f"{swin}.patch_embed.norm", DIM)
    for stage, dim, heads in ((0, DIM, 3), (1, 2 * DIM, 6)):
        for number in (0, 1):
            block = f"{swin}.layers.{stage}.blocks.{number}"
            shapes |= vision_block(block, dim) | {f"{block}.attn.relative_position_bias_table": (15 * 13 * 13, heads)}
            if stage == 0:
                shapes[f"{block}.attn.fragment_position_bias_table"] = (15 * 13 * 13, heads)
    shapes |= layer(f"{swin}.layers.0.downsample.norm", 4 * DIM) | layer(f"{swin}.norm", 2 * DIM)
    shapes[f"{swin}.layers.0.downsample.reduction.weight"] = (2 * DIM, 4 * DIM)
    for stage, dim in ((0, 8), (1, 16)):
        scale = f"{convnext}.downsample_layers.{stage}"
        shapes |= layer(f"{scale}.0", 8, 3, 2, 4, 4) | layer(f"{scale}.1", 8) if stage == 0 else {}
        shapes |= layer(f"{scale}.0", 8) | layer(f"{scale}.1", 16, 8, 1, 2, 2) if stage == 1 else {}
        for number, time in ((0, 1), (1, 3)):
            block = f"{convnext}.stages.{stage}.{number}"
            shapes |= (
                layer(f"{block}.dwconv", dim, 1, time, 7, 7) | layer(f"{block}.norm", dim) | {f"{block}.gamma": (dim,)}
            )
            shapes |= layer(f"{block}.pwconv1", 4 * dim, dim) | layer(f"{block}.pwconv2", dim, 4 * dim)
    shapes |= layer(f"{convnext}.norm", 16)
    for name, dim in (("technical", 2 * DIM), ("aesthetic", 16)):
        shapes |= layer(f"{name}_head.fc_hid", 8, dim, 1, 1, 1) | layer(f"{name}_head.fc_last", 1, 8, 1, 1, 1)
    return shapes
