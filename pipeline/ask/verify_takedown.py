"""Whether what was taken down is gone: ids of everything a run holds, asked of its tombstones."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.ask.queries import Run
from pipeline.near_marks import read_near
from pipeline.pack.index import CUTS
from pipeline.tombstones import Tombstones
from schemas.arrow_file import read_table
from schemas.errors import LedgerError
from schemas.held_against import CONTAMINATED
from schemas.ids import asset_id
from schemas.records import Level

FINISH = "run `nava-curate takedown RUN`, which goes on with what is left"
INDEX_IDS = ("clip_id", "source")
LOG, DATA = "ledger/_delta_log", "ledger"


def takedown_problems(run: Run) -> Iterator[str]:
    """What is still there of what was taken down, in every artefact of the run; nothing where nothing was.

    Costs a digest for each id of the run, and reads nothing but ids.
    """
    try:
        stones = Tombstones.of(run.dir)
    except LedgerError as error:
        yield str(error)
        return
    if not stones:
        return
    for level in Level:
        rows = run.ledger.scan(level).select("source_id", "asset_id", "row_id").collect(engine="streaming")
        found = [row for row in rows.iter_rows() if any(stones.cover(each) for each in row)]
        if found:
            yield f"{len(found)} {level}s in the ledger were taken down, {found[0][2]} among them; {FINISH}"
    yield from _old_files(run)
    sources = read_table(run.dir.read("sources.arrow"))["source_id"].to_pylist()
    yield from _said("sources.arrow", stones.covered(sources))
    stored = [asset_id(name.rpartition("/")[2].partition(".")[0]) for name in run.dir.entries("assets")]
    yield from _said("assets/", stones.covered(stored))
    cuts = [name.rpartition("/")[2].partition("-")[0] for name in run.dir.entries(CUTS)]
    yield from _said(f"{CUTS}/", stones.covered(cuts))
    yield from _said(CONTAMINATED, stones.covered(read_near(run.dir)["clip_id"].to_list()))
    for name in run.dir.names("index"):
        if name.endswith(".arrow"):
            yield from _said(f"index/{name}", _in_index(run, name, stones))


def _in_index(run: Run, name: str, stones: Tombstones) -> list[str]:
    try:
        table = read_table(run.dir.read(f"index/{name}"))
    except pa.ArrowInvalid:
        return []  # whoever looks at shards says so
    return stones.covered(each for column in INDEX_IDS for each in table[column].to_pylist())


def _old_files(run: Run) -> Iterator[str]:
    """Files of the ledger that its newest version does not need: they may hold rows that were removed."""
    needed = {f"{path}" for path in pa.table(run.ledger.table.get_add_actions(flatten=True))["path"].to_pylist()}
    there = {name for name in run.dir.entries(DATA) if name.endswith(".parquet") and not name.startswith("_")}
    if old := there - needed:
        yield f"{len(old)} older files of the ledger are still there, {min(old)} among them; {FINISH}"


def _said(where: str, found: list[str]) -> Iterator[str]:
    if found:
        yield f"{where} names {len(found)} of what was taken down, {found[0]} among them; {FINISH}"
