"""Gates and verdicts: thresholds are applied to finished measurements, so they can be changed without measuring again.

A `Gate` bounds one measured field. `checks_of` unfolds gates into single comparisons, `evaluate` runs them over a
table, `settle` turns the outcome into one status per row; `expressions` and `status_of` say the same of flat
columns, lazily:

    keep     every check was measured and passed
    reject   the first check that failed, in stage order, is the reason
    error    a required measurement is missing and its gate does not say `missing: reject`
    open     nothing failed, but some stage was not reached (the row was settled before it): not decided
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    import polars as pl

Status = Literal["keep", "reject", "error", "open"]
Operator = Literal["min", "max", "abs_max", "equals", "one_of"]
OPERATORS: tuple[Operator, ...] = ("min", "max", "abs_max", "equals", "one_of")
Scalar = bool | float | str
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Gate(BaseModel):
    """Bounds on one measured field; bounds are inclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = None
    max: float | None = None
    abs_max: float | None = None
    equals: Scalar | None = None
    one_of: tuple[str, ...] | None = None
    when: dict[str, Scalar | list[str]] = {}
    """Applies only to rows whose fields have these values, e.g. `{clip.has_speech: true}`."""
    missing: Literal["error", "reject"] = "error"
    """What a field that could not be measured means. It never means keep."""

    @model_validator(mode="after")
    def _bounded(self) -> Gate:
        if all(getattr(self, operator) is None for operator in OPERATORS):
            raise ValueError(f"a gate needs one of {', '.join(OPERATORS)}")
        return self


Gates = Mapping[str, Mapping[str, Gate]]
"""stage -> field -> gate, in stage order."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: `path operator bound`."""

    stage: str
    field: str
    operator: Operator
    bound: Any
    gate: Gate

    @property
    def path(self) -> str:
        """The field it looks at, such as `sync.confidence`."""
        return f"{self.stage}.{self.field}"

    @property
    def name(self) -> str:
        """The reason it gives, such as `sync.confidence.min`; also the path for `--set gates.<name>=value`."""
        return f"{self.path}.{self.operator}"

    def explain(self, value: Any) -> str:
        """The failed comparison in words, with the figures."""
        if value is None:
            return f"{self.path} could not be measured"
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        sign = {"min": "<", "max": ">", "abs_max": "beyond +-", "equals": "is not", "one_of": "is none of"}
        return f"{self.path} {shown} {sign[self.operator]} {self.bound}"


def checks_of(gates: Gates, stages: Iterable[str] | None = None) -> list[Check]:
    """Every comparison of `gates`, in order; only those of `stages` if given."""
    wanted = None if stages is None else set(stages)
    return [
        Check(stage, field, operator, getattr(gate, operator), gate)
        for stage, fields in gates.items()
        if wanted is None or stage in wanted
        for field, gate in fields.items()
        for operator in OPERATORS
        if getattr(gate, operator) is not None
    ]


@dataclass(frozen=True)
class Outcome:
    """What each check says of each row; arrays are [num_checks, num_rows]."""

    checks: Sequence[Check]
    failed: Mask
    missing: Mask
    unreached: Mask

    @property
    def rejects(self) -> Mask:
        """Rows a check turns away: failed, or missing where missing means reject."""
        soft = np.array([check.gate.missing == "reject" for check in self.checks], bool).reshape(-1, 1)
        rejected: Mask = self.failed | (self.missing & soft)
        return rejected

    @property
    def errors(self) -> Mask:
        """Rows a check cannot decide because its measurement is missing."""
        hard = np.array([check.gate.missing == "error" for check in self.checks], bool).reshape(-1, 1)
        undecidable: Mask = self.missing & hard
        return undecidable


def evaluate(table: pa.Table, checks: Sequence[Check]) -> Outcome:
    """What every check says of every row of `table`, whose columns are the stages' structs."""
    shape = (len(checks), table.num_rows)
    failed, missing, unreached = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    for index, check in enumerate(checks):
        applies, is_unknown = _applies(table, check.gate.when)
        reached = _valid(table.column(check.stage))
        value = column(table, check.path)
        measured = _valid(value)
        unreached[index] = (applies & ~reached) | is_unknown
        missing[index] = applies & reached & ~measured
        failed[index] = applies & measured & ~_passes(value, check)
    return Outcome(checks, failed, missing, unreached)


def settle(outcome: Outcome) -> tuple[list[Status], list[Check | None]]:
    """Status of each row and the check that decided it (None for keep and open)."""
    num_rows = outcome.failed.shape[1]
    if not outcome.checks:
        return ["keep"] * num_rows, [None] * num_rows
    rejects, errors = outcome.rejects, outcome.errors
    decided: Mask = np.logical_or(rejects, errors)
    first = np.argmax(decided, axis=0)
    has_decision: Mask = np.asarray(decided.any(axis=0))
    is_open: Mask = np.asarray(outcome.unreached.any(axis=0))
    statuses: list[Status] = []
    deciders: list[Check | None] = []
    for row in range(num_rows):
        if has_decision[row]:
            check = first[row]
            statuses.append("error" if errors[check, row] else "reject")
            deciders.append(outcome.checks[check])
        else:
            statuses.append("open" if is_open[row] else "keep")
            deciders.append(None)
    return statuses, deciders


