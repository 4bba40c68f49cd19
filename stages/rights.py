"""`rights`: under which licence a source is, what that allows, and whether what its manifest says of it is as wanted.

Before `download` a gate on it spares the fetching of what may not be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from schemas.fields import f, struct
from schemas.records import Row
from stages.base import Measure, Resources, StageConfig
from stages.download.licences import CLOSED, DUTIES, FREE
from stages.download.sources import ROWS

OPEN_NAMES = re.compile(r"\b(?:mit|apache|bsd|isc|cc[ -]?by|creative commons|odc|odbl|cdla|artistic)\b", re.IGNORECASE)
"""Licences that give everybody leave to use, as SPDX and people write them."""
Scalar = bool | int | float | str


class RightsConfig(StageConfig):
    """What a source's manifest has to say of it."""

    metadata: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Column of the manifest -> values that are admitted, e.g. `{consent: [written], dataset: [talks, lectures]}`."""


class Rights(Measure[RightsConfig]):
    """The licence that a source's manifest states, what it allows, and whether other columns have admitted values.

    Nothing here is legal advice: words in a licence's name are read, nothing more. Unknown is null.
    """

    name = "rights"
    version = "1"
    level = "asset"
    reads = ("licence", "metadata")
    adds = struct(
        f("licence", pa.string(), doc="as stated; null where nothing is", show="label"),
        f("is_open", pa.bool_(), doc="its name is that of a licence for everybody; null where none is stated"),
        f("allows_commercial", pa.bool_(), doc="open, and not for non-commercial use alone; null where unknown"),
        f("allows_changes", pa.bool_(), doc="open, and derivatives are allowed; null where unknown"),
        f("needs_attribution", pa.bool_(), doc="the author is to be named; null where unknown"),
        f(
            "needs_same_licence",
            pa.bool_(),
            doc="what is made of it is to be under the same licence; null where unknown",
        ),
        f(
            "is_as_wanted",
            pa.bool_(),
            doc="every column of `metadata` has an admitted value, in every row of the source",
        ),
        f("unwanted", pa.string(), doc="the first column that has not, and its value"),
    )
    Config = RightsConfig
    resources = Resources(cpus=1.0, memory_gb=0.05, timeout_s=60.0)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one source."""
        unwanted = unwanted_column(json.loads(row["metadata"] or "{}"), self.config.metadata)
        return {
            "licence": row["licence"],
            **terms_of(row["licence"]),
            "is_as_wanted": unwanted is None,
            "unwanted": unwanted,
        }


def terms_of(licence: str | None) -> dict[str, bool | None]:
    """What the name of a licence says: the fields of `Rights` about use. Of several joined by AND the strictest holds."""
    names = ("is_open", "allows_commercial", "allows_changes", "needs_attribution", "needs_same_licence")
    if licence is None:
        return dict.fromkeys(names)
    is_free, is_closed = bool(FREE.search(licence)), bool(CLOSED.search(licence))
    is_open = not is_closed and (is_free or bool(OPEN_NAMES.search(licence)))
    if not is_open:
        return {**dict.fromkeys(names, False), "needs_attribution": None, "needs_same_licence": None}
    duties = {name: bool(re.search(form, licence, re.IGNORECASE)) for name, form in DUTIES.items()}
    is_plain = is_free and not OPEN_NAMES.search(licence)
    return {
        "is_open": True,
        "allows_commercial": not duties["nc"],
        "allows_changes": not duties["nd"],
        "needs_attribution": not is_plain,
        "needs_same_licence": duties["sa"],
    }


def unwanted_column(told: Mapping[str, Any], wanted: Mapping[str, tuple[Scalar, ...]]) -> str | None:
    """The first column whose value is not admitted, with that value; None where all are. A source named by several rows of
    manifests has to be as wanted in each."""
    rows = [{**told, **row} for row in told.get(ROWS) or [{}]]
    for column, admitted in wanted.items():
        for row in rows:
            value = row.get(column)
            if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in admitted):
                return f"{column}={json.dumps(value, ensure_ascii=False)}"
    return None
