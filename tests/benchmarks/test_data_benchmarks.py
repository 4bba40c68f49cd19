"""The two benchmarks in small: contenders return the same samples, metrics mean what they say, ours meets its targets."""

from __future__ import annotations

import gc
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks import batching, loader
from benchmarks.corpus import synthetic_index
from benchmarks.strategies import (
    Clock,
    LhotseSetting,
    OfficialBuckets,
    Step,
    fixed_batch,
    lhotse_buckets,
    official_as_configured,
    our_plan,
)
from model.data.plan_config import PlanConfig


def test_metrics_of_a_step_that_can_be_counted_by_hand() -> None:
    step = Step(np.array([0, 0, 1]), np.array([100, 300, 400]), np.array([0, 0, 0]), np.array([300, 300, 400]))
    result = batching.score("x", "y", 2, iter([step] * 5), Clock())
    assert result.num_steps == 5
    assert result.padding == pytest.approx(200 / 1000)
    assert result.imbalance_mean == pytest.approx(result.imbalance_p99)
    assert 1.0 < result.imbalance_mean < 1.5
    assert 0.5 < result.efficiency < 1.0
    even = Step(np.array([0, 1]), np.array([400, 400]), np.array([0, 0]), np.array([400, 400]))
    perfect = batching.score("x", "y", 2, iter([even]), Clock())
    assert (perfect.imbalance_mean, perfect.efficiency, perfect.padding) == (1.0, 1.0, 0.0)


def test_the_corpus_is_the_described_one() -> None:
    index, lost = synthetic_index(20_000, "S1")
    assert lost == pytest.approx(0.42, abs=0.02)  # the official caps throw away 42 % of the tokens
    assert (~index.has_video).mean() == pytest.approx(0.32, abs=0.02)
    assert int(index.video_tokens.max()) == 27_900
    assert synthetic_index(5000, "S2")[1] < 0.05


@pytest.mark.slow
def test_ours_beats_every_peer_and_meets_the_targets() -> None:
    index, _ = synthetic_index(20_000, "S1")
    budgets = batching.Budgets.for_index(index, "S1")
    config = PlanConfig(num_packs=8, token_budget=budgets.token_budget, flop_target=budgets.flop_target)
    clock = Clock()
    setting = LhotseSetting(10, is_quadratic=False, is_padded=True)
    scores = {
        name: batching.score("S1", name, 8, islice(steps, 25), clock)
        for name, steps in {
            "fixed": fixed_batch(index, 8),
            "official": official_as_configured(index, 8),
            "buckets": OfficialBuckets(index, 8, 5).steps(),
            "lhotse": lhotse_buckets(index, 8, budgets.peer_tokens, setting, Clock()),
            "ours": our_plan(index, config, clock),
        }.items()
    }
    ours = scores.pop("ours")
    assert ours.efficiency >= 0.995 > max(peer.efficiency for peer in scores.values())
    assert (ours.padding, ours.imbalance_mean < 1.003, ours.imbalance_p99 < 1.01) == (0.0, True, True)
    assert scores["buckets"].correlation > 0.8
    assert ours.correlation <= 0.02
    assert scores["fixed"].padding > 0.3
    assert clock.age_packs <= config.buffer_samples


@pytest.mark.slow
def test_readers_return_the_same_bytes_and_a_liar_gets_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = loader.write_corpus(tmp_path, 16)[:2]
    known, _ = loader.contenders()
    liar = {"liar": lambda folder: ({**s, "npy": b"?"} for s in known["webdataset"](folder))}
    monkeypatch.setattr(loader, "contenders", lambda: (known | liar, {}))
    gc.collect()
    gc.freeze()  # a collection comes before every pass, and need not walk through all that is imported
    report = loader.compare(parts, repeats=1)
    assert "other bytes" in report["skipped"]["liar"]
    assert {"ours, unverified", "ours, CRC-32 verified", "webdataset"} <= set(report["results"])
    for modes in report["results"].values():
        for summary in modes.values():
            assert 0 < summary["interval"][0] <= summary["share"] <= summary["interval"][1]
    json.dumps(report)
