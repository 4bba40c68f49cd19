"""Gates over Arrow tables and over lazy flat columns say what they say of one plain row, on any table."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.leaves import flattened
from schemas.verdict import Check, Gate, checks_of, evaluate, expressions, settle, status_of

FIELDS = {
    "ratio": pa.float32(),
    "level": pa.float64(),
    "count": pa.int32(),
    "kind": pa.string(),
    "is_there": pa.bool_(),
}
STAGES = ("audio", "sync")
STRUCT = pa.struct(list(FIELDS.items()))
NUMBERS = st.sampled_from([-2.5, -1.0, 0.0, 0.1, 0.3, 1.0, 2.0, 3.0])
"""0.1 and 0.3 are others as float32 than as float64."""
WORDS = st.sampled_from(["speech", "music", ""])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "ratio": NUMBERS | st.just(float("nan")),
    "level": NUMBERS | st.just(float("nan")),
    "count": st.integers(-3, 3),
    "kind": WORDS,
    "is_there": st.booleans(),
}
BOUNDS: dict[str, st.SearchStrategy[Any]] = VALUES | {"ratio": NUMBERS, "level": NUMBERS, "count": NUMBERS}


@st.composite
def gates(draw: st.DrawFn, field: str) -> Gate:
    operators = {"kind": ("equals", "one_of"), "is_there": ("equals",)}.get(field, ("min", "max", "abs_max", "equals"))
    chosen = draw(st.sets(st.sampled_from(operators), min_size=1, max_size=2))
    one_of = st.lists(WORDS, min_size=1, max_size=2).map(tuple)
    bounds = {each: draw(one_of if each == "one_of" else BOUNDS[field]) for each in chosen}
    when = {}
    for other in draw(st.sets(st.sampled_from(["level", "count", "kind", "is_there"]), max_size=2)):
        options = BOUNDS[other] | st.lists(WORDS, max_size=2) if other == "kind" else BOUNDS[other]
        when[f"{draw(st.sampled_from(STAGES))}.{other}"] = draw(options)
    return Gate(**bounds, when=when, missing=draw(st.sampled_from(["error", "reject"])))


@st.composite
def all_gates(draw: st.DrawFn) -> dict[str, dict[str, Gate]]:
    fields = st.sets(st.sampled_from(list(FIELDS)), max_size=3)
    return {stage: {field: draw(gates(field)) for field in draw(fields)} for stage in STAGES}


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            stage: st.none() | st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})
            for stage in STAGES
        }
    ),
    min_size=1,
    max_size=12,
)


def is_within(value: Any, check: Check) -> bool:
    """Whether a measured value keeps a bound."""
    within: dict[str, Callable[[Any, Any], bool]] = {
        "min": operator.ge,
        "max": operator.le,
        "abs_max": lambda found, bound: abs(found) <= bound,
        "equals": operator.eq,
        "one_of": lambda found, options: found in options,
    }
    return within[check.operator](value, check.bound)


def plain(check: Check, row: dict[str, Any]) -> dict[str, bool]:
    """What a check says of a row, in plain Python; its floats are as wide as they are stored."""
    met = []
    for path, wanted in check.gate.when.items():
        stage, _, name = path.partition(".")
        options = wanted if isinstance(wanted, list) else [wanted]
        met.append(None if row[stage] is None else row[stage][name] in options)
    is_unknown, applies = None in met, all(met)
    value = None if row[check.stage] is None else row[check.stage][check.field]
    is_missing = applies and row[check.stage] is not None and value is None
    has_failed = applies and value is not None and not is_within(value, check)
    is_soft = check.gate.missing == "reject"
    return {
        "failed": has_failed,
        "missing": is_missing,
        "unreached": is_unknown or (applies and row[check.stage] is None),
        "rejects": has_failed or (is_missing and is_soft),
        "errors": is_missing and not is_soft,
    }


def plain_status(said: list[dict[str, bool]]) -> tuple[str, int | None]:
    """(status of a row, which check decided it) by what its checks say, in their order."""
    for number, each in enumerate(said):
        if each["rejects"] or each["errors"]:
            return "reject" if each["rejects"] else "error", number
    return "open" if any(each["unreached"] for each in said) else "keep", None


@settings(max_examples=200)
@given(gates=all_gates(), rows=ROWS)
@pytest.mark.slow
def test_gates_say_of_any_table_what_they_say_of_one_row(
    gates: dict[str, dict[str, Gate]], rows: list[dict[str, Any]]
) -> None:
    checks = checks_of(gates)
    table = pa.table({stage: pa.array([row[stage] for row in rows], STRUCT) for stage in STAGES})
    stored = table.to_pylist()
    wanted = [[plain(check, row) for check in checks] for row in stored]
    outcome = evaluate(table, checks)
    columns: dict[str, Any] = {
        f"{stage}.hash": [None if row[stage] is None else "h" for row in rows] for stage in STAGES
    }
    for stage in STAGES:
        columns |= flattened(stage, [row[stage] for row in rows], STRUCT)
    flat = pl.DataFrame(pa.table(columns))
    said = expressions(checks, lambda stage: pl.col(f"{stage}.hash").is_not_null())
    kinds = ("failed", "missing", "unreached", "rejects", "errors")
    names = [(number, kind) for number in range(len(said)) for kind in kinds]
    found = flat.with_columns(getattr(said[number], kind).alias(f"{number} {kind}") for number, kind in names)
    for number, kind in names:
        of_rows = [of_row[number][kind] for of_row in wanted]
        assert getattr(outcome, kind)[number].tolist() == of_rows, (said[number].check.name, kind)
        assert found[f"{number} {kind}"].to_list() == of_rows, (said[number].check.name, kind)
    statuses, deciders = settle(outcome)
    decided = [
        (status, None if by is None else checks.index(by)) for status, by in zip(statuses, deciders, strict=True)
    ]
    assert decided == [plain_status(of_row) for of_row in wanted]
    assert flat.with_columns(status=status_of(said))["status"].to_list() == statuses
