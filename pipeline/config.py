"""The recipe of a run: the one place where it is configured.

Every key has a typed default, and the resolved recipe has a hash that names everything that may change a measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

import stages
from schemas.errors import RecipeError
from schemas.recipe import RecipePart, nearest, read_recipe, validated
from schemas.verdict import Gate, Gates
from stages.base import Resources, StageConfig
from stages.media.decoder import DecoderConfig

RECIPES = Path(__file__).parent / "recipes"


class Packing(RecipePart):
    """How kept clips become shards."""

    target_shard_mb: float = Field(default=512.0, gt=0)
    """Most that a shard holds on the average. On object stores 4 to 8 GB spare requests."""
    validation_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of recordings whose clips go to split `validation`."""
    same_voice: float | None = Field(default=0.65, gt=0, le=1)
    """Recordings with voices of at least this cosine stay on one side of the split; null: voices are not compared."""
    same_face: float | None = Field(default=0.45, gt=0)
    """Recordings with faces at most this far apart (Euclidean; docs/quality.md) stay on one side of the split; null: faces
    are not compared."""


class Recipe(RecipePart):
    """Everything that decides what a run does."""

    name: str
    """Shown in plans and answers, and written into every sample."""
    description: str = ""
    """What it is for, for people."""
    stages: dict[str, Any]
    """Stage name -> its configuration, in running order."""
    gates: dict[str, dict[str, Gate]] = Field(default_factory=dict)
    """Stage -> field -> bounds: min, max, abs_max, equals, one_of; `when` other fields have values; `missing: reject`."""
    resources: dict[str, Resources] = Field(default_factory=dict)
    """Stage -> what one worker of it needs, instead of the stage's own figures."""
    audit_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of clips measured to the end whatever the gates say, for unbiased what-if estimates."""
    opt_out: tuple[str, ...] = ()
    """Lists of addresses that are refused at listing, in any form that `--input` reads; `*` in one stands for anything."""
    decoder: DecoderConfig = DecoderConfig()
    pack: Packing = Packing()

    def stage_configs(self, where: str = "recipe") -> dict[str, StageConfig]:
        """Validated configuration of every stage, in running order. Raises RecipeError, which names `where`."""
        configs = {}
        for name, given in self.stages.items():
            if name not in stages.CATALOG:
                remedy = nearest(name, stages.CATALOG)
                raise RecipeError(f"{where}: stages.{name}: there is no such stage.", remedy=remedy)
            configs[name] = validated(stages.load(name).Config, given or {}, where, f"stages.{name}")
        return configs

    def ordered_gates(self) -> Gates:
        """The gates in the running order of their stages."""
        return {name: self.gates[name] for name in self.stages if name in self.gates}

    def measure_hash(self) -> str:
        """Hash of all that may change a measurement or a settled row: stages, versions, gates, audit, limits."""
        versions = {name: stages.load(name).version for name in self.stages}
        measured = self.model_dump(mode="json", exclude={"name", "description", "resources", "pack", "opt_out"})
        measured["stages"] = {name: cfg.model_dump(mode="json") for name, cfg in self.stage_configs().items()}
        text = json.dumps([measured, versions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the one shipped under that name, with `--set a.b=c` overrides applied.

    Raises RecipeError naming file, key and remedy.
    """
    return parse_recipe(read_recipe(name_or_path, RECIPES, overrides), name_or_path)


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The validated recipe, stage configurations included. Raises RecipeError naming `where`, key and remedy."""
    for key, now in stages.MOVED.items():
        part, _, name = key.rpartition(".")
        group = raw.get(part) if part else raw
        if isinstance(group, Mapping) and name in group:
            raise RecipeError(f"{where}: {key} is now a setting of the stage that cuts.", remedy=f"Call it {now}.")
    recipe = validated(Recipe, raw, where)
    recipe.stage_configs(where)
    for name in (*recipe.gates, *recipe.resources):
        if name not in recipe.stages:
            remedy = nearest(name, recipe.stages)
            raise RecipeError(f"{where}: gates or resources for '{name}', which is no stage of it.", remedy=remedy)
    return recipe
