"""The tree keeps its shape: import direction, one file that opens media, no pickle, no module of a forbidden name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stages
from stages.base import Split

pytestmark = pytest.mark.xdist_group("tree")  # whoever has read all of it once

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "stages", "pipeline", "model", "benchmarks")
MAY_IMPORT = {
    "schemas": set(),
    "stages": {"schemas"},
    "pipeline": {"schemas", "stages"},
    "model": {"schemas"},
    "benchmarks": {"schemas", "stages", "pipeline", "model"},
}
HEAVY = {"torch", "ray", "cv2", "whisperx", "pyannote", "decord", "av", "transformers", "matplotlib"}
MAX_LINES = 400
"""Non-blank lines of a file: 1.3 times the longest fifth per cent, the best of the projects looked at."""
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
CHILD_MODULES = (
    "child", "open", "choose", "clock", "picture", "sound", "listen", "probe", "decord_frames", "cut_encode", "cut_copy", "mux",
)  # fmt: skip
RUN_AS_CHILD = {
    *(f"stages/media/{name}.py" for name in CHILD_MODULES),
    "stages/transcribe/child.py",
    "pipeline/espeak_child.py",
}
"""Modules that run in child processes only."""
MAY_READ_PICKLE = {"model/weights/dcp_files.py"}
"""It makes records of a library's pickle, and nothing else."""
LIBRARY_UNPICKLERS = (
    "FileSystemReader",
    "checkpoint_id",
    "load_state_dict_from_file",
    "weights_only=False",
    "allow_pickle=True",
)
"""Names and arguments by which a library unpickles whatever a file holds."""
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "misc"}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A module, parsed."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Everything in a module, from the outside in."""
    return list(ast.walk(tree(path)))


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Drops a million nodes once they are looked at: the collector of garbage would visit them for the rest of the tests."""
    yield
    nodes.cache_clear()
    tree.cache_clear()


def import_statements(block: ast.AST, is_lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """(statement, whether it is in a function or for type checking alone) inside a module or a statement."""
    is_lazy |= isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
    is_lazy |= isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for statement in getattr(block, name, ()):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                yield statement, is_lazy
            else:
                yield from import_statements(statement, is_lazy)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether the import runs when the module is imported)."""
    for node, is_lazy in import_statements(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            yield name.split(".")[0], not is_lazy


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = set(imports(path))
    foreign = {name for name, _ in found if name in PACKAGES} - MAY_IMPORT[package] - {package}
    assert not foreign, f"{package} must not import {foreign}"
    if package in ("schemas", "stages", "pipeline") and path.relative_to(ROOT).as_posix() not in RUN_AS_CHILD:
        eager = {name for name, at_import in found if at_import} & HEAVY
        assert not eager, f"{eager} must be imported where it is used, so that commands start at once"
    if package == "schemas" and path.parent.name != "networks":
        assert not {name for name, _ in found} & HEAVY
    assert path.stem not in FORBIDDEN_NAMES
    assert path.stem not in sys.stdlib_module_names, f"{path.stem} hides a standard module"
    text = path.read_text()
    assert sum(1 for line in text.splitlines() if line.strip()) <= MAX_LINES, "split it"
    if path.relative_to(ROOT).as_posix() not in MAY_READ_PICKLE:
        assert not {"pickle", "cPickle", "dill", "joblib"} & {name for name, _ in found}, "no pickle"
        if any(name.partition("=")[0] in text for name in LIBRARY_UNPICKLERS):
            written = ast.unparse(tree(path))
            assert not [name for name in LIBRARY_UNPICKLERS if name in written], "no pickle inside a library either"


def test_functions_are_short_and_take_few_parameters() -> None:
    """The options of a command are its users', not its callers'."""
    long, wide = [], []
    for path in modules():
        for node in nodes(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            where = f"{path.relative_to(ROOT)}:{node.name}"
            if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES:
                long.append(where)
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            num_own = len(taken) - bool(taken and taken[0].arg in ("self", "cls"))
            is_command = any("app.command" in ast.unparse(each) for each in node.decorator_list)
            if num_own > MAX_PARAMETERS and not is_command:
                wide.append(where)
    assert not long
    assert not wide


def test_a_class_has_a_name_of_its_own() -> None:
    """Private ones aside: what is one word in one place is not another thing elsewhere."""
    places: dict[str, list[str]] = {}
    for path in modules():
        if path.relative_to(ROOT).parts[0] != "benchmarks":
            for node in tree(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_only_media_modules_open_media() -> None:
    allowed = (
        "stages/media",
        "pipeline/demo",
        "pipeline/ask/verify",
        "model/sampling",
        "model/encoding/clip_media",
        "model/evaluate/media",
        "benchmarks",
    )
    offenders = [
        str(path.relative_to(ROOT))
        for path in modules()
        if {"av", "decord"} & {name for name, _ in imports(path)}
        and not str(path.relative_to(ROOT)).startswith(allowed)
    ]
    assert not offenders


def test_broad_excepts_live_in_the_adapter_alone() -> None:
    """And around the start of Ray, which raises a bare Exception where its processes do not come up, and in the asset pass,

    which keeps what one of several stages' observers raises until that stage asks; and where damaged media are tried, to count.
    """
    allowed = {
        "pipeline/execute/adapter.py",
        "pipeline/execute/cluster.py",
        "stages/asset_pass.py",
        "benchmarks/chaos_mutants.py",
    }
    offenders = []
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                where = path.relative_to(ROOT).as_posix()
                if caught in ("", "Exception", "BaseException") and where not in allowed:
                    offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not offenders, "only the adapter may catch everything, because it counts what it catches"


def stage_names_in(path: Path) -> list[str]:
    """Stage names, and paths that begin with one, among the strings of a module; docstrings aside."""
    names = {
        *stages.CATALOG,
        *(spec.children for name in stages.CATALOG if issubclass(spec := stages.load(name), Split)),
    }
    told = {
        id(node.body[0].value)
        for node in nodes(path)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
    }
    strings = [
        node.value
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
    ]
    return [text for text in strings if text.removeprefix("stages.").removeprefix("gates.").split(".")[0] in names]


def test_the_pipeline_names_no_stage() -> None:
    """What it must know of a stage it reads from the roles of its fields; the base contract is in schemas.records."""
    found = {}
    for path in modules():
        place = path.relative_to(ROOT)
        if (
            place.parts[0] == "pipeline"
            and place.parts[1] not in ("demo", "recipes")
            and (names := stage_names_in(path))
        ):
            found[place.as_posix()] = names
    assert found == {
        "pipeline/export/nava.py": ["caption"],  # a text type of NAVA's own data contract
        "pipeline/export/cuts.py": ["caption"],  # and columns of other programs
        "pipeline/export/tables.py": ["caption", "audio", "caption", "audio", "audio"],
        "pipeline/export/trainers.py": ["caption", "caption"],
    }


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Modules of this project that a module imports: at import, inside functions, and for type checking alike."""
    found = set()
    for node, _ in import_statements(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known or {node.module} & known
    return found


def graphs(root: Path) -> dict[str, dict[str, set[str]]]:
    """Imports as graphs: all modules, and of every package its files and folders, each folder as one."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    by_name = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    by_name = {name.removesuffix(".__init__"): path for name, path in by_name.items()}
    arrows = {name: imported_modules(path, set(by_name)) - {name} for name, path in by_name.items()}
    all_graphs: dict[str, dict[str, set[str]]] = {"modules": arrows}
    for package in PACKAGES:
        rooms = all_graphs.setdefault(package, {})
        for name, targets in arrows.items():
            if name.startswith(f"{package}."):
                room = name.split(".")[1]
                inside = {target.split(".")[1] for target in targets if target.startswith(f"{package}.")}
                rooms.setdefault(room, set()).update(inside - {room})
    return all_graphs


def test_imports_make_no_circles() -> None:
    for name, arrows in graphs(ROOT).items():
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            pytest.fail(f"a circle in {name}: {' <- '.join(error.args[1])}")


def graph_of(root: Path, three: str) -> dict[str, dict[str, set[str]]]:
    """The graphs of a tree in which model/a/one.py imports model/b/two.py, which imports model/a/three.py."""
    lines = {"a/one": "def f():\n    from model.b import two", "b/two": "import model.a.three", "a/three": three}
    for name, line in lines.items():
        path = root / "model" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    return graphs(root)


def test_a_hidden_circle_is_found(tmp_path: Path) -> None:
    of_rooms = graph_of(tmp_path / "rooms", "")
    TopologicalSorter(of_rooms["modules"]).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(of_rooms["model"]).prepare()
    of_files = graph_of(tmp_path / "files", "if TYPE_CHECKING:\n    from model.a.one import f")
    with pytest.raises(CycleError):
        TopologicalSorter(of_files["modules"]).prepare()
