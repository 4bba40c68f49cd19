"""What a plan is made from: the mixture, the size of a step, and how packs are filled."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.budget import Modality, Use
from schemas.recipe import RecipePart


class MixPart(RecipePart):
    """One ingredient of the mixture: the rows it takes and its share of the drawn samples."""

    name: str
    weight: float = Field(gt=0)
    modality: Modality | None = None
    sources: tuple[str, ...] | None = None
    pool: str | None = None
    """Folder or URL of a pool that `nava-curate select` wrote: only its clips."""
    use: Use | None = None
    """Train on less than the row has: "audio" turns audio-visual rows into audio-only samples, "image" clips into the picture
    that their first latent frame is, without sound and voices."""


class MixPhase(RecipePart):
    """Other weights of the mixture from a step on."""

    from_step: int = Field(ge=2)
    weights: dict[str, float]
    """By name of the part; 0 draws nothing of it. Parts that are not named keep the weight they had."""


class SupplyConfig(RecipePart):
    """What it costs to make a sample ready, in any unit: what encoding ahead of the trainer has to keep up with."""

    packs_ahead: int = Field(default=16, ge=2)
    """Packs of each stream that are planned ahead, to choose the next one from (`model/data/ahead.py`)."""
    per_video_token: float = Field(default=1.0, ge=0)
    per_audio_token: float = Field(default=0.0, ge=0)
    per_sample: float = Field(default=0.0, ge=0)

    def cost(self, video_tokens: NDArray[np.int64], audio_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each sample."""
        return self.per_sample + self.per_video_token * video_tokens + self.per_audio_token * audio_tokens


class PlanConfig(RecipePart):
    """How an epoch is planned. Everything here is part of the plan's digest."""

    seed: int = 0
    num_packs: int = Field(default=8, ge=1)
    """Packs per optimiser step, whatever the world size; ranks x accumulation. World sizes must divide it."""
    token_budget: int = Field(gt=0)
    """Most video + audio tokens in a pack: what fits the memory of one GPU (`model/training/memory.py`)."""
    flop_target: float | None = Field(default=None, gt=0)
    """Training FLOPs of every pack; None derives it from the token budget (`model/data/target.py`)."""
    context_parallel: int = Field(default=1, ge=1)
    """Ranks that may share one long sample."""
    num_epochs: int | None = Field(default=None, ge=1)
    """None never ends: epochs follow each other without a ragged tail. A number ends with partly filled packs."""
    mixture: tuple[MixPart, ...] = ()
    """Empty: every row once per epoch."""
    phases: tuple[MixPhase, ...] = ()
    """The mixture over the steps: each begins an epoch of its own, the first ones of which still hold what was buffered."""
    batch_samples: int | None = Field(default=None, ge=1)
    """Mean samples of a step, over which `num_packs` packs are made alike; instead of `flop_target`."""
    supply: SupplyConfig | None = None
    """Give packs out in such an order that what they cost to make ready stays near its mean."""
    strategy: Literal["flop_packs", "length_buckets", "synced_buckets", "padded"] = "flop_packs"
    """Packs of equal FLOPs, or batches as the release and others make them (`model/data/bucket_packing.py`)."""
    batch_size: int = Field(default=4, ge=1)
    """Samples in a batch of the other strategies, fewer where the token budget holds no more."""
    num_buckets: int = Field(default=5, ge=1)
    """Length buckets of the strategies that have some."""
    pad_text: bool = False
    """Count `text_len` text rows for every sample, as a network does that attends to padded text."""
    buffer_samples: int = Field(default=256, ge=2)
    run_length: int = Field(default=256, ge=1)
    window_runs: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> PlanConfig:
        if self.num_packs % self.context_parallel:
            raise ValueError(
                f"num_packs {self.num_packs} must be a multiple of context_parallel {self.context_parallel}"
            )
        if self.context_parallel > 1 and self.strategy != "flop_packs":
            raise ValueError(
                f"strategy {self.strategy} makes batches for one rank each; context_parallel needs flop_packs"
            )
        if self.supply is not None and self.context_parallel > 1:
            raise ValueError("supply orders the packs of single ranks; it needs context_parallel 1")
        if self.batch_samples is not None:
            self._check_batch_samples(self.batch_samples)
        names = [part.name for part in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"mixture parts need distinct names, got {names}")
        self._check_phases(names)
        return self

    def _check_batch_samples(self, batch_samples: int) -> None:
        if self.flop_target is not None:
            raise ValueError("batch_samples and flop_target both say how large packs are; give one of them")
        if self.strategy != "flop_packs" and batch_samples != self.num_packs * self.batch_size:
            raise ValueError(
                f"strategy {self.strategy} makes steps of num_packs {self.num_packs} x batch_size {self.batch_size} "
                f"samples, not of batch_samples {batch_samples}"
            )

    def _check_phases(self, names: list[str]) -> None:
        if not self.phases:
            return
        if self.num_epochs is not None:
            raise ValueError("phases begin at steps and num_epochs ends after passes; leave num_epochs out")
        steps = [phase.from_step for phase in self.phases]
        if steps != sorted(set(steps)):
            raise ValueError(f"phases must begin one after the other, got from_step {steps}")
        if unknown := sorted({name for phase in self.phases for name in phase.weights} - set(names)):
            raise ValueError(f"phases name {', '.join(unknown)}, the mixture has {', '.join(names) or 'no parts'}")
        for phase, weights in zip(self.phases, self.weights_by_phase[1:], strict=True):
            if min(weights) < 0 or not any(weights):
                raise ValueError(f"from step {phase.from_step} the weights are {weights}: at least one must be above 0")

    @property
    def weights_by_phase(self) -> list[list[float]]:
        """Weights of the parts, at the beginning and in each phase."""
        weights = {part.name: part.weight for part in self.mixture}
        every = [list(weights.values())]
        for phase in self.phases:
            weights |= phase.weights
            every.append(list(weights.values()))
        return every

    @property
    def identity(self) -> str:
        """What the digest of a plan is made of; keys that came later are left out while they change nothing."""
        later = {"phases": not self.phases, "batch_samples": self.batch_samples is None, "supply": self.supply is None}
        later |= dict.fromkeys(("strategy", "batch_size", "num_buckets"), self.strategy == "flop_packs")
        idle: dict[str, Any] = {key: True for key, is_idle in later.items() if is_idle}
        if not any(part.pool for part in self.mixture):
            idle["mixture"] = {"__all__": {"pool"}}
        return self.model_dump_json(exclude=idle)
