"""Words that are run: what README, docs/ and error messages say exists, and what exists they say.

Commands are given to the real parsers, keys to the real recipes, paths to the tree. Nothing is executed.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import typer
import yaml
from pydantic import BaseModel

import model.cli
import pipeline.cli
import stages
from model.encoding.config import EncodeConfig, read_encode_config
from model.network.config import NavaConfig
from model.sampling.config import SampleConfig
from model.sampling.config import load_recipe as load_sample_recipe
from model.training.config import CHAINS, TrainConfig, load_stages
from model.training.config import RECIPES as TRAIN_RECIPES
from model.training.config import load_recipe as load_train_recipe
from pipeline.ask.queries import Balance
from pipeline.config import RECIPES, Recipe, load_recipe, parse_recipe
from pipeline.ledger import KEYS
from pipeline.plan import make_plan
from pipeline.show.plain import hours_plain
from pipeline.show.reference import REGIONS, ROOT, filled, reasons_in
from schemas import errors
from schemas.errors import NavaError
from schemas.fields import fields_below
from schemas.recipe import packaged
from schemas.records import COST, NO_CHILD, SOURCE
from schemas.verdict import OPERATORS
from stages.base import Resources, Split
from stages.media.decoder import DecoderConfig

pytestmark = pytest.mark.xdist_group("tree")  # whoever has read all of it once

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PRODUCT = sorted(
    path for package in ("schemas", "stages", "pipeline", "model") for path in (ROOT / package).rglob("*.py")
)
APPS = {"nava-curate": pipeline.cli.app, "nava-train": model.cli.app}
RUN_AS_MODULE = {"pipeline.cli": "nava-curate", "model.cli": "nava-train"}
OPTIONS_OF_OTHERS = {
    *("--no-deps", "--nproc_per_node", "--nnodes"),  # pip, torchrun
    *("--generate", "--metrics-export-port", "--requeue"),  # ray, sbatch
    *("--max-restarts", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),  # torchrun
}
RUN_FILES = {"recipe.yaml"}  # of a run or a training, in no tree
GUIDE_STAGE = "flicker"  # CONTRIBUTING writes it, `test_dropped_in_stage` runs it
WORD = re.compile(r"[a-z_]\w*(?:\.\w+)+")
FILE = re.compile(r"[\w/]+\.(?:py|md|ya?ml|toml)")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
by_module = pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))


# What pages say


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks in one language; "" finds those without."""
    return [body for found, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if found == language]


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """(command, whether it must be complete) for every line that starts one of our programs."""
    lines = [line for block in fenced(text, "") for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    for line, is_whole in [*((line, True) for line in lines), *((span, False) for span in spans(text))]:
        command = re.sub(r"\s#\s.*", "", line.strip().removeprefix("$ ")).strip()
        if re.match(r"(nava-curate|nava-train|python -m|torchrun|make)\b", command):
            yield command, is_whole and "..." not in command


@cache
def commands(program: str) -> dict[str, Any]:
    """Name -> parser of the subcommands."""
    group: Any = typer.main.get_command(APPS[program])
    return dict(group.commands)


def command(program: str, name: str) -> Any:
    """The parser of a subcommand."""
    known = commands(program)
    assert name in known, f"{program} has no command '{name}'; it has {', '.join(known)}"
    return known[name]


def read_arguments(program: str, name: str, words: list[str], *, is_whole: bool) -> Mapping[str, Any]:
    """What a subcommand's own parser makes of `words`. Fails on unknown options and on too many or too few arguments."""
    found = command(program, name)
    context = found.context_class(found, info_name=name, resilient_parsing=not is_whole)
    given, rest, _ = found.make_parser(context).parse_args(list(words))
    assert not rest, f"{program} {name} takes no {rest}"
    missing = [each.opts[0] for each in found.params if each.required and given.get(each.name) is None]
    assert not (is_whole and missing), f"{program} {name} needs {missing}"
    return given


def check_settings(program: str, name: str, given: Mapping[str, Any]) -> None:
    """Loads the recipe that a command names, or a packaged one, with its `--set` applied."""
    settings = [each for each in given.get("set_") or given.get("settings") or [] if each != "KEY=VALUE"]
    named = given.get("recipe")
    if program == "nava-curate":
        make_plan(load_recipe(named if named in packaged(RECIPES) else "quickstart", settings))
    elif name == "encode":
        read_encode_config(Path("codecs"), settings)
    elif name == "sample":
        load_sample_recipe("release", settings)
    elif name == "stages":
        load_stages(given["chain"] if given.get("chain") in packaged(CHAINS) else "tiny", settings)
    else:
        load_train_recipe(named if named in packaged(TRAIN_RECIPES) else "stage2_joint", settings)


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that `python -m module` uses, types and choices aside, so that a placeholder may stand for a value."""
    assert find_spec(module), f"there is no module {module}"
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(parser)
        raise SystemExit

    main = getattr(import_module(module), "main", None)
    assert main, f"{module} has no main() that says what it takes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(SystemExit):
            main()
    for action in caught[0]._actions:
        action.type = action.choices = None
    return caught[0]


def targets() -> set[str]:
    return set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))


def run_words(line: str, *, is_whole: bool) -> None:
    """Gives a command line to the parser it is meant for."""
    words = shlex.split(line.replace("...", ""))
    if len(words) == 1:
        return
    if words[0] == "make":
        assert set(words[1:]) <= targets(), f"`{line}`: Makefile has {', '.join(sorted(targets()))}"
        return
    if words[0] in ("python", "torchrun"):
        module, *rest = words[words.index("-m") + 1 :]
        if module.endswith(".NAME"):
            return
        if module not in RUN_AS_MODULE:
            parser = parser_of(module)
            said = {word for word in rest if word.startswith("-")}
            assert said <= parser._option_string_actions.keys(), f"`{line}`: unknown options"
            if is_whole:
                parser.parse_args(rest)
            return
        words = [RUN_AS_MODULE[module], *rest]
    program, name, *rest = words
    check_settings(program, name, read_arguments(program, name, rest, is_whole=is_whole))


@by_page
def test_every_command_parses(page: Path) -> None:
    for line, is_whole in command_lines(page.read_text()):
        try:
            run_words(line, is_whole=is_whole)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{page.name}: `{line}`: {error!r}")


@by_page
def test_every_option_exists(page: Path) -> None:
    said = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    assert said <= options(), f"{page.name} names options of no command: {sorted(said - options())}"


@cache
def options() -> set[str]:
    """Every option of the two programs, of the modules run by `python -m`, and of others that pages speak of."""
    known = [each for program in APPS for each in commands(program).values()]
    own = {opt for each in known for param in each.params for opt in (*param.opts, *param.secondary_opts)}
    modules = [
        f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text()
    ]
    return own | OPTIONS_OF_OTHERS | {opt for name in modules for opt in parser_of(name)._option_string_actions}


# Names with dots


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a pydantic model or dataclass at any depth."""
    if is_dataclass(kind):
        yield from (f"{prefix}{each.name}" for each in fields(kind))
        return
    for name, info in kind.model_fields.items():
        yield f"{prefix}{name}"
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and (is_dataclass(inner) or issubclass(inner, BaseModel)):
                yield from keys_of(inner, f"{prefix}{name}.")


@cache
def recipe_keys() -> frozenset[str]:
    """Every key that some recipe of this project may set."""
    found = {key for kind in (Recipe, TrainConfig, SampleConfig, EncodeConfig) for key in keys_of(kind)}
    for name in stages.CATALOG:
        found |= {
            f"stages.{name}",
            *(f"resources.{each}" for each in (name, "STAGE")),
            *keys_of(stages.load(name).Config, f"stages.{name}."),
        }
        found |= {f"resources.{each}.{key}" for each in (name, "NAME", "STAGE") for key in keys_of(Resources)}
    return frozenset(found | {f"network.changes.{key}" for key in NavaConfig.model_fields})


@cache
def columns() -> frozenset[str]:
    """Every column of the ledger at any depth, and those of a source at its own level."""
    specs = [stages.load(name) for name in stages.CATALOG]
    measured = [pa.field(cls.children if issubclass(cls, Split) else cls.name, cls.adds) for cls in specs]
    whole = [pa.field("source", SOURCE), pa.field("cost", COST)]
    return frozenset(path.replace("[]", "") for path, _ in fields_below([*KEYS, *measured, *whole]))


@cache
def reasons() -> frozenset[str]:
    """Reasons of errors and of rows without children."""
    own = {reason for path in PRODUCT for reason in reasons_in(path.read_text())}
    return frozenset({verdict.reason for verdict in NO_CHILD.values()} | own)


def is_attribute(path: str) -> bool:
    """Whether a dotted path leads to a module of ours or to something in it."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            here = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            here = getattr(here, name, None)
        return here is not None
    return False


def exists(name: str) -> bool:
    """Whether a dotted name is a column, a gate, a key of a recipe, a reason, a figure of `stats` or a module."""
    path = name.replace("[]", "").removeprefix("gates.")
    gate = path.rpartition(".")[0] if path.rpartition(".")[2] in OPERATORS else path
    figures = {f"hours.{key}" for key in hours_plain(Balance())}
    if gate in columns() or path.startswith(GUIDE_STAGE):
        return True
    return path in recipe_keys() | reasons() | figures or is_attribute(name)


def is_ours(name: str) -> bool:
    """Whether a dotted name claims to be a column, a key, a figure or a module of this project, rather than a library's."""
    heads = {path.split(".")[0] for path in recipe_keys() | columns()} | set(stages.CATALOG)
    return name.split(".", maxsplit=1)[0] in heads | {"hours", "schemas", "pipeline", "model", "benchmarks"}


def dotted(span: str) -> str:
    """The dotted name that inline code begins with, `[]` and `{reason}` aside, or nothing."""
    found = re.fullmatch(r"([a-z_]\w*(?:\.\w+(?:\[\])?)+)(?:\.\{\w+\})?(?:[:=,(\[ ].*)?", span)
    return (
        found[1]
        if found and not re.search(r"\.(jsonl?|txt|pt|ya?ml|tar|arrow|safetensors|list|weight|py|mp4)$", found[1])
        else ""
    )


@by_page
def test_every_name_with_dots_exists(page: Path) -> None:
    said = {name for span in spans(page.read_text()) if (name := dotted(span)) and is_ours(name)}
    wrong = sorted(name for name in said if not exists(name))
    assert not wrong, f"{page.name} names columns, keys or modules that are not there: {wrong}"


@by_page
def test_every_yaml_example_loads(page: Path) -> None:
    for block in fenced(page.read_text(), "yaml"):
        given = yaml.safe_load(block)
        if "stages" in given:
            make_plan(parse_recipe(given, page.name))
            continue
        settings = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in given.items()]
        if given.keys() <= Recipe.model_fields.keys():
            make_plan(load_recipe("quickstart", settings))
        else:
            load_train_recipe("stage2_joint", settings)


