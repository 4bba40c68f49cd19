"""What a GPU has to show before a launch, cheapest first: python -m benchmarks.gpu_check --json FILE

    empty       packs in which a stream, or nearly everything, is empty: every backend, forward and backward
    attention   backends against the first one at real lengths: error, TFLOP/s, time to prepare a pack
    kernels     what `network.attention_backend: measured` finds, FlashAttention-3 too where torch has it registered
    rows        gradients of the modulation tables: time beside torch's atomics, and whether bits repeat
    parity      loss and gradients in bfloat16 against float32: cosine and ratio of norms
    repeat      whether two equal steps give equal bits
    pack        a training step of the network: peak memory against `model/training/memory.py`, share of the peak FLOPs

The parts run in this order until the minutes are used up; what fails is a row of its own and ends nothing. Planned for 25
minutes on one H100 with --preset nava_1b; --device cpu --preset nava_tiny rehearses all of it in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.attention import Segments, attend
from model.network.config import NavaConfig
from model.network.flow import FlowObjective, clip_generators
from model.network.flow_config import FlowConfig
from model.network.nava import Nava, pack
from model.network.rows import TableRows
from model.network.tokens import Sample
from model.training.kernels import kernels_here, time_kernels
from model.training.memory import count_activations
from model.training.recompute import set_recompute
from schemas.budget import ModelShape, Recompute, paired_audio_tokens, training_flops
from schemas.errors import ModelError
from schemas.files import write_whole

FAILURES = (RuntimeError, ModelError, ValueError, TypeError, AssertionError, ImportError)
"""What a kernel or a compiler that cannot do a thing raises; torch's own errors are RuntimeErrors."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is checked on what."""

    preset: str
    device: str
    backends: tuple[str, ...]
    peak_tflops: float
    recompute: Recompute = "attention_qkv"

    @property
    def network(self) -> NavaConfig:
        """The shape of the network."""
        return NavaConfig.preset(self.preset)

    @property
    def is_cuda(self) -> bool:
        """False rehearses."""
        return self.device == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize()


def clip(setting: Setting, number: int, frames: int, height: int, width: int, kind: str = "joint") -> Sample:
    """A random clip of so many frames and latent rows and columns; kind: joint, video or audio."""
    network, generator = setting.network, torch.Generator().manual_seed(number)
    latents = (frames - 1) // 4 + 1
    return Sample(
        f"clip{number}",
        torch.randn(min(network.max_text_tokens, 10 + 3 * number), network.text_dim, generator=generator),
        None if kind == "audio" else torch.randn(network.video_channels, latents, height, width, generator=generator),
        None
        if kind == "video"
        else torch.randn(paired_audio_tokens(frames), network.audio_channels, generator=generator),
    )


def build(setting: Setting, dtype: torch.dtype, backend: str) -> Nava:
    """The network with random weights of which none is zero."""
    with torch.device("meta"):
        model = Nava(setting.network, backend)
    model.to_empty(device="cpu")
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.head.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    model.to(setting.device, dtype)
    set_recompute(model, setting.recompute)
    return model


def step(setting: Setting, model: Nava, clips: list[Sample]) -> tuple[float, Tensor]:
    """(loss, all gradients in one row, float32) of one pack; the noise is the same each time."""
    objective, generators = FlowObjective(FlowConfig()), clip_generators(0, 0, [c.clip_id for c in clips])
    noised = objective.noise(objective.sample_modes(clips, generators), generators)
    model.zero_grad(set_to_none=True)
    packed = pack(noised.samples, setting.network).to(setting.device)
    loss = objective.total(objective.loss(model(packed, noised.timesteps.to(setting.device)), noised))
    loss.backward()
    setting.wait()
    return float(loss.detach()), torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def attempts(setting: Setting, part: str, run: Callable[[str], Row]) -> Iterator[Row]:
    """A row for each backend: what `run` found, or what it failed of."""
    for backend in setting.backends:
        try:
            yield {"part": part, "backend": backend, **run(backend)}
        except FAILURES as error:
            told = str(error).strip().partition("\n")[0][:200]
            yield {"part": part, "backend": backend, "failed": f"{type(error).__name__}: {told}"}


