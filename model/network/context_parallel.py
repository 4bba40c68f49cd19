"""Long samples shared by a team of ranks (Ulysses). L tokens of this rank, S tokens of the shared samples, H heads, E channels.

The plan gives the ranks of a team the same shared samples, and each rank samples of its own besides. A rank keeps an equal
run of the shared samples' tokens and all tokens of its own samples. Whatever looks at one token at a time (projections,
norms, positions, cross-attention to the text, feed-forward, heads) works on those alone. Only self-attention of the shared
samples needs the other ranks' tokens, and trades tokens for heads:

    my run of tokens, all heads  -- all-to-all -->  all S tokens, my heads  -- attend, all-to-all back -->  my run

Both exchanges are differentiable, errors of a shared sample are sums over its tokens divided by the whole sample's size,
and gradients of all ranks are added up anyway: so gradients are those of one process. Own samples exchange nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor

from model.network.attention import Segments, Share, attend
from model.network.flow import LossTerms, Noised
from model.network.tokens import Layout, Packed


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that share long samples, and this rank's place among them."""

    member: int
    num_members: int
    group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """The rank that counts and reports what is shared."""
        return self.member == 0


def attend_self(q_LHE: Tensor, k_LHE: Tensor, v_LHE: Tensor, layout: Layout, backend: str) -> Tensor:
    """y_LHE: self-attention within every sample, tokens by sample; with the team where a sample is shared."""
    share = layout.share
    if share is None:
        return attend(q_LHE, k_LHE, v_LHE, layout.self_segments, backend)
    n = share.num_tokens
    qkv_LnHE = torch.stack([q_LHE[:n], k_LHE[:n], v_LHE[:n]], dim=1)
    q_SHE, k_SHE, v_SHE = _tokens_for_heads(qkv_LnHE, share).unbind(1)
    y_LHE = _heads_for_tokens(attend(q_SHE, k_SHE, v_SHE, share.segments, backend), share)
    if not layout.self_segments.num_segments:
        return y_LHE
    return torch.cat([y_LHE, attend(q_LHE[n:], k_LHE[n:], v_LHE[n:], layout.self_segments, backend)])


def _tokens_for_heads(x_LnHE: Tensor, share: Share) -> Tensor:
    """[my run, n, H, E] -> [S, n, H / members, E]."""
    num_members, num_tokens = len(share.run_lengths), x_LnHE.shape[0]
    by_member = x_LnHE.unflatten(2, (num_members, -1)).movedim(2, 0).flatten(0, 1)
    return _exchange(by_member, share.run_lengths, [num_tokens] * num_members, share.group)


def _heads_for_tokens(y_SHE: Tensor, share: Share) -> Tensor:
    """[S, H / members, E] -> [my run, H, E]."""
    num_members, num_tokens = len(share.run_lengths), share.num_tokens
    by_member = _exchange(y_SHE, [num_tokens] * num_members, share.run_lengths, share.group)
    return by_member.unflatten(0, (num_members, num_tokens)).movedim(0, 1).flatten(1, 2)


def _exchange(x: Tensor, received: Sequence[int], sent: Sequence[int], group: str) -> Tensor:
    """Rows of all members for this one, `received[i]` of member i; of x, `sent[i]` rows go to member i."""
    return wait_tensor(all_to_all_single_autograd(x.contiguous(), list(received), list(sent), group))


def keep_share(packed: Packed, num_shared: int, team: Team) -> Packed:
    """The pack without the tokens that other members compute: of the first `num_shared` samples only this rank's run.

    Texts, voices and the sound front-end's input stay whole: they are short, and the front-end's kernels reach across.
    """
    whole, num_video = packed.layout, packed.num_video_tokens
    sample_starts = whole.context_segments.query_starts
    num_tokens, end = int(sample_starts[num_shared]), int(sample_starts[-1])
    bounds = [num_tokens * i // team.num_members for i in range(team.num_members + 1)]
    kept = torch.cat([torch.arange(bounds[team.member], bounds[team.member + 1]), torch.arange(num_tokens, end)])
    rows = whole.to_samples[kept]
    to_modalities = rows.argsort()
    video_rows = rows[to_modalities][: int((rows < num_video).sum())]
    audio_rows = rows[to_modalities][len(video_rows) :] - num_video
    num_segments = int((whole.self_segments.query_starts < num_tokens).sum())
    lengths = list(whole.self_segments.query_lengths)
    shared, own = lengths[:num_segments], lengths[num_segments:]
    layout = replace(
        whole,
        to_samples=to_modalities.argsort(),
        to_modalities=to_modalities,
        rope_table=whole.rope_table[:, kept],
        time_rows=whole.time_rows.take(kept),
        video_time_rows=whole.video_time_rows.take(video_rows),
        audio_time_rows=whole.audio_time_rows.take(audio_rows),
        self_segments=Segments.of(own, own),
        context_segments=whole.context_segments.of_queries(kept),
        video_context_segments=whole.video_context_segments.of_queries(video_rows),
        audio_context_segments=whole.audio_context_segments.of_queries(audio_rows),
        share=Share(
            group=team.group.group_name,
            member=team.member,
            run_lengths=tuple(b - a for a, b in pairwise(bounds)),
            segments=Segments.of(shared, shared),
        ),
    )
    patches = packed.video_patches[video_rows]
    return replace(packed, video_patches=patches, video_rows=video_rows, audio_rows=audio_rows, layout=layout)


def keep_targets(noised: Noised, packed: Packed) -> Noised:
    """The batch with targets zero where another member has the token.

    The pack's velocity is zero there too. So a shared sample's error is this rank's part of it: parts add up to the whole.
    """
    ones_NP = torch.ones_like(packed.video_patches)
    ones_MC = packed.audio_latents.new_ones(packed.num_audio_tokens, packed.config.audio_channels)
    return replace(
        noised,
        video_targets=_masked(noised.video_targets, packed.split_video(ones_NP)),
        audio_targets=_masked(noised.audio_targets, packed.split_audio(ones_MC)),
    )


def whole_errors(terms: LossTerms, num_shared: int, team: Team | None) -> LossTerms:
    """Errors for reports: the parts of shared samples added up, on the team's first rank; elsewhere own samples only.

    A collective of the team, two numbers a sample, when a pack has shared samples; otherwise `terms` as they are.
    """
    if team is None or not num_shared:
        return terms
    parts = torch.stack([terms.video_mse, terms.audio_mse]).detach()
    shared = parts[:, :num_shared].contiguous()
    dist.all_reduce(shared, group=team.group)
    if not team.is_first:
        return terms.without_first(num_shared)
    video_mse, audio_mse = torch.cat([shared, parts[:, num_shared:]], dim=1)
    return terms._replace(video_mse=video_mse, audio_mse=audio_mse)


def _masked(targets: list[Tensor | None], masks: list[Tensor | None]) -> list[Tensor | None]:
    return [t if t is None or m is None else t * m.to(t) for t, m in zip(targets, masks, strict=True)]