@by_page
def test_every_inline_setting_is_valid(page: Path) -> None:
    """Such as `pack.same_voice: 0.75`, laid over a packaged recipe."""
    for span in spans(page.read_text()):
        found = re.fullmatch(r"([a-z_]+(?:\.\w+)*): (\S.*)", span)
        if found is None or GUIDE_STAGE in span:
            continue
        if (head := found[1].split(".")[0]) in Recipe.model_fields:
            make_plan(load_recipe("quickstart", [f"{found[1]}={found[2]}"]))
        elif head in TrainConfig.model_fields:
            load_train_recipe("stage2_joint", [f"{found[1]}={found[2]}"])


# Files


@cache
def tracked() -> frozenset[str]:
    """Paths of the tree, and every ending of them: `network/nava.py`, `nava.py`."""
    paths = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".git", ".venv", "build", "__pycache__")]
        paths += [Path(folder, name).relative_to(ROOT).parts for name in (*folders, *files)]
    return frozenset("/".join(parts[at:]) for parts in paths for at in range(len(parts)))


@by_page
def test_every_path_exists(page: Path) -> None:
    text = page.read_text()
    said = {span for span in spans(text) if FILE.fullmatch(span) and "NAME" not in span} - RUN_FILES
    said |= set(re.findall(r"\b(?:docs|stages|schemas|pipeline|model|benchmarks|tests)/[\w/]+\.\w+", text))
    wrong = sorted(path for path in said if path not in tracked() and "NAME" not in path)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    wrong += [link for link in links if link and not (page.parent / link).exists()]
    assert not wrong, f"{page.name} names files that are not there: {wrong}"


