"""NAVA. Shapes: B samples, N video + M audio = L tokens, R context rows, D dim, H heads, E = D/H, P rope pairs, C channels.

An Align-then-Fuse flow-matching transformer over video and audio latents of one clip:

    latents -> tokens -> alignment blocks (own projections per modality) -> fusion blocks (shared) -> heads -> velocity

Every block is self-attention over the sample's video and audio tokens, cross-attention to its text, and a feed-forward;
self-attention and feed-forward are modulated by the token's timestep. A batch is a pack of samples laid end to end
(tokens.py); which modalities a sample has, whether its first frame is given and whether its modalities see each other
is decided per sample. Parameter names are those of the official checkpoint without its `backbone.` prefix.
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network.attention import Segments, attend, resolve_backend
from model.network.conditioning import SpeakerEmbedding
from model.network.config import NavaConfig
from model.network.context_parallel import attend_self
from model.network.layers import (
    AudioEmbedding,
    LayerNorm,
    Linear,
    Modulation,
    PreciseLinear,
    Projections,
    RMSNorm,
    VideoPatchEmbedding,
    feed_forward,
    gated,
    modulate,
    timestep_embedding,
)
from model.network.rope import rotate
from model.network.rows import TableRows
from model.network.tokens import Layout, Packed, Sample, Velocity, pack
from schemas.errors import ModelError

__all__ = ["AlignBlock", "FusionBlock", "Nava", "Packed", "Sample", "Velocity", "pack"]


class Nava(nn.Module):
    """The network. Build it anywhere (`with torch.device("meta")` too); weights are undefined until loaded or `init_weights`.

    Weights may be float32, bfloat16 or float64; the residual stream is float32 or wider unless `reference_numerics`.
    """

    def __init__(self, config: NavaConfig, attention_backend: str = "auto") -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.attention_backend = attention_backend
        self.patch_embedding = VideoPatchEmbedding(config)
        self.patch_embedding_audio = AudioEmbedding(config)
        self.speaker_embedding = SpeakerEmbedding(config.speaker_dim, dim)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU("tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(
            PreciseLinear(config.timestep_freq_dim, dim), nn.SiLU(), PreciseLinear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), PreciseLinear(dim, 6 * dim))
        self.double_blocks = nn.ModuleList(AlignBlock(config) for _ in range(config.num_align_layers))
        self.single_blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.num_fusion_layers))
        self.head = Head(config, config.patch_dim)
        self.head_audio = Head(config, config.audio_channels)

    def forward(self, packed: Packed, t_B: Tensor) -> Velocity:
        """Velocity of every sample at its timestep `t_B` in [0, 1000]. Weights and pack must be on one device."""
        if t_B.shape != (packed.num_samples,):
            raise ModelError(f"timesteps are {tuple(t_B.shape)}, expected one per sample: ({packed.num_samples},)")
        weight = self.patch_embedding.weight
        stream = torch.bfloat16 if self.config.reference_numerics else torch.promote_types(weight.dtype, torch.float32)
        backend = resolve_backend(
            self.attention_backend, weight.device.type, weight.dtype, packed.layout.self_segments.num_segments
        )
        layout = packed.layout.prepare(backend)

        video_ND = self.patch_embedding(packed.video_patches).to(stream)
        audio_MD = self.patch_embedding_audio(packed.audio_latents, packed.audio_slots, packed.num_audio_slots).to(
            stream
        )
        if packed.audio_rows is not None:
            audio_MD = audio_MD.index_select(0, packed.audio_rows)
        context_RD = self.context(packed, stream)
        time_BD, table_BnD = self.timestep_tables(t_B, stream)

        for block in self.double_blocks:
            video_ND, audio_MD = block(video_ND, audio_MD, context_RD, table_BnD, layout, backend)
        x_LD = torch.cat([video_ND, audio_MD]).index_select(0, layout.to_samples)
        for block in self.single_blocks:
            x_LD = block(x_LD, context_RD, table_BnD, layout, backend)
        x_LD = x_LD.index_select(0, layout.to_modalities)
        video_ND, audio_MD = x_LD.split([packed.num_video_tokens, packed.num_audio_tokens])

        video_NP = self.head(video_ND, time_BD, layout.video_time_rows)
        audio_MC = self.head_audio(audio_MD, time_BD, layout.audio_time_rows)
        # The head of a modality that nobody here has is tied in by an empty sum: its gradient is zero rather than missing.
        if packed.num_video_tokens == 0:
            audio_MC = audio_MC + video_NP.sum()
        elif packed.num_audio_tokens == 0:
            video_NP = video_NP + audio_MC.sum()
        return Velocity(packed.split_video(video_NP), packed.split_audio(audio_MC))

    def context(self, packed: Packed, stream: torch.dtype) -> Tensor:
        """context_RD: per sample its projected text rows, voices written over the placeholders, then one zero row.

        The release pads text to `max_text_tokens` zero rows and masks none of them. All of them project to the same
        vector, so one row stands for them and attention counts it as often as it occurs.
        """
        zero_row = packed.text.new_zeros(1, packed.text.shape[1])
        rows = self.text_embedding(torch.cat([packed.text, zero_row]))
        voices = self.speaker_embedding(packed.speakers.to(stream)).to(rows.dtype)
        text, zero = rows.index_copy(0, packed.speaker_rows, voices).split([len(packed.text), 1])
        zeros = zero.expand(len(packed.context_rows) - len(packed.text), -1)
        return torch.cat([text, zeros]).index_select(0, packed.context_rows)

    def timestep_tables(self, t_B: Tensor, stream: torch.dtype) -> tuple[Tensor, Tensor]:
        """(time [B+1, D] for the heads, table [B+1, 6, D] for the blocks); the last row is timestep 0, for clean frames.

        A sample has at most two timesteps, so they are embedded per sample and looked up per token.
        """
        t = torch.cat([t_B, t_B.new_zeros(1)])
        time_BD = self.time_embedding(timestep_embedding(t, self.config.timestep_freq_dim).to(stream))
        return time_BD, self.time_projection(time_BD).unflatten(-1, (6, -1))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill all weights in place as the release does; the generator must live on the device of the weights.

        Linear: xavier uniform, bias 0; text and timestep embedding: N(0, 0.02); modulation: N(0, 1/D); convolutions:
        torch's defaults, the patch embedding xavier; the video head is zero, the audio head is not.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.startswith(("text_embedding.", "time_embedding.")):
                    nn.init.normal_(module.weight, std=0.02, generator=generator)
                else:
                    nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv1d, nn.Conv3d)):
                _init_convolution(module, generator)
            elif isinstance(module, (nn.LayerNorm, RMSNorm)):
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (Modulation, Head)):
                nn.init.normal_(module.modulation, std=self.config.dim**-0.5, generator=generator)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1), generator=generator)
        nn.init.zeros_(self.speaker_embedding.null_token)
        nn.init.zeros_(self.head.head.weight)


class AlignBlock(nn.Module):
    """Hierarchical alignment layer: each modality keeps its projections and modulation, attention is joint.

    Norms and the feed-forward are shared (`no_split_norm_ffn` of the release).
    """

    def __init__(self, config: NavaConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = Projections(config, ("", "_audio"))
        self.norm3 = LayerNorm(config.dim, eps=config.norm_eps)
        self.cross_attn = Projections(config, ("", "_audio"))
        self.ffn = feed_forward(config)
        self.modulation = Modulation(config.dim, 6)
        self.modulation_audio = Modulation(config.dim, 6)

    def forward(
        self, video_ND: Tensor, audio_MD: Tensor, context_RD: Tensor, table_BnD: Tensor, layout: Layout, backend: str
    ) -> tuple[Tensor, Tensor]:
        """(video_ND, audio_MD) after the block; tokens by modality."""
        video_rows, audio_rows = layout.video_time_rows, layout.audio_time_rows
        v_shift1, v_scale1, v_gate1, v_shift2, v_scale2, v_gate2 = self.modulation(table_BnD)
        a_shift1, a_scale1, a_gate1, a_shift2, a_scale2, a_gate2 = self.modulation_audio(table_BnD)

        video_y, audio_y = self.attend_jointly(
            modulate(video_ND, v_shift1, v_scale1, video_rows, self.eps),
            modulate(audio_MD, a_shift1, a_scale1, audio_rows, self.eps),
            layout,
            backend,
        )
        video_ND = gated(video_ND, video_y, v_gate1, video_rows)
        audio_MD = gated(audio_MD, audio_y, a_gate1, audio_rows)

        video_ND = video_ND + _cross(
            self.cross_attn, self.norm3(video_ND), context_RD, layout.video_context_segments, backend
        )
        audio_MD = audio_MD + _cross(
            self.cross_attn, self.norm3(audio_MD), context_RD, layout.audio_context_segments, backend, "_audio"
        )

        video_y = self.ffn(modulate(video_ND, v_shift2, v_scale2, video_rows, self.eps))
        audio_y = self.ffn(modulate(audio_MD, a_shift2, a_scale2, audio_rows, self.eps))
        return gated(video_ND, video_y, v_gate2, video_rows), gated(audio_MD, audio_y, a_gate2, audio_rows)

    def attend_jointly(self, video_ND: Tensor, audio_MD: Tensor, layout: Layout, backend: str) -> tuple[Tensor, Tensor]:
        """Both streams projected by their own weights, one softmax over the tokens of a sample, projected back apart."""
        attn, order = self.self_attn, layout.to_samples
        q = torch.cat([attn.query(video_ND), attn.query(audio_MD, "_audio")]).index_select(0, order)
        k = torch.cat([attn.key(video_ND), attn.key(audio_MD, "_audio")]).index_select(0, order)
        v = torch.cat([attn.value(video_ND), attn.value(audio_MD, "_audio")]).index_select(0, order)
        q, k = rotate(q, layout.rope_table).to(v.dtype), rotate(k, layout.rope_table).to(v.dtype)
        y = attend_self(q, k, v, layout, backend).index_select(0, layout.to_modalities)
        video_y, audio_y = y.split([video_ND.shape[0], audio_MD.shape[0]])
        return attn.output(video_y), attn.output(audio_y, "_audio")


class FusionBlock(nn.Module):
    """Unified fusion layer: one set of weights for all tokens."""

    def __init__(self, config: NavaConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = Projections(config, ("",))
        self.norm3 = LayerNorm(config.dim, eps=config.norm_eps)
        self.cross_attn = Projections(config, ("",))
        self.ffn = feed_forward(config)
        self.modulation = Modulation(config.dim, 6)

    def forward(self, x_LD: Tensor, context_RD: Tensor, table_BnD: Tensor, layout: Layout, backend: str) -> Tensor:
        """x_LD after the block; tokens by sample."""
        rows, attn = layout.time_rows, self.self_attn
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(table_BnD)

        h = modulate(x_LD, shift1, scale1, rows, self.eps)
        v = attn.value(h)
        q = rotate(attn.query(h), layout.rope_table).to(v.dtype)
        k = rotate(attn.key(h), layout.rope_table).to(v.dtype)
        x_LD = gated(x_LD, attn.output(attend_self(q, k, v, layout, backend)), gate1, rows)

        x_LD = x_LD + _cross(self.cross_attn, self.norm3(x_LD), context_RD, layout.context_segments, backend)
        return gated(x_LD, self.ffn(modulate(x_LD, shift2, scale2, rows, self.eps)), gate2, rows)


class Head(nn.Module):
    """Modulated norm and projection to velocity values: x_LD -> [L, outputs] in the dtype of the stream."""

    def __init__(self, config: NavaConfig, num_outputs: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.head = PreciseLinear(config.dim, num_outputs)

    def forward(self, x_LD: Tensor, time_BD: Tensor, rows: TableRows) -> Tensor:
        shift, scale = (time_BD[:, None] + self.modulation.to(time_BD.dtype)).unbind(1)
        return self.head(modulate(x_LD, shift, scale, rows, self.eps))


def _cross(
    attn: Projections, x_LD: Tensor, context_RD: Tensor, segments: Segments, backend: str, stream: str = ""
) -> Tensor:
    """Attention of tokens to the context of their sample, no positions, in the dtype of x."""
    v = attn.value(context_RD, stream)
    context = context_RD.to(x_LD.dtype)
    q, k = attn.query(x_LD, stream).to(v.dtype), attn.key(context, stream).to(v.dtype)
    return attn.output(attend(q, k, v, segments, backend), stream).to(x_LD.dtype)


def _init_convolution(module: nn.Conv1d | nn.Conv3d, generator: torch.Generator | None) -> None:
    bound = module.weight[0].numel() ** -0.5
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
