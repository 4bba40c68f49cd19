"""Sources that somebody's list names: by their addresses, or by patterns of them. And what a run refuses at listing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

from pipeline.store import RunDir
from pipeline.tombstones import Tombstones
from schemas.errors import RecipeError
from schemas.records import Source
from stages.download.sources import list_inputs


@dataclass(frozen=True)
class Addresses:
    """Addresses as lists name them."""

    ids: frozenset[str] = frozenset()
    """Ids of sources, which are made of whole addresses."""
    patterns: tuple[re.Pattern[str], ...] = ()
    """Of what may be shown of an address."""

    @classmethod
    def of(cls, lists: Sequence[str]) -> Addresses:
        """Those of lists in any form that `--input` reads; an address with a `*` stands for all that it matches.

        Raises RecipeError for a list that cannot be read.
        """
        named = [source for each in lists for source in list_inputs([each]).sources]
        patterns = {source.uri for source in named if "*" in source.uri}
        return cls(
            frozenset(source.source_id for source in named if "*" not in source.uri),
            tuple(re.compile(translate(pattern)) for pattern in sorted(patterns)),
        )

    def name(self, source: Source) -> bool:
        """Whether a source is among them."""
        return source.source_id in self.ids or any(pattern.match(source.uri) for pattern in self.patterns)


def willing(sources: Sequence[Source], known: Sequence[Source], opt_out: Sequence[str], run: RunDir) -> list[Source]:
    """Those of `sources` that neither were taken down of the run nor are on its recipe's opt-out lists.

    `known` are the sources that the run has already. Raises RecipeError where none is left, and where one that the run has
    is on a list since.
    """
    opted_out, stones = Addresses.of(opt_out), Tombstones.of(run)
    late = sum(opted_out.name(source) for source in known)
    if late:
        raise RecipeError(
            f"{late} sources of {run.uri} have opted out since they were curated.",
            remedy=f"Run `nava-curate takedown {run.uri} --uri-list {opt_out[0]}` first.",
        )
    found = [source for source in sources if not opted_out.name(source) and not stones.cover(source.source_id)]
    if sources and not found:
        raise RecipeError(
            f"all {len(sources)} sources were taken down of {run.uri} or have opted out.",
            remedy="Give other inputs; docs/takedown.md says how a source is refused.",
        )
    return found