# What exists is said


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated" in page.read_text()], ids=lambda p: p.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert page.read_text() == filled(page.read_text()), f"run `make docs` and commit docs/{page.name}"


def test_every_generated_part_has_a_place() -> None:
    placed = [name for page in PAGES for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text())]
    assert sorted(placed) == sorted(REGIONS)


@pytest.mark.parametrize("name", stages.CATALOG)
def test_every_stage_and_column_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "stages.md").read_text()
    cls = stages.load(name)
    assert f"\n### {name}\n" in page
    column = cls.children if issubclass(cls, Split) else name
    missing = [path for path, _ in fields_below(cls.adds, f"{column}.") if f"| `{path}` |" not in page]
    assert not missing, "run `make docs`"


@pytest.mark.parametrize("recipe", packaged(RECIPES))
def test_every_gate_of_a_packaged_recipe_is_documented(recipe: str) -> None:
    page = (ROOT / "docs" / "stages.md").read_text()
    missing = [
        c.name for c in make_plan(load_recipe(recipe)).checks if not re.search(rf"`{c.name}: .*\| {recipe} \|", page)
    ]
    assert not missing, "run `make docs`"


@pytest.mark.parametrize("program", APPS)
def test_every_command_is_documented(program: str) -> None:
    said = "\n".join(page.read_text() for page in PAGES)
    missing = [n for n in commands(program) if not re.search(rf"{program} +{n}\b", said)]
    assert not missing, f"say in README or docs/ what {program} {missing} does"


