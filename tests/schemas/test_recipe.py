"""Recipes: every mistake a person can make in a file or an override is answered with place and remedy, never a traceback."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from schemas.errors import RecipeError
from schemas.recipe import RecipePart, apply_overrides, nearest, packaged, read_recipe, validated


class Circle(RecipePart):
    radius_m: float


class Square(RecipePart):
    kind: Literal["square"] = "square"
    side_m: float


class Drawing(RecipePart):
    name: str
    shapes: list[Circle] = Field(default_factory=list)
    by_name: dict[str, dict[str, Square]] = Field(default_factory=dict)
    main: Circle | Square | None = None


def bomb(first: bytes, other: bytes) -> bytes:
    """A few hundred bytes of YAML, ten keys each eight times the one before."""
    lines = [b"a: &a " + first]
    for key in range(98, 108):
        lines.append(b"%c: &%c " % (key, key) + other % b", ".join([b"*%c" % (key - 1)] * 8))
    return b"\n".join(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ships").mkdir()
    (tmp_path / "ships" / "simple.yaml").write_text("name: simple\nsince: 2026-01-01\n")
    return tmp_path / "ships"


def test_a_recipe_is_found_by_name_or_path(folder: Path, tmp_path: Path) -> None:
    assert packaged(folder) == ["simple"]
    assert read_recipe("simple", folder, ["a.b=[1, 2]"]) == {
        "name": "simple",
        "since": datetime.date(2026, 1, 1),
        "a": {"b": [1, 2]},
    }
    own = tmp_path / "own.v2.yml"
    own.write_text("name: own")
    assert read_recipe(str(own), folder) == {"name": "own"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "own.yaml is not YAML.*line"),
        (b"\xff\xfe\x00", "own.yaml is not YAML"),
        (b"- 1", r"own.yaml: expected a mapping of keys to values, got list\. Start from a copy of .*simple.yaml"),
        (b"", "got NoneType"),
        (b"name: &a [*a]", "own.yaml is not YAML: an alias stands inside what it names"),
        (b"a: " + b"[" * 20_000, "own.yaml is not YAML"),
        (b"name: 2026-99-99", "own.yaml is not YAML: month must be"),
        (b"name: " + b"9" * 5000, "own.yaml is not YAML: Exceeds the limit"),
        (b"name: !!python/object/apply:os.getcwd []", "own.yaml is not YAML: could not determine a constructor"),
        (bomb(b"[1, 1]", b"[%s]"), "own.yaml is not YAML: its aliases stand for more than 100000 values"),
        (bomb(b"{k: 1}", b"{<<: [%s]}"), "own.yaml is not YAML: its aliases stand for more than 100000 values"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_recipe_is_refused(folder: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        read_recipe(str(tmp_path / "own.yaml"), folder)


def test_a_missing_recipe_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'simpel'\. Did you mean 'simple'"):
        read_recipe("simpel", folder)
    for name in ("/nowhere/x.yaml", "x" * 5000, "a\0b"):
        with pytest.raises(RecipeError, match="Known: simple"):
            read_recipe(name, folder)


@pytest.mark.parametrize(
    "override",
    ["a", "=1", ".a=1", "a..b=1", "a.=1", "a=[", "a.b.c=1", "x=[1", "x={{7*7}}", "x=!!python/name:os.system", "x=2026-13-01",
     "x=&a [*a]", "x=" + "9" * 5000, "x=" + "[" * 3000, "x=\x00", "x=\udce9"],
    ids=lambda override: ascii(override)[:12],
)  # fmt: skip
def test_overrides_that_cannot_be_read_are_refused(override: str) -> None:
    raw = {"a": {"b": 1}}
    with pytest.raises(RecipeError, match="--set"):
        apply_overrides(raw, [override])
    assert raw == {"a": {"b": 1}}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers() | st.booleans() | st.none())
def test_an_override_sets_its_key_and_no_other(keys: list[str], value: int | bool | None) -> None:
    raw = {"z": {"y": 1}, "a": None}
    changed = apply_overrides(raw, [f"{'.'.join(keys)}={'null' if value is None else str(value).lower()}"])
    assert raw == {"z": {"y": 1}, "a": None}
    here = changed
    for key in keys:
        here = here[key]
    assert here == value
    assert changed["z"] == {"y": 1}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "a", "shaps": []}, r"file: shaps: unknown key\. Did you mean 'shapes'\?"),
        ({"name": "a", "shapes": [{"radius": 1}]}, r"file: shapes\.0\.radius: unknown"),
        ({"name": "a", "shapes": [{"radius_m": 1, "radius": 1}]}, r"shapes\.0\.radius: .*'radius_m'"),
        ({"name": "a", "by_name": {"x": {"y": {"side_m": 1, "sid_m": 1}}}}, r"by_name\.x\.y\.sid_m: .*'side_m'"),
        ({"name": "a", "main": {"radius_m": 1, "rad": 1}}, r"main\.Circle\.rad: .*'radius_m'"),
        ({}, r"file: name: this key is missing\. Add it"),
        ({"name": "a", "shapes": [{"radius_m": "wide"}]}, r"shapes\.0\.radius_m: .*number.* \(got 'wide'\)"),
        ([], "file: Input should be"),
    ],
)
def test_mistakes_name_file_key_and_remedy(raw: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validated(Drawing, raw, "file")


def test_the_key_below_a_part_is_named_whole() -> None:
    with pytest.raises(RecipeError, match=r"file: shapes\.round\.radius_m: this key is missing"):
        validated(Circle, {}, "file", "shapes.round")


def test_nearest_gives_all_names_when_none_is_near() -> None:
    assert nearest("sound", ["picture", "text"]) == "Known: picture, text."
    assert nearest("sound", []) == ""
