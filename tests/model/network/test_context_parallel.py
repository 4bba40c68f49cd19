"""Ranks that share samples compute what one process computes: gradients, weights, errors of every sample, reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.preview import measure_balance
from model.network.context_parallel import Team, keep_share, keep_targets
from model.network.flow import Noised
from model.network.nava import Sample, pack
from model.training.config import TrainConfig
from model.training.metrics import read_samples
from schemas.errors import PlanError
from tests.model.latent_shards import SHALLOW, TINY, random_clip, recipe, run_ranks, write_latent_shards
from tests.model.plain_training import Plain, plain_training, worst
from tests.model.rank_jobs import gradients_and_weights, in_turn, train_until, write_error

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("ranks")]
"""Setting up starts eight processes, minutes on a busy machine; forked off one that a worker has once."""

KINDS = (((3, 8, 9), 1), ((3, 8, 8), 12), (None, 55), ((4, 8, 8), 0))
"""Video latent and audio tokens of long clips: dearer than one pack may be, whatever its token budget."""
HEADS = {"preset": "nava_tiny", "changes": {**SHALLOW, "num_heads": 4}}


def long_clip(number: int) -> Sample:
    """Joint with one audio token or with twelve, sound alone, picture alone, in turn."""
    (grid, audio), generator = KINDS[number % len(KINDS)], torch.Generator().manual_seed(100 + number)
    return replace(
        random_clip(number),
        clip_id=f"long{number:03d}",
        video=torch.randn(TINY.video_channels, *grid, generator=generator) if grid else None,
        audio=torch.randn(audio, TINY.audio_channels, generator=generator) if audio else None,
    )


def shared_recipe(data: Path, members: int = 2, **changes: Any) -> TrainConfig:
    """Four packs, in teams that can just hold the dearest clip."""
    plan = plan_of(members) | {"flop_target": derived_target(data, members)}
    parallel = {"precision": "float64", **changes.pop("parallel", {})}
    flow = {"cross_modal_mask_prob": 0.7, "text_dropout_prob": 0.3}
    return recipe(data, seed=3, network=HEADS, plan=plan, flow=flow, parallel=parallel, **changes)


def plan_of(members: int) -> dict[str, int]:
    """Of a recipe, all but what a pack aims at."""
    budget = {2: 60, 4: 32}[members]
    return {"num_packs": 4, "token_budget": budget, "context_parallel": members, "buffer_samples": 16, "seed": 3}


@lru_cache
def derived_target(data: Path, members: int) -> float:
    """FLOPs of a pack as every training on these clips would find them for itself, in half a second each time."""
    config = recipe(data, network=HEADS, plan=plan_of(members))
    index = ShardIndex.open(config.data.index_path, split="train")
    return EpochPlan(index, config.plan, config.shape).limits.flop_target


@dataclass
class Run:
    """One of the runs on several ranks."""

    config: TrainConfig
    folder: Path
    num_steps: int
    num_ranks: int


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 24 clips, half of them long."""
    folder = tmp_path_factory.mktemp("clips")
    clips = [random_clip(i) for i in range(12)] + [long_clip(i) for i in range(12)]
    write_latent_shards(folder / "data", clips)
    return folder / "data"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """All multi-process work, because starting ranks costs seconds: two, then four, which go on from what two saved."""
    folder = tmp_path_factory.mktemp("ranks")
    done = {
        "float64": Run(shared_recipe(data, num_steps=8), folder / "float64", 6, 2),
        "float32": Run(shared_recipe(data, parallel={"precision": "float32"}), folder / "float32", 1, 2),
        "recomputed": Run(
            shared_recipe(data, parallel={"recompute": "attention_qkv", "sync_every_micro_step": True}),
            folder / "recomputed",
            2,
            2,
        ),
        "two teams": Run(shared_recipe(data), folder / "teams", 1, 4),
        "team of four": Run(shared_recipe(data, 4), folder / "four", 2, 4),
    }
    resumed = shared_recipe(data, output={"checkpoint_every_steps": 100})
    disagreeing = [shared_recipe(data), shared_recipe(damaged_copy(data, "long007"))]
    for num_ranks, last_step in ((2, 2), (4, 4)):
        own = [(run.config, run.folder, run.num_steps) for run in done.values() if run.num_ranks == num_ranks]
        jobs: list[Any] = [
            (gradients_and_weights, (own,)),
            (train_until, (resumed, folder / "resumed", last_step, folder / f"resumed-{num_ranks}.pt")),
        ]
        if num_ranks == 2:
            jobs.append((write_error, (disagreeing, folder / "disagreeing")))
        run_ranks(in_turn, num_ranks, folder, jobs)
    done["resumed"] = Run(resumed, folder / "resumed", 4, 4)
    return done


