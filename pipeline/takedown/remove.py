"""Takes sources out of a run and of what was made of it.

    tombstone -> ledger -> sources, fetched bytes, cuts, caches, marks -> what others said of them -> shards -> latents, pools

The tombstone comes first and all else follows from it: whatever ends the command, the same command goes on with what is left.
Stages that compare clips are asked again, for what they said of others may name what is gone. Only shards that held
any of it are packed anew, by bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import pack
from pipeline.ask.marks import marks_file_of, pictures_of
from pipeline.ask.queries import Run
from pipeline.execute.collect import FOLDER as COLLECTED
from pipeline.execute.heartbeat import AT_WORK
from pipeline.execute.here import here
from pipeline.ledger_writer import LedgerWriter
from pipeline.near_marks import forget_near
from pipeline.pack.index import CUTS
from pipeline.pools import select
from pipeline.run import SKIPPED, SOURCES, Opener, measure, pack_kept, read_sources
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from pipeline.takedown.chosen import Meant
from pipeline.takedown.latents import purge_latents
from pipeline.tombstones import Tombstone, Tombstones, hidden
from schemas.arrow_file import read_table, table_bytes
from schemas.files import write_whole
from schemas.ids import asset_id
from schemas.printable import percent_escaped
from schemas.records import Level

ASSETS = "assets"
AGAIN = "the same bytes were taken down before"
"""Reason of what came back under another address."""


@dataclass(frozen=True)
class Removed:
    """What a takedown did."""

    num_sources: int
    num_clips: int
    num_kept_clips: int
    packed_anew: tuple[str, ...]
    """Shards that hold what was left of others."""
    num_shards_left_alone: int
    latents: dict[str, int]
    """Folder -> samples that went."""


def takedown(
    run: Run,
    found: Sequence[Meant],
    reason: str,
    latents: Sequence[Path] = (),
    pools: Sequence[str] = (),
    opener: Opener = here,
) -> Removed:
    """Takes `found` down, and goes on with whatever earlier takedowns did not come to. Nothing chosen: only that.

    Raises LedgerError where another run is at the folder, ShardError for latents without an index.
    """
    before = set(run.dir.names("shards"))
    with run.dir.claimed(), LedgerWriter(run.ledger.uri, run.plan) as writer:
        stones, stone = _with_tombstone(run, found, reason)
        writer.forget([name for name, _ in _covered(run, stones)])
        run.ledger.refresh()
        _forget_files(run, stones)
        known = set(writer.ledger.passed().drop_nulls()["source_id"])
        rest = [source for source in read_sources(run.dir) if source.source_id in known]
        with opener(run.plan, run.dir) as executor, Progress(len(rest), len(rest), quiet=True) as progress:
            measure(run.plan, rest, executor, writer, progress)
            if before or run.dir.exists(pack.MANIFEST):
                pack_kept(run.plan, rest, executor, writer, progress)
        writer.drop_past()
    run.ledger.refresh()
    _forget_caches(run, stones)
    gone = {str(folder): purge_latents(folder, stones).num_samples for folder in latents}
    for pool in pools:
        select(Run(run.dir.uri, run.cache), pool)
    after = set(run.dir.names("shards"))
    return Removed(
        num_sources=stone.num_sources,
        num_clips=stone.num_clips,
        num_kept_clips=stone.num_kept_clips,
        packed_anew=tuple(sorted(after - before)),
        num_shards_left_alone=len(after & before),
        latents=gone,
    )


def _with_tombstone(run: Run, found: Sequence[Meant], reason: str) -> tuple[Tombstones, Tombstone]:
    """All tombstones, the new one written; and that one, which stands nowhere if nothing was chosen.

    What came back under another address is chosen as well: its bytes were taken down before.
    """
    import polars as pl

    stones = Tombstones.of(run.dir)
    pairs = dict.fromkeys((one.source_id, one.asset_id) for one in found)
    pairs |= dict.fromkeys((name, asset) for name, asset in _covered(run, stones) if not stones.cover(name))
    names = [name for name, _ in pairs]
    ids: list[str] = [each for pair in pairs for each in pair if each]
    num_clips = num_kept = 0
    for level in (Level.SHOT, Level.CLIP):
        rows = run.ledger.scan(level).filter(pl.col("source_id").is_in(names)).select("row_id", "verdict.status")
        table = rows.collect(engine="streaming")
        ids += table["row_id"].to_list()
        num_clips = table["row_id"].n_unique()
        num_kept = table.filter(pl.col("verdict.status") == "keep")["row_id"].n_unique()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    digests = tuple(sorted({hidden(each) for each in ids}))
    stone = Tombstone(date, reason or AGAIN, len(names), num_clips, num_kept, digests)
    if names:
        stones = stones.with_one(stone)
        stones.write(run.dir)
    return stones, stone


def _covered(run: Run, stones: Tombstones) -> list[tuple[str, str | None]]:
    """(source id, asset id) of the sources in the ledger that were taken down, or whose bytes were."""
    assets = run.ledger.scan(Level.ASSET).select("source_id", "asset_id").collect(engine="streaming")
    return [(name, asset) for name, asset in assets.iter_rows() if stones.cover(name) or stones.cover(asset)]


def _forget_files(run: Run, stones: Tombstones) -> None:
    """Entries of the run that are about what was taken down. What stages said that compare rows is made anew later."""
    directory = run.dir
    if directory.exists(SOURCES):
        table = read_table(directory.read(SOURCES))
        gone = stones.covered(table["source_id"].to_pylist())
        uris = set(table.filter(pc.is_in(table["source_id"], pa.array(gone, pa.string())))["uri"].to_pylist())
        kept = table.filter(pc.invert(pc.is_in(table["source_id"], pa.array(gone, pa.string()))))
        if gone:
            directory.write(SOURCES, table_bytes(kept))
        _forget_lines(directory, uris)
    for entry in directory.entries(ASSETS):
        if stones.cover(asset_id(entry.rpartition("/")[2].partition(".")[0])):
            directory.remove(f"{ASSETS}/{entry}")
    for entry in directory.entries(CUTS):
        if stones.cover(entry.rpartition("/")[2].partition("-")[0]):
            directory.remove(f"{CUTS}/{entry}")
    for entry in directory.names(COLLECTED):
        directory.remove(f"{COLLECTED}/{entry}")
    directory.remove(AT_WORK)
    forget_near(directory, stones.cover)


def _forget_lines(directory: RunDir, uris: set[str]) -> None:
    """Takes the lines of `uris` out of the list of what was skipped at listing; of longer addresses there are others."""
    if not uris or not directory.exists(SKIPPED):
        return
    lines = directory.read(SKIPPED).decode().splitlines(keepends=True)
    names = {percent_escaped(uri) for uri in uris}
    kept = [line for line in lines if line.rstrip("\n").partition("\t")[2] not in names]
    if len(kept) < len(lines):
        directory.write(SKIPPED, "".join(kept).encode())


def _forget_caches(run: Run, stones: Tombstones) -> None:
    """What this machine keeps beside the run: the cache of facts and pictures, made anew when asked for, and marks."""
    for folder in (run.facts.folder, pictures_of(run.dir.uri, run.cache)):
        shutil.rmtree(folder, ignore_errors=True)
    path = marks_file_of(run.dir.uri, run.cache)
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not stones.cover(json.loads(line).get("clip_id"))]
        if len(kept) < len(lines):
            write_whole(path, "".join(kept).encode())