def test_every_error_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    classes = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert not [name for name in classes if f"| `{name}` |" not in page], "run `make docs`"
    tree = errors.__doc__ or ""
    assert not [name for name in classes if name not in tree], "give it its place in the tree of schemas/errors.py"


def test_every_recipe_and_page_is_spoken_of() -> None:
    """A recipe as inline code or in a command line, a page by a link."""
    written = [page.read_text() for page in PAGES]
    said = {span for text in written for span in spans(text)}
    said |= {word for text in written for line, _ in command_lines(text) for word in line.split()}
    names = {name for folder in (RECIPES, TRAIN_RECIPES, CHAINS, TRAIN_RECIPES / "sample") for name in packaged(folder)}
    assert names <= said, f"say in docs/ what these recipes are for: {sorted(names - said)}"
    linked = set(re.findall(r"\]\(([\w./]+)\)", (ROOT / "README.md").read_text()))
    pages = {str(page.relative_to(ROOT)) for page in PAGES if page.name != "README.md"}
    assert pages <= linked, f"README links all pages: {sorted(pages - linked)}"


def test_every_target_is_explained() -> None:
    head = (ROOT / "Makefile").read_text().split("\nPYTHON")[0]
    unsaid = {name for name in targets() if f"# make {name} " not in head} - {"clean"}
    assert not unsaid, f"say at the top of Makefile what these do: {unsaid}"


# Remedies