def check_empty(setting: Setting) -> Iterator[Row]:
    """Streams without a token, and a pack of one token."""
    one = Sample("one", torch.zeros(0, setting.network.text_dim), audio=torch.zeros(1, setting.network.audio_channels))
    kinds = {
        "sound alone, three": [clip(setting, i, 33, 4, 6, "audio") for i in range(3)],
        "picture alone, two": [clip(setting, i, 17, 4, 6, "video") for i in range(2)],
        "all kinds": [clip(setting, i, 17, 4, 6, kind) for i, kind in enumerate(("joint", "audio", "video"))],
        "one token": [one],
    }
    dtype = torch.bfloat16 if setting.is_cuda else torch.float32
    for name, clips in kinds.items():

        def run(backend: str, clips: list[Sample] = clips) -> Row:
            loss, gradients = step(setting, build(setting, dtype, backend), clips)
            return {"loss": loss, "norm": float(gradients.norm()), "is_finite": bool(gradients.isfinite().all())}

        yield from ({**row, "pack": name} for row in attempts(setting, "empty", run))


def check_attention(setting: Setting) -> Iterator[Row]:
    """Every backend at the lengths of a long clip, two of them, and many of all lengths."""
    heads, channels, scale = (24, 128, 1) if setting.is_cuda else (2, 32, 200)
    dtype = torch.bfloat16 if setting.is_cuda else torch.float32
    for lengths in ([27_407], [32_712] * 2, [8_000] * 6 + [127] * 10):
        short = [max(1, n // scale) for n in lengths]
        segments = Segments.of(short, short).to(setting.device)
        generator = torch.Generator().manual_seed(1)
        made = [torch.randn(sum(short), heads, channels, generator=generator) for _ in range(3)]
        q, k, v = (x.to(setting.device, dtype).requires_grad_() for x in made)
        first: list[Tensor] = []

        def run(backend: str, inputs: Any = (q, k, v), segments: Segments = segments, first: list[Tensor] = first,
                short: list[int] = short) -> Row:  # fmt: skip
            began = time.perf_counter()
            prepared = segments.prepare(backend)
            setting.wait()
            times = [time.perf_counter()]
            for _ in range(4):
                y = attend(inputs[0], inputs[1], inputs[2], prepared, backend)
                found = [y, *torch.autograd.grad(y.float().square().sum(), inputs)]
                setting.wait()
                times.append(time.perf_counter())
            if not first:
                first.extend(x.detach().float() for x in found)
            errors = [float((x.float() - f).abs().max() / f.abs().max()) for x, f in zip(found, first, strict=True)]
            fastest_s = min(b - a for a, b in pairwise(times[1:]))
            flops = 3.5 * 4 * sum(n * n for n in short) * heads * channels
            return {"lengths": short, "error": max(errors), "tflops": flops / fastest_s / 1e12,
                    "prepare_s": times[0] - began, "first_s": times[1] - times[0]}  # fmt: skip

        yield from attempts(setting, "attention", run)


def check_kernels(setting: Setting) -> Iterator[Row]:
    """Seconds of every kernel that runs here, forward and backward, on 27,407 tokens."""
    device, dtype = torch.device(setting.device), torch.bfloat16 if setting.is_cuda else torch.float32
    times = time_kernels(
        kernels_here(setting.device), setting.network, dtype, 27_407 if setting.is_cuda else 96, device
    )
    for kernel, seconds in times.items():
        yield {"part": "kernels", "backend": kernel.backend, "flash": kernel.flash, "seconds": seconds}


def check_rows(setting: Setting) -> Iterator[Row]:
    """Look-ups of one table by every token, forward and backward, against indexing; packs of few clips and of many."""
    dim, scale = (3072, 1) if setting.is_cuda else (256, 16)
    for lengths in ([27_407], [32_712] * 2, [256] * 256):
        of_tokens = torch.repeat_interleave(torch.tensor([max(1, n // scale) for n in lengths]))
        rows = TableRows.of(of_tokens).to(setting.device)
        table = torch.randn(len(lengths) + 1, dim, device=setting.device, requires_grad=True)
        grad = torch.randn(len(of_tokens), dim, device=setting.device)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "products": rows.look_up,
            "atomics": partial(torch.index_select, dim=0, index=rows.of_tokens),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[Tensor]] = {way: [] for way in ways}
        for _ in range(9):
            for way, look_up in ways.items():
                began = time.perf_counter()
                found[way] += torch.autograd.grad(look_up(table), table, grad)
                setting.wait()
                times[way].append(time.perf_counter() - began)
        seconds = {way: statistics.median(measured[1:]) for way, measured in times.items()}
        exact = torch.zeros_like(table, dtype=torch.float64).index_add(0, rows.of_tokens, grad.double())
        yield {
            "part": "rows",
            "num_clips": len(lengths),
            "num_tokens": len(of_tokens),
            "time_over_atomics": seconds["products"] / seconds["atomics"],
            **{f"{way}_s": value for way, value in seconds.items()},
            **{f"{way}_error": float((x[0] - exact).abs().max() / exact.abs().max()) for way, x in found.items()},
            **{f"{way}_repeat": all(torch.equal(x[0], other) for other in x) for way, x in found.items()},
        }


def check_parity(setting: Setting) -> Iterator[Row]:
    """bfloat16 of every backend against float32 of the first."""
    clips = [clip(setting, 0, 17, 8, 12), clip(setting, 1, 33, 4, 6, "audio"), clip(setting, 2, 9, 6, 8, "video")]
    loss, gradients = step(setting, build(setting, torch.float32, "sdpa"), clips)

    def run(backend: str) -> Row:
        low_loss, low = step(setting, build(setting, torch.bfloat16, backend), clips)
        cosine = float(F.cosine_similarity(low, gradients, dim=0))
        return {"loss": low_loss, "exact_loss": loss, "cosine": cosine, "ratio": float(low.norm() / gradients.norm())}

    yield from attempts(setting, "parity", run)


def check_repeat(setting: Setting) -> Iterator[Row]:
    """The same step twice."""
    clips = [clip(setting, i, 33, 8, 12) for i in range(3)]

    def run(backend: str) -> Row:
        model = build(setting, torch.bfloat16 if setting.is_cuda else torch.float32, backend)
        (_, one), (_, two) = step(setting, model, clips), step(setting, model, clips)
        return {"is_equal": torch.equal(one, two), "largest_difference": float((one - two).abs().max())}

    yield from attempts(setting, "repeat", run)


def check_pack(setting: Setting) -> Iterator[Row]:
    """One long clip: seconds, share of peak FLOPs, peak memory beyond weights and gradients against the estimate."""
    clips = [clip(setting, 0, 121, 44, 80) if setting.is_cuda else clip(setting, 0, 17, 4, 6)]
    packed = pack(clips, setting.network)
    tokens = packed.num_video_tokens + packed.num_audio_tokens
    shape = ModelShape.from_config(setting.network)
    flops = float(training_flops(shape, packed.num_video_tokens, packed.num_audio_tokens, len(clips[0].text)))

    def run(backend: str) -> Row:
        model, times = build(setting, torch.bfloat16, backend), []
        for number in range(4):
            if setting.is_cuda and number == 1:
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            step(setting, model, clips)
            times.append(time.perf_counter() - began)
        weights = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
        estimate = count_activations(setting.network, setting.recompute, torch.bfloat16, tokens)
        peak = torch.cuda.max_memory_allocated() - weights if setting.is_cuda else None
        return {
            "tokens": tokens,
            "step_s": min(times[1:]),
            "mfu": flops / min(times[1:]) / (setting.peak_tflops * 1e12),
            "peak_bytes": peak,
            "estimated_bytes": estimate.peak,
        }

    yield from attempts(setting, "pack", run)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "empty": check_empty,
    "attention": check_attention,
    "kernels": check_kernels,
    "rows": check_rows,
    "parity": check_parity,
    "repeat": check_repeat,
    "pack": check_pack,
}


def run_parts(setting: Setting, parts: list[str], minutes: float) -> list[Row]:
    """Rows of the parts in order, printed as they come; parts that would begin after the time are rows that say so."""
    began, rows = time.monotonic(), list[Row]()
    for part in parts:
        if time.monotonic() - began > 60 * minutes:
            rows.append({"part": part, "failed": f"not begun: {minutes:g} minutes were used up"})
            continue
        for row in PARTS[part](setting):
            print(
                "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                )
            )
            rows.append(row)
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", default="nava_1b")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backends", nargs="+", default=["sdpa", "varlen", "flex"])
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--minutes", type=float, default=25.0)
    given = parser.parse_args()
    setting = Setting(given.preset, given.device, tuple(given.backends), given.peak_tflops)
    device = torch.cuda.get_device_name() if setting.is_cuda else "cpu"
    facts = {"device": device, "torch": torch.__version__, "preset": given.preset}
    rows = run_parts(setting, given.parts, given.minutes)
    write_whole(given.json, json.dumps({**facts, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