def damaged_copy(data: Path, clip_id: str) -> Path:
    """The same shards, one sample damaged."""
    copy = data.with_name("damaged")
    shutil.copytree(data, copy)
    index = ShardIndex.open(data / "index")
    place = next(place for place in map(index.location, range(len(index))) if place.clip_id == clip_id)
    shard = copy / "shards" / place.shard
    content = bytearray(shard.read_bytes())
    content[place.offset + 700] ^= 0xFF
    shard.write_bytes(content)
    return copy


@pytest.fixture(scope="module")
def plain(runs: dict[str, Run]) -> dict[str, Plain]:
    """What one plain process makes of each."""
    return {name: plain_training(run.config, run.num_steps) for name, run in runs.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gradient_bar", "weight_bar"),
    [
        ("float64", 1e-13, 1e-12),
        ("float32", 2e-6, None),
        ("recomputed", 1e-13, 1e-12),
        ("two teams", 1e-13, 1e-12),
        ("team of four", 1e-13, 1e-12),
    ],
)
def test_teams_equal_one_plain_process(
    runs: dict[str, Run], plain: dict[str, Plain], name: str, gradient_bar: float, weight_bar: float | None
) -> None:
    found, expected = torch.load(runs[name].folder.with_suffix(".pt")), plain[name]
    worst_gradient, worst_weight = (
        worst(found["gradients"], expected.gradients),
        worst(found["weights"], expected.weights),
    )
    print(f"{name}: gradients {worst_gradient:.1e}, weights {worst_weight:.1e}")
    assert worst_gradient < gradient_bar
    assert weight_bar is None or worst_weight < weight_bar


@pytest.mark.slow
def test_what_was_shared_is_of_every_kind(plain: dict[str, Plain]) -> None:
    shared = [n.samples[0] for name in ("float64", "team of four") for n in plain[name].shared]
    assert any(s.video is None for s in shared)
    assert any(s.audio is None for s in shared)
    by_four = [n.samples[0] for n in plain["team of four"].shared]
    assert any(s.audio is not None and s.video is not None and len(s.audio) == 1 for s in by_four)
    assert any(s.is_cross_modal_masked for s in shared)
    assert any(s.is_first_frame_clean for s in shared)
    assert any(len(s.text) == 0 for s in shared)
    assert any(s.placeholders for s in shared)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float64", "recomputed", "two teams", "team of four", "resumed"])
