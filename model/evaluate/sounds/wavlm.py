"""WavLM under the names that its authors gave its tensors, as other networks carry it (Chen et al. 2022, arXiv 2110.13900)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

RATE_HZ = 16_000
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Of its convolutions, which their tensors do not tell: a row is 320 samples."""
MOST_DISTANCE = 800
"""Rows from which on all distances are one, in all published sizes."""
NAMES = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "masked_spec_embed": "mask_emb",
    "pos_conv_embed.conv.parametrizations.weight.original0": "pos_conv.0.weight_g",
    "pos_conv_embed.conv.parametrizations.weight.original1": "pos_conv.0.weight_v",
    "pos_conv_embed.conv.bias": "pos_conv.0.bias",
    ".conv.": ".0.",
    "attention.gru_rel_pos_linear": "self_attn.grep_linear",
    "attention.gru_rel_pos_const": "self_attn.grep_a",
    "attention.rel_attn_embed": "self_attn.relative_attention_bias",
    "attention.": "self_attn.",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
}
"""What transformers calls parts of it -> what its authors call them; the first that occurs counts."""


class HiddenStates:
    """What all layers of a WavLM in a file make of sounds. Raises ModelError where a tensor is missing."""

    def __init__(self, weights: TensorFile, prefix: str) -> None:
        self.is_large = f"{prefix}feature_extractor.conv_layers.1.2.1.weight" in weights
        """The large one normalises before its layers, and is given sound of mean 0 and deviation 1."""
        self._network = _network(weights, prefix, self.is_large)

    def of_sounds(self, sounds: Tensor, num_samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(states [layers + 1, n, rows, c], which rows count [n, rows]) of sounds [n, samples] at 16 kHz.

        Of each sound only its first `num_samples` count; what is behind them is zeros that fill it up.
        """
        import torch
        from torch.nn.functional import layer_norm

        if self.is_large:
            sounds = layer_norm(sounds, sounds.shape[-1:])
        given, _ = self._network.feature_projection(self._network.feature_extractor(sounds).mT)
        samples_per_row = sounds.shape[1] // given.shape[1]
        counts = torch.arange(given.shape[1]) * samples_per_row < torch.tensor(num_samples)[:, None]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # transformers' own
            told = self._network.encoder(given, attention_mask=counts, output_hidden_states=True)
        return torch.stack(told.hidden_states), counts


def _network(weights: TensorFile, prefix: str, is_large: bool) -> Any:
    """transformers' network with the tensors whose names begin with `prefix`."""
    from transformers import WavLMConfig, WavLMModel

    def shape(name: str) -> tuple[int, ...]:
        return tuple(weights[f"{prefix}{name}"].shape)

    kernels = [shape(f"feature_extractor.conv_layers.{number}.0.weight") for number in range(len(STRIDES))]
    _, per_group, reach = shape("encoder.pos_conv.0.weight_v")
    num_buckets, num_heads = shape("encoder.layers.0.self_attn.relative_attention_bias.weight")
    wide, dim = shape("encoder.layers.0.fc1.weight")
    config = WavLMConfig(
        hidden_size=dim, intermediate_size=wide, num_attention_heads=num_heads, num_buckets=num_buckets,
        num_hidden_layers=weights.num_blocks(f"{prefix}encoder.layers."), max_bucket_distance=MOST_DISTANCE,
        conv_dim=[kernel[0] for kernel in kernels], conv_kernel=[kernel[2] for kernel in kernels], conv_stride=STRIDES,
        conv_bias=f"{prefix}feature_extractor.conv_layers.0.0.bias" in weights, do_stable_layer_norm=is_large,
        feat_extract_norm="layer" if is_large else "group", num_conv_pos_embeddings=reach,
        num_conv_pos_embedding_groups=dim // per_group, vocab_size=1,
    )  # fmt: skip
    network = WavLMModel(config).eval()
    network.load_state_dict({name: weights[prefix + published(name, is_large)] for name in network.state_dict()})
    return network


def published(name: str, is_large: bool) -> str:
    """Name of a tensor as transformers has it -> as the authors do."""
    if name.startswith("feature_extractor") and ".layer_norm." in name:
        return name.replace(".layer_norm.", ".2.1." if is_large else ".2.")
    if name.startswith("encoder.layers.") and ".layer_norm." in name:
        return name.replace(".layer_norm.", ".self_attn_layer_norm.")
    for ours, theirs in NAMES.items():
        if ours in name:
            return name.replace(ours, theirs)
    return name
