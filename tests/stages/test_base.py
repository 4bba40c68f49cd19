"""The contract's own code: a row that fails fails alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from schemas.errors import ItemError, MediaError
from schemas.fields import f, struct
from schemas.records import Row
from stages.base import Measure, StageConfig


class Halve(Measure[StageConfig]):
    """Half of an even number."""

    name, version, level, reads = "halve", "1", "clip", ("number",)
    adds = struct(f("half", pa.int64(), doc="half"))
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        if row["number"] % 2:
            raise MediaError(f"{row['number']} is odd.", reason="odd")
        return {"half": row["number"] // 2}


def test_an_item_error_takes_the_place_of_its_row_and_of_no_other() -> None:
    first, failed, last = Halve(StageConfig()).process([{"number": 4}, {"number": 3}, {"number": 8}])
    assert (first, last) == ({"half": 2}, {"half": 4})
    assert isinstance(failed, ItemError)
    assert (failed.reason, str(failed)) == ("odd", "3 is odd.")


def test_a_programming_error_is_not_taken_for_one_of_the_row() -> None:
    with pytest.raises(KeyError):
        Halve(StageConfig()).process([{}])
