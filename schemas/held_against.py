"""What a run was held against: the evaluation sets whose items were looked for in it, as facts of contaminated.arrow.

RUN/contaminated.arrow   clip_id, by, item, set: a row per clip and way in which it is near; and of every set a fact
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Way = Literal["seen", "heard", "said", "voice"]
"""In which a clip may be near an item."""
WAYS: tuple[Way, ...] = get_args(Way)
CONTAMINATED = "contaminated.arrow"
FACT = "held_against:"
"""Before the name of a set in the keys of facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAgainst:
    """One set that a run was held against, whether anything was near it or not."""

    name: str
    """As it stands in column `set`."""
    places: tuple[str, ...] = ()
    """Where its media or its run lie: absolute paths, or addresses."""
    ways: tuple[Way, ...] = ()
    """Those in which both sides were compared."""

    def fact(self) -> dict[str, str]:
        """The fact that tells of it."""
        told = asdict(self)
        return {FACT + told.pop("name"): json.dumps(told, ensure_ascii=False)}


def held_against(facts: Mapping[str, str]) -> Iterator[HeldAgainst]:
    """The sets that the facts of a file tell of."""
    for key, value in sorted(facts.items()):
        if key.startswith(FACT):
            told = {name: tuple(each) for name, each in json.loads(value).items()}
            yield HeldAgainst(name=key.removeprefix(FACT), **told)
