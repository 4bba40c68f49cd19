"""The epoch plan: nothing over budget, nothing lost or doubled, the same at any world size, resumed as if never stopped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from benchmarks.batching import packs_ahead
from benchmarks.corpus import index_of, synthetic_index
from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.order import permuted, split_runs
from model.data.packing import Item, Limits, Pack, Room, best_close
from model.data.plan_config import MixPart, MixPhase, PlanConfig, SupplyConfig
from model.data.position import merge_positions
from model.data.preview import measure_balance, preview, preview_text
from model.data.substitutes import substitute
from model.network.config import NavaConfig
from schemas.arrow_file import table_bytes
from schemas.budget import NAVA_6B, ModelShape, training_flops
from schemas.errors import PlanError, ShardError

TINY = ModelShape.from_config(NavaConfig.preset("nava_tiny"))


@st.composite
def indexes(draw: st.DrawFn, min_rows: int = 8) -> ShardIndex:
    num_rows = draw(st.integers(min_rows, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    is_audio = rng.random(num_rows) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    latents = rng.integers(1, draw(st.sampled_from([2, 8, 31])), num_rows)
    video = np.where(is_audio, 0, latents * rng.choice([240, 390, 880], num_rows))
    return index_of(video, rng.integers(1, 300, num_rows), samples_per_shard=draw(st.integers(1, 40)))


def finite_plan(index: ShardIndex, num_packs: int, seed: int = 0, num_epochs: int = 1, **more: Any) -> EpochPlan:
    budget = int(1.5 * (index.video_tokens + index.audio_tokens).max())
    config = PlanConfig(
        num_packs=num_packs, seed=seed, num_epochs=num_epochs, token_budget=budget, flop_target=1e18, **more
    )
    dearest = EpochPlan(index, config, NAVA_6B).summaries[0].dearest_flops
    return EpochPlan(index, config.model_copy(update={"flop_target": 1.25 * dearest}), NAVA_6B)


def rows_of(packs: list[Pack]) -> list[tuple[int, int]]:
    """(epoch, row) of everything in the packs; shared items once per pack that holds them."""
    return [(item.epoch, item.row) for pack in packs for item in pack.items]


# ------------------------------------------------------------------------------------------------------ properties


@settings(max_examples=40)
@given(index=indexes(), num_packs=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_sample_once_per_epoch_and_no_pack_over_budget(
    index: ShardIndex, num_packs: int, seed: int, epochs: int
) -> None:
    plan = finite_plan(index, num_packs, seed, epochs)
    seen: Counter[tuple[int, int]] = Counter()
    num_steps = 0
    for packs in plan.all_packs():
        num_steps += 1
        assert len(packs) == num_packs
        for pack in packs:
            assert sum(item.tokens for item in pack.own) == pack.tokens <= plan.limits.token_budget
            assert sum(item.flops for item in pack.own) <= plan.limits.flop_target * (1 + 1e-9)
        seen.update(rows_of(packs))
    assert seen == Counter({(epoch, row): 1 for epoch in range(epochs) for row in range(len(index))})
    assert plan.num_steps() == num_steps >= epochs * plan.steps_per_epoch * (1 - 1e-9)


@settings(max_examples=20)
@given(index=indexes(), seed=st.integers(0, 99))
def test_the_global_order_is_the_same_at_any_world_size(index: ShardIndex, seed: int) -> None:
    plan = finite_plan(index, 8, seed)
    whole = [rows_of(packs) for packs in plan.all_packs()]
    for world_size in (1, 2, 4, 8):
        again = EpochPlan(index, plan.config, NAVA_6B)
        streams = [again.stream(rank, world_size) for rank in range(world_size)]
        for step in whole:
            by_rank = [next(stream) for stream in streams]
            in_order = [by_rank[r][m] for m in range(8 // world_size) for r in range(world_size)]
            assert rows_of(in_order) == step


@settings(max_examples=20)
@given(index=indexes(), seed=st.integers(0, 99), cuts=st.tuples(st.integers(0, 6), st.integers(1, 6)))
@pytest.mark.slow
def test_resume_at_other_world_sizes_equals_an_uninterrupted_run(
    index: ShardIndex, seed: int, cuts: tuple[int, int]
) -> None:
    plan = finite_plan(index, 4, seed).config.model_copy(update={"num_epochs": None})
    try:
        straight = EpochPlan(index, plan, NAVA_6B).stream()
        expected = [sorted(rows_of(next(straight))) for _ in range(sum(cuts) + 5)]
    except PlanError as error:  # a draw that is refused: nearly all the work in fewer samples than streams
        if "a few samples hold nearly all the work" not in error.message:
            raise
        reject()
    got: list[list[tuple[int, int]]] = []
    state: dict[str, Any] | None = None
    for world_size, num_steps in zip((1, 2, 4), (*cuts, 5), strict=True):
        fresh = EpochPlan(index, plan, NAVA_6B)
        streams = [fresh.stream(rank, world_size, state) for rank in range(world_size)]
        for _ in range(num_steps):
            got.append(sorted(row for stream in streams for row in rows_of(next(stream))))
        state = json.loads(json.dumps(merge_positions(stream.state() for stream in streams)))
    assert got == expected
    assert state is not None
    assert state["step"] == len(expected)


@settings(max_examples=20)
@given(index=indexes(), seed=st.integers(0, 99), members=st.sampled_from([2, 4]))
def test_long_samples_are_shared_by_a_team_and_never_lost(index: ShardIndex, seed: int, members: int) -> None:
    longest = int((index.video_tokens + index.audio_tokens).max())
    config = PlanConfig(num_packs=8, seed=seed, num_epochs=1, context_parallel=members, token_budget=longest,
                        flop_target=1e18)  # fmt: skip
    dearest = EpochPlan(index, config, NAVA_6B).summaries[0].dearest_flops
    plan = EpochPlan(index, config.model_copy(update={"flop_target": 1.05 * dearest / members}), NAVA_6B)
    seen: Counter[int] = Counter()
    for packs in plan.all_packs():
        for team in (packs[i : i + members] for i in range(0, 8, members)):
            assert len({pack.shared for pack in team}) == 1
            seen.update(item.row for item in team[0].shared)
            for pack in team:
                seen.update(item.row for item in pack.own)
                assert pack.flops <= plan.limits.flop_target * (1 + 1e-9)
                assert pack.tokens <= plan.limits.token_budget
    assert seen == Counter(range(len(index)))


@settings(max_examples=60)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_the_shuffle_is_a_permutation(size: int, key: int) -> None:
    image = permuted(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))
    some = np.arange(size)[:: max(1, size // 7)]
    assert np.array_equal(permuted(some, size, key), image[some])


def test_the_shuffle_is_unbiased_and_pinned() -> None:
    images = np.array([permuted(np.arange(10), 10, key) for key in range(2000)])
    counts = np.array([[(images[:, i] == j).sum() for j in range(10)] for i in range(10)])
    assert abs(counts - 200).max() < 6 * np.sqrt(200 * 0.9)
    pinned = [[2, 3, 5, 0, 1, 4], [4, 3, 1, 5, 0, 2], [0, 1, 5, 2, 3, 4]]
    assert [permuted(np.arange(6), 6, key).tolist() for key in range(3)] == pinned


@settings(max_examples=60)
@given(data=st.data())
def test_closing_beats_every_single_item_and_pair(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    flops = np.sort(
        np.array(data.draw(st.lists(st.integers(1, 50), min_size=n, max_size=n, unique=True)), dtype=np.float64)
    )
    tokens = np.ones(n, dtype=np.int64)
    room = Room(flops=float(data.draw(st.integers(1, 120))), tokens=3.0, slack=0.0)
    leads = np.arange(min(n, data.draw(st.integers(0, 4))))
    chosen = best_close(flops, tokens, np.arange(n), leads, room)
    assert len(set(chosen)) == len(chosen) <= 3
    reached = float(flops[list(chosen)].sum())
    assert reached <= room.flops
    alone = [f for f in flops if f <= room.flops]
    pairs = [flops[i] + flops[j] for i in range(n) for j in range(i) if flops[i] + flops[j] <= room.flops]
    assert reached >= max([0.0, *alone, *pairs])


def test_closing_prefers_age_within_the_slack_and_obeys_tokens() -> None:
    flops, ages = np.array([10.0, 20.0, 20.0, 39.9]), np.array([0, 9, 8, 1])
    no_leads = np.zeros(0, dtype=np.int64)
    few = np.array([1, 1, 1, 1])
    assert best_close(flops, few, ages, no_leads, Room(40.0, 9.0, 0.5)) == (2, 1)
    assert best_close(flops, few, ages, no_leads, Room(39.95, 9.0, 0.5)) == (3,)
    assert best_close(flops, np.array([1, 6, 6, 1]), ages, no_leads, Room(40.0, 9.0, 0.5)) == (3,)
    assert best_close(flops, np.array([9, 9, 9, 9]), ages, no_leads, Room(40.0, 5.0, 0.5)) == ()


# ---------------------------------------------------------------------------------------------- order and mixture


@pytest.mark.parametrize("num_packs", [4, 32])
def test_streams_get_equal_work_and_stay_near_few_shards(num_packs: int) -> None:
    index, _ = synthetic_index(20_000, "S2", seed=3)
    plan = EpochPlan(index, PlanConfig(num_packs=num_packs, token_budget=10**9, flop_target=1e16), NAVA_6B)
    shards = index.shards[1]
    work = []
    for team in range(num_packs):
        stream = plan.epoch_stream(team, epoch=2)
        draws = [stream.draw(0, i) for i in range(stream.lengths[0])]
        work.append(sum(flops for _, flops, _ in draws))
        at_once = [len({int(shards[row]) for row, _, _ in draws[i : i + 32]}) for i in range(0, len(draws) - 32, 32)]
        assert max(at_once, default=0) <= plan.config.window_runs
    assert max(work) - min(work) <= 2 * plan.summaries[0].dearest_flops


def test_order_changes_with_epoch_and_seed_and_with_the_index() -> None:
    index, _ = synthetic_index(2000, "S1")

    def first(seed: int, epoch: int) -> list[int]:
        plan = EpochPlan(index, PlanConfig(seed=seed, token_budget=10**6, flop_target=1e16), NAVA_6B)
        stream = plan.epoch_stream(0, epoch)
        return [stream.draw(0, i)[0] for i in range(20)]

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    other = index_of(index.video_tokens.astype(np.int64) + 1, index.audio_tokens.astype(np.int64))
    config = PlanConfig(token_budget=10**6, flop_target=1e16)
    assert EpochPlan(index, config, NAVA_6B).digest != EpochPlan(other, config, NAVA_6B).digest


def test_weights_set_the_share_of_draws_and_no_row_is_favoured() -> None:
    index, _ = synthetic_index(3000, "S1")
    mixture = (
        MixPart(name="sound", modality="audio", weight=3),
        MixPart(name="film", modality="audio_video", weight=1),
    )
    config = PlanConfig(num_packs=4, num_epochs=1, token_budget=200_000, flop_target=5e15, mixture=mixture)
    plan = EpochPlan(index, config, NAVA_6B)
    steps = list(plan.all_packs())
    drawn = Counter(item.row for packs in steps for pack in packs for item in pack.items)
    sound = [drawn[row] for row in np.flatnonzero(~index.has_video).tolist()]
    film = [drawn[row] for row in np.flatnonzero(index.has_video).tolist()]
    assert sum(sound) == pytest.approx(3 * sum(film), rel=1e-3)
    assert set(film) == {1}
    assert max(sound) - min(sound) <= 1
    first_half = Counter(item.part for packs in steps[: len(steps) // 2] for pack in packs for item in pack.items)
    assert first_half[0] == pytest.approx(3 * first_half[1], rel=0.1)


def test_audio_visual_rows_can_be_used_as_sound_and_cost_as_sound() -> None:
    index, _ = synthetic_index(500, "S1")
    mixture = (MixPart(name="sound of film", modality="audio_video", weight=1, use="audio"),)
    config = PlanConfig(num_packs=1, num_epochs=1, token_budget=20_000, mixture=mixture)
    plan = EpochPlan(index, config, NAVA_6B)
    packs = [pack for step in plan.all_packs() for pack in step]
    for pack in packs:
        assert sum(int(index.audio_tokens[item.row]) for item in pack.items) == pack.tokens
        assert {plan.sample(item).use for item in pack.items} <= {"audio"}
    assert sum(len(pack.items) for pack in packs) == int(index.has_video.sum())


@pytest.mark.parametrize("strategy", ["flop_packs", "length_buckets"])
def test_clips_can_be_used_as_pictures_and_cost_one_frame_and_none_of_their_sound(strategy: str) -> None:
    index, _ = synthetic_index(500, "S1")
    mixture = (MixPart(name="stills", weight=1, use="image"), MixPart(name="film", weight=1, modality="audio_video"))
    config = PlanConfig(num_packs=2, num_epochs=1, token_budget=60_000, mixture=mixture, strategy=strategy)
    plan = EpochPlan(index, config, NAVA_6B)
    size = index.numbers("height_px", "width_px")
    drawn: dict[str, set[int]] = {"image": set(), "audio_video": set()}
    for item in (item for step in plan.all_packs() for pack in step for item in pack.items):
        use = plan.sample(item).use
        drawn[use].add(item.row)
        if use == "image":
            assert item.tokens == size["height_px"][item.row] // 32 * (size["width_px"][item.row] // 32)
            text = index.text_tokens[item.row : item.row + 1]
            assert item.flops == training_flops(NAVA_6B, [item.tokens], [0], text)[0]
    assert drawn["image"] == drawn["audio_video"] == set(np.flatnonzero(index.has_video).tolist())


def test_clips_without_whole_frames_are_no_pictures_and_plans_without_pictures_are_what_they_were() -> None:
    index = index_of(np.array([880 * 3, 881, 0]), np.array([9, 9, 9]))
    mixture = (MixPart(name="stills", weight=1, use="image"),)
    config = PlanConfig(num_packs=1, token_budget=10**4, mixture=mixture)
    with pytest.raises(PlanError, match=r"1 clips have no whole number of frames, the first clip00000001: 881 tokens"):
        EpochPlan(index, config, NAVA_6B)
    sound = config.model_copy(update={"mixture": (MixPart(name="sound", weight=1, use="audio"),)})
    assert hashlib.sha256(sound.identity.encode()).hexdigest()[:16] == "eec498f77d7216ae"


def test_a_substitute_is_the_same_everywhere_and_never_dearer_while_its_size_class_lasts() -> None:
    index, _ = synthetic_index(2000, "S2")
    config = PlanConfig(num_packs=4, token_budget=200_000, flop_target=7e15)
    plan, same = EpochPlan(index, config, NAVA_6B), EpochPlan(index, config, NAVA_6B)
    items = [item for pack in next(plan.stream()) for item in pack.items]
    for item in items:
        tried = [item.row]
        for _ in range(3):
            found = substitute(plan, item, tried)
            assert found == substitute(same, item, tried)
            assert found is not None
            assert found.row not in tried
            assert found.flops <= item.flops
            assert found.tokens <= item.tokens
            tried.append(found.row)


def test_the_cheapest_sample_is_replaced_by_the_nearest_that_has_room() -> None:
    index = index_of(np.arange(1, 41) * 400, np.full(40, 30))
    plan = EpochPlan(index, PlanConfig(num_packs=2, token_budget=200_000), NAVA_6B)
    flops, tokens = plan.cost(np.arange(40), None)
    cheapest = Item(0, 0, 0, 0, float(flops[0]), int(tokens[0]))
    assert substitute(plan, cheapest, [0]) is None, "nothing is as cheap"
    for spare_tokens in (4_000, 10**6):
        found = substitute(plan, cheapest, [0], spare_tokens)
        assert found is not None
        assert 0 < found.row <= 10, "the nearest of 64 draws of 40 rows"
        assert found.tokens <= tokens[0] + spare_tokens


def test_a_part_of_one_row_is_replaced_from_another_part() -> None:
    index, _ = synthetic_index(300, "S1")
    rows = index.table.to_pylist()
    for i, row in enumerate(rows):
        row["source"] = "rare" if i == 7 else "common"
    parts = [
        {"name": "rare", "weight": 1, "sources": ["rare"]},
        {"name": "common", "weight": 50, "sources": ["common"]},
    ]
    index = ShardIndex.from_table(pa.Table.from_pylist(rows, schema=index.table.schema))
    plan = EpochPlan(index, PlanConfig(num_packs=2, token_budget=200_000, mixture=parts), NAVA_6B)
    flops, tokens = plan.cost(np.array([7]), None)
    item = Item(0, 0, 0, 7, float(flops[0]), int(tokens[0]))
    found = substitute(plan, item, [7], spare_tokens=10**6)
    assert found is not None
    assert (found.part, found.row != 7) == (1, True)
    assert plan.sample(found).row == found.row


# --------------------------------------------------------------------------------------------------------- balance


@pytest.mark.parametrize("regime", ["S1", "S2"])
def test_balance_reaches_the_target_on_the_synthetic_corpus(regime: Any) -> None:
    index, _ = synthetic_index(20_000, regime)
    plan = EpochPlan(index, PlanConfig(num_packs=16, token_budget=130_000), NAVA_6B)
    stream = plan.stream()
    balance = measure_balance([next(stream) for _ in range(150)])
    assert balance.efficiency >= 0.995
    assert balance.imbalance_mean <= 1.003
    assert balance.imbalance_p99 <= 1.01
    assert balance.correlation <= 0.02
    assert plan.limits.flop_target > 0


@pytest.mark.slow
def test_clips_of_one_size_fill_the_memory() -> None:
    index = index_of(np.full(2000, 27_280), np.full(2000, 127))  # 704 x 1280, 121 frames
    for token_budget, clips in ((30_000, 1), (65_536, 2), (131_072, 4)):
        stream = EpochPlan(index, PlanConfig(num_packs=4, token_budget=token_budget), NAVA_6B).stream()
        packs = [pack for _ in range(20) for pack in next(stream)]
        assert {len(pack.items) for pack in packs} == {clips}
        assert max(pack.flops for pack in packs) <= stream.plan.limits.flop_target


def test_a_derived_target_has_room_for_the_rarest_and_dearest_clip() -> None:
    video = np.full(20_000, 27_280)
    video[7] = 30_000  # no trial of a thousand samples need meet it
    index = index_of(video, np.full(20_000, 127))
    plan = EpochPlan(index, PlanConfig(num_packs=4, token_budget=40_000), NAVA_6B)
    assert plan.summaries[0].dearest_flops <= plan.limits.flop_target


@pytest.mark.parametrize(
    ("sizes", "token_budget"),
    [((27_280, 12_090), 131_072), ((858, 702, 792), 65_536), ((0,), 65_536)],
    ids=["two sizes", "sixty a pack", "more in a pack than in the buffer"],
)
@pytest.mark.slow
def test_few_sizes_and_full_packs_are_balanced_as_well(sizes: tuple[int, ...], token_budget: int) -> None:
    rng = np.random.default_rng(5)
    weights = np.array([6.0, 3.0, 1.0])[: len(sizes)]
    video = rng.choice(sizes, 60_000, p=weights / weights.sum())
    index = index_of(video, rng.integers(100, 150, 60_000))
    stream = EpochPlan(index, PlanConfig(num_packs=4, token_budget=token_budget), NAVA_6B).stream()
    balance = measure_balance([next(stream) for _ in range(25)])
    assert balance.mean_tokens > 0.7 * token_budget
    assert balance.efficiency >= 0.995
    assert balance.imbalance_mean <= 1.003
    assert balance.imbalance_p99 <= 1.01


def test_a_corpus_sorted_by_length_is_still_shuffled() -> None:
    index, _ = synthetic_index(20_000, "S2")
    order = np.argsort(index.video_tokens + index.audio_tokens)
    index = index_of(index.video_tokens[order].astype(np.int64), index.audio_tokens[order].astype(np.int64))
    stream = EpochPlan(index, PlanConfig(num_packs=8, token_budget=150_000), NAVA_6B).stream()
    assert measure_balance([next(stream) for _ in range(150)]).correlation <= 0.03


def test_a_position_stays_small_and_opening_one_does_not_replay() -> None:
    index, _ = synthetic_index(20_000, "S1")
    plan = EpochPlan(index, PlanConfig(num_packs=4, token_budget=110_000), NAVA_6B)
    stream = plan.stream()
    sizes = []
    for _ in range(60):
        next(stream)
        sizes.append(len(json.dumps(stream.state())) / plan.num_teams)
    assert max(sizes) < 20_000
    assert max(sizes) < 1.2 * min(sizes)
    windows_opened = 0
    original = plan.epoch_stream

    def counting(*which: int) -> Any:
        nonlocal windows_opened
        windows_opened += 1
        return original(*which)

    plan.epoch_stream = counting  # type: ignore[method-assign, assignment]
    plan.stream(state=stream.state())
    assert windows_opened == plan.num_teams


# -------------------------------------------------------------------------------------------------------- refusals


def test_refusals_say_what_to_do() -> None:
    index, _ = synthetic_index(300, "S3")
    with pytest.raises(PlanError, match=r"fit no pack.*context_parallel to at least \d+"):
        EpochPlan(index, PlanConfig(token_budget=30_000), NAVA_6B)
    missing = (MixPart(name="x", weight=1, sources=("nobody",)),)
    with pytest.raises(PlanError, match="matches none"):
        EpochPlan(index, PlanConfig(token_budget=10**6, mixture=missing), NAVA_6B)
    with pytest.raises(PlanError, match="cannot fill 512 packs"):
        EpochPlan(index, PlanConfig(num_packs=512, token_budget=10**6), NAVA_6B)
    plan = EpochPlan(index, PlanConfig(num_packs=8, token_budget=10**6), NAVA_6B)
    with pytest.raises(PlanError, match=r"3 ranks cannot share out 8 packs.*1, 2, 4, 8"):
        plan.stream(0, 3)
    with pytest.raises(PlanError, match="endless"):
        plan.num_steps()
    other = EpochPlan(index, PlanConfig(num_packs=8, token_budget=10**6, seed=1), NAVA_6B)
    with pytest.raises(PlanError, match="another plan"):
        other.stream(state=plan.stream().state())
    ahead, behind = plan.stream(0, 2), plan.stream(1, 2)
    next(ahead)
    with pytest.raises(PlanError, match="differ"):
        merge_positions([ahead.state(), behind.state()])
    with pytest.raises(ValueError, match="multiple of context_parallel"):
        PlanConfig(num_packs=8, context_parallel=3, token_budget=1)
    with pytest.raises(ShardError, match="lacks the columns"):
        ShardIndex.from_table(pa.table({"clip_id": ["a"]}))


def test_index_files_are_read_in_name_order_and_identified_by_content(tmp_path: Any) -> None:
    whole, _ = synthetic_index(400, "S1")
    for name, part in (("00001", whole.table.slice(150)), ("00000", whole.table.slice(0, 150))):
        (tmp_path / f"{name}.arrow").write_bytes(table_bytes(part))
    index = ShardIndex.open(tmp_path)
    assert np.array_equal(index.video_tokens, whole.video_tokens)
    assert index.clip_id(200) == whole.clip_id(200)
    assert index.location(200) == whole.location(200)
    assert ShardIndex.open(tmp_path).digest == index.digest != ShardIndex.open(tmp_path / "00000.arrow").digest
    with pytest.raises(ShardError, match="no index"):
        ShardIndex.open(tmp_path / "nothing")
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.arrow"):
        memory.pipe_file(f"/run/index/{path.name}", path.read_bytes())
    assert ShardIndex.open("memory://run/index").digest == index.digest
    (tmp_path / "00002.arrow").write_bytes(b"not arrow")
    with pytest.raises(ShardError, match="not an Arrow IPC file"):
        ShardIndex.open(tmp_path)


def test_runs_never_cross_a_shard() -> None:
    shard_of_row = np.repeat(np.array([0, 1, 2], np.int32), [5, 1, 12])
    starts = split_runs(shard_of_row, 4)
    assert starts[0] == 0
    assert starts[-1] == 18
    for a, b in pairwise(starts.tolist()):
        assert 1 <= b - a <= 4
        assert len(set(shard_of_row[a:b].tolist())) == 1


def test_preview_adds_up_and_reads_well() -> None:
    index, _ = synthetic_index(3000, "S2")
    plan = EpochPlan(index, PlanConfig(num_packs=8, token_budget=130_000), NAVA_6B)
    facts = json.loads(json.dumps(preview(plan, num_steps=20)))
    assert sum(row["samples"] for row in facts["buckets"]) == len(index)
    assert sum(row["flops_share"] for row in facts["buckets"]) == pytest.approx(1)
    assert facts["epoch_hours"]["8"] == pytest.approx(2 * facts["epoch_hours"]["64"] * 4)
    text = preview_text(facts)
    assert max(map(len, text.splitlines())) <= 120
    for word in ("imbalance", "steps", "hours", "16/9"):
        assert word in text


@pytest.mark.parametrize("strategy", ["padded", "length_buckets", "synced_buckets"])
def test_published_strategies_make_batches_of_one_bucket_lose_nothing_and_resume(strategy: str) -> None:
    index, _ = synthetic_index(1500, "S1")
    config = PlanConfig(num_packs=4, token_budget=200_000, num_epochs=1, strategy=strategy, batch_size=4, num_buckets=5)
    plan = EpochPlan(index, config, NAVA_6B)
    packs = [pack for step in plan.all_packs() for pack in step]
    assert Counter(item.row for pack in packs for item in pack.items) == Counter(range(len(index)))
    assert all(len(pack.items) <= 4 and pack.tokens <= 200_000 for pack in packs)
    assert plan.buckets is not None
    full = [pack for pack in packs if len(pack.items) == 4]
    assert len(full) > 0.8 * len(packs)
    assert all(len({plan.buckets.of(item.row, item.part) for item in pack.items}) == 1 for pack in packs if pack.items)
    straight, half = plan.stream(), plan.stream()
    expected = [rows_of(next(straight)) for _ in range(40)]
    for _ in range(15):
        next(half)
    again = EpochPlan(index, config, NAVA_6B).stream(state=json.loads(json.dumps(half.state())))
    assert [rows_of(next(again)) for _ in range(25)] == expected[15:]


def test_synced_buckets_are_more_even_than_buckets_that_ranks_draw_alone() -> None:
    index, _ = synthetic_index(20_000, "S1")
    imbalance = {}
    for strategy in ("padded", "length_buckets", "synced_buckets", "flop_packs"):
        config = PlanConfig(num_packs=8, token_budget=200_000, strategy=strategy)
        plan = EpochPlan(index, config, NAVA_6B)
        stream = plan.all_packs()
        imbalance[strategy] = measure_balance([next(stream) for _ in range(60)]).imbalance_mean
    assert imbalance["flop_packs"] < 1.01 < imbalance["synced_buckets"] < imbalance["length_buckets"]


def resumed(plan: EpochPlan, at_step: int, num_steps: int) -> list[list[tuple[int, int]]]:
    """Rows of `num_steps` steps of the plan opened anew at a position saved after `at_step`."""
    half = plan.stream()
    for _ in range(at_step):
        next(half)
    stream = EpochPlan(plan.index, plan.config, plan.shape).stream(state=json.loads(json.dumps(half.state())))
    return [rows_of(next(stream)) for _ in range(num_steps)]


@pytest.mark.slow
def test_the_mixture_changes_over_steps_within_one_plan() -> None:
    index, _ = synthetic_index(3000, "S1")
    parts = (MixPart(name="sound", weight=3, modality="audio"), MixPart(name="joint", weight=1, modality="audio_video"))
    phases = (MixPhase(from_step=31, weights={"sound": 1}), MixPhase(from_step=61, weights={"sound": 0}))
    config = PlanConfig(num_packs=4, token_budget=200_000, mixture=parts, phases=phases, buffer_samples=16)
    plan = EpochPlan(index, config, NAVA_6B)
    straight = plan.stream()
    steps = [next(straight) for _ in range(90)]

    def sound(first: int, last: int) -> float:
        return float(np.mean([item.part == 0 for packs in steps[first:last] for p in packs for item in p.items]))

    assert sound(0, 30) == pytest.approx(0.75, abs=0.05)
    assert sound(45, 60) == pytest.approx(0.5, abs=0.1)
    assert sound(75, 90) == 0
    assert measure_balance(steps).imbalance_mean < 1.01
    expected = [rows_of(packs) for packs in steps]
    for at_step in (29, 30, 31, 60):
        assert resumed(plan, at_step, 20) == expected[at_step : at_step + 20]
    assert "from step 61 of the samples: sound 0.0%, joint 100.0%" in preview_text(preview(plan, num_steps=5))
    for wrong, said in (
        ({"from_step": 9, "weights": {"noise": 1}}, "phases name noise, the mixture has sound, joint"),
        ({"from_step": 9, "weights": {"sound": 0, "joint": 0}}, "at least one must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            PlanConfig.model_validate({**config.model_dump(), "phases": [wrong]})


def test_a_step_can_be_given_in_samples() -> None:
    index, _ = synthetic_index(3000, "S1")
    config = PlanConfig(num_packs=16, token_budget=200_000, batch_samples=96)
    plan = EpochPlan(index, config, NAVA_6B)
    stream = plan.all_packs()
    balance = measure_balance([next(stream) for _ in range(40)])
    assert balance.num_samples / 40 == pytest.approx(96, rel=0.04)
    assert balance.imbalance_mean < 1.005
    with pytest.raises(PlanError, match=r"32 a pack, which would hold more than .* Set num_packs to \d+"):
        EpochPlan(index, config.model_copy(update={"batch_samples": 512}), NAVA_6B)
    with pytest.raises(ValueError, match="steps of num_packs 2 x batch_size 4"):
        PlanConfig(num_packs=2, token_budget=9, strategy="padded", batch_samples=512)


@pytest.mark.slow
def test_a_plan_can_even_out_what_its_packs_cost_to_make_ready() -> None:
    index, _ = synthetic_index(6000, "S2")
    supply = SupplyConfig(per_sample=8000.0)
    ahead, steps = {}, []
    for is_on in (False, True):
        config = PlanConfig(num_packs=4, token_budget=135_000, supply=supply if is_on else None)
        plan = EpochPlan(index, config, NAVA_6B)
        stream = plan.all_packs()
        steps = [next(stream) for _ in range(150)]
        rows = [[[item.row for item in pack.items] for pack in packs] for packs in steps]
        cost = [[supply.cost(index.video_tokens[r], index.audio_tokens[r]).sum() for r in packs] for packs in rows]
        ahead[is_on] = packs_ahead(np.array(cost))
        assert measure_balance(steps).imbalance_mean < 1.002
    assert ahead[True] < 0.6 * ahead[False]
    assert resumed(plan, 27, 20) == [rows_of(packs) for packs in steps[27:47]]


def test_a_finite_plan_that_looks_ahead_loses_nothing() -> None:
    index, _ = synthetic_index(300, "S2")
    plan = EpochPlan(index, PlanConfig(num_packs=2, token_budget=135_000, num_epochs=2, supply=SupplyConfig()), NAVA_6B)
    seen = Counter(entry for packs in plan.all_packs() for entry in rows_of(packs))
    assert seen == Counter({(epoch, row): 1 for epoch in range(2) for row in range(len(index))})


def test_a_plan_keeps_its_identity_while_new_keys_change_nothing() -> None:
    plain = PlanConfig(num_packs=4, token_budget=200_000)
    assert plain.identity == PlanConfig(num_packs=4, token_budget=200_000, batch_size=9).identity
    assert "strategy" not in plain.identity
    assert "synced_buckets" in PlanConfig(num_packs=4, token_budget=200_000, strategy="synced_buckets").identity
    with pytest.raises(ValueError, match="context_parallel needs flop_packs"):
        PlanConfig(num_packs=4, token_budget=9, strategy="padded", context_parallel=2)


def test_model_presets_have_a_shape() -> None:
    assert ModelShape.from_config(NavaConfig()) == NAVA_6B
    assert TINY.num_layers == 4


def test_limits_leave_room_for_filling_only_when_a_team_can_share() -> None:
    assert Limits(100.0, 10).fits_alone(100.0, 10)
    assert not Limits(100.0, 10, members=2).fits_alone(96.0, 1)
    assert Limits(100.0, 10, members=2).fits_team(200.0, 20)
    assert not Limits(100.0, 10, members=2).fits_team(201.0, 20)
