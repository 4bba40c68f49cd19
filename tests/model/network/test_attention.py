"""One entry, several backends, one result: a dense masked softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.network.attention import Segments, attend, resolve_backend
from schemas.errors import ModelError

QUERIES, KEYS = [5, 0, 17, 3], [4, 2, 9, 1]
COUNTS = [1, 1, 1, 300, 7, 1, *[1] * 8, 200, 512]


def tensors(dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    sizes = (sum(QUERIES), sum(KEYS), sum(KEYS))
    return [torch.randn(n, 2, 32, generator=generator, dtype=torch.float64).to(device, dtype) for n in sizes]


def dense(q: Tensor, k: Tensor, v: Tensor, counts: list[int] | None) -> Tensor:
    """Softmax over all pairs of one segment, every key as often as it counts: written out, in float64."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    query_ids = torch.arange(len(QUERIES)).repeat_interleave(torch.tensor(QUERIES))
    key_ids = torch.arange(len(KEYS)).repeat_interleave(torch.tensor(KEYS))
    weights = torch.einsum("qhd,khd->hqk", q, k).div(32**0.5).exp() * (query_ids[:, None] == key_ids)
    weights = weights * torch.tensor(counts or [1] * len(key_ids), dtype=torch.float64)
    return torch.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("counts", [None, COUNTS], ids=["plain", "counted keys"])
@pytest.mark.parametrize("backend", ["sdpa", "flex", "auto"])
def test_backends_agree_with_a_dense_softmax(backend: str, counts: list[int] | None) -> None:
    q, k, v = tensors(torch.float32)
    ours = attend(q, k, v, Segments.of(QUERIES, KEYS, counts).prepare(backend), backend)
    torch.testing.assert_close(ours.double(), dense(q, k, v, counts), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("counts", [None, COUNTS], ids=["plain", "counted keys"])
def test_gradients_agree_with_a_dense_softmax(counts: list[int] | None) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    weight = torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((attend(q, k, v, Segments.of(QUERIES, KEYS, counts), "sdpa") * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((dense(q, k, v, counts) * weight).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_counted_key_equals_its_repetition() -> None:
    q, k, v = tensors()
    counted = Segments.of(QUERIES, KEYS, COUNTS)
    lengths = counted.repeats.starts.diff().tolist()
    assert lengths == [303, 8, 208, 512]
    assert counted.repeats.max_keys == 512
    long_k, long_v = counted.repeats.write_out(k), counted.repeats.write_out(v)
    rows = torch.repeat_interleave(torch.tensor(COUNTS))
    assert torch.equal(long_k, k[rows].float().to(k.dtype))
    repeated = attend(q, long_k, long_v, Segments.of(QUERIES, lengths), "sdpa")
    torch.testing.assert_close(attend(q, k, v, counted, "sdpa"), repeated, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_a_repeated_key_is_the_sum_over_its_copies() -> None:
    _, k, _ = (x.requires_grad_() for x in tensors())
    rows = torch.repeat_interleave(torch.tensor(COUNTS))
    weight = torch.randn(len(rows), *k.shape[1:], dtype=k.dtype, generator=torch.Generator().manual_seed(1))
    found, expected = (
        torch.autograd.grad((x * weight).sum(), k)[0]
        for x in (Segments.of(QUERIES, KEYS, COUNTS).repeats.write_out(k), k[rows])
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_operator_keeps_its_contract_with_the_compiler() -> None:
    q, k, v = (x.float().requires_grad_() for x in tensors())
    segments = Segments.of(QUERIES, KEYS, COUNTS)
    arguments = (q, k, v, segments.query_starts, segments.key_starts, segments.key_log_count)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.nava.segment_attention.default, arguments, test_utils=checks)


def test_a_segment_without_keys_yields_zeros() -> None:
    q, k, v = tensors()
    out = attend(q, k[:0], v[:0], Segments.of(QUERIES, [0, 0, 0, 0]), "sdpa")
    assert torch.equal(out, torch.zeros_like(q))


@pytest.mark.parametrize(("num_queries", "num_keys"), [(0, 3), (5, 0), (0, 0)])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_a_modality_that_nobody_has_gives_gradients_of_zero_not_none(
    backend: str, num_queries: int, num_keys: int
) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    segments = Segments.of([num_queries] * 2, [num_keys] * 2)
    out = attend(q[: 2 * num_queries], k[: 2 * num_keys], v[: 2 * num_keys], segments, backend)
    assert out.shape == (2 * num_queries, *q.shape[1:])
    assert not out.any()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not gradient.any()


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "num_segments", "expected"),
    [
        ("auto", "cpu", torch.float32, 3, "sdpa"),
        ("auto", "cuda", torch.bfloat16, 1, "sdpa"),
        ("auto", "cuda", torch.bfloat16, 3, "varlen"),
        ("auto", "cuda", torch.float32, 3, "sdpa"),
        ("flex", "cuda", torch.float32, 3, "flex"),
    ],
)
def test_auto_picks_what_can_run(
    backend: str, device: str, dtype: torch.dtype, num_segments: int, expected: str
) -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    assert resolve_backend(backend, device, dtype, num_segments) == expected


def test_backends_that_cannot_run_are_refused() -> None:
    with pytest.raises(ModelError, match="needs half precision on CUDA"):
        resolve_backend("varlen", "cpu", torch.float32, 2)
    with pytest.raises(ModelError, match="unknown attention backend 'flash'"):
        resolve_backend("flash", "cpu", torch.float32, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("counts", [None, COUNTS], ids=["plain", "counted keys"])
@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen"])
def test_cuda_backends_agree_forward_and_backward(backend: str, counts: list[int] | None) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(torch.bfloat16, "cuda"))
    segments = Segments.of(QUERIES, KEYS, counts).to("cuda").prepare(backend)
    exact = [x.detach().double().cpu().requires_grad_() for x in (q, k, v)]
    ours, theirs = attend(q, k, v, segments, backend), dense(exact[0], exact[1], exact[2], counts)
    torch.testing.assert_close(ours.double().cpu(), theirs, atol=0.03, rtol=0.03)
    for a, b in zip(
        torch.autograd.grad(ours.float().square().sum(), (q, k, v)),
        torch.autograd.grad(theirs.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(a.double().cpu(), b, atol=0.05 * b.abs().max().item(), rtol=0.1)
