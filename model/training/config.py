"""One training stage as a recipe: YAML -> `TrainConfig`. Every key is read somewhere, unknown keys are refused.

nava-train plan   stage2_joint                     a packaged recipe by name, or a path
nava-train train  my.yaml --set optim.learning_rate=5e-5
nava-train stages three_stages                     several of them, one after the other
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from model.data.plan_config import PlanConfig
from model.data.preview import Hardware
from model.encoding.config import DataConfig
from model.network.config import NavaConfig
from model.network.flow_config import FlowConfig
from model.sampling.config import Guidance
from schemas.budget import ModelShape, Recompute
from schemas.errors import RecipeError
from schemas.recipe import RecipePart, nearest, read_recipe, validated

RECIPES = Path(__file__).parents[1] / "recipes"
CHAINS = RECIPES / "stages"
Precision = Literal["bfloat16", "float32", "float64"]


class LoraConfig(RecipePart):
    """Adapters that are trained instead of the weights (`model/network/lora.py`)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    """What they add is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("*_blocks.*.self_attn.*", "*_blocks.*.cross_attn.*", "*_blocks.*.ffn.*")
    """Names of the matrices that get one; * stands for anything."""


class NetworkConfig(RecipePart):
    """Which network, and where its weights come from."""

    preset: str = "nava_6b"
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of `NavaConfig` that differ from the preset."""
    attention_backend: Literal["auto", "measured", "sdpa", "varlen", "flex"] = "auto"
    """`measured` times those that the device has and takes the fastest (`model/training/kernels.py`)."""
    weights: Path | None = None
    """A checkpoint in any container (`nava-train convert`): the start of this stage. None initialises."""
    lora: LoraConfig | None = None
    """Train adapters, and nothing else but `train_only`."""
    train_only: tuple[str, ...] = ()
    """Names of the parameters to train, with * for anything; the rest is frozen, and in no checkpoint. Empty: all."""

    frozen: Literal["master", "bfloat16", "float8"] = "master"
    """How what is frozen is held: like trained weights, in bfloat16, or its matrices in eight bits (`network/float8.py`)."""

    @property
    def is_partial(self) -> bool:
        """Whether weights are frozen; what is trained then needs `weights` beside it."""
        return self.lora is not None or bool(self.train_only)

    @field_validator("changes")
    @classmethod
    def _check(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for key in changes:
            if key not in NavaConfig.model_fields:
                raise ValueError(f"'{key}' is no key of the network. {nearest(key, NavaConfig.model_fields)}")
        return changes

    def network(self) -> NavaConfig:
        """The shape of the network."""
        return NavaConfig.preset(self.preset, **self.changes)


class OptimConfig(RecipePart):
    """Optimiser, learning rate over time, clipping, average of the weights. Defaults: the paper's, where it states any."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the matrices of the blocks by torch.optim.Muon, the rest by AdamW at the same learning rate."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices and convolution kernels only."""
    warmup_steps: int = Field(default=1000, ge=0)
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step over the peak, reached on a cosine; 1 keeps it constant after the warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """0 keeps no average."""


class ParallelConfig(RecipePart):
    """What the network is wrapped in, and the numbers it computes with."""

    recompute: Recompute = "attention_qkv"
    compile: bool = True
    compile_backend: str = "inductor"
    num_replicas: int = Field(default=1, ge=1)
    """Copies of the sharded states: ranks / num_replicas share one copy (hybrid sharding); 1 shards over all ranks."""
    offload: bool = False
    """Keep weights, gradients and optimiser states in host memory, from where blocks are fetched as they are used."""
    precision: Precision = "bfloat16"
    """Numbers of the matrix products. Master weights, gradients and their sums are float32, or float64 throughout."""
    sync_every_micro_step: bool = False
    """True scatters gradients after every micro-step: more traffic, but no rank holds a whole gradient meanwhile."""


class WandbConfig(RecipePart):
    """A run of Weights & Biases; the library is not among this package's own."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class HealthConfig(RecipePart):
    """What training watches itself for."""

    max_skipped_steps: int = Field(default=10, ge=1)
    """Steps in a row left out because their gradients were not finite, before training ends. Looked at when logging."""
    spike_window_steps: int = Field(default=200, ge=20)
    spike_deviations: float = Field(default=10.0, gt=0)
    """Robust deviations above the median of the window from which a step's loss or gradient norm is told as a spike."""
    profile_steps: int = Field(default=3, ge=1)
    """Steps that SIGUSR2 has written to profiles/."""


class ValidationConfig(RecipePart):
    """The loss on clips that are not trained on, always the same ones under the same noise, so that curves compare."""

    every_steps: int | None = Field(default=None, ge=1)
    """None never looks."""
    split: str = "validation"
    num_clips: int = Field(default=64, ge=1)
    num_samples: int = Field(default=0, ge=0)
    """Of them, clips that are also generated each time, by the running average where one is kept."""
    sample_steps: int = Field(default=20, ge=1)
    """Solver steps of each."""
    codecs: Path | None = None
    """Frozen networks that turn samples into media, which are then scored; None keeps latents alone."""
    models: Path | None = None
    """Networks that score them besides, as `nava-train evaluate --models` takes them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.models is not None and self.codecs is None:
            raise ValueError("models score samples that codecs decode: set validation.codecs")
        if self.codecs is not None and not self.num_samples:
            raise ValueError("codecs decode samples, of which there are none: set validation.num_samples")
        return self


class DistillConfig(RecipePart):
    """A student of few steps out of `network.weights`, by distribution matching (`model/training/distill.py`)."""

    student_steps: int = Field(default=4, ge=1)
    """Passes of the student from noise to a clip: `num_steps` of the sample recipe `few_steps`."""
    fake_updates: int = Field(default=5, ge=1)
    """Updates of the fake network for each of the student (the paper's 5); a step of training is one of the former."""
    fake_rate: float = Field(default=1.0, gt=0)
    """Learning rate of the fake network over that of the student."""
    teacher: Literal["master", "bfloat16", "float8"] = "bfloat16"
    """How the teacher is held, see `network.frozen`."""
    guidance: Guidance = Guidance()
    """Of the teacher, as a sample recipe has it; the student learns to do without."""
    codecs: Path | None = None
    """Frozen networks, whose text encoder reads the release's negative prompts once; None holds captions against no text."""

    @property
    def relative_cost(self) -> float:
        """FLOPs of a step over those of training on its packs, which are three forward passes.

        The fake network's three, the student's up to the pass that is drawn, and in its steps those of the teacher, one more
        of the fake network and two for its gradients.
        """
        teacher = 2 + self.guidance.has_alignment + self.guidance.has_timbre
        return (3 + (self.student_steps + 1) / 2 + (teacher + 3) / self.fake_updates) / 3

    def teacher_of(self, network: NetworkConfig) -> NetworkConfig:
        """The network that `network.weights` are, all of it frozen."""
        return network.model_copy(update={"lora": None, "train_only": (), "frozen": self.teacher})


class OutputConfig(RecipePart):
    """What is written, and how often."""

    log_every_steps: int = Field(default=10, ge=1)
    checkpoint_every_steps: int = Field(default=500, ge=1)
    num_checkpoints_kept: int = Field(default=3, ge=1)
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints of these steps stay for good, beside the newest ones."""
    checkpoints: str | None = Field(default=None, pattern="://")
    """An fsspec URL for checkpoints, such as s3://bucket/run; None keeps them beside what else a run writes."""
    is_asynchronous: bool = True
    has_tensorboard: bool = True
    wandb: WandbConfig | None = None


class TrainConfig(RecipePart):
    """One stage of training."""

    name: str
    seed: int = 0
    """Initial weights, noise, timesteps and modes; the sample order has its own seed in `plan`."""
    num_steps: int = Field(ge=1)
    network: NetworkConfig = NetworkConfig()
    data: DataConfig
    plan: PlanConfig
    flow: FlowConfig = FlowConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    health: HealthConfig = HealthConfig()
    validation: ValidationConfig = ValidationConfig()
    output: OutputConfig = OutputConfig()
    distill: DistillConfig | None = None
    """None trains; otherwise steps distil."""
    hardware: Hardware = Hardware()
    """The GPU that hours, memory and MFU are reckoned with."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.is_partial and self.network.weights is None:
            raise ValueError("network.lora and network.train_only keep the rest of network.weights, which is not given")
        if self.network.frozen != "master" and not self.network.is_partial:
            raise ValueError(
                f"network.frozen={self.network.frozen} is for what network.lora or network.train_only freezes"
            )
        if self.optim.kind == "muon" and self.parallel.offload:
            raise ValueError(
                "optim.kind=muon multiplies whole matrices, which parallel.offload keeps in pieces in host memory, where GPUs "
                "cannot exchange them; take one of the two"
            )
        members, num_heads = self.plan.context_parallel, self.network.network().num_heads
        if num_heads % members:
            raise ValueError(
                f"plan.context_parallel {members} must divide the network's {num_heads} attention heads: ranks that share "
                "a sample share out its heads"
            )
        if members > 1 and not (self.flow.modes_per_sample and self.flow.drop_all_text):
            raise ValueError(
                "flow.modes_per_sample=false and drop_all_text=false decide per pack, but with plan.context_parallel > 1 "
                "a sample may be in the packs of several ranks"
            )
        if self.data.online is not None and any(part.use == "image" for part in self.plan.mixture):
            raise ValueError(
                "use: image in plan.mixture takes a frame of stored latents, but data.online would encode whole clips for it; "
                "encode them with `nava-train encode`"
            )
        if self.distill is not None:
            self._check_distillation()
        if self.flow.mean_over == "samples" and self.plan.num_packs > 1 and not self.flow.modes_per_sample:
            raise ValueError("flow.modes_per_sample=false draws modes per pack and needs plan.num_packs 1 to repeat")
        return self

    def _check_distillation(self) -> None:
        if self.network.weights is None:
            raise ValueError("distill makes a student of network.weights, which is not given")
        if self.plan.context_parallel > 1:
            raise ValueError("distill generates whole clips on each rank: leave plan.context_parallel at 1")
        if self.validation.every_steps is not None and not self.validation.num_samples:
            raise ValueError(
                "with distill, validation generates held-out clips and measures no loss: set validation.num_samples"
            )

    @property
    def relative_cost(self) -> float:
        """FLOPs of a step over those of training on its packs."""
        return 1.0 if self.distill is None else self.distill.relative_cost

    @property
    def shape(self) -> ModelShape:
        """What the cost of a sample depends on."""
        return ModelShape.from_config(self.network.network())

    def with_absolute_paths(self) -> TrainConfig:
        """The same stage from any working directory: local paths made absolute, URLs left alone."""

        def absolute(path: str | None) -> str | None:
            return path if path is None or "://" in path else str(Path(path).resolve())

        content = self.model_dump(mode="json")
        content["data"]["shards"] = absolute(content["data"]["shards"])
        content["data"]["index"] = absolute(content["data"]["index"])
        for part in content["plan"]["mixture"]:
            part["pool"] = absolute(part["pool"])
        content["network"]["weights"] = absolute(content["network"]["weights"])
        if content["distill"] is not None:
            content["distill"]["codecs"] = absolute(content["distill"]["codecs"])
        if content["data"]["online"] is not None:
            content["data"]["online"]["codecs"] = absolute(content["data"]["online"]["codecs"])
        return TrainConfig.model_validate(content)

    def digest(self) -> str:
        """Identity of the recipe, written into checkpoints."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The stage in a YAML file, or the one shipped under that name, with `--set a.b=c` overrides applied.

    Relative paths in a recipe are relative to the working directory. Raises RecipeError naming file, key and remedy.
    """
    return validated(TrainConfig, read_recipe(name_or_path, RECIPES, overrides), name_or_path)


class Bound(RecipePart):
    """What a number must be; null is never within."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float | None) -> bool:
        """Whether a number is within."""
        if value is None:
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class ChainStage(RecipePart):
    """One stage of several."""

    recipe: str
    """A packaged recipe by name, or a YAML file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys of it that differ, such as `data.shards: pools/film/shards`."""
    gates: dict[str, Bound] = Field(default_factory=dict)
    """What the last line of metrics.jsonl or validation.jsonl must say before the next stage begins, for example
    `validation.loss: {max: 0.8}`."""

    @field_validator("gates")
    @classmethod
    def _check(cls, gates: dict[str, Bound]) -> dict[str, Bound]:
        for key in gates:
            if key.partition(".")[0] not in ("metrics", "validation"):
                raise ValueError(f"gate '{key}' must begin with metrics. or validation., where its number is written")
        return gates


class ChainConfig(RecipePart):
    """Stages, each of which begins from the weights of the one before."""

    name: str
    stages: tuple[ChainStage, ...] = Field(min_length=1)


class LoadedStage(NamedTuple):
    """A stage with its recipe read."""

    train: TrainConfig
    gates: dict[str, Bound]


def load_stages(name_or_path: str, overrides: Sequence[str] = ()) -> list[LoadedStage]:
    """The stages in a YAML file, or those shipped under that name; `overrides` are applied to each stage's recipe.

    All but the first begin from the weights before them, whatever their recipes say. Raises RecipeError naming file, key and
    remedy.
    """
    chain = validated(ChainConfig, read_recipe(name_or_path, CHAINS), name_or_path)
    stages = []
    for number, stage in enumerate(chain.stages, start=1):
        settings = [f"{key}={json.dumps(value)}" for key, value in stage.settings.items()]
        train = load_recipe(stage.recipe, [*settings, *overrides])
        if any(key.startswith("validation.") for key in stage.gates) and train.validation.every_steps is None:
            raise RecipeError(
                f"{name_or_path}: stage {number} has a gate on the held-out loss and validates nothing.",
                remedy="Add validation.every_steps to its settings.",
            )
        if train.output.checkpoints is not None:
            raise RecipeError(
                f"{name_or_path}: stage {number} keeps its checkpoints at {train.output.checkpoints}, where the next "
                "cannot begin from.",
                remedy="Leave output.checkpoints out, or train the stages one by one.",
            )
        stages.append(LoadedStage(train, stage.gates))
    return stages
