"""Every stage of the catalogue obeys the contract, without being touched by these tests."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

import stages
from schemas.fields import children_of, doc_of, fields_below, resolve, roles_of
from schemas.records import FETCH_URI, SOURCE, Level
from stages.base import Collect, Measure, Split, StageConfig

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    **{field.name: field for field in (*SOURCE, FETCH_URI)},
    **{
        (cls.children if issubclass(cls := stages.load(name), Split) else name): pa.field(name, cls.adds)
        for name in stages.CATALOG
    },
}
"""Everything a stage can read."""


@pytest.mark.parametrize("name", stages.CATALOG)
class TestStage:
    def test_has_one_name_everywhere(self, name: str) -> None:
        cls = stages.load(name)
        assert cls.name == name
        module = stages.CATALOG[name].partition(":")[0]
        assert module in (f"stages.{name}", f"stages.{name}.stage"), "name == file or folder == catalogue key"
        assert list((ROOT / "tests" / "stages").rglob(f"test_{name}.py")), "a test of its own"

    def test_is_of_one_kind_and_says_what_it_does(self, name: str) -> None:
        cls = stages.load(name)
        assert sum(issubclass(cls, kind) for kind in (Measure, Split, Collect)) == 1
        assert (cls.__doc__ or "").strip(), "the first line says what it measures"
        assert cls.version
        assert cls.level in set(Level)
        if issubclass(cls, Split):
            assert Level(cls.children).above == cls.level

    def test_configuration_has_defaults_and_survives_json(self, name: str) -> None:
        kind = stages.load(name).Config
        assert issubclass(kind, StageConfig)
        config = kind()
        assert config == kind.model_validate({}), "every key has a default"
        assert config == kind.model_validate(json.loads(config.model_dump_json()))

    def test_reads_what_some_stage_adds(self, name: str) -> None:
        known = pa.schema([field.with_name(column) for column, field in COLUMNS.items()])
        for path in stages.load(name).reads:
            resolve(known, path)

    def test_every_field_is_documented_and_its_roles_fit_its_type(self, name: str) -> None:
        adds = stages.load(name).adds
        for path, field in fields_below(adds):
            assert doc_of(field), f"{path} has no doc"
            roles, kind = roles_of(field), field.type
            if roles.get("show") == "histogram":
                assert pa.types.is_integer(kind) or pa.types.is_floating(kind), f"{path}: a histogram is of numbers"
            if roles.get("show") == "lane":
                assert {"start_s", "end_s"} <= {child.name for child in children_of(kind)}, f"{path}: a lane has times"
            if roles.get("show") == "span":
                assert "span_index" in {child.name for child in children_of(kind)}, f"{path}: which span?"
            if "over" in roles:
                assert adds.get_field_index(roles["over"]) >= 0, f"{path}: its x values must lie beside it"

    def test_no_rows_are_no_results(self, name: str) -> None:
        cls = stages.load(name)
        if issubclass(cls, Measure):
            assert list(cls(cls.Config()).process([])) == []
