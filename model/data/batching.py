"""The epoch plan: which samples every rank trains on in every step, from the index alone, before a GPU is used.

    index    rows with token counts                            (model/data/index.py)
    order    shuffled, shared out in equal FLOPs                (model/data/order.py)
    pack     one rank's micro-step, filled to one FLOP target   (model/data/packing.py, model/data/target.py)
    step     `num_packs` packs, the same ones at every world size; ranks share them out

The plan is a function of (index digest, seed, epoch): any rank computes its own packs without asking another one, and
a position in it is a few hundred integers per pack stream. 10,000 to 50,000 samples are planned per second and thread.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model.data.ahead import PacksAhead
from model.data.bucket_packing import BucketPacker, open_buckets
from model.data.index import ShardIndex
from model.data.order import DrawPart, EpochShare, EpochStream, draws_by_weight, epoch_share, key_of, split_runs
from model.data.packing import Item, Limits, Pack, Packer
from model.data.plan_config import PlanConfig
from model.data.pools import pools_digest, rows_of_pool
from model.data.position import PlanPosition, TeamPosition
from model.data.target import HEADROOM, TargetTrial, derived_target
from model.data.uses import Uses
from schemas.budget import ModelShape, Use, training_flops
from schemas.errors import PlanError

CHUNK_ROWS = 1 << 20
MAX_SKIPPED_EPOCHS = 1000
KEPT_EPOCHS = 8
"""Epoch orders kept at a time; streams of a small index drift a few epochs apart, of a large one by at most one."""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One sample of a pack: a row of the index, and which of its modalities to train on."""

    row: int
    epoch: int
    use: Use
    is_shared: bool
    flops: float
    tokens: int


@dataclass(frozen=True, slots=True)
class PartSummary:
    """Size of one ingredient and how often an epoch draws each of its rows."""

    name: str
    num_rows: int
    num_draws: int
    flops: float
    tokens: int
    dearest_flops: float
    longest_tokens: int

    @property
    def repeats(self) -> float:
        """Mean draws of a row per epoch; 1 without a mixture."""
        return self.num_draws / self.num_rows


