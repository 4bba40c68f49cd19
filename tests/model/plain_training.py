"""Training as plainly as it can be said: one process, no sharding, every sample whole. What ranks are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from model.data.batching import EpochPlan, SampleRef
from model.data.index import ShardIndex
from model.data.packing import Pack
from model.data.reader import SampleReader, open_shards
from model.encoding.latents import read_latents, restrict
from model.network.flow import FlowObjective, LossTerms, Noised, clip_generators
from model.network.nava import Nava, pack
from model.training.config import TrainConfig
from model.training.optim import learning_rate_factor


@dataclass
class Plain:
    """What came of it."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    errors: list[tuple[int, str, float, float]] = field(default_factory=list)
    """(step, clip, video error, audio error) of every sample, sorted; nan for what it lacks."""
    shared: list[Noised] = field(default_factory=list)
    """Samples that the plan shares over a team, one at a time."""


def plain_training(config: TrainConfig, num_steps: int) -> Plain:
    """The recipe's first steps, all packs of a step in one loop; what a team shares is in its first rank's pack alone."""
    model = Nava(config.network.network())
    model.init_weights(torch.Generator().manual_seed(config.seed))
    model.to(getattr(torch, config.parallel.precision))
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.optim.betas, weight_decay=0.0)
    objective, plain = FlowObjective(config.flow), Plain()
    index = ShardIndex.open(config.data.index_path, split="train")
    plan = EpochPlan(index, config.plan, config.shape)
    reader = SampleReader(index, open_shards(config.data.shards))
    for number, packs in zip(range(1, num_steps + 1), plan.all_packs(), strict=False):
        terms: list[LossTerms] = []
        for refs in _refs(plan, packs):
            clips = [restrict(read_latents(reader.read(ref.row)), ref.use) for ref in refs]
            generators = clip_generators(config.seed, number, [clip.clip_id for clip in clips])
            noised = objective.noise(objective.sample_modes(clips, generators), generators)
            terms.append(objective.loss(model(pack(noised.samples, model.config), noised.timesteps), noised))
            plain.errors += _errors(number, noised, terms[-1])
            plain.shared += [_only(noised, i) for i, ref in enumerate(refs) if ref.is_shared]
        divisors = torch.stack([t.divisors() for t in terms]).sum(0)
        optimizer.zero_grad()
        sum(objective.total(t, divisors) for t in terms).backward()
        if number == 1:
            plain.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.optim.learning_rate * learning_rate_factor(number - 1, config.optim, config.num_steps)
        optimizer.step()
    plain.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain.errors.sort()
    return plain


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of any tensor over the largest value of that tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n].double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-30))
        for n, e in expected.items()
    )


def _refs(plan: EpochPlan, packs: list[Pack]) -> list[list[SampleRef]]:
    refs = []
    for i, planned in enumerate(packs):
        shared = () if i % plan.config.context_parallel else planned.shared
        refs.append(
            [plan.sample(item, is_shared=True) for item in shared] + [plan.sample(item) for item in planned.own]
        )
    return [of_pack for of_pack in refs if of_pack]


def _errors(step: int, noised: Noised, terms: LossTerms) -> list[tuple[int, str, float, float]]:
    pairs = zip(noised.samples, terms.video_mse.tolist(), terms.audio_mse.tolist(), strict=True)
    return [
        (step, s.clip_id, nan if s.video is None else video, nan if s.audio is None else audio)
        for s, video, audio in pairs
    ]


def _only(noised: Noised, i: int) -> Noised:
    one = slice(i, i + 1)
    return Noised(*(getattr(noised, name)[one] for name in ("samples", "timesteps", "weights", "video_targets",
                                                            "audio_targets")))  # fmt: skip