def remedies(path: Path) -> Iterator[str]:
    """Texts given as `remedy=`, or assigned to `remedy`; NAME stands for what is filled in."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)) if "remedy" in text else ():
        names = [node.arg] if isinstance(node, ast.keyword) else getattr(node, "targets", [])
        if "remedy" in [name if isinstance(name, str) else ast.unparse(name) for name in names if name]:
            yield from texts(node.value)  # type: ignore[attr-defined]


def texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "NAME" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (text for branch in (node.body, node.orelse) for text in texts(branch))


@cache
def engines() -> frozenset[str]:
    """Every value that the `engine` of some stage or of the decoder may have."""
    kinds = [DecoderConfig, *(stages.load(name).Config for name in stages.CATALOG)]
    return frozenset(
        name
        for kind in kinds
        if "engine" in kind.model_fields
        for name in get_args(kind.model_fields["engine"].annotation)
    )


@cache
def known_words() -> frozenset[str]:
    """Last parts of recipe keys, and everything that product code defines."""
    defined = re.findall(r"^\s*(?:def|class) (\w+)", "\n".join(path.read_text() for path in PRODUCT), re.M)
    return frozenset({key.rpartition(".")[2] for key in recipe_keys()} | set(defined) | set(NavaConfig.model_fields))


def check_remedy(remedy: str) -> None:
    """Fails if it names an option, command, key, engine or page that does not exist."""
    text = remedy.replace("cpus/gpus", "cpus")
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= options(), remedy
    for program, name in re.findall(r"(nava-curate|nava-train) ([a-z-]+)", text):
        command(program, name)
    names = [name for name in WORD.findall(text) if not FILE.fullmatch(name) and is_ours(name)]
    wrong = [name for name in names if name not in recipe_keys() and not is_attribute(name)]
    assert not wrong, f"{wrong}: no recipe has this key; write it in full, such as stages.download.max_bytes: {remedy}"
    assert set(re.findall(r"\bengine: (\w+)", text)) <= engines(), remedy
    assert set(re.findall(r"docs/[\w.]+\.md", text)) <= tracked(), remedy
    words = re.findall(r"(?<![\w./-])[a-z]+(?:_[a-z]+)+(?![\w/.-]*[/.]\w|/|\w|-)", text)
    unknown = [word for word in words if word not in known_words()]
    assert not unknown, f"{unknown}: neither a key of a recipe nor a name in the code: {remedy}"


@by_module
def test_every_remedy_names_what_exists(path: Path) -> None:
    for remedy in remedies(path):
        check_remedy(remedy)


# What these tests would find


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nava-curate plam quickstart", "no command 'plam'"),
        ("nava-curate run quickstart --input VIDEOS", "needs .*--out"),
        ("nava-curate stats RUN OTHER", "takes no .*OTHER"),
        ("nava-curate stats RUN --set gates.sync.nothing.min=2", "no such field"),
        ("nava-train plan tiny --set optim.nothing=1", "unknown key"),
        ("nava-train encode RUN --out DATA --codecs CODECS --set nothing=1", "unknown key"),
        ("python -m benchmarks.loader --json FILE --nothing", "unknown options"),
        ("python -m benchmarks.nothing", "no module"),
        ("torchrun --nproc_per_node 8 -m model.cli train RECIPE", "needs .*--out"),
        ("make nothing", "Makefile has"),
    ],
)
def test_a_false_command_is_found(line: str, said: str) -> None:
    with pytest.raises((AssertionError, NavaError), match=said):
        run_words(line, is_whole=True)


@pytest.mark.parametrize("name", ["sync.faces", "gates.sync.offset_ms.least", "pack.nothing", "model.training.nothing"])
def test_a_false_name_is_found(name: str) -> None:
    assert is_ours(name.removeprefix("gates."))
    assert not exists(name)


@pytest.mark.parametrize(
    "remedy",
    [
        "Raise download.max_bytes.",
        "Give --nothing.",
        "Run nava-curate mend.",
        "Use engine: magic.",
        "Raise max_nothing.",
    ],
)
def test_a_false_remedy_is_found(remedy: str) -> None:
    with pytest.raises(AssertionError):
        check_remedy(remedy)
