"""The parts of docs/ that the code says itself: stages, ledger, errors and the tree, written between marks in the pages.

`python -m pipeline.show.reference docs` (or `make docs`) brings all pages up to date. A page keeps its own words and has
places that look like this, filled by the function that `REGIONS` names:

    <!-- generated: stages -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import pyarrow as pa
from pydantic import BaseModel

import stages
from pipeline.config import RECIPES, Recipe, load_recipe
from pipeline.ledger import COST_COLUMN, KEYS
from pipeline.plan import StageSpec, make_plan
from schemas import errors
from schemas.fields import children_of, doc_of, fields_below, roles_of, unit_of
from schemas.recipe import packaged
from schemas.records import COST, SOURCE, VERDICT, Level
from schemas.verdict import Check
from stages.base import Resources, Stage, StageConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "stages", "pipeline", "model", "benchmarks")
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def stages_text() -> str:
    """Every stage of the catalogue: what it does, what it reads, its columns, its settings, and the gates on it."""
    recipes = [load_recipe(name) for name in packaged(RECIPES)]
    specs = [
        StageSpec(name, cls, cls.Config(), cls.resources, "") for name in stages.CATALOG for cls in [stages.load(name)]
    ]
    lines = table(
        ("stage", "rows", "what it does"),
        [(f"[`{spec.name}`](#{spec.name})", rows_of(spec), _first_line(spec.cls)) for spec in specs],
    )
    for spec in specs:
        lines += _stage_lines(spec, recipes)
    return "\n".join(lines)


def _stage_lines(spec: StageSpec, recipes: Sequence[Recipe]) -> list[str]:
    reads = ", ".join(f"`{path}`" for path in spec.cls.reads)
    about = f"Works {rows_of(spec)}, version {spec.cls.version}. Reads {reads}. {_needs(spec.resources)}"
    lines = ["", f"### {spec.name}", "", inspect.cleandoc(spec.cls.__doc__ or ""), "", about, ""]
    lines += column_lines(spec.cls.adds, f"{spec.column}.")
    settings = list(setting_rows(spec.cls.Config))
    if settings:
        lines += ["", *table((f"`stages.{spec.name}`", "default", "meaning"), settings)]
    gates = [
        (recipe.name, check) for recipe in recipes for check in make_plan(recipe).checks if check.stage == spec.name
    ]
    if gates:
        lines += ["", *table(("gate", "recipe", "applies"), [_gate_row(*gate) for gate in gates])]
    return lines


def rows_of(spec: StageSpec) -> str:
    """The rows a stage works on, in words."""
    if spec.is_split:
        return f"from {spec.cls.level} to {spec.adds_to}s"
    return f"over all {spec.cls.level}s of the run" if spec.is_collect else f"per {spec.cls.level}"


def _needs(need: Resources) -> str:
    gpus = f", {need.gpus:g} GPU" if need.gpus else ""
    scratch = f", {need.scratch_gb_per_h:g} GB of scratch an hour" if need.scratch_gb_per_h else ""
    return f"Plans with {need.cpus:g} CPU{gpus}, {need.memory_gb:g} GB{scratch} and at most {need.timeout_s:g} s a row."


def _gate_row(recipe: str, check: Check) -> tuple[str, str, str]:
    when = " and ".join(f"`{path}` is {value}" for path, value in check.gate.when.items())
    missing = "a row without the value is " + ("rejected" if check.gate.missing == "reject" else "an error")
    return f"`{check.name}: {_plain(check.bound)}`", recipe, f"{'where ' + when if when else 'always'}; {missing}"


def recipe_text() -> str:
    """The keys of a recipe beside its stages and gates."""
    lines = table(("key", "default", "meaning"), list(setting_rows(Recipe)))
    return "\n".join([*lines, "", *table(("`resources.STAGE`", "default", "meaning"), list(setting_rows(Resources)))])


def setting_rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every key of a configuration, groups unfolded."""
    said = _said_of_keys(model)
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from setting_rows(type(default), f"{prefix}{name}.")
            continue
        shown = "required" if info.is_required() else f"`{_plain(default)}`"
        kinds = [choice for choice in get_args(info.annotation) if isinstance(choice, str)]
        choices = f"One of {', '.join(f'`{kind}`' for kind in kinds)}. " if kinds else ""
        yield f"`{prefix}{name}`", shown, choices + (info.description or said.get(name, ""))


