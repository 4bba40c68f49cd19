"""Tiny random networks that evaluation alone asks, written as theirs are: folders of transformers, files of published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.schemas.networks.tiny import SMALL, layer_of, named, write_aesthetics, write_clap


def write_wavlm(folder: Path) -> None:
    from transformers import WavLMConfig, WavLMForXVector

    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (8, 8), "num_feat_extract_layers": 2}
    heads = {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    config = WavLMConfig(**SMALL, **convolutions, **heads, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    WavLMForXVector(config).save_pretrained(folder)


def write_dino(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    small = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(**small, image_size=32, patch_size=8, layerscale_value=1.0)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)


def write_tagger(folder: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(**SMALL, max_length=64, num_mel_bins=32, num_labels=4, frequency_stride=8, time_stride=8)
    network = ASTForAudioClassification(config)
    torch.nn.init.normal_(network.classifier.dense.weight)  # so that it tells anything apart
    network.save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)


def musiq_tensors() -> tuple[dict[str, Any], torch.nn.TransformerEncoderLayer]:
    """(tensors by their published names, the one block)."""
    encoder, dim = "transformer_encoder", 12
    sizes = {"conv1": (32, 32, 1), "conv2": (32, 32, 3), "conv3": (32, 64, 1), "conv_proj": (32, 64, 1)}
    tensors = named("conv_root", torch.nn.Conv2d(3, 32, 7, bias=False)) | named("gn_root", torch.nn.GroupNorm(32, 32))
    for name, size in sizes.items():
        tensors |= named(f"block1.{name}", torch.nn.Conv2d(*size, bias=False))
        tensors |= named(f"block1.{name.replace('conv', 'gn')}", torch.nn.GroupNorm(32, size[1]))
    tensors |= named("embedding", torch.nn.Linear(64 * 64, dim)) | named("head", torch.nn.Linear(dim, 1))
    tensors[f"{encoder}.posembed_input.position_emb"] = torch.randn(1, 100, dim)
    tensors[f"{encoder}.scaleembed_input.scale_emb"] = torch.randn(3, dim)
    tensors[f"{encoder}.cls"] = torch.randn(1, 1, dim)
    tensors |= named(f"{encoder}.encoder_norm", torch.nn.LayerNorm(dim))
    block, layer = f"{encoder}.transformer.encoderblock_0", layer_of(dim, 6)
    pairs = {"linear1": "mlp.fc1", "linear2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}
    for part, published in pairs.items():
        tensors |= named(f"{block}.{published}", getattr(layer, part))
    tensors |= named(f"{block}.attention.out", layer.self_attn.out_proj)
    for at, part in enumerate(("query", "key", "value")):
        tensors[f"{block}.attention.{part}.weight"] = layer.self_attn.in_proj_weight.detach()[at * dim :][:dim].clone()
        tensors[f"{block}.attention.{part}.bias"] = layer.self_attn.in_proj_bias.detach()[at * dim :][:dim].clone()
    return tensors, layer


FOLDERS: Mapping[str, Callable[[Path], None]] = {
    "clap": write_clap, "voice": write_wavlm, "dino": write_dino, "tags": write_tagger, "aesthetic": write_aesthetics,
}  # fmt: skip
