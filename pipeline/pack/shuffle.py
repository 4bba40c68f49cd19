"""One shard: the media of its clips from where they lie, with what the ledger says of them, as a tar and its index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.config import Recipe
from pipeline.ledger import Ledger, asset_of, clip_of
from pipeline.pack.index import CUTS
from pipeline.pack.plan import Pick, ShardTask
from pipeline.pack.sample import as_cut, cut_of, index_columns, told_members
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.arrow_file import table_bytes, with_facts
from schemas.cut_file import CutMedia, cut_file
from schemas.errors import DamagedSampleError, LedgerError
from schemas.records import Clip, Level
from schemas.scratch import Scratch
from schemas.shard import INDEX, MEMBERS
from schemas.shard_file import ShardFacts, ShardWriter, payloads_at


def pack_shard(task: ShardTask, recipe: Recipe, run: RunDir) -> list[str]:
    """Writes one shard and its index; returns the ids of clips whose media were damaged or gone.

    Then nothing is published, and what was damaged in `cuts` is removed, so that those clips can be cut again.
    """
    plan = make_plan(recipe)
    gone: list[str] = []
    index: list[dict[str, Any]] = []
    embedder, embedding_dim = "", 0
    with Scratch("pack") as folder, _Media(plan, run) as media:
        path = Path(folder, f"{task.name}.tar")
        with open(path, "wb") as file, ShardWriter(file, path.name, MEMBERS) as shard:
            for pick, clip in _clips(task, plan, run):
                try:
                    members = media.of(pick, clip)
                except (DamagedSampleError, LedgerError):
                    gone.append(clip.clip_id)
                    continue
                if not gone:
                    now = as_cut(clip, plan)
                    place = shard.add(clip.clip_id, {**members, **told_members(now, plan)})
                    index.append(index_columns(now, plan, path.name, task.split) | place.columns())
                    embedder, embedding_dim = _embedding(now, plan) or (embedder, embedding_dim)
        if gone:
            return gone
        run.publish(path, f"shards/{task.name}.tar")
    facts = ShardFacts(shard.sha256, shard.num_bytes, task.split, task.unit, embedder, embedding_dim)
    table = pa.Table.from_pylist(index, schema=with_facts(INDEX, facts.to_metadata()))
    run.write(f"index/{task.name}.arrow", table_bytes(table))
    return []


def _clips(task: ShardTask, plan: Plan, run: RunDir) -> Iterator[tuple[Pick, Clip]]:
    """The shard's clips in their order; one look at the ledger for all of them."""
    import polars as pl

    ledger = Ledger(run.url("ledger"))
    sources, ids = [pick.source_id for pick in task.clips], [pick.clip_id for pick in task.clips]
    assets = {
        row["source_id"]: asset_of(plan, row) for row in ledger.rows(Level.ASSET, pl.col("source_id").is_in(sources))
    }
    rows = {
        (row["source_id"], row["row_id"]): row
        for row in ledger.rows(Level.CLIP, pl.col("row_id").is_in(ids) & pl.col("source_id").is_in(sources))
    }
    for pick in task.clips:
        yield pick, clip_of(plan, rows[pick.source_id, pick.clip_id], assets[pick.source_id])


def _embedding(clip: Clip, plan: Plan) -> tuple[str, int] | None:
    """Name and width of the embeddings in the clip's .npy; None without any."""
    names = [name for name in plan.values("embedder", clip.structs) if name]
    widths = [len(vector) for vector in plan.values("reference", clip.structs) if vector]
    return (names[0], widths[0]) if names and widths else None


class _Media:
    """Media members of clips, from `cuts` or from shards of an earlier plan; every byte is checked. A context."""

    def __init__(self, plan: Plan, run: RunDir) -> None:
        self._plan, self._run = plan, run
        self._open = ExitStack()
        self._shards: dict[str, BinaryIO] = {}

    def __enter__(self) -> _Media:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, pick: Pick, clip: Clip) -> dict[str, bytes]:
        """Its members. Raises DamagedSampleError or LedgerError where they are not what was cut, or gone."""
        media, cutter = CutMedia.of(cut_of(clip, self._plan)), self._plan.cutter
        assert cutter is not None
        if pick.shard:
            if pick.shard not in self._shards:
                self._shards[pick.shard] = self._open.enter_context(self._run.open(f"shards/{pick.shard}"))
            return media.members(payloads_at(self._shards[pick.shard], pick.offset, media.sizes))
        name = f"{CUTS}/{cut_file(clip.clip_id, cutter.hash)}"
        try:
            return media.members(self._run.read(name))
        except DamagedSampleError:
            self._run.remove(name)
            raise
