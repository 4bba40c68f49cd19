"""The one reader of recipes: YAML file or packaged name -> `--set a.b=value` -> pydantic, for both commands.

Every mistake becomes a RecipeError that says in which file, at which key, what was expected, and what to do; an unknown
name is answered with the nearest valid one.
"""

from __future__ import annotations

import copy
import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import RecipeError

ModelT = TypeVar("ModelT", bound=BaseModel)


class RecipePart(BaseModel):
    """A group of keys: cannot be changed once read, and knows no keys beyond its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


MOST_NODES = 100_000
"""Values in a YAML text once its aliases stand for what they name; shipped recipes have fewer than 200."""


def parsed(text: str | bytes) -> Any:
    """What a YAML text says, read by libyaml where PyYAML was built with it: a tenth of the time.

    Raises yaml.YAMLError, also for what is nested in itself or thousandfold, and for values that Python cannot hold.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _num_nodes(node, {}, frozenset()) > MOST_NODES:
                raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError) as error:  # dates and numbers that look like some and are none
        raise yaml.YAMLError(str(error)) from None


def _num_nodes(node: yaml.Node, known: dict[int, int], inside: frozenset[int]) -> int:
    """Values that a node stands for, each as often as it is named."""
    if id(node) in inside:
        raise yaml.YAMLError("an alias stands inside what it names")
    if id(node) not in known:
        is_map, is_list = isinstance(node, yaml.MappingNode), isinstance(node, yaml.SequenceNode)
        parts = chain.from_iterable(node.value) if is_map else node.value if is_list else ()
        known[id(node)] = 1 + sum(_num_nodes(part, known, inside | {id(node)}) for part in parts)
    return known[id(node)]


def packaged(folder: Path) -> list[str]:
    """Names of the recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_recipe(name_or_path: str, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of the recipe that ships in `folder` under that name, or of that YAML file, with overrides applied.

    Raises RecipeError if there is no such recipe, or if it is not a YAML mapping.
    """
    known = packaged(folder)
    path = folder / f"{name_or_path}.yaml" if name_or_path in known else Path(name_or_path)
    if not is_file(path):
        remedy = f"{nearest(name_or_path, known)} Give one of these names, or a YAML file."
        raise RecipeError(f"There is no recipe '{name_or_path}'.", remedy=remedy)
    try:
        raw = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.", remedy="Check who may read it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}.", remedy="Mend the line it names.") from error
    if not isinstance(raw, dict):
        remedy = f"Start from a copy of {folder / known[0]}.yaml."
        raise RecipeError(f"{path}: expected a mapping of keys to values, got {type(raw).__name__}.", remedy=remedy)
    return apply_overrides(raw, overrides)


def is_file(path: Path) -> bool:
    """Whether there is a file; not where the system refuses the name itself."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with each `a.b.c=value` set; values are read as YAML. Raises RecipeError."""
    out: dict[str, Any] = copy.deepcopy(dict(raw))
    for override in overrides:
        path, sign, text = override.partition("=")
        *parents, last = path.strip().split(".")
        if not sign or not all((*parents, last)):
            raise RecipeError(f"--set {override}: expected KEY.KEY=VALUE.", remedy="E.g. --set part.key=2.")
        here = out
        for key in parents:
            if here.get(key) is None:
                here[key] = {}
            if not isinstance(here[key], dict):
                remedy = f"Set '{key}' itself, as YAML: --set {key}=[...]."
                raise RecipeError(f"--set {override}: '{key}' holds a value, not keys.", remedy=remedy)
            here = here[key]
        try:
            here[last] = parsed(text)
        except yaml.YAMLError as error:
            remedy = "Quote it for the shell and for YAML."
            raise RecipeError(f"--set {override}: the value is not YAML: {error}.", remedy=remedy) from error
    return out


def validated(model: type[ModelT], raw: Any, where: str, at: str = "") -> ModelT:
    """`raw` as a `model`. `where` is the file it comes from, `at` the key it stands under.

    Raises RecipeError about the first mistake, or about a misspelt key rather than the one that is missing for it.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        mistakes = error.errors()
        first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
        key = ".".join(str(part) for part in (*([at] if at else []), *first["loc"]))
        place = f"{where}: {key}" if key else where
        if first["type"] == "extra_forbidden":
            remedy = nearest(str(first["loc"][-1]), _keys_at(model, first["loc"][:-1]))
            raise RecipeError(f"{place}: unknown key.", remedy=remedy) from None
        if first["type"] == "missing":
            raise RecipeError(f"{place}: this key is missing.", remedy=f"Add it, or --set {key}=VALUE.") from None
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        got = (
            f" (got {reprlib.repr(first['input'])})"
            if isinstance(first["input"], str | int | float | list | None)
            else ""
        )
        raise RecipeError(f"{place}: {reason}{got}.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name most like `name`, or with all of them if none is like it; empty without any."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the model that a mistake lies in, through lists, dicts and unions on the way there."""
    here: Any = model
    for part in location:
        models = list(_models_in(here))
        inside = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        inside += [m for m in models if m.__name__ == part]  # pydantic names the member of a union
        here = inside[0] if inside else here
    return [key for m in _models_in(here) for key in m.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
