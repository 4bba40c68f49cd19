"""What there is to choose from: versions, recipes, stages with their engines, what a machine has, schemas of files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, get_args

import stages
from pipeline.config import RECIPES, Recipe, load_recipe
from pipeline.plan import StageSpec
from pipeline.show.screen import columns, cut, plural, table, wrapped
from schemas.errors import RecipeError
from schemas.fields import describe
from schemas.recipe import nearest, packaged

if TYPE_CHECKING:
    from pipeline.ask.doctor import Finding

DISTRIBUTION = "nava-engine"
RECIPE_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def versions_text() -> str:
    """Versions of the program and of the files that it writes."""
    from pipeline.ledger import LEDGER_VERSION
    from schemas.shard import CONTRACT_VERSION

    return (
        f"nava-curate {metadata.version(DISTRIBUTION)}, ledger {LEDGER_VERSION}, shard contract {CONTRACT_VERSION}, "
        f"{plural(len(stages.CATALOG), 'stage')}"
    )


def recipes_text() -> str:
    """The shipped recipes with what they are for."""
    lines = []
    for name in packaged(RECIPES):
        found = load_recipe(name)
        lines += [*wrapped(f"{name:<16}{' '.join(found.description.split())}", " " * 16)]
    return "\n".join([*lines, "", "nava-curate recipes NAME > my.yaml, to start from one"])


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe. Raises RecipeError where there is none of that name."""
    known = packaged(RECIPES)
    if name not in known:
        raise RecipeError(f"no recipe '{name}' ships.", remedy=nearest(name, known))
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").rstrip("\n")


def stages_text() -> str:
    """Every stage: the rows it works on, its engines, and what it does in a line."""
    rows = []
    for name in stages.CATALOG:
        spec = _spec(name)
        rows.append(
            (name, _rows(spec), ", ".join(_engines(spec)) or "–", _first_line(spec.cls).split(". ")[0].rstrip("."))
        )
    return "\n".join(
        [
            *table(("stage", "rows", "engines", "what it does"), rows, is_whole=True),
            "",
            "nava-curate stages NAME tells more",
        ]
    )


def stage_text(name: str) -> str:
    """One stage: what it does, reads, adds and can be set to, and the gates that shipped recipes put on it."""
    from pipeline.show.reference import setting_rows

    if name not in stages.CATALOG:
        raise RecipeError(f"there is no stage '{name}'.", remedy=nearest(name, stages.CATALOG))
    spec, need = _spec(name), stages.load(name).resources
    about = " ".join((spec.cls.__doc__ or "").split())
    gpu = f", {need.gpus:g} GPU" if need.gpus else ""
    lines = [
        *wrapped(f"{name}  {_rows(spec)}, version {spec.cls.version}: {about}"),
        *wrapped(f"reads  {', '.join(spec.cls.reads)}", " " * 7),
        f"needs  {need.cpus:g} CPU{gpu}, {need.memory_gb:g} GB a worker",
        "",
        *table(
            ("column", "type", "unit", "meaning"), list(describe(list(spec.cls.adds), f"{spec.column}.")), is_whole=True
        ),
    ]
    settings = [tuple(each.replace("`", "") for each in row) for row in setting_rows(spec.cls.Config)]
    if settings:
        lines += ["", *table((f"stages.{name}", "default", "meaning"), settings, is_whole=True)]
    gates = [
        (check.name, _bound(check.bound), recipe)
        for recipe in packaged(RECIPES)
        for check in _checks(recipe)
        if check.stage == name
    ]
    if gates:
        lines += ["", *table(("gate", "bound", "recipe"), gates)]
    return "\n".join([*lines, "", "how well it does: docs/quality.md"])


def doctor_text(found: Sequence[Finding]) -> str:
    """What was looked for, what is missing last."""
    width = max(len(each.name) for each in found)
    lines = []
    for each in sorted(found, key=lambda each: not each.is_there):
        sign = "ok" if each.is_there else "MISSING" if each.is_needed else "no"
        line = f"{sign:<8}{each.name:<{width}}  {each.said}"
        lines += [cut(line, columns())] if each.is_there else wrapped(line, " " * (width + 10))
    num_missing = sum(each.is_needed and not each.is_there for each in found)
    lines.append(
        "all that shipped recipes need is there" if not num_missing else f"{plural(num_missing, 'thing')} missing"
    )
    return "\n".join(lines)


def schema_of(what: str) -> dict[str, Any]:
    """JSON Schema of a recipe, stages' settings included. Raises RecipeError for anything else."""
    if what != "recipe":
        raise RecipeError(f"there is no schema of '{what}'.", remedy="Known: recipe.")
    found = Recipe.model_json_schema()
    definitions = found.setdefault("$defs", {})
    inside = {}
    for name in stages.CATALOG:
        own = stages.load(name).Config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= own.pop("$defs", {})
        inside[name] = {"anyOf": [own, {"type": "null"}]}
    found["properties"]["stages"] = {"type": "object", "properties": inside, "additionalProperties": False}
    use = "# yaml-language-server: $schema=recipe.schema.json"
    return {"$schema": RECIPE_SCHEMA, "$comment": f"First line of a recipe: {use}", **found}


def _spec(name: str) -> StageSpec:
    kind = stages.load(name)
    return StageSpec(name, kind, kind.Config(), kind.resources, "")


def _rows(spec: StageSpec) -> str:
    if spec.is_split:
        return f"{spec.cls.level} -> {spec.adds_to}s"
    return f"all {spec.cls.level}s" if spec.is_collect else f"per {spec.cls.level}"


def _engines(spec: StageSpec) -> list[str]:
    """The engines it can be set to, its own first."""
    field = type(spec.config).model_fields.get("engine")
    if field is None:
        return []
    own = str(field.default)
    return [own, *(each for each in get_args(field.annotation) if isinstance(each, str) and each != own)]


def _checks(recipe: str) -> Sequence[Any]:
    from pipeline.plan import make_plan

    return make_plan(load_recipe(recipe)).checks


def _bound(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]
