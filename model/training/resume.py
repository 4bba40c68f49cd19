"""What a recipe may change between a checkpoint and the run that goes on from it, and what it may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import RecipeError

REFUSED = (
    "seed",
    "network.preset",
    "network.changes",
    "network.lora",
    "network.train_only",
    "network.frozen",
    "flow",
    "distill",
    "optim.kind",
    "optim.muon_momentum",
    "optim.betas",
    "optim.eps",
    "optim.weight_decay",
    "optim.ema_decay",
    "parallel.precision",
)
"""Keys by which the rest of a run would be another experiment: what is trained, on which noise, by which moments."""
SAID = ("optim", "num_steps")
"""Keys that may change on purpose, in the middle of a run, and change what is learnt: a line says so."""


def compare_recipes(stored: Mapping[str, Any], given: Mapping[str, Any], *, allow_changes: bool) -> list[str]:
    """Lines about changed keys that matter, `key: before -> now`. `plan` is not looked at: it has a digest of its own.

    Raises RecipeError for a change of `REFUSED` keys, unless they are allowed. Keys that only one of them has are new or
    gone with a version of this program, and are not compared.
    """
    changed = [(key, before, now) for key, before, now in _differences(stored, given) if not key.startswith("plan.")]
    refused = [line for line in changed if _is_of(line[0], REFUSED)]
    if refused and not allow_changes:
        listed = "; ".join(f"{key}: {before} -> {now}" for key, before, now in refused)
        raise RecipeError(
            f"the checkpoint was written with another recipe. {listed}.",
            remedy="Take the recipe back (recipe.yaml beside the checkpoints), start a new folder from the weights "
            "(network.weights), or say --allow-changes.",
        )
    return [f"{key}: {before} -> {now}" for key, before, now in changed if _is_of(key, (*REFUSED, *SAID))]


def _differences(stored: Any, given: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping) and key != "network.changes":
        for name in [name for name in given if name in stored]:
            yield from _differences(stored[name], given[name], f"{key}.{name}" if key else name)
    elif stored != given:
        yield key, stored, given


def _is_of(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
