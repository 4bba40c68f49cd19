"""The chain of rows that leads to one clip, shot or source."""

from __future__ import annotations

from typing import Any

from pipeline.ask.queries import Run
from pipeline.ledger import PACK_KIND
from schemas.errors import LedgerError
from schemas.records import Level


def find(run: Run, key: str) -> list[dict[str, Any]]:
    """The chain of ledger rows from source down to the row whose id, id prefix or file name is `key`, then its packing.

    A source or asset returns its asset row and all below it. Raises LedgerError with near misses.
    """
    rows = {kind: run.ledger.settled(kind).to_pylist() for kind in Level}
    for kind in (Level.CLIP, Level.SHOT):
        named = {row["row_id"]: row for row in reversed(rows[kind]) if row["row_id"].startswith(key)}
        hits = list(named.values())  # of equal bytes given twice, the rows of the first source
        if len(hits) == 1:
            unit = {
                each: [row for row in rows[each] if row["source_id"] == hits[0]["source_id"]]
                for each in (Level.SHOT, Level.ASSET)
            }
            chain = [row for row in run.ledger.table(PACK_KIND).to_pylist() if row["row_id"] == hits[0]["row_id"]]
            chain.append(hits[0])
            if kind is Level.CLIP:
                chain += [row for row in unit[Level.SHOT] if row["row_id"] == hits[0]["parent_id"]]
            chain += unit[Level.ASSET]
            return chain[::-1]
        if len(hits) > 1:
            raise LedgerError(f"'{key}' is the beginning of {len(hits)} {kind} ids.", remedy="Give more of it.")
    assets = [
        row for row in rows[Level.ASSET]
        if row["row_id"].startswith(key) or (row["asset_id"] or "").startswith(key) or key in row["source"]["uri"]
    ]  # fmt: skip
    if len(assets) != 1:
        what = "matches nothing" if not assets else f"matches {len(assets)} sources"
        raise LedgerError(f"'{key}' {what} in {run.dir.uri}.", remedy="Give a clip, shot or asset id, or a file name.")
    below = [
        row for kind in (Level.SHOT, Level.CLIP) for row in rows[kind] if row["source_id"] == assets[0]["source_id"]
    ]
    return [assets[0], *below]
