"""The rules of a pool, as YAML and as options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from schemas.recipe import RecipePart, read_recipe, validated

SHIPPED = Path(__file__).parent / "rules"


class PoolRules(RecipePart):
    """Which clips of a run a pool has; all of them were kept by the run's gates."""

    name: str = "pool"
    description: str = ""
    """What it is for, for people."""
    query: tuple[str, ...] = ()
    """Conditions as `clips --where` takes them, all of which hold."""
    hours: float | None = Field(default=None, gt=0)
    """Most that the pool holds; null: everything that fulfils the conditions."""
    with_near: bool = False
    """Also clips that `decontaminate` found near an evaluation set."""
    balance: tuple[str, ...] = ()
    """Fields whose values share the hours evenly, each within those before it. A value with less than its share gives the
    rest to the others."""


def load_rules(name_or_path: str, overrides: Sequence[str] = ()) -> PoolRules:
    """The rules in a YAML file, or those shipped under that name. Raises RecipeError naming file, key and remedy."""
    return validated(PoolRules, read_recipe(name_or_path, SHIPPED, overrides), name_or_path)
