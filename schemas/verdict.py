"""Gates and verdicts: thresholds are applied to finished measurements, so they can be changed without measuring again.

A `Gate` bounds one measured field. `checks_of` unfolds gates into single comparisons, `evaluate` runs them over a
table, `settle` turns the outcome into one status per row; `expressions` and `status_of` say the same of flat
columns, lazily. What a gate means is written once (`_said`), for masks and expressions alike:

    keep     every check was measured and passed
    reject   the first check that failed, in stage order, is the reason
    error    a required measurement is missing and its gate does not say `missing: reject`
    open     nothing failed, but some stage was not reached (the row was settled before it): not decided
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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


class Boolean(Protocol):
    """A column of booleans without nulls: a mask, or a lazy expression."""

    def __and__(self, other: Any, /) -> Any: ...
    def __or__(self, other: Any, /) -> Any: ...
    def __invert__(self) -> Any: ...


B = TypeVar("B", bound=Boolean)
B_co = TypeVar("B_co", bound=Boolean, covariant=True)


class Values(Protocol[B_co]):
    """A measured field as gates look at it. Numbers are compared as doubles, and NaN is within nothing."""

    def is_known(self) -> B_co: ...
    def at_least(self, bound: float) -> B_co: ...
    def at_most(self, bound: float) -> B_co: ...
    def is_among(self, options: Sequence[Scalar]) -> B_co: ...


@dataclass(frozen=True)
class Said(Generic[B]):
    """What one check says of every row."""

    check: Check
    failed: B
    missing: B
    """The stage looked and could not measure it."""
    unreached: B

    @property
    def rejects(self) -> B:
        """Turns the row away: failed, or missing where missing means reject."""
        found: B = self.failed | self.missing if self.check.gate.missing == "reject" else self.failed
        return found

    @property
    def errors(self) -> B:
        """Cannot decide, because its measurement is missing; no row is both failed and missing."""
        found: B = self.missing if self.check.gate.missing == "error" else self.failed & self.missing
        return found


def _said(check: Check, every: B, reached: Callable[[str], B], values: Callable[[str], Values[B]]) -> Said[B]:
    """What a gate means.

    `every` is true of every row, `reached` says of a stage whether it looked at a row, `values` what lies at a path.
    """
    is_known = applies = every
    for path, wanted in check.gate.when.items():
        is_known = is_known & reached(path.partition(".")[0])
        applies = applies & values(path).is_among(wanted if isinstance(wanted, list) else [wanted])
    applies = applies & is_known
    is_there, value = reached(check.stage), values(check.path)
    is_measured = value.is_known()
    return Said(
        check,
        failed=applies & is_measured & ~_is_within(value, check),
        missing=applies & is_there & ~is_measured,
        unreached=(applies & ~is_there) | ~is_known,
    )


def _is_within(value: Values[B], check: Check) -> B:
    match check.operator:
        case "min":
            return value.at_least(check.bound)
        case "max":
            return value.at_most(check.bound)
        case "abs_max":
            found: B = value.at_least(-check.bound) & value.at_most(check.bound)
            return found
        case "equals":
            return value.is_among([check.bound])
        case "one_of":
            return value.is_among(check.bound)


# --- tables


@dataclass(frozen=True)
class Outcome:
    """What each check says of each row, see `Said`; arrays are [num_checks, num_rows]."""

    checks: Sequence[Check]
    failed: Mask
    missing: Mask
    unreached: Mask
    rejects: Mask
    errors: Mask


@dataclass(frozen=True)
class _Column:
    """Values of a table."""

    values: pa.ChunkedArray

    def is_known(self) -> Mask:
        return _mask(pc.is_valid(self.values))

    def at_least(self, bound: float) -> Mask:
        return _mask(pc.greater_equal(self.values, bound))

    def at_most(self, bound: float) -> Mask:
        return _mask(pc.less_equal(self.values, bound))

    def is_among(self, options: Sequence[Scalar]) -> Mask:
        return np.array([value in options for value in self.values.to_pylist()], bool)


def evaluate(table: pa.Table, checks: Sequence[Check]) -> Outcome:
    """What every check says of every row of `table`, whose columns are the stages' structs."""
    shape, every = (len(checks), table.num_rows), np.ones(table.num_rows, bool)
    said = [
        _said(each, every, lambda stage: _Column(table.column(stage)).is_known(), lambda at: _Column(column(table, at)))
        for each in checks
    ]
    masks = {name: [getattr(each, name) for each in said] for name in (f.name for f in fields(Outcome)[1:])}
    return Outcome(checks, **{name: np.array(each, bool).reshape(shape) for name, each in masks.items()})


def settle(outcome: Outcome) -> tuple[list[Status], list[Check | None]]:
    """Status of each row and the check that decided it (None for keep and open)."""
    num_rows = outcome.failed.shape[1]
    if not outcome.checks:
        return ["keep"] * num_rows, [None] * num_rows
    decided: Mask = outcome.rejects | outcome.errors
    first = np.argmax(decided, axis=0)
    has_decision: Mask = np.asarray(decided.any(axis=0))
    is_open: Mask = np.asarray(outcome.unreached.any(axis=0))
    statuses: list[Status] = []
    deciders: list[Check | None] = []
    for row in range(num_rows):
        if has_decision[row]:
            check = first[row]
            statuses.append("error" if outcome.errors[check, row] else "reject")
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


def _mask(answer: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(answer, False).to_numpy(zero_copy_only=False), bool)


# --- lazy columns


@dataclass(frozen=True)
class _Lazy:
    """Values of a flat column."""

    value: pl.Expr

    @property
    def number(self) -> pl.Expr:
        import polars as pl

        return self.value.cast(pl.Float64)

    def is_known(self) -> pl.Expr:
        return self.value.is_not_null()

    def at_least(self, bound: float) -> pl.Expr:
        return (self.number.is_not_nan() & (self.number >= bound)).fill_null(False)

    def at_most(self, bound: float) -> pl.Expr:
        return (self.number.is_not_nan() & (self.number <= bound)).fill_null(False)

    def is_among(self, options: Sequence[Scalar]) -> pl.Expr:
        import polars as pl

        found = ((self.number if isinstance(each, float) else self.value) == each for each in options)
        return reduce(or_, (each.fill_null(False) for each in found), pl.lit(False))


def expressions(checks: Sequence[Check], reached: Callable[[str], pl.Expr]) -> list[Said[pl.Expr]]:
    """What `evaluate` says, for flat columns named by dotted paths; `reached` says of a struct whether it is there."""
    import polars as pl

    return [_said(check, pl.lit(True), reached, lambda path: _Lazy(pl.col(path))) for check in checks]


def status_of(said: Sequence[Said[pl.Expr]]) -> pl.Expr:
    """What `settle` says: keep, reject, error or open."""
    import polars as pl

    is_open = reduce(or_, (each.unreached for each in said), pl.lit(False))
    status = pl.when(is_open).then(pl.lit("open")).otherwise(pl.lit("keep"))
    for each in reversed(said):
        status = pl.when(each.rejects).then(pl.lit("reject")).when(each.errors).then(pl.lit("error")).otherwise(status)
    return status