class EpochPlan:
    """All packs of all epochs. Building costs one pass over the token columns; nothing else is stored.

    Raises PlanError when the mixture matches nothing, or a sample fits no pack and may not be split.
    """

    def __init__(self, index: ShardIndex, config: PlanConfig, shape: ModelShape) -> None:
        self.index, self.config, self.shape = index, config, shape
        identity = f"{index.digest} {config.identity} {shape}{pools_digest(config.mixture)}"
        self.digest = hashlib.sha256(identity.encode()).hexdigest()
        self.key = key_of(index.digest, config.seed)
        self.num_teams = config.num_packs // config.context_parallel
        self._uses: list[Use | None] = [part.use for part in config.mixture] or [None]
        self._used = Uses(index)
        self._supply = 0.0
        self._rows = self._select_rows()
        self.run_starts = split_runs(index.shards[1], self._run_length())
        self.parts: list[DrawPart] = []
        self.summaries: list[PartSummary] = []
        num_rows = [self._num_rows(i) for i in range(len(self._rows))]
        draws, *later = [draws_by_weight(num_rows, weights) for weights in config.weights_by_phase]
        for i, num_draws in enumerate(draws):
            self._add_part(i, num_draws)
        self.phases = [
            [replace(part, num_draws=n) for part, n in zip(self.parts, counts, strict=True)]
            for counts in (draws, *later)
        ]
        """Parts of the mixture at the beginning and in each phase."""
        self.limits = Limits(self._flop_target(), config.token_budget, config.context_parallel)
        self._refuse_too_few()
        self._refuse_oversized()
        self.buckets = None if config.strategy == "flop_packs" else open_buckets(self)
        self._shares = lru_cache(maxsize=KEPT_EPOCHS)(self._compute_shares)

    def _select_rows(self) -> list[NDArray[np.int64] | None]:
        if not len(self.index):
            raise PlanError("the index has no rows.", remedy="Curate and pack something first, or check `split`.")
        if not self.config.mixture:
            return [None]
        selected: list[NDArray[np.int64] | None] = []
        wanted = sorted({name for part in self.config.mixture for name in part.sources or ()})
        source_of_row = self.index.source_positions(wanted) if wanted else np.zeros(0, np.int32)
        has_video, has_audio = self.index.has_video, self.index.has_audio
        for part in self.config.mixture:
            mask = rows_of_pool(self.index, part.pool)
            if part.modality:
                mask &= (has_video == ("video" in part.modality)) & (has_audio == (part.modality != "video"))
            if part.sources is not None:
                mask &= np.isin(source_of_row, [wanted.index(name) for name in part.sources])
            if part.use:
                mask &= self._used.has(part.use)
            if not mask.any():
                raise PlanError(
                    f"mixture part {part.name!r} matches none of the {len(self.index)} rows "
                    f"(modality={part.modality}, sources={part.sources}, pool={part.pool}, use={part.use}).",
                    remedy=f"Change or remove it. Sources in the index: {', '.join(self.index.source_names(20))}.",
                )
            selected.append(None if mask.all() else np.flatnonzero(mask))
        return selected

    def _num_rows(self, part: int) -> int:
        rows = self._rows[part]
        return len(self.index) if rows is None else len(rows)

    def _run_length(self) -> int:
        """Runs short enough that each stream has a few windows of them to shuffle, long enough to read in one place."""
        per_stream = len(self.index) // (self.num_teams * self.config.window_runs * 4)
        return int(np.clip(per_stream, 1, self.config.run_length))

    def cost(self, rows: NDArray[np.int64], use: Use | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(training FLOPs, video + audio tokens) of rows when trained on as `use` (None: everything they have)."""
        video, audio = self._used.tokens(rows, use)
        text = None if self.config.pad_text else self.index.text_tokens[rows]
        return training_flops(self.shape, video, audio, text), video + audio

    def _supply_cost(self, rows: NDArray[np.int64], use: Use | None) -> float:
        """What rows cost to make ready in all; 0 where the plan does not ask."""
        return (
            0.0 if self.config.supply is None else float(self.config.supply.cost(*self._used.tokens(rows, use)).sum())
        )

    def supply_excess(self, pack: Pack) -> float:
        """What a pack costs to make ready beyond what FLOPs like its do on average."""
        cost = sum(self._supply_cost(np.array([item.row]), self._uses[item.part]) for item in pack.items)
        return cost - pack.flops * self._supply / self.epoch_flops

    def _add_part(self, number: int, num_draws: int) -> None:
        rows, use, num_rows = self._rows[number], self._uses[number], self._num_rows(number)
        edges = self.run_starts if rows is None else np.unique(np.searchsorted(rows, self.run_starts))
        before, flops, supply, dearest, longest, tokens = [np.zeros(1)], 0.0, 0.0, 0.0, 0, 0
        for start in range(0, num_rows, CHUNK_ROWS):
            span = np.arange(start, min(start + CHUNK_ROWS, num_rows))
            chosen = span if rows is None else rows[span]
            row_flops, row_tokens = self.cost(chosen, use)
            supply += self._supply_cost(chosen, use)
            inside = edges[(edges > span[0]) & (edges <= span[-1] + 1)] - span[0]
            running = np.cumsum(row_flops)
            before.append(flops + running[inside - 1])
            flops, tokens = flops + float(running[-1]), tokens + int(row_tokens.sum())
            dearest, longest = max(dearest, float(row_flops.max())), max(longest, int(row_tokens.max()))
        name = self.config.mixture[number].name if self.config.mixture else "all"
        run_flops = np.diff(np.concatenate(before))
        part = DrawPart(name, num_rows, num_draws, rows, edges, run_flops, lambda wanted: self.cost(wanted, use))
        share = num_draws / num_rows
        self._supply += supply * share
        self.parts.append(part)
        self.summaries.append(
            PartSummary(name, num_rows, num_draws, flops * share, round(tokens * share), dearest, longest)
        )

    # ---------------------------------------------------------------------------------------------- the limits

    @property
    def epoch_flops(self) -> float:
        """Training FLOPs of one epoch."""
        return sum(part.flops for part in self.summaries)

    @property
    def epoch_samples(self) -> int:
        """Samples drawn in one epoch."""
        return sum(part.num_draws for part in self.summaries)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which one epoch's FLOPs fill every pack: what an endless plan needs, but for its fill error."""
        return self.epoch_flops / (self.config.num_packs * self.limits.flop_target)

    def _flop_target(self) -> float:
        config = self.config
        if config.strategy != "flop_packs":
            mean = config.batch_size * self.epoch_flops / self.epoch_samples
            return max(mean, *(part.dearest_flops for part in self.summaries))
        least = max(part.dearest_flops for part in self.summaries) / config.context_parallel
        if config.batch_samples is not None:
            return self._target_of(config.batch_samples, least)
        return config.flop_target or min(self._derived_target(phase, least) for phase in range(len(self.phases)))

    def _full_flops(self, phase: int = 0) -> float:
        """What a pack of a phase costs whose mean samples fill the token budget."""
        pairs = list(zip(self.summaries, self.phases[phase], strict=True))
        flops = sum(part.flops * (drawn.num_draws / part.num_draws) for part, drawn in pairs)
        tokens = sum(part.tokens * (drawn.num_draws / part.num_draws) for part, drawn in pairs)
        return self.config.token_budget * flops / tokens

    def _derived_target(self, phase: int, least: float) -> float:
        config, parts = self.config, [part for part in self.phases[phase] if part.num_draws]
        members, size = config.context_parallel, config.buffer_samples
        trial = TargetTrial(parts, config.token_budget, members, size, self.key)
        return derived_target(trial, self._full_flops(phase), least)

    def _target_of(self, batch_samples: int, least: float) -> float:
        """FLOPs of a pack so that a step has that many samples. Raises PlanError where packs would be too full or too small."""
        all_packs = batch_samples * self.epoch_flops / self.epoch_samples
        target, most = all_packs / self.config.num_packs, self._full_flops() / HEADROOM
        if target > most or target < least:
            fewest, most_packs = int(np.ceil(all_packs / most)), int(all_packs / least)
            too = "hold more than token_budget allows" if target > most else "be smaller than the dearest sample"
            possible = (
                f"Set num_packs to {fewest} ... {most_packs}" if fewest <= most_packs else "Give more batch_samples"
            )
            raise PlanError(
                f"batch_samples {batch_samples} in {self.config.num_packs} packs are "
                f"{batch_samples / self.config.num_packs:.4g} a pack, which would {too} ({self.config.token_budget} tokens).",
                remedy=f"{possible}, or change batch_samples or token_budget.",
            )
        return target

    def _refuse_too_few(self) -> None:
        if self.epoch_samples < self.num_teams:
            raise PlanError(
                f"{self.epoch_samples} samples cannot fill {self.config.num_packs} packs per step.",
                remedy=f"Set num_packs to at most {self.epoch_samples * self.config.context_parallel}.",
            )

    def _refuse_oversized(self) -> None:
        for part, summary, use in zip(self.parts, self.summaries, self._uses, strict=True):
            if self.limits.fits_team(summary.dearest_flops, summary.longest_tokens):
                continue
            rows = np.arange(part.num_rows) if part.rows is None else part.rows
            flops, tokens = self.cost(rows, use)
            most_flops = self.limits.flop_target * self.limits.members
            is_oversized = (flops > most_flops) | (tokens > self.limits.token_budget * self.limits.members)
            worst = int(rows[is_oversized][flops[is_oversized].argmax()])
            worst_flops, worst_tokens = summary.dearest_flops, summary.longest_tokens
            ranks = max(worst_flops / self.limits.flop_target, worst_tokens / self.limits.token_budget)
            raise PlanError(
                f"{int(is_oversized.sum())} of {part.num_rows} samples of part {part.name!r} fit no pack: the dearest "
                f"is {self.index.clip_id(worst)} with {worst_tokens} tokens and {worst_flops / 1e12:.4g} TFLOP; "
                f"{self.limits.members} rank(s) hold {self.limits.token_budget * self.limits.members} tokens and "
                f"{most_flops / 1e12:.4g} TFLOP.",
                remedy=f"Set context_parallel to at least {int(np.ceil(ranks))}, raise token_budget and flop_target, "
                "or cut the clips shorter (`max_frames` when encoding).",
            )

    # ---------------------------------------------------------------------------------------------- the streams

    def phase_at(self, step: int) -> int:
        """Which of `phases` a step, counted from 1, belongs to."""
        return bisect_right([phase.from_step for phase in self.config.phases], step)

    def _compute_shares(self, epoch: int, phase: int) -> list[EpochShare]:
        return [epoch_share(part, epoch, self.num_teams, self.key) for part in self.phases[phase]]

    def epoch_stream(self, team: int, epoch: int, phase: int = 0) -> EpochStream:
        """The private supply of one team in one epoch of a phase."""
        key = key_of(self.key, "stream", team, epoch)
        return EpochStream(self.phases[phase], self._shares(epoch, phase), team, self.config.window_runs, key)

    def sample(self, item: Item, *, is_shared: bool = False) -> SampleRef:
        """What to read and train on for an item of a pack."""
        return SampleRef(item.row, item.epoch, self.use_of(item.row, item.part), is_shared, item.flops, item.tokens)

    def part_use(self, part: int) -> Use | None:
        """What a part is restricted to; None: everything its rows have."""
        return self._uses[part]

    def use_of(self, row: int, part: int) -> Use:
        """What of a row a part trains on."""
        if (use := self._uses[part]) is not None:
            return use
        if not self.index.video_tokens[row]:
            return "audio"
        return "audio_video" if self.index.audio_tokens[row] else "video"

    def teams_of_rank(self, rank: int, world_size: int) -> tuple[list[int], int]:
        """(teams a rank works for, in micro-step order, and its member number in each).

        Neighbouring `context_parallel` ranks form a team. Raises PlanError for a world size that does not divide.
        """
        members, packs = self.config.context_parallel, self.config.num_packs
        if world_size % members or packs % world_size:
            sizes = [n for n in range(members, packs + 1, members) if packs % n == 0]
            raise PlanError(
                f"{world_size} ranks cannot share out {packs} packs per step in teams of {members}.",
                remedy=f"Use one of these world sizes: {', '.join(map(str, sizes))}; or change num_packs.",
            )
        return list(range(rank // members, self.num_teams, world_size // members)), rank % members

    def stream(self, rank: int = 0, world_size: int = 1, state: PlanPosition | None = None) -> PlanStream:
        """Steps of one rank from the beginning, or from a state saved at any world size."""
        teams, member = self.teams_of_rank(rank, world_size)
        return PlanStream(self, teams, member, state)

    def all_packs(self, state: PlanPosition | None = None) -> Iterator[list[Pack]]:
        """Every pack of every step, whatever the world size; ends with a finite plan."""
        stream = PlanStream(self, list(range(self.num_teams)), None, state)
        while not stream.is_drained:
            yield next(stream)

    def num_steps(self) -> int:
        """Steps until a finite plan has trained on everything. Cost: planning all of it, at 10,000+ samples/s."""
        if self.config.num_epochs is None:
            raise PlanError("an endless plan has no number of steps.", remedy="Set num_epochs, or use steps_per_epoch.")
        return sum(1 for _ in self.all_packs())


class PlanStream:
    """Steps of some teams: `next` gives this rank's packs, one per micro-step (all members' packs for member None).

    Never raises StopIteration: an endless plan does not end, a finite one gives empty packs after its last, so that
    ranks stay in step; loop over `EpochPlan.num_steps()` then.
    """

    def __init__(
        self, plan: EpochPlan, teams: list[int], member: int | None, state: PlanPosition | None = None
    ) -> None:
        if state is not None and state["plan"] != plan.digest:
            raise PlanError(
                "the saved position belongs to another plan: the index, the plan settings or the network changed.",
                remedy="Resume with the same shards and recipe, or start a new stage from the weights alone.",
            )
        self.plan, self.teams, self.member = plan, teams, member
        self.step = 0 if state is None else int(state["step"])
        phase = plan.phase_at(max(1, self.step))
        self._supplies = [
            TeamSupply(plan, team, phase, None if state is None else state["teams"][str(team)]) for team in teams
        ]

    def __iter__(self) -> PlanStream:
        return self

    def __next__(self) -> list[Pack]:
        self.step += 1
        packs = [supply.team_step(self.step) for supply in self._supplies]
        if self.member is None:
            return [pack for team in packs for pack in team]
        return [team[self.member] for team in packs]

    @property
    def is_drained(self) -> bool:
        """True when a finite plan has nothing left for these teams."""
        return all(supply.is_drained for supply in self._supplies)

    def state(self) -> PlanPosition:
        """Position after the last step as plain numbers for JSON: about 5 kB per team. Cost: microseconds per team."""
        teams = {str(team): supply.state() for team, supply in zip(self.teams, self._supplies, strict=True)}
        return {"plan": self.plan.digest, "step": self.step, "teams": teams}


class TeamSupply:
    """One team's samples, epoch after epoch, and the packer they feed."""

    def __init__(self, plan: EpochPlan, team: int, phase: int, state: TeamPosition | None) -> None:
        self._plan, self._team, self._phase = plan, team, phase
        zeros = [0] * len(plan.parts)
        state = state or {"epoch": 0, "drawn": zeros, "serial": 0, "random": 0, "buffer": []}
        self._epoch, self._drawn, self._serial = state["epoch"], list(state["drawn"]), state["serial"]
        self._stream = plan.epoch_stream(team, self._epoch, phase)
        size = plan.config.buffer_samples * plan.config.context_parallel
        share = max(1, plan.epoch_samples // plan.num_teams)
        kind: type[Packer] = Packer if plan.buckets is None else BucketPacker
        self.packer = kind(
            self._next_item,
            plan.limits,
            max(4, min(size, share)),
            key_of(plan.key, "pack", team),
            buffer=self._restored(state["buffer"]),
            num_draws=state["random"],
        )
        if isinstance(self.packer, BucketPacker) and plan.buckets is not None:
            self.packer.buckets = plan.buckets
        self._ahead: PacksAhead | None = None
        if plan.config.supply is not None:
            packs = [self._restored_pack(flat) for flat in state.get("ahead", ())]
            num_ahead = plan.config.supply.packs_ahead
            self._ahead = PacksAhead(self.packer, plan.supply_excess, num_ahead, packs, state.get("debt", 0.0))

    def team_step(self, step: int) -> tuple[Pack, ...]:
        """The packs of a step, one for each member."""
        phase = self._plan.phase_at(step)
        if phase != self._phase:
            self._phase = phase
            self._begin_epoch()
        return self.packer.team_step() if self._ahead is None else (self._ahead.next_pack(step),)

    @property
    def is_drained(self) -> bool:
        """True when a finite plan has nothing left for this team."""
        return self.packer.is_empty if self._ahead is None else self._ahead.is_empty

    def _begin_epoch(self) -> None:
        self._epoch, self._drawn = self._epoch + 1, [0] * len(self._drawn)
        self._stream = self._plan.epoch_stream(self._team, self._epoch, self._phase)

    def _next_item(self) -> Item | None:
        part = self._stream.next_part(self._drawn)
        num_skipped = 0
        while part < 0:
            last = self._plan.config.num_epochs
            if last is not None and self._epoch + 1 >= last:
                return None
            if num_skipped > MAX_SKIPPED_EPOCHS:
                raise PlanError(
                    f"stream {self._team} of {self._plan.num_teams} got no sample in {num_skipped} epochs: "
                    "a few samples hold nearly all the work.",
                    remedy="Use fewer num_packs for so small a set.",
                )
            num_skipped += 1
            self._begin_epoch()
            part = self._stream.next_part(self._drawn)
        row, flops, tokens = self._stream.draw(part, self._drawn[part])
        self._drawn[part] += 1
        self._serial += 1
        return Item(self._serial, part, self._epoch, row, flops, tokens)

    def _restored(self, flat: list[int]) -> list[Item]:
        items = []
        for serial, part, epoch, row in zip(*[iter(flat)] * 4, strict=True):
            flops, tokens = self._plan.parts[part].cost(np.array([row]))
            items.append(Item(serial, part, epoch, row, float(flops[0]), int(tokens[0])))
        return items

    def _restored_pack(self, flat: list[int]) -> Pack:
        items = self._restored(flat)
        return Pack(tuple(items), (), sum(item.flops for item in items), sum(item.tokens for item in items))

    def state(self) -> TeamPosition:
        """Position of this team: epoch, draws of each part, and the buffer as (serial, part, epoch, row) in a row."""
        buffer, num_draws = self.packer.state
        position: TeamPosition = {
            "epoch": self._epoch,
            "drawn": list(self._drawn),
            "serial": self._serial,
            "random": num_draws,
            "buffer": _flat(buffer),
        }
        if self._ahead is not None:
            position |= {"ahead": [_flat(pack.items) for pack in self._ahead.packs], "debt": self._ahead.debt}
        return position


def _flat(items: Iterable[Item]) -> list[int]:
    return [number for item in items for number in (item.serial, item.part, item.epoch, item.row)]
