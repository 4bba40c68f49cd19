"""The step benchmark and the recompute policies it compares: same gradients, less memory, honest figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step as benchmark
from model.network.config import NavaConfig
from model.network.nava import Nava
from model.training.recompute import POLICIES, set_recompute
from schemas.budget import ModelShape, forward_flops, num_parameters, training_flops
from schemas.errors import ModelError

SETTING = benchmark.Setting(
    preset="nava_tiny",
    device="cpu",
    dtype="float32",
    num_frames=17,
    height_px=64,
    width_px=96,
    num_samples=2,
    rounds=2,
    warm_ups=0,
    is_compiled=False,
    peak_tflops=0.5,
)
VIDEO_TOKENS, AUDIO_TOKENS = 5 * 2 * 3, 18  # 17 frames are 5 latents of 4 x 6, and 17 / 24 s of sound at 25 a second


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return benchmark.run(SETTING, list(POLICIES), ["sdpa", "varlen", "flex"])


def _row(report: dict[str, Any], recompute: str, backend: str = "sdpa") -> dict[str, Any]:
    return next(r for r in report["contenders"] if (r["recompute"], r["backend"]) == (recompute, backend))


@pytest.mark.slow
def test_figures_follow_from_budget_and_ceilings(report: dict[str, Any]) -> None:
    assert report["tokens"] == {"video": 2 * VIDEO_TOKENS, "audio": 2 * AUDIO_TOKENS}
    shape = ModelShape.from_config(NavaConfig.preset("nava_tiny"))
    flops = 2 * float(training_flops(shape, VIDEO_TOKENS, AUDIO_TOKENS))
    assert report["step_flops"] == pytest.approx(flops)
    row = _row(report, "none")
    assert row["tokens_per_s"] == pytest.approx(2 * (VIDEO_TOKENS + AUDIO_TOKENS) / row["median_s"])
    assert row["mfu_of_peak"] == pytest.approx(flops / row["median_s"] / 0.5e12)
    assert row["mfu_of_matmul"] == pytest.approx(flops / row["median_s"] / report["ceilings"]["matmul"]["per_s"])
    assert row["min_s"] <= row["median_s"] <= row["max_s"]
    assert set(report["ceilings"]) == {"matmul", "attention", "copy"}
    assert isinstance(report["is_void"], bool)


def test_budget_s_products_are_those_torch_counts() -> None:
    """Everything but attention, whose CPU operator torch's counter does not know; ends of convolutions are extra rows."""
    model, packed, timesteps = benchmark.build(replace(SETTING, num_samples=1, num_frames=121))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(packed, timesteps)
    assert (packed.num_video_tokens, packed.num_audio_tokens) == (31 * 6, 127)
    forward = forward_flops(ModelShape.from_config(model.config), 31 * 6, 127)
    products = float(forward.total - forward.self_attention - forward.cross_attention)
    assert products <= counter.get_total_flops() <= 1.04 * products


def test_policies_give_the_same_loss_for_less_memory(report: dict[str, Any]) -> None:
    rows = {policy: _row(report, policy) for policy in POLICIES}
    assert len({round(row["loss"], 6) for row in rows.values()}) == 1
    peaks = [rows[policy]["peak_bytes"] for policy in ("full", "attention", "attention_qkv", "none")]
    assert peaks == sorted(peaks)
    gradients = 4 * num_parameters(ModelShape.from_config(NavaConfig.preset("nava_tiny")))
    assert peaks[0] - gradients < 0.7 * (peaks[-1] - gradients)


def test_backends_that_cannot_run_say_why(report: dict[str, Any]) -> None:
    assert "half precision on CUDA" in _row(report, "none", "varlen")["refusal"]
    assert "backward on CPU" in _row(report, "none", "flex")["refusal"]
    with pytest.raises(ModelError, match="no contender can run"):
        benchmark.run(SETTING, ["none"], ["varlen"])


def test_a_contender_with_other_gradients_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(model: Nava, policy: str) -> None:
        set_recompute(model, policy)  # type: ignore[arg-type]
        if policy == "full":
            model.head_audio.head.weight.data *= 1.01

    monkeypatch.setattr(benchmark, "set_recompute", faulty)
    row = _row(benchmark.run(SETTING, ["none", "full"], ["sdpa"]), "full")
    assert "first contender's" in row["refusal"]
    assert "median_s" not in row


def test_live_bytes_count_what_is_alive() -> None:
    megabyte = 2**18
    with benchmark.LiveBytes() as live:
        first = torch.zeros(megabyte)
        view = first[1:]
        second = torch.ones(2 * megabyte)
        assert live.now == 3 * 2**20
        del first
        assert live.now == 3 * 2**20
        del view, second
        assert live.now == 0
        torch.zeros(megabyte)
    assert live.peak == 3 * 2**20


def test_recompute_keeps_names_and_gradients() -> None:
    model, packed, timesteps = benchmark.build(SETTING)
    names = list(model.state_dict())
    benchmark.step(model, packed, timesteps)
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for policy in POLICIES:
        set_recompute(model, policy)
        benchmark.step(model, packed, timesteps)
        assert list(model.state_dict()) == names
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-7, msg=name)
    with pytest.raises(ModelError, match="unknown recompute policy 'most'"):
        set_recompute(model, "most")  # type: ignore[arg-type]


def test_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--frames", "5", "--height", "64", "--width", "64", "--rounds", "2", "--warm-ups", "0"]
    benchmark.main([*size, "--recompute", "none", "--backends", "sdpa", "--json", str(tmp_path / "out" / "step.json")])
    written = json.loads((tmp_path / "out" / "step.json").read_text())
    assert written["setting"]["preset"] == "nava_tiny"
    assert written["contenders"][0]["mfu_of_peak"] is None
    shown = capsys.readouterr().out
    assert "nava_tiny on cpu, float32: 1 x 5 frames of 64x64 px" in shown
    assert ("VOID" in shown) == written["is_void"]
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([*size, "--preset", "nava_giant"])
    assert stopped.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "backend"), [("full", "eager"), ("attention_qkv", "aot_eager")])
def test_blocks_compile_under_recompute(policy: str, backend: str) -> None:
    """One graph for all fusion blocks and no break: a wrapper that the compiler skips would show no graph at all.

    What comes behind the graph (AOTAutograd, four fifths of the time) meets all that `full` asks of it in the other policy.
    """
    import torch._dynamo
    from torch._dynamo.utils import counters

    model, packed, timesteps = benchmark.build(replace(SETTING, num_samples=1))
    expected = benchmark.step(model, packed, timesteps)
    torch._dynamo.reset()
    counters.clear()
    set_recompute(model, policy)  # type: ignore[arg-type]
    for block in model.single_blocks:
        block.compile(dynamic=True, backend=backend)
    compiled = benchmark.step(model, packed, timesteps)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=0)
    torch._dynamo.reset()
