"""The one entry to attention: `attend`. L queries, K keys, H heads, D head channels, S segments.

A pack is a run of samples; attention is block-diagonal over contiguous segments (a sample, or one modality of a sample
whose modalities are masked from each other). Nothing outside a query's segment is ever read.

backend   needs                           keys with a multiplicity            gradient
sdpa      nothing; one call per segment   attention bias log(count)           yes; on CPU one opaque operator, so that
                                                                              compiled code does not depend on lengths
flex      CUDA (CPU: forward only)        score_mod adding log(count)         CUDA
varlen    CUDA, float16 or bfloat16       key and value rows repeated         yes
auto      varlen where it can run and there are several segments, sdpa otherwise: for one segment the dense kernels of
          the device (cuDNN on Hopper) are the fastest that torch ships
"""

# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.rows import TableRows
from schemas.errors import ModelError

BACKENDS = ("auto", "sdpa", "flex", "varlen")


@dataclass(frozen=True)
class Repeats:
    """Key rows written out as often as they count, laid out such that gradients are summed in one order (rows.py)."""

    starts: Tensor  # int32 [S+1], of the segments in what is written out
    max_keys: int
    many: Tensor  # int64 [Z]: key rows that count more than once
    more: TableRows  # all but the first of each of those, by number among them
    order: Tensor  # int64: rows of the keys followed by those of `more`

    @classmethod
    def of(cls, counts_K: Tensor, key_starts: Tensor) -> Repeats:
        """Of keys that count so often, each at least once."""
        starts = F.pad(counts_K.cumsum(0), (1, 0))
        rows = torch.repeat_interleave(counts_K)
        number = torch.arange(len(rows)) - starts[rows]  # 0 for the first of equal rows
        later = number > 0
        many = (counts_K > 1).nonzero()[:, 0]
        ends = starts[key_starts.long()].to(torch.int32)
        return cls(
            starts=ends,
            max_keys=int(ends.diff().max()) if len(ends) > 1 else 0,
            many=many,
            more=TableRows.of(torch.searchsorted(many, rows[later])),
            order=torch.where(later, len(counts_K) - 1 + later.cumsum(0), rows),
        )

    def write_out(self, x_KHD: Tensor) -> Tensor:
        """Rows as often as they count. Through float32: the gradient of one is a sum of hundreds of terms."""
        x = x_KHD.float().flatten(1)
        more = self.more.look_up(x.index_select(0, self.many))
        return torch.cat([x, more]).index_select(0, self.order).to(x_KHD.dtype).unflatten(1, x_KHD.shape[1:])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Repeats:
        """The same on `device`."""
        tensors = {name: getattr(self, name) for name in ("starts", "many", "more", "order")}
        return replace(self, **{name: x.to(device, non_blocking=non_blocking) for name, x in tensors.items()})


