"""Recipes: unknown keys are refused with the nearest valid one, overrides reach every key, hashes mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RECIPES, load_recipe, parse_recipe
from schemas.errors import RecipeError
from schemas.recipe import apply_overrides

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid_and_explain_themselves(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.shot_splt={}", "Did you mean 'shot_split'"),
        ("gates.sync.confidence.mim=2", "Did you mean 'min'"),
        ("gates.snyc.confidence.min=2", "Did you mean 'sync'"),
        ("audit_fracton=0.1", "Did you mean 'audit_fraction'"),
        ("stages.cut.crf=high", "stages.cut.crf"),
        ("resources.audio.cpu=2", "Did you mean 'cpus'"),
        ("nonsense", "expected KEY.KEY=VALUE"),
        ("name.deeper=1", "holds a value"),
        ("pack=3", "quickstart: pack: .* valid dictionary"),
        ("audit_fraction=2", "quickstart: audit_fraction: .* less than or equal to 1"),
        ("audit_fraction=-1", "quickstart: audit_fraction: .* greater than or equal to 0"),
        ("audit_fraction=1e999", "quickstart: audit_fraction: "),
        ("decoder.memory_gb=-1", "decoder.memory_gb: .* greater than 0"),
        ("decoder.memory_gb=.inf", "decoder.memory_gb: .* finite number"),
        ("decoder.timeout_s=0", "decoder.timeout_s: .* greater than 0"),
        ("pack.target_shard_mb=-5", "pack.target_shard_mb: .* greater than 0"),
        ("pack.target_shard_mb=.nan", "pack.target_shard_mb: .* finite number"),
        ("pack.validation_fraction=7", "pack.validation_fraction: .* less than or equal to 1"),
        ("stages.cut.crf=999", "stages.cut.crf: .* less than"),
        ("stages.download.timeout_s=.inf", "stages.download.timeout_s: .* finite number"),
        ("resources.download.batch=0", "resources.download.batch: .* greater than or equal to 1"),
        ("resources.download.cpus=0", "resources.download.cpus: .* greater than 0"),
        ("resources.download.memory_gb=-1", "resources.download.memory_gb: .* greater than or equal to 0"),
        ("resources.download.timeout_s=.nan", "resources.download.timeout_s: "),
        ("gates.sync.confidence.min=.nan", "gates.sync.confidence.min: .* finite number"),
        ("gates.sync.confidence.max=1e999", "gates.sync.confidence.max: .* finite number"),
    ],
)
def test_mistakes_are_named_with_a_remedy(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", [override])


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="quickstart"):
        load_recipe("quickstrat")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_overrides_are_applied_to_a_copy(toy_recipe: dict[str, Any]) -> None:
    changed = apply_overrides(toy_recipe, ["gates.audio.value.min=0.9", "gates.audio.value.missing=reject"])
    assert changed["gates"]["audio"]["value"] == {"min": 0.9, "missing": "reject"}
    assert toy_recipe["gates"]["audio"]["value"] == {"min": 0.5}


def test_the_hash_names_what_may_change_a_measurement(toy_recipe: dict[str, Any]) -> None:
    base = parse_recipe(toy_recipe)
    assert (
        parse_recipe(toy_recipe | {"description": "other words", "pack": {"target_shard_mb": 20}}).measure_hash()
        == base.measure_hash()
    )
    stricter = apply_overrides(toy_recipe, ["gates.audio.value.min=0.9"])
    assert parse_recipe(stricter).measure_hash() != base.measure_hash()