def _said_of_keys(model: type[BaseModel]) -> dict[str, str]:
    """Key -> the string that stands under it in the source."""
    (written,) = ast.parse(dedent(inspect.getsource(model))).body
    assert isinstance(written, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in pairwise(written.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def ledger_text() -> str:
    """The columns of the ledger that no stage measures, as they are written, and where those of the stages lie."""
    groups: list[tuple[str, Iterable[pa.Field]]] = [
        ("", [*(key for key in KEYS if not children_of(key.type)), COST_COLUMN]),
        ("source.", SOURCE),
        ("verdict.", VERDICT),
        ("cost[].", COST),
    ]
    told = [_told(prefix, field) for prefix, fields in groups for field in fields]
    lines = table(("column", "type", "unit", "meaning"), [row[:4] for row in told])
    specs = [StageSpec(name, stages.load(name), StageConfig(), Resources(), "") for name in stages.CATALOG]
    by_level = [
        (level, ", ".join(f"[`{spec.column}`](stages.md#{spec.name})" for spec in specs if spec.adds_to == level))
        for level in Level
    ]
    return "\n".join([*lines, "", *table(("rows of kind", "columns that stages fill"), by_level)])


def column_lines(fields: Iterable[pa.Field], prefix: str) -> list[str]:
    """A table of documented columns at any depth."""
    rows = [_told("", field, path) for path, field in fields_below(fields, prefix)]
    return table(("column", "type", "unit", "meaning", "role"), rows)


def _told(prefix: str, field: pa.Field, path: str = "") -> tuple[str, str, str, str, str]:
    inside = children_of(field.type)
    is_list = pa.types.is_list(field.type)
    kind = f"{'list of ' if is_list else ''}{'struct' if inside else field.type.value_type if is_list else field.type}"
    return f"`{path or prefix + field.name}`", kind, unit_of(field), doc_of(field), roles_text(field)


def roles_text(field: pa.Field) -> str:
    """The roles of a field in words."""
    roles = roles_of(field)
    shown = roles.get("show", "")
    words = [f"{shown} over `{roles['over']}`" if "over" in roles else shown, roles.get("means", "")]
    words.append("private" if roles.get("private") else "" if roles.get("in_shard", True) else "not in the shard")
    return ", ".join(filter(None, words))


def errors_text() -> str:
    """The classes of errors, and every reason with which an item can settle."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NavaError)]
    lines = ["```", *inspect.cleandoc(errors.__doc__ or "").splitlines()[2:], "```", ""]
    lines += table(
        ("class", "when", "reason if it names none"),
        [(f"`{kind.__name__}`", _first_line(kind), f"`{vars(kind)['reason']}`" if "reason" in vars(kind) else "")
         for kind in classes],
    )  # fmt: skip
    found: dict[str, set[str]] = {}
    for package in ("stages", "pipeline"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for reason in reasons_in(path.read_text(encoding="utf-8")):
                found.setdefault(reason, set()).add(f"`{path.relative_to(ROOT)}`")
    rows = [(f"`{reason}`", ", ".join(sorted(places))) for reason, places in sorted(found.items())]
    return "\n".join([*lines, "", *table(("reason", "given by"), rows)])


def reasons_in(source: str) -> Iterator[str]:
    """The reasons that a module gives to errors: `reason="..."`, `{"reason": "..."}` and `reason, ... = "...", ...`."""
    for node in ast.walk(ast.parse(source)) if "reason" in source else ():
        values: list[Any] = []
        if isinstance(node, ast.keyword) and node.arg == "reason":
            values = [node.value]
        elif isinstance(node, ast.Dict):
            values = [value for key, value in zip(node.keys, node.values, strict=True) if _is_reason(key)]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else []
            values = [value for name, value in zip(names, node.value.elts, strict=False) if _is_reason(name)]
        yield from (str(value.value) for value in values if isinstance(value, ast.Constant) and value.value)


def _is_reason(node: ast.expr | None) -> bool:
    return (isinstance(node, ast.Constant) and node.value == "reason") or (
        isinstance(node, ast.Name) and node.id == "reason"
    )


def tree_text() -> str:
    """Every module with the first line of its docstring, folders before what is in them."""
    return "\n".join(line for package in PACKAGES for line in _tree_lines(ROOT / package, 0))


def _tree_lines(folder: Path, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}- `{folder.name}/` {said_of(folder / '__init__.py')}"
    inside = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    for path in sorted(inside, key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir():
            yield from _tree_lines(path, depth + 1)
        elif path.name != "__init__.py":
            yield f"{'  ' * (depth + 1)}- `{path.name}` {said_of(path)}"


def said_of(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(":")


REGIONS: dict[str, Callable[[], str]] = {
    "stages": stages_text,
    "recipe": recipe_text,
    "ledger": ledger_text,
    "errors": errors_text,
    "tree": tree_text,
}
"""Name of a region -> what it holds."""


def filled(page: str) -> str:
    """A page with all of its regions as they should be now. Raises KeyError for a region of another name."""
    return REGION.sub(lambda found: f"{found[1]}{REGIONS[found[2]]()}\n{found[3]}", page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(head), ["---"] * len(head), *cells)]


def _first_line(kind: type[Stage[Any]] | type[Exception]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n")[0]


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else '""' if value == "" else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Brings the pages of a folder up to date, and names those that changed."""
    parser = argparse.ArgumentParser(description="Fills the generated parts of documentation pages.")
    parser.add_argument("folder", type=Path, help="folder of pages, docs")
    for path in sorted(parser.parse_args(arguments).folder.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