@dataclass(frozen=True)
class Segments:
    """Which keys each query may read: segment s joins queries [query_starts[s], query_starts[s+1]) and its keys alike."""

    query_starts: Tensor  # int32 [S+1]
    key_starts: Tensor  # int32 [S+1]
    query_lengths: tuple[int, ...]  # on the host; only `sdpa` on CUDA reads them, compiled code must not
    key_lengths: tuple[int, ...]
    max_queries: int
    max_keys: int
    key_log_count: Tensor | None = None  # float32 [K]: key j stands for exp(key_log_count[j]) equal keys
    repeats: Repeats | None = None  # with them, for kernels without a bias
    block_mask: Any = None  # FlexAttention's, made once per pack by `prepare`

    @classmethod
    def of(cls, query_lengths: list[int], key_lengths: list[int], key_counts: list[int] | None = None) -> Segments:
        """Segments of these lengths on the CPU. `key_counts` has one multiplicity per key row."""
        plain = cls(
            query_starts=_starts(query_lengths),
            key_starts=_starts(key_lengths),
            query_lengths=tuple(query_lengths),
            key_lengths=tuple(key_lengths),
            max_queries=max(query_lengths, default=0),
            max_keys=max(key_lengths, default=0),
        )
        if key_counts is None:
            return plain
        counts = torch.tensor(key_counts, dtype=torch.int64)
        return replace(
            plain, key_log_count=counts.to(torch.float32).log(), repeats=Repeats.of(counts, plain.key_starts)
        )

    @property
    def num_segments(self) -> int:
        """How many segments there are."""
        return len(self.query_starts) - 1

    def of_queries(self, rows: Tensor) -> Segments:
        """The same with only these queries, given as ascending row numbers; keys stay as they are."""
        starts = torch.searchsorted(rows, self.query_starts.long())
        lengths = tuple(starts.diff().tolist())
        return replace(
            self, query_starts=starts.to(torch.int32), query_lengths=lengths, max_queries=max(lengths, default=0)
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Segments:
        """The same on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), (Tensor, Repeats))
        }
        return replace(self, **moved)

    def prepare(self, backend: str) -> Segments:
        """The same with what `backend` wants made once per pack rather than once per layer."""
        if backend != "flex" or self.block_mask is not None or not self.num_segments:
            return self
        from torch.nn.attention.flex_attention import create_block_mask

        query_ids, key_ids = _segment_ids(self.query_starts), _segment_ids(self.key_starts)
        same = lambda b, h, q, k: query_ids[q] == key_ids[k]  # noqa: E731
        device = self.query_starts.device
        mask = create_block_mask(
            same, None, None, len(query_ids), len(key_ids), device=str(device), _compile=device.type == "cuda"
        )  # uncompiled it makes the whole L x L mask: 4.3 GB at 65,536 tokens
        return replace(self, block_mask=mask)


@dataclass(frozen=True)
class Share:
    """How the tokens of a pack's shared samples lie on the team's ranks, in by-sample order one run after the other."""

    group: str
    member: int
    run_lengths: tuple[int, ...]  # tokens of every member's run; they differ by one at most
    segments: Segments  # over all S shared tokens

    @property
    def num_tokens(self) -> int:
        """Length of this rank's run; these are its first tokens in by-sample order."""
        return self.run_lengths[self.member]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Share:
        """The same on `device`."""
        return replace(self, segments=self.segments.to(device, non_blocking=non_blocking))

    def prepare(self, backend: str) -> Share:
        """The same with the attention backend's work per pack done."""
        return replace(self, segments=self.segments.prepare(backend))


def resolve_backend(backend: str, device_type: str, dtype: torch.dtype, num_segments: int) -> str:
    """The backend that `auto` means here, or `backend` itself. Raises ModelError for one that cannot run here."""
    if backend not in BACKENDS:
        raise ModelError(f"unknown attention backend {backend!r}.", remedy=f"Use one of {', '.join(BACKENDS)}.")
    can_varlen = device_type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _has_varlen()
    if backend == "varlen" and not can_varlen:
        raise ModelError(
            f"attention backend 'varlen' got {dtype} on {device_type}, it needs half precision on CUDA and torch 2.10.",
            remedy="Use 'auto' or 'sdpa'.",
        )
    if backend != "auto":
        return backend
    return "varlen" if can_varlen and num_segments > 1 else "sdpa"


def attend(q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, segments: Segments, backend: str = "auto") -> Tensor:
    """y_LHD, softmax(q k^T / sqrt(D) + log count) v within each segment. A segment without keys yields zeros."""
    chosen = resolve_backend(backend, q_LHD.device.type, q_LHD.dtype, segments.num_segments)
    if chosen != "sdpa" and not (len(q_LHD) and len(k_KHD)):
        return _of_nothing(q_LHD, k_KHD, v_KHD)  # a modality that no sample of the pack has; kernels want a grid
    if chosen == "varlen":
        return _varlen(q_LHD, k_KHD, v_KHD, segments)
    if chosen == "flex":
        return _flex(q_LHD, k_KHD, v_KHD, segments)
    if q_LHD.device.type == "cpu":
        y_LHD, _ = segment_attention(
            q_LHD, k_KHD, v_KHD, segments.query_starts, segments.key_starts, segments.key_log_count
        )
        return y_LHD
    return _sdpa(q_LHD, k_KHD, v_KHD, segments)


def _sdpa(q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, segments: Segments) -> Tensor:
    queries = q_LHD.split(segments.query_lengths)
    keys, values = k_KHD.split(segments.key_lengths), v_KHD.split(segments.key_lengths)
    biases = [None] * len(queries)
    if segments.key_log_count is not None:
        biases = segments.key_log_count.to(q_LHD.dtype)[None, None, None].split(segments.key_lengths, dim=-1)
    outs = [
        F.scaled_dot_product_attention(_heads_first(q), _heads_first(k), _heads_first(v), attn_mask=bias)
        if len(q) and len(k)
        else _heads_first(_of_nothing(q, k, v))
        for q, k, v, bias in zip(queries, keys, values, biases, strict=True)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def _of_nothing(q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor) -> Tensor:
    """Zeros like the queries that hang on all three, so that every rank has gradients for the same weights."""
    return q_LHD * 0 + 0 * (k_KHD.sum() + v_KHD.sum())


def _varlen(q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    key_starts, max_keys = segments.key_starts, segments.max_keys
    if segments.repeats is not None:
        k_KHD, v_KHD = segments.repeats.write_out(k_KHD), segments.repeats.write_out(v_KHD)
        key_starts, max_keys = segments.repeats.starts, segments.repeats.max_keys
    return varlen_attn(q_LHD, k_KHD, v_KHD, segments.query_starts, key_starts, segments.max_queries, max_keys)


def _flex(q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, segments: Segments) -> Tensor:
    log_count = segments.key_log_count
    score_mod = None if log_count is None else lambda score, b, h, q, k: score + log_count[k]
    y = _flex_kernel(q_LHD.device.type)(
        _heads_first(q_LHD),
        _heads_first(k_KHD),
        _heads_first(v_KHD),
        score_mod=score_mod,
        block_mask=segments.prepare("flex").block_mask,
    )
    return y[0].transpose(0, 1)


@lru_cache
def _flex_kernel(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@lru_cache
def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


@torch.library.custom_op("nava::segment_attention", mutates_args=(), device_types="cpu")
def segment_attention(
    q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, query_starts: Tensor, key_starts: Tensor, key_log_count: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(y_LHD, log-sum-exp lse_LH): torch's CPU flash kernel once per segment, as one operator for the compiler."""
    y_LHD = torch.zeros_like(q_LHD, memory_format=torch.contiguous_format)
    lse_LH = q_LHD.new_zeros(q_LHD.shape[:2], dtype=torch.promote_types(q_LHD.dtype, torch.float32))
    for q, k in _spans(query_starts, key_starts):
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q_LHD[q]),
            _heads_first(k_KHD[k]),
            _heads_first(v_KHD[k]),
            attn_mask=_bias(key_log_count, q, k, q_LHD.dtype),
        )
        y_LHD[q], lse_LH[q] = y[0].transpose(0, 1), lse[0].transpose(0, 1)
    return y_LHD, lse_LH


@segment_attention.register_fake
def _(
    q_LHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, query_starts: Tensor, key_starts: Tensor, key_log_count: Tensor | None
) -> tuple[Tensor, Tensor]:
    lse_LH = q_LHD.new_empty(q_LHD.shape[:2], dtype=torch.promote_types(q_LHD.dtype, torch.float32))
    return torch.empty_like(q_LHD, memory_format=torch.contiguous_format), lse_LH


@torch.library.custom_op("nava::segment_attention_backward", mutates_args=(), device_types="cpu")
def _segment_attention_backward(
    grad_LHD: Tensor,
    inputs: list[Tensor],
    y_LHD: Tensor,
    lse_LH: Tensor,
    starts: list[Tensor],
    key_log_count: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    q_LHD, k_KHD, v_KHD = inputs
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    for q, k in _spans(*starts):
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _heads_first(grad_LHD[q]),
            _heads_first(q_LHD[q]),
            _heads_first(k_KHD[k]),
            _heads_first(v_KHD[k]),
            _heads_first(y_LHD[q]),
            lse_LH[q].transpose(0, 1)[None],
            0.0,
            False,
            attn_mask=_bias(key_log_count, q, k, q_LHD.dtype),
        )
        for whole, rows, part in zip(grads, (q, k, k), parts, strict=True):
            whole[rows] = part[0].transpose(0, 1)
    return grads[0], grads[1], grads[2]


@_segment_attention_backward.register_fake
def _(grad_LHD: Tensor, inputs: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return q, k, v


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad_LHD: Tensor, grad_lse_LH: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, query_starts, key_starts, key_log_count, y, lse = ctx.saved_tensors
    grads = _segment_attention_backward(grad_LHD, [q, k, v], y, lse, [query_starts, key_starts], key_log_count)
    return *grads, None, None, None


segment_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _heads_first(x_LHD: Tensor) -> Tensor:
    return x_LHD.transpose(0, 1)[None]


def _bias(key_log_count: Tensor | None, queries: slice, keys: slice, dtype: torch.dtype) -> Tensor | None:
    if key_log_count is None:
        return None
    num_queries, num_keys = queries.stop - queries.start, keys.stop - keys.start
    return key_log_count[keys].to(dtype).expand(1, 1, num_queries, num_keys)


def _spans(query_starts: Tensor, key_starts: Tensor) -> list[tuple[slice, slice]]:
    q, k = query_starts.tolist(), key_starts.tolist()
    spans = [(slice(*q[i : i + 2]), slice(*k[i : i + 2])) for i in range(len(q) - 1)]
    return [(a, b) for a, b in spans if a.stop > a.start and b.stop > b.start]


def _starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _segment_ids(starts: Tensor) -> Tensor:
    return torch.repeat_interleave(starts.diff())
