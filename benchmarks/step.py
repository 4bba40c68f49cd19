"""Forward and backward of a NAVA preset against the FLOPs of schemas/budget.py and against ceilings taken in the same run.

    python -m benchmarks.step --preset nava_tiny --json step.json
    python -m benchmarks.step --preset nava_6b --device cuda --dtype bfloat16 --peak-tflops 989 --json step.json

Every recompute policy runs with every attention backend the device has; the optimizer is not part of the step. In each
round the contenders and the ceilings (matrix product, attention, copy, at the network's shapes) run in random order. A run
whose ceilings spread by more than 15 % is marked void; a contender whose loss or gradients differ gets no figure.

    mfu_of_peak      credited FLOPs per second over --peak-tflops: 3 x forward, attention in full, recomputation not credited
    mfu_of_matmul    the same over the matrix-product rate measured beside it
    floor_s          credited products at the measured rate plus attention at its own: what no step here can beat
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.network.attention import resolve_backend
from model.network.config import NavaConfig
from model.network.nava import Nava, Packed, Sample, pack
from model.training.recompute import POLICIES, set_recompute
from schemas.budget import PX_PER_LATENT, ModelShape, Recompute, forward_flops, paired_audio_tokens
from schemas.errors import ModelError

MAX_CEILING_SPREAD = 0.15
"""Own choice: shares of a ceiling that is less sure than that tell contenders no longer apart."""
BACKENDS = ("sdpa", "varlen", "flex")
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Own choice, relative: room for other orders of the same sums, none for a wrong one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured."""

    preset: str
    device: str
    dtype: str
    num_frames: int
    height_px: int
    width_px: int
    num_samples: int
    rounds: int
    warm_ups: int
    is_compiled: bool
    peak_tflops: float | None


@dataclass(slots=True)
class Ceiling:
    """One rate of the device at the network's shapes: FLOPs per second, or bytes per second for copy."""

    name: str
    work: float
    run: Callable[[], object] = field(repr=False)
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Work per second at the median time."""
        return self.work / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


@dataclass(slots=True)
class Contender:
    """One way to compute the step. `refusal` says why it has no figure."""

    recompute: Recompute
    backend: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    refusal: str = ""
    block_states: list[dict[str, Any]] = field(default_factory=list, repr=False)


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of tensors made under it that are alive, and their peak: memory of a step where no allocator tells.

    Scratch space inside one operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self.now += self._seen[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def build(setting: Setting) -> tuple[Nava, Packed, Tensor]:
    """The network with random weights, a pack of equal random samples with full-length text, and their timesteps."""
    config = NavaConfig.preset(setting.preset)
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = Nava(config).to(getattr(torch, setting.dtype))
        model.init_weights()
        torch.nn.init.normal_(model.head.head.weight, std=0.02)
        T = (setting.num_frames - 1) // config.video_stride_frames + 1
        height, width = setting.height_px // PX_PER_LATENT, setting.width_px // PX_PER_LATENT
        video_shape = (config.video_channels, T, height, width)
        samples = [
            Sample(
                f"sample {i}",
                text=torch.randn(config.max_text_tokens, config.text_dim),
                video=torch.randn(video_shape),
                audio=torch.randn(paired_audio_tokens(setting.num_frames), config.audio_channels),
            )
            for i in range(setting.num_samples)
        ]
        timesteps = torch.linspace(200, 800, setting.num_samples)
    return model, pack(samples, config), timesteps


def step(model: Nava, packed: Packed, timesteps: Tensor) -> Tensor:
    """Loss of one forward pass, its gradients added to the weights."""
    model.zero_grad(set_to_none=True)
    velocity = model(packed, timesteps)
    loss = sum(v.float().square().mean() for v in [*velocity.video, *velocity.audio] if v is not None)
    loss.backward()
    return loss.detach()


def run(setting: Setting, policies: list[Recompute], backends: list[str]) -> dict[str, Any]:
    """The measurement as one json-ready mapping: setting, machine, ceilings, contenders."""
    model, packed, timesteps = build(setting)
    contenders = [Contender(policy, backend) for backend in backends for policy in policies]
    for contender in contenders:
        _qualify(contender, contenders[0], setting, model, packed, timesteps)
    running = [contender for contender in contenders if not contender.refusal]
    if not running:
        raise ModelError(f"no contender can run: {'; '.join(c.refusal for c in contenders)}")
    ceilings = _ceilings(setting, packed)
    order: list[Contender | Ceiling] = [*running, *ceilings]
    shuffle = random.Random(0)
    for round_ in range(setting.warm_ups + setting.rounds):
        shuffle.shuffle(order)
        for entrant in order:
            action = entrant.run if isinstance(entrant, Ceiling) else partial(step, model, packed, timesteps)
            if isinstance(entrant, Contender):
                _arrange(model, entrant, setting)
            seconds = _timed(action, setting.device)
            if round_ >= setting.warm_ups:
                entrant.seconds.append(seconds)
    return _report(setting, packed, contenders, {ceiling.name: ceiling for ceiling in ceilings})


def _arrange(model: Nava, contender: Contender, setting: Setting) -> None:
    """Set the policy and backend; compiled blocks are made once per contender and put back in later rounds."""
    model.attention_backend = contender.backend
    blocks = [*model.double_blocks, *model.single_blocks]
    if not contender.block_states:
        set_recompute(model, contender.recompute)
        for block in blocks:
            block._compiled_call_impl = None
            if setting.is_compiled:
                block.compile(dynamic=True)
            names = ("forward", "_compiled_call_impl")
            contender.block_states.append({name: vars(block)[name] for name in names if name in vars(block)})
    for block, state in zip(blocks, contender.block_states, strict=True):
        vars(block).pop("forward", None)
        vars(block).update(state)


def _qualify(
    contender: Contender, first: Contender, setting: Setting, model: Nava, packed: Packed, timesteps: Tensor
) -> None:
    """Run the contender once: its loss, gradients and peak memory; refuse it if they differ from the first one's."""
    dtype = getattr(torch, setting.dtype)
    try:
        resolve_backend(contender.backend, torch.device(setting.device).type, dtype, packed.num_samples)
        _arrange(model, contender, setting)
        contender.loss, contender.peak_bytes = _measure_memory(partial(step, model, packed, timesteps), setting.device)
    except (ModelError, NotImplementedError, torch.OutOfMemoryError) as error:
        contender.refusal = str(error).splitlines()[0]
        return
    gradients = [p.grad.float().square().sum() for p in model.parameters() if p.grad is not None]
    contender.gradient_norm = float(torch.stack(gradients).sum().sqrt())
    tolerance = LOSS_TOLERANCE[dtype]
    for name in ("loss", "gradient_norm"):
        ours, theirs = getattr(contender, name), getattr(first, name)
        if not first.refusal and abs(ours - theirs) > tolerance * abs(theirs):
            contender.refusal = f"{name} is {ours:.6g}, the first contender's is {theirs:.6g}"