def test_every_sample_is_reported_once_and_in_full(runs: dict[str, Run], plain: dict[str, Plain], name: str) -> None:
    table = read_samples(runs[name].folder).to_pandas().sort_values(["step", "clip_id"])
    found = list(zip(*(table[column] for column in ("step", "clip_id", "video_mse", "audio_mse")), strict=True))
    assert [row[:2] for row in found] == [row[:2] for row in plain[name].errors]
    for row, expected in zip(found, plain[name].errors, strict=True):
        assert row[2:] == pytest.approx(expected[2:], rel=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float64", "two teams", "team of four"])
def test_reports_count_nothing_twice(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    table = read_samples(run.folder).to_pandas()
    plan = EpochPlan(ShardIndex.open(run.config.data.index_path, split="train"), run.config.plan, run.config.shape)
    reports = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(reports) == run.num_steps
    for report, packs in zip(reports, plan.all_packs(), strict=False):
        rows = table[table["step"] == report["step"]]
        assert report["tokens_per_s"] * report["seconds_per_step"] == pytest.approx(rows["tokens"].sum())
        assert report["padding"] == pytest.approx(0, abs=1e-12)
        by_rank = [sum(pack.flops for pack in packs[rank :: run.num_ranks]) for rank in range(run.num_ranks)]
        assert report["imbalance"] == pytest.approx(max(by_rank) / (sum(by_rank) / run.num_ranks))
        heard = rows[rows["use"] != "video"]
        shares = [len(clip_of(clip_id).audio) for clip_id in heard["clip_id"]]
        assert report["loss_audio"] == pytest.approx(sum(heard["audio_mse"] * shares) / sum(shares), rel=1e-5)


def clip_of(clip_id: str) -> Sample:
    number = int(clip_id[4:])
    return long_clip(number) if clip_id.startswith("long") else random_clip(number)


@pytest.mark.slow
def test_a_run_saved_by_one_team_goes_on_with_two(runs: dict[str, Run], plain: dict[str, Plain]) -> None:
    states = torch.load(runs["resumed"].folder.with_name("resumed-4.pt-0"))["states"]
    weights = {name.removeprefix("model."): value for name, value in states.items() if name.startswith("model.")}
    assert worst(weights, plain["resumed"].weights) < 1e-12


@pytest.mark.slow
def test_ranks_that_read_different_samples_stop_before_they_wait_for_each_other(runs: dict[str, Run]) -> None:
    for rank in range(2):
        said = runs["float64"].folder.with_name(f"disagreeing-{rank}").read_text()
        assert "ShardError" in said
        assert "ranks that share a sample read different ones" in said


@pytest.mark.parametrize("num_members", [2, 3, 5])
def test_runs_of_all_members_are_the_whole(mixed_samples: list[Sample], num_members: int) -> None:
    """Every token of the shared samples is on one member with its own position, timestep and text; own samples on all."""
    num_shared = 5
    whole = pack(mixed_samples, TINY)
    num_tokens = int(whole.layout.context_segments.query_starts[num_shared])
    parts = [keep_share(whole, num_shared, Team(i, num_members, Group("x"))) for i in range(num_members)]
    lengths = parts[0].layout.share.run_lengths
    assert sum(lengths) == num_tokens
    assert max(lengths) - min(lengths) <= 1
    for dim, name in ((1, "rope_table"), (0, "time_rows.of_tokens")):
        of = attrgetter(f"layout.{name}")
        runs = [of(p).narrow(dim, 0, p.layout.share.num_tokens) for p in parts]
        assert torch.equal(torch.cat(runs, dim), of(whole).narrow(dim, 0, num_tokens))
    for kind, total in (("video", whole.num_video_tokens), ("audio", whole.num_audio_tokens)):
        segments = [getattr(p.layout, f"{kind}_context_segments") for p in parts]
        counts = torch.tensor([s.query_lengths for s in segments])
        expected = getattr(whole.layout, f"{kind}_context_segments").query_lengths
        assert counts[:, :num_shared].sum(0).tolist() == list(expected[:num_shared])
        assert all(row[num_shared:].tolist() == list(expected[num_shared:]) for row in counts)
        rows = torch.cat([getattr(p, f"{kind}_rows") for p in parts])
        assert rows.unique().tolist() == list(range(total))
    by_modality = torch.cat([parts[0].video_rows, parts[0].audio_rows + whole.num_video_tokens])
    kept = [*range(lengths[0]), *range(num_tokens, len(whole.layout.to_samples))]
    assert torch.equal(by_modality[parts[0].layout.to_samples], whole.layout.to_samples[kept])


def test_targets_of_all_members_add_up(mixed_samples: list[Sample]) -> None:
    whole = pack(mixed_samples, TINY)
    videos, audios = [s.video for s in mixed_samples], [s.audio for s in mixed_samples]
    noised = Noised(mixed_samples, torch.zeros(len(mixed_samples)), torch.ones(len(mixed_samples)), videos, audios)
    parts = [keep_targets(noised, keep_share(whole, len(mixed_samples), Team(i, 3, Group("x")))) for i in range(3)]
    for i in range(len(mixed_samples)):
        for name, clean in (("video_targets", videos[i]), ("audio_targets", audios[i])):
            pieces = [getattr(part, name)[i] for part in parts]
            assert clean is None or torch.equal(sum(pieces), clean)


@dataclass
class Group:
    """Only the name of a process group is kept in a pack."""

    group_name: str


def test_a_plan_counts_shared_samples_once(data: Path) -> None:
    config = shared_recipe(data)
    plan = EpochPlan(ShardIndex.open(config.data.index_path, split="train"), config.plan, config.shape)
    steps = [packs for _, packs in zip(range(4), plan.all_packs(), strict=False)]
    assert any(pack.shared for packs in steps for pack in packs)
    drawn = {(n // 2, item.serial) for packs in steps for n, pack in enumerate(packs) for item in pack.items}
    assert measure_balance(steps, 2).num_samples == len(drawn)


def test_what_cannot_be_shared_out_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="context_parallel 4 must divide the network's 2 attention heads"):
        recipe(data, plan={"num_packs": 4, "context_parallel": 4})
    with pytest.raises(ValueError, match="decide per pack"):
        recipe(data, plan={"context_parallel": 2}, flow={"drop_all_text": False})
    config = shared_recipe(data)
    plan = EpochPlan(ShardIndex.open(config.data.index_path, split="train"), config.plan, config.shape)
    with pytest.raises(PlanError, match=r"in teams of 2.*Use one of these world sizes: 2, 4"):
        plan.teams_of_rank(0, 1)
