"""What a plan is made from: the mixture, the size of a step, and how packs are filled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.budget import Modality
from schemas.recipe import RecipePart


class MixPart(RecipePart):
    """One ingredient of the mixture: the rows it takes and its share of the drawn samples."""

    name: str
    weight: float = Field(gt=0)
    modality: Modality | None = None
    sources: tuple[str, ...] | None = None
    use: Modality | None = None
    """Train on less than the row has: "audio" turns audio-visual rows into audio-only samples."""


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
        names = [part.name for part in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"mixture parts need distinct names, got {names}")
        return self

    @property
    def identity(self) -> str:
        """What the digest of a plan is made of; keys that came later are left out while they change nothing."""
        later = {"strategy", "batch_size", "num_buckets"}
        return self.model_dump_json(exclude=later if self.strategy == "flop_packs" else None)