def _measure_memory(action: Callable[[], Tensor], device: str) -> tuple[float, int]:
    """(result, peak bytes beyond what was allocated before): from the allocator on CUDA, by counting tensors elsewhere."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = float(action())
        return result, torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        result = float(action())
    return result, live.peak


def _ceilings(setting: Setting, packed: Packed) -> list[Ceiling]:
    """Matrix products dim -> dim, 3 dim and ffn (forward and backward), attention of one sample, and a copy."""
    config = packed.config
    num_tokens = packed.num_video_tokens + packed.num_audio_tokens
    options: dict[str, Any] = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
    x = torch.randn(num_tokens, config.dim, **options, requires_grad=True)
    widths = (config.dim, 3 * config.dim, config.ffn_dim)
    weights = [torch.randn(width, config.dim, **options, requires_grad=True) for width in widths]
    length = num_tokens // packed.num_samples
    q = torch.randn(1, config.num_heads, length, config.head_dim, **options, requires_grad=True)
    copied = torch.randn(64 * 2**20 if options["device"] != "cpu" else 2**22, **options)

    def products() -> None:
        torch.autograd.grad([F.linear(x, w).sum() for w in weights], [x, *weights])

    def attention() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).sum(), q)

    return [
        Ceiling("matmul", 3 * 2 * num_tokens * config.dim * sum(widths), products),
        Ceiling("attention", 3 * 4 * length**2 * config.dim, attention),
        Ceiling("copy", 2 * copied.numel() * copied.element_size(), copied.clone),
    ]


def _timed(action: Callable[[], object], device: str) -> float:
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def _report(
    setting: Setting, packed: Packed, contenders: list[Contender], ceilings: dict[str, Ceiling]
) -> dict[str, Any]:
    shape = ModelShape.from_config(packed.config)
    num_video, num_audio = (n // packed.num_samples for n in (packed.num_video_tokens, packed.num_audio_tokens))
    forward = forward_flops(shape, num_video, num_audio)
    flops = 3 * setting.num_samples * float(forward.total)
    attention_flops = 3 * setting.num_samples * float(forward.self_attention)
    floor_s = (flops - attention_flops) / ceilings["matmul"].rate + attention_flops / ceilings["attention"].rate
    rows = [_row(c, packed, flops, floor_s, ceilings["matmul"].rate, setting.peak_tflops) for c in contenders]
    return {
        "setting": asdict(setting),
        "machine": {
            "device": torch.cuda.get_device_name() if setting.device.startswith("cuda") else platform.processor(),
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "tokens": {"video": packed.num_video_tokens, "audio": packed.num_audio_tokens},
        "step_flops": flops,
        "attention_share": attention_flops / flops,
        "ceilings": {n: {"per_s": c.rate, "spread": c.spread} for n, c in ceilings.items()},
        "floor_s": floor_s,
        "is_void": max(c.spread for c in ceilings.values()) > MAX_CEILING_SPREAD,
        "contenders": rows,
    }


def _row(
    contender: Contender, packed: Packed, flops: float, floor_s: float, matmul_rate: float, peak_tflops: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"recompute": contender.recompute, "backend": contender.backend}
    if contender.refusal:
        return row | {"refusal": contender.refusal}
    median_s = statistics.median(contender.seconds)
    return row | {
        "median_s": median_s,
        "min_s": min(contender.seconds),
        "max_s": max(contender.seconds),
        "tokens_per_s": (packed.num_video_tokens + packed.num_audio_tokens) / median_s,
        "peak_bytes": contender.peak_bytes,
        "mfu_of_peak": flops / median_s / (peak_tflops * 1e12) if peak_tflops else None,
        "mfu_of_matmul": flops / median_s / matmul_rate,
        "share_of_floor": floor_s / median_s,
        "loss": contender.loss,
    }


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    setting, tokens, ceilings = report["setting"], report["tokens"], report["ceilings"]
    rates = ", ".join(
        f"{name} {c['per_s'] / 1e9:.1f} {'GB/s' if name == 'copy' else 'GFLOP/s'} (spread {c['spread']:.0%})"
        for name, c in ceilings.items()
    )
    lines = [
        f"{setting['preset']} on {setting['device']}, {setting['dtype']}: {setting['num_samples']} x "
        f"{setting['num_frames']} frames of {setting['width_px']}x{setting['height_px']} px, "
        f"{tokens['video']} video + {tokens['audio']} audio tokens",
        f"{report['step_flops'] / 1e12:.4g} TFLOP a step, attention {report['attention_share']:.0%}; {rates}",
        *(["VOID: the ceilings spread by more than 15 %, the machine was not quiet."] if report["is_void"] else []),
        f"{'recompute':14} {'backend':8} {'step s':>9} {'tokens/s':>10} {'peak MB':>9} "
        f"{'of peak':>8} {'of matmul':>9} {'of floor':>8}",
    ]
    for row in report["contenders"]:
        name = f"{row['recompute']:14} {row['backend']:8}"
        if "refusal" in row:
            lines.append(f"{name} {row['refusal']}")
            continue
        of_peak = "" if row["mfu_of_peak"] is None else f"{row['mfu_of_peak']:.1%}"
        lines.append(
            f"{name} {row['median_s']:9.4f} {row['tokens_per_s']:10.0f} {row['peak_bytes'] / 1e6:9.1f} {of_peak:>8} "
            f"{row['mfu_of_matmul']:9.1%} {row['share_of_floor']:8.1%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write the json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nava_tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--frames", type=int, default=None, help="default 33 on the CPU, 121 elsewhere")
    parser.add_argument("--height", type=int, default=None, help="px; default 128 on the CPU, 704 elsewhere")
    parser.add_argument("--width", type=int, default=None, help="px; default 192 on the CPU, 1280 elsewhere")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warm-ups", type=int, default=3)
    parser.add_argument("--recompute", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--compile", action="store_true", help="compile each block")
    parser.add_argument(
        "--peak-tflops", type=float, default=None, help="dense peak of the device, 989 for an H200 in bf16"
    )
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    is_small = torch.device(given.device).type == "cpu"
    setting = Setting(
        preset=given.preset,
        device=given.device,
        dtype=given.dtype,
        num_frames=given.frames or (33 if is_small else 121),
        height_px=given.height or (128 if is_small else 704),
        width_px=given.width or (192 if is_small else 1280),
        num_samples=given.samples,
        rounds=given.rounds,
        warm_ups=given.warm_ups,
        is_compiled=given.compile,
        peak_tflops=given.peak_tflops,
    )
    try:
        report = run(setting, given.recompute, given.backends)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(render(report))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
