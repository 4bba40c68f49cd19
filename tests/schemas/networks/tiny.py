"""Tiny random networks of published classes, written as theirs are: folders of transformers, and files of published names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def write_clap(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "barks", "rain"])}
    vocabulary = Tokenizer(WordLevel(words, unk_token="<unk>"))
    vocabulary.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc").save_pretrained(folder)
    text = SMALL | {"vocab_size": len(words), "max_position_embeddings": 32, "projection_dim": 8}
    sound = {
        "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4, "depths": [1, 1],
        "num_attention_heads": [2, 2], "num_hidden_layers": 2, "patch_embeds_hidden_size": 8, "hidden_size": 16,
        "projection_dim": 8, "enable_fusion": False,
    }  # fmt: skip
    ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=8)).save_pretrained(folder)


def named(prefix: str, module: torch.nn.Module) -> dict[str, Any]:
    """The tensors of a module under a prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def write_aesthetics(folder: Path) -> None:
    """SigLIP's half that sees, and a head on it under the published names."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    head: dict[str, Any] = {}
    for number, (given, told) in enumerate(pairwise((16, 8, 8, 8, 8, 1))):
        head |= named(f"scoring_head.{2 * number}", torch.nn.Linear(given, told))
    torch.save(head, folder / "aesthetic_predictor_v2_5.pth")


def write_aesthetics_of_clip(folder: Path) -> None:
    """CLIP's half that sees, and a head on it under the names of the older predictor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=16)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    head: dict[str, Any] = {}
    for number, (given, told) in zip((0, 2, 4, 6, 7), pairwise((16, 8, 8, 8, 8, 1)), strict=True):
        head |= named(f"layers.{number}", torch.nn.Linear(given, told))
    torch.save(head, folder / "sac+logos+ava1-l14-linearMSE.pth")


def layer_of(dim: int, num_heads: int, has_learned_key: bool = False) -> torch.nn.TransformerEncoderLayer:
    """A block as ImageBind and MUSIQ have it, by torch."""
    layer = torch.nn.TransformerEncoderLayer(
        dim, num_heads, 2 * dim, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    if has_learned_key:
        layer.self_attn = torch.nn.MultiheadAttention(dim, num_heads, add_bias_kv=True, batch_first=True)
    return layer.eval()


IMAGEBIND = {"vision": (32, 16), "audio": (24, 12)}
"""Channels and heads."""


def imagebind_tensors() -> tuple[dict[str, Any], dict[str, torch.nn.TransformerEncoderLayer]]:
    """(tensors by their published names, the one block of each kind)."""
    tensors: dict[str, Any] = {"modality_heads.text.proj.1.weight": torch.zeros(1)}
    blocks = {}
    for kind, (dim, num_heads) in IMAGEBIND.items():
        own, trunk = f"modality_preprocessors.{kind}", f"modality_trunks.{kind}"
        blocks[kind] = layer_of(dim, num_heads, has_learned_key=kind == "audio")
        num_tokens = 257 if kind == "vision" else 229
        tensors[f"{own}.cls_token"] = torch.randn(1, 1, dim)
        tensors[f"{own}.pos_embedding_helper.pos_embed"] = torch.randn(1, num_tokens, dim)
        tensors |= named(f"modality_heads.{kind}.0", torch.nn.LayerNorm(dim))
        tensors |= named(f"modality_heads.{kind}.2", torch.nn.Linear(dim, 8, bias=False))
        names = {"self_attn": "attn", "linear1": "mlp.fc1", "linear2": "mlp.fc2", "norm1": "norm_1", "norm2": "norm_2"}
        for name, tensor in blocks[kind].state_dict().items():
            part, _, rest = name.partition(".")
            tensors[f"{trunk}.blocks.0.{names[part]}.{rest}"] = tensor
    stem = "rgbt_stem.proj"
    tensors |= named(f"modality_preprocessors.vision.{stem}.1", torch.nn.Conv3d(3, 32, (2, 14, 14), bias=False))
    tensors |= named("modality_trunks.vision.pre_transformer_layer.0", torch.nn.LayerNorm(32))
    tensors |= named(f"modality_preprocessors.audio.{stem}", torch.nn.Conv2d(1, 24, 16, bias=False))
    tensors |= named("modality_preprocessors.audio.rgbt_stem.norm_layer", torch.nn.LayerNorm(24))
    return tensors, blocks


SYNC_DIM = 24


def synchformer_tensors(num_places: int = 196) -> tuple[dict[str, Any], torch.nn.TransformerEncoderLayer]:
    """(tensors by their published names, the layer that gathers over space)."""
    from transformers import ASTConfig, ASTModel

    dim, video, sound, last = SYNC_DIM, "vfeat_extractor", "afeat_extractor", "transformer"
    tensors = {f"{video}.cls_token": torch.randn(1, 1, dim), f"{video}.pos_embed": torch.randn(1, 1 + num_places, dim)}
    tensors[f"{video}.temp_embed"] = torch.randn(1, 8, dim)
    tensors |= named(f"{video}.patch_embed_3d.proj", torch.nn.Conv3d(3, dim, (2, 16, 16)))
    tensors |= named(f"{video}.norm", torch.nn.LayerNorm(dim))
    for part in ("attn", "timeattn"):
        tensors |= named(f"{video}.blocks.0.{part}.qkv", torch.nn.Linear(dim, 3 * dim))
        tensors |= named(f"{video}.blocks.0.{part}.proj", torch.nn.Linear(dim, dim))
    for number in (1, 2, 3):
        tensors |= named(f"{video}.blocks.0.norm{number}", torch.nn.LayerNorm(dim))
    tensors |= mlp_of(f"{video}.blocks.0.mlp", ("fc1", "fc2"), dim)
    config = ASTConfig(
        hidden_size=dim, num_hidden_layers=1, num_attention_heads=12, intermediate_size=2 * dim, max_length=66
    )
    tensors |= named(f"{sound}.ast", ASTModel(config))
    gathering = layer_of(dim, 12)
    for name, layer in {f"{video}.spatial_attn_agg": gathering, f"{sound}.freq_attn_agg": layer_of(dim, 12)}.items():
        tensors |= named(name, layer) | {f"{name}.cls_token": torch.randn(1, 1, dim)}
    for name in ("vis_in_lnorm", "aud_in_lnorm", "ln_f", "blocks.0.ln1", "blocks.0.ln2"):
        tensors |= named(f"{last}.{name}", torch.nn.LayerNorm(dim))
    for name in ("vproj", "aproj", *(f"{last}.blocks.0.attn.{part}" for part in ("query", "key", "value", "proj"))):
        tensors |= named(name, torch.nn.Linear(dim, dim))
    tensors |= mlp_of(f"{last}.blocks.0.mlp", ("0", "2"), dim) | named(f"{last}.off_head", torch.nn.Linear(dim, 21))
    tensors |= {f"{last}.{name}_tok": torch.randn(1, 1, dim) for name in ("OFF", "MOD")}
    return tensors | {f"{last}.pos_emb_cfg.pos_emb": torch.randn(1, 198, dim)}, gathering


def mlp_of(prefix: str, names: tuple[str, str], dim: int) -> dict[str, Any]:
    """Two layers, out to twice the width and back."""
    out, back = torch.nn.Linear(dim, 2 * dim), torch.nn.Linear(2 * dim, dim)
    return named(f"{prefix}.{names[0]}", out) | named(f"{prefix}.{names[1]}", back)
