"""What licences' names say, which manifests' columns are admitted, and that what is refused is never fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.ask.queries import Run
from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.run import run as curate
from stages.download.sources import expand_sources
from stages.rights import terms_of, unwanted_column


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        (None, (None, None, None, None, None)),
        ("CC0-1.0", (True, True, True, False, False)),
        ("public domain", (True, True, True, False, False)),
        ("CC-BY-4.0", (True, True, True, True, False)),
        ("CC BY-NC-SA 4.0", (True, False, True, True, True)),
        ("cc-by-nd-4.0", (True, True, False, True, False)),
        ("Creative Commons Attribution-NonCommercial", (True, False, True, True, False)),
        ("Apache-2.0", (True, True, True, True, False)),
        ("MIT AND CC-BY-NC-4.0", (True, False, True, True, False)),
        ("All rights reserved", (False, False, False, None, None)),
        ("CC-BY-4.0 AND proprietary", (False, False, False, None, None)),
        ("ask Ann", (False, False, False, None, None)),
    ],
)
def test_a_licence_allows_what_its_name_says(licence: str | None, said: tuple[bool | None, ...]) -> None:
    assert tuple(terms_of(licence).values()) == said


def test_columns_are_admitted_by_value_in_every_row_of_a_source() -> None:
    wanted = {"consent": ("written", True), "year": (2024, 2025)}
    assert unwanted_column({"consent": "written", "year": 2024}, wanted) is None
    assert unwanted_column({"consent": True, "year": 2025, "other": 1}, wanted) is None
    assert unwanted_column({"consent": 1, "year": 2025}, wanted) == "consent=1"
    assert unwanted_column({"year": 2025}, wanted) == "consent=null"
    assert unwanted_column({"consent": "written", "rows": [{"year": 2024}, {"year": 1999}]}, wanted) == "year=1999"
    assert unwanted_column({}, {}) is None


def test_what_a_gate_refuses_is_never_fetched(tmp_path: Path) -> None:
    """Files that are not there: those that the gate turns away are rejected, the others fail to be found."""
    rows = [
        {"uri": "a.mp4", "licence": "CC-BY-4.0", "dataset": "talks"},
        {"uri": "b.mp4", "licence": "proprietary", "dataset": "talks"},
        {"uri": "c.mp4", "dataset": "talks"},
        {"uri": "d.mp4", "licence": "CC-BY-4.0", "dataset": "films"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "licensed",
        "stages": {"rights": {"metadata": {"dataset": ["talks"]}}, "download": {}, "probe": {}},
        "gates": {
            "rights": {
                "licence": {"one_of": ["CC-BY-4.0", "CC0-1.0"], "missing": "reject"},
                "is_as_wanted": {"equals": True},
            }
        },
    }
    curate(
        parse_recipe(recipe), expand_sources([str(tmp_path / "list.jsonl")]), str(tmp_path / "run"), here, quiet=True
    )
    run = Run(str(tmp_path / "run"), tmp_path / "cache")
    found = {row["source.uri"][-5]: row["verdict.reason"] for row in run.ledger.rows("asset")}
    assert found == {
        "a": "not_found", "b": "rights.licence.one_of", "c": "rights.licence.missing", "d": "rights.is_as_wanted.equals",
    }  # fmt: skip
    assert all(row["download.attempts"] is None for row in run.ledger.rows("asset"))
