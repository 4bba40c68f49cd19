"""What was taken down of a run: when, why, and ids in a form that recognises them and says nothing of them.

    takedown.json   one tombstone per takedown, in the run's folder

A tombstone holds SHA-256 digests of ids. Ids are hashes themselves, so nobody reads an address out of one; who has the
address, or the bytes, can ask whether they were taken down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from pipeline.store import RunDir
from schemas.errors import LedgerError

TOMBSTONES = "takedown.json"
DIGEST_CHARS = 32
"""128 bits: of 1e9 ids none is taken for another."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One takedown."""

    date: str
    """ISO 8601, UTC."""
    reason: str
    """As it was given."""
    num_sources: int
    num_clips: int
    num_kept_clips: int
    """Of them, those that were in shards, or about to be."""
    ids: tuple[str, ...]
    """Digests of the ids of sources, assets, shots and clips."""


@dataclass(frozen=True)
class Tombstones:
    """All that was taken down of a run."""

    stones: tuple[Tombstone, ...] = ()

    @classmethod
    def of(cls, run: RunDir) -> Tombstones:
        """Those of a run; none for one that lost nothing. Raises LedgerError where the file cannot be read."""
        if not run.exists(TOMBSTONES):
            return cls()
        try:
            told = json.loads(run.read(TOMBSTONES))
            known = {each.name for each in fields(Tombstone)}
            stones = (Tombstone(**{**stone, "ids": tuple(stone["ids"])}) for stone in told if known == stone.keys())
            found = cls(tuple(stones))
            if len(found.stones) == len(told):
                return found
            error: Exception | str = "an entry has other keys"
        except (ValueError, TypeError, AttributeError, KeyError) as wrong:
            error = wrong
        msg = f"{run.url(TOMBSTONES)} cannot be read ({error})."
        raise LedgerError(msg, remedy="Take it back from a copy: without it what was taken down may come back.")

    def write(self, run: RunDir) -> None:
        """Leaves them in the run's folder, whole or not at all."""
        run.write(TOMBSTONES, json.dumps([asdict(stone) for stone in self.stones], indent=1).encode())

    def with_one(self, stone: Tombstone) -> Tombstones:
        """These and another one."""
        return Tombstones((*self.stones, stone))

    def __bool__(self) -> bool:
        return bool(self.stones)

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(each for stone in self.stones for each in stone.ids)

    def cover(self, identifier: str | None) -> bool:
        """Whether the id of a source, asset, shot or clip was taken down. Costs a microsecond."""
        return identifier is not None and hidden(identifier) in self._ids

    def covered(self, identifiers: Iterable[str | None]) -> list[str]:
        """Those of some ids that were taken down, each once, in their order."""
        return [each for each in dict.fromkeys(identifiers) if each is not None and self.cover(each)]


def hidden(identifier: str) -> str:
    """The form in which a tombstone holds an id."""
    return hashlib.sha256(f"taken down\x1f{identifier}".encode()).hexdigest()[:DIGEST_CHARS]