def column(table: pa.Table, path: str) -> pa.ChunkedArray:
    """The values at a dotted path; null wherever a struct on the way is null."""
    head, *rest = path.split(".")
    values = table.column(head)
    for name in rest:
        kind = values.type
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise KeyError(path)
        values = pc.struct_field(values, name)
    return values


def _valid(values: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.is_valid(values).to_numpy(zero_copy_only=False), bool)


def _applies(table: pa.Table, when: Mapping[str, Any]) -> tuple[Mask, Mask]:
    """(rows a condition holds for, rows where it cannot be known because the stage it looks at was not reached)."""
    applies, is_unknown = np.ones(table.num_rows, bool), np.zeros(table.num_rows, bool)
    for path, wanted in when.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        applies &= np.asarray([value in options for value in column(table, path).to_pylist()], bool)
        is_unknown |= ~_valid(table.column(path.split(".")[0]))
    return applies & ~is_unknown, is_unknown


def _passes(values: pa.ChunkedArray, check: Check) -> Mask:
    match check.operator:
        case "min":
            passed = pc.greater_equal(values, check.bound)
        case "max":
            passed = pc.less_equal(values, check.bound)
        case "abs_max":
            passed = pc.less_equal(pc.abs(values), check.bound)
        case "equals":
            passed = pc.equal(values, pa.scalar(check.bound))
        case "one_of":
            passed = pc.is_in(values, value_set=pa.array(list(check.bound), values.type))
    return np.asarray(pc.fill_null(passed, False).to_numpy(zero_copy_only=False), bool)


@dataclass(frozen=True)
class Expression:
    """What one check says of a row, as boolean expressions over flat columns that are never null; see `Outcome`."""

    check: Check
    failed: pl.Expr
    missing: pl.Expr
    unreached: pl.Expr

    @property
    def rejects(self) -> pl.Expr:
        """Turns the row away."""
        return self.failed | self.missing if self.check.gate.missing == "reject" else self.failed

    @property
    def errors(self) -> pl.Expr:
        """Cannot decide, because its measurement is missing."""
        import polars as pl

        return self.missing if self.check.gate.missing == "error" else pl.lit(False)


def expressions(checks: Sequence[Check], reached: Callable[[str], pl.Expr]) -> list[Expression]:
    """What `evaluate` says, for flat columns named by dotted paths; `reached` says of a struct whether it is there."""
    import polars as pl

    found = []
    for check in checks:
        known = [pl.lit(True), *(reached(path.partition(".")[0]) for path in check.gate.when)]
        wanted = [_holds(path, value) for path, value in check.gate.when.items()]
        is_known = reduce(and_, known)
        applies = reduce(and_, [is_known, *wanted])
        is_there, value = reached(check.stage), pl.col(check.path)
        found.append(
            Expression(
                check,
                failed=applies & value.is_not_null() & ~_within(value, check).fill_null(False),
                missing=applies & is_there & value.is_null(),
                unreached=(applies & ~is_there) | ~is_known,
            )
        )
    return found


def status_of(said: Sequence[Expression]) -> pl.Expr:
    """What `settle` says: keep, reject, error or open."""
    import polars as pl

    is_open = reduce(or_, (each.unreached for each in said), pl.lit(False))
    status = pl.when(is_open).then(pl.lit("open")).otherwise(pl.lit("keep"))
    for each in reversed(said):
        status = pl.when(each.rejects).then(pl.lit("reject")).when(each.errors).then(pl.lit("error")).otherwise(status)
    return status


def _holds(path: str, wanted: Any) -> pl.Expr:
    """Whether a field has one of the values of a condition; never null."""
    import polars as pl

    options = wanted if isinstance(wanted, list) else [wanted]
    return reduce(or_, (_equals(pl.col(path), option).fill_null(False) for option in options), pl.lit(False))


def _equals(value: pl.Expr, bound: Scalar) -> pl.Expr:
    import polars as pl

    is_number = isinstance(bound, float)
    return value.cast(pl.Float64) == pl.lit(bound, pl.Float64) if is_number else value == pl.lit(bound)


def _within(value: pl.Expr, check: Check) -> pl.Expr:
    """Null where the value is. Numbers are compared as doubles, as Arrow does; NaN is within nothing, as in Arrow."""
    import polars as pl

    if check.operator == "one_of":
        return value.is_in(list(check.bound))
    if check.operator == "equals":
        return _equals(value, check.bound)
    number = value.cast(pl.Float64)
    number = number.abs() if check.operator == "abs_max" else number
    bound = pl.lit(check.bound, pl.Float64)
    return number.is_not_nan() & (number >= bound if check.operator == "min" else number <= bound)
