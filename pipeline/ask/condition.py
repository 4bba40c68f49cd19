"""Conditions on clips as people write them: `sync.confidence<4`, `sound.kind=music`, `text~river`. Parsed, never evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from schemas.errors import LedgerError
from schemas.recipe import nearest

if TYPE_CHECKING:
    import polars as pl

FORM = re.compile(r"\s*([\w.\[\]]+)\s*(<=|>=|!=|<|>|=|~)\s*(.*?)\s*", re.DOTALL)
TEXT = "text"
"""Field of what is said in a clip: in no cache, read from the ledger when it is asked for."""
EXAMPLES = "text~river, sync.confidence<4, sound.kind=music"
YES = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Condition:
    """One comparison of a measured field with a value."""

    field: str
    operator: str
    """<, <=, >, >=, =, != or ~ (contains, in any case)."""
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition in a text. Raises LedgerError."""
        found = FORM.fullmatch(text)
        if found is None or (not found[3] and found[2] not in ("=", "!=")):
            raise LedgerError(
                f"'{text}' is no condition.",
                remedy=f"Write FIELD OPERATOR VALUE, with < <= > >= = != ~, as {EXAMPLES}.",
            )
        return cls(found[1], found[2], found[3])

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{self.value}"

    def expression(self, known: Mapping[str, pl.DataType]) -> pl.Expr:
        """What it says of columns of these types, null where nothing was measured. Raises LedgerError with the nearest name.

        `=` without a value asks for what was not measured, `!=` for what was.
        """
        import polars as pl

        if self.field not in known:
            raise LedgerError(f"no clip has a field '{self.field}'.", remedy=nearest(self.field, known))
        kind, found = known[self.field], pl.col(self.field)
        if not self.value:
            return found.is_null() if self.operator == "=" else found.is_not_null()
        if self.operator == "~":
            return found.cast(pl.String).str.to_lowercase().str.contains(self.value.lower(), literal=True)
        return _compared(found, self.operator, self._typed(kind))

    def _typed(self, kind: pl.DataType) -> bool | float | str:
        """The value as what the field holds."""
        if kind.is_numeric():
            try:
                return float(self.value)
            except ValueError:
                raise LedgerError(
                    f"'{self}': {self.field} is a number and '{self.value}' is none.", remedy=f"Write as in {EXAMPLES}."
                ) from None
        if str(kind) == "Boolean":
            if self.value.lower() not in YES or self.operator not in ("=", "!="):
                raise LedgerError(
                    f"'{self}': {self.field} is true or false.", remedy="Write FIELD=true or FIELD=false."
                )
            return YES[self.value.lower()]
        if self.operator not in ("=", "!="):
            raise LedgerError(f"'{self}': {self.field} is a text, which has no order.", remedy="Use =, != or ~.")
        return self.value


def _compared(found: pl.Expr, operator: str, value: bool | float | str) -> pl.Expr:
    answers = {
        "<": lambda: found < value,
        "<=": lambda: found <= value,
        ">": lambda: found > value,
        ">=": lambda: found >= value,
        "=": lambda: found == value,
        "!=": lambda: found != value,
    }
    return answers[operator]()


@cache
def parsed_conditions(text: str) -> tuple[Condition, ...]:
    """The conditions of a text with commas or semicolons between, all of which are to hold; none of an empty one."""
    return tuple(Condition.parse(part) for part in re.split(r"[,;]", text) if part.strip())
