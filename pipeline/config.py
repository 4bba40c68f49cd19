"""The recipe: YAML -> pydantic -> code, the one place where a run is configured.

Every key has a typed default, unknown keys are refused with the nearest valid one, and the resolved recipe has a
hash that names everything that may change a measurement.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import stages
from schemas.errors import RecipeError
from schemas.verdict import Gate, Gates
from stages.base import Resources, StageConfig
from stages.sync.config import SyncRepair

RECIPES = Path(__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DecoderLimits(_Part):
    """Containment of the decoder child; a file that exceeds a limit costs itself and nothing else."""

    memory_gb: float = 4.0
    timeout_s: float = 600.0


class Packing(_Part):
    """How kept clips become shards."""

    target_shard_mb: float = 512.0
    """Estimated size at which a shard is full; performance.md E.2 prefers 4 to 8 GB on object stores."""
    validation_fraction: float = 0.0
    """Share of recordings whose clips go to split `validation`."""
    same_voice: float | None = Field(default=0.65, gt=0, le=1)
    """Recordings with voices of at least this cosine stay on one side of the split; null: voices are not compared."""
    same_face: float | None = Field(default=0.45, gt=0)
    """Recordings with faces at most this far apart (Euclidean; docs/quality.md) stay on one side of the split; null: faces
    are not compared."""
    crf: int = 18
    """x264 quality for clips that have to be encoded anew; 18 is visually lossless by x264's own guide."""
    allow_copy: bool = True
    """Copy the video stream where that is exact; otherwise encode every clip."""


class Recipe(_Part):
    """Everything that decides what a run does."""

    name: str
    description: str = ""
    stages: dict[str, Any]
    """Stage name -> its configuration, in running order."""
    gates: dict[str, dict[str, Gate]] = {}
    resources: dict[str, Resources] = {}
    audit_fraction: float = 0.02
    """Share of clips measured to the end whatever the gates say, for unbiased what-if estimates."""
    decoder: DecoderLimits = DecoderLimits()
    sync_repair: SyncRepair = SyncRepair()
    pack: Packing = Packing()

    def stage_configs(self) -> dict[str, StageConfig]:
        """Validated configuration of every stage, in running order."""
        configs = {}
        for name, given in self.stages.items():
            if name not in stages.CATALOG:
                raise RecipeError(f"stages.{name}: there is no such stage.", remedy=_nearest(name, stages.CATALOG))
            configs[name] = _validate(stages.load(name).Config, given or {}, f"stages.{name}")
        return configs

    def ordered_gates(self) -> Gates:
        """The gates in the running order of their stages."""
        return {name: self.gates[name] for name in self.stages if name in self.gates}

    def measure_hash(self) -> str:
        """Hash of all that may change a measurement or a settled row: stages, versions, gates, audit, limits."""
        versions = {name: stages.load(name).version for name in self.stages}
        measured = self.model_dump(mode="json", exclude={"name", "description", "resources", "pack", "sync_repair"})
        measured["stages"] = {name: cfg.model_dump(mode="json") for name, cfg in self.stage_configs().items()}
        text = json.dumps([measured, versions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the one shipped under that name, with `--set a.b=c` overrides applied.

    Raises RecipeError naming file, key and remedy.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        raise RecipeError(f"no recipe at {name_or_path}.", remedy=f"Give a YAML file or one of: {', '.join(known)}.")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds no mapping.", remedy="Start from `nava-curate plan quickstart --yaml`.")
    return parse_recipe(apply_overrides(raw, overrides), str(path))


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The validated recipe, stage configurations included."""
    recipe: Recipe = _validate(Recipe, raw, where)
    recipe.stage_configs()
    for name in (*recipe.gates, *recipe.resources):
        if name not in recipe.stages:
            remedy = _nearest(name, recipe.stages)
            raise RecipeError(f"{where}: gates or resources for '{name}', which is no stage of it.", remedy=remedy)
    if recipe.sync_repair.enabled and "sync" not in recipe.stages:
        raise RecipeError(f"{where}: sync_repair needs stage 'sync', which measures what to repair.", remedy="Add it.")
    return recipe


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with each `a.b.c=value` set; values are read as YAML."""
    out: dict[str, Any] = json.loads(json.dumps(raw))
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path:
            raise RecipeError(f"--set {override}: expected KEY.KEY=VALUE.", remedy="E.g. gates.sync.confidence.min=2.")
        *parents, last = path.strip().split(".")
        here = out
        for key in parents:
            child = here.setdefault(key, {})
            if child is None:
                child = here[key] = {}
            if not isinstance(child, dict):
                raise RecipeError(f"--set {path}: '{key}' holds a value, not keys.")
            here = child
        here[last] = yaml.safe_load(text)
    return out


def _validate(model: type[BaseModel], raw: Any, where: str) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in (where, *first["loc"]))
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, first["loc"][:-1])
            remedy = _nearest(str(first["loc"][-1]), known)
            raise RecipeError(f"{location}: unknown key.", remedy=remedy) from None
        got = f" (got {first['input']!r})" if first["type"] != "missing" else ""
        raise RecipeError(f"{location}: {first['msg'].removeprefix('Value error, ')}{got}.") from None


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    here: Any = model
    for part in location:
        field = getattr(here, "model_fields", {}).get(part)
        here = field.annotation if field is not None else here
        if field is None or not hasattr(here, "model_fields"):
            here = _model_inside(here)
    return list(getattr(here, "model_fields", {}))


def _model_inside(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_inside(argument)
        if found is not None:
            return found
    return None


def _nearest(name: str, known: Any) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""
