"""Which clips belong into which shard, which shards are there as they should be, and where the bytes of the others lie.

A shard is a bucket: the clips of one split whose id hashes share the first b bits. b is chosen when a run is packed first,
from the total size, and kept while the run grows, so that a new source touches its own clips' buckets only. A shard's name ends
with its unit: a digest of the contract, of all settings, and of its clips with the identities of their media. "Done" means that
an index of that unit and its tar are there, the tar with the size the index says and not written to since.

Planning reads (clip id, identity, bytes) as columns; nothing is kept per clip but a row of a frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from pipeline.ledger import Ledger, hash_column
from pipeline.pack.index import CUTS, MANIFEST, has_columns, read_index, read_manifest
from pipeline.plan import Plan
from pipeline.splits import likenesses, split_assets
from pipeline.store import RunDir
from schemas.cut_file import cut_file
from schemas.errors import LedgerError, ShardError
from schemas.ids import digest
from schemas.records import Level
from schemas.shard import CONTRACT_VERSION, INDEX, PAYLOAD
from schemas.shard_file import ShardFacts, ShardReader, payloads_at, samples_in

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

HASH_BITS = 32
"""Bits of a clip's id that buckets are taken from; ids are hashes."""
PART_CLIPS = 65_536
"""Clips whose identities are held at a time, as texts of 100 bytes each, unless a bucket has more."""
OUTGROWN = 2.0
"""A run keeps its buckets until they hold this many times the wanted size on the average; then all are drawn anew."""


class Pick(NamedTuple):
    """A clip of a shard that is to be written, and where its media lie."""

    clip_id: str
    source_id: str
    shard: str
    """The shard of an earlier plan that holds them; empty where they lie in `cuts`."""
    offset: int
    """Where the sample begins in that shard."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written: its name and its clips, in order of their ids."""

    name: str
    split: str
    unit: str
    clips: tuple[Pick, ...]


@dataclass(frozen=True)
class ShardPlan:
    """The shards of a settled run, and how far they are there."""

    bits: int
    shards: pl.DataFrame
    """A row per shard: name, split, unit, is_there; in the order of the manifest."""
    clips: pl.DataFrame
    """A row per clip of the shards that are to be written: name, clip_id, source_id, cut_hash, shard, offset."""
    lost: dict[str, str]
    """Clips whose media are nowhere any more, with their sources: they have to be cut again before anything is packed."""
    is_redrawn: bool
    """Whether the run has outgrown the buckets it had, or is to have shards of another size."""

    @property
    def names(self) -> list[str]:
        """Shards, without suffix."""
        return list(self.shards["name"])

    @property
    def num_there(self) -> int:
        """Shards that need no work."""
        return int(self.shards["is_there"].sum())

    def tasks(self) -> Iterator[ShardTask]:
        """What is to be written; the clips of one shard at a time. Sorts them once, whatever the number of shards."""
        told = {name: (split, unit) for name, split, unit in self.shards.select("name", "split", "unit").iter_rows()}
        for (name,), mine in self.clips.sort("name", "clip_id").group_by("name", maintain_order=True):
            yield ShardTask(str(name), *told[name], tuple(Pick(*row) for row in mine.select(Pick._fields).iter_rows()))


def plan_shards(ledger: Ledger, plan: Plan, run: RunDir) -> ShardPlan:
    """The shards of a settled run, the same for the same ledger and recipe; no shard where no stage cuts.

    Looks at the run's index, and at the bytes of shards only where one is not as its index says.
    """
    import polars as pl

    earlier = _earlier_bits(run, plan.recipe.pack.target_shard_mb)
    clips = wanted(ledger, plan)
    bits = bits_for(int(clips["bytes"].sum()), plan.recipe.pack.target_shard_mb, earlier)
    clips, shards = drawn(clips, plan, bits)
    there = {name for name, unit in shards.select("name", "unit").iter_rows() if is_packed(name, unit, run)}
    shards = shards.with_columns(is_there=pl.col("name").is_in(list(there)))
    missing = clips.filter(~pl.col("name").is_in(list(there)))
    found = _located(missing, run)
    lost = found.filter(pl.col("shard").is_null())
    return ShardPlan(
        bits=bits,
        shards=shards,
        clips=found.filter(pl.col("shard").is_not_null()),
        lost=dict(lost.select("clip_id", "source_id").iter_rows()),
        is_redrawn=run.exists(MANIFEST) and earlier != bits,
    )


def wanted(ledger: Ledger, plan: Plan) -> pl.DataFrame:
    """clip_id, source_id, split, cut_hash, sha256, bytes of every clip that is to be packed, in order of the ids.

    A clip of bytes given twice is packed once, from the source of the smallest id. Raises LedgerError when the ledger
    cannot be read.
    """
    import polars as pl

    names = ("clip_id", "source_id", "split", "cut_hash", "sha256")
    cutter = plan.cutter
    if cutter is None:
        return pl.DataFrame(schema={**dict.fromkeys(names, pl.String), "bytes": pl.Int64})
    is_kept = pl.col("verdict.status") == "keep"
    assets = ledger.scan(Level.ASSET).filter(is_kept).select("source_id", "asset_id").collect(engine="streaming")
    clips = (
        ledger.scan(Level.CLIP)
        .filter(is_kept & (pl.col(hash_column(cutter.name)) == cutter.hash))
        .select(
            clip_id="row_id",
            source_id="source_id",
            sha256=f"{cutter.column}.sha256",
            bytes=f"{cutter.column}.bytes",
        )
        .join(assets.lazy(), on="source_id", how="semi")
        .collect(engine="streaming")
        .sort("clip_id", "source_id")
    )
    is_again = (clips["clip_id"] == clips["clip_id"].shift()).fill_null(False)
    if is_again.any():
        clips = clips.filter(~is_again)
    split = _splits(assets.join(clips, on="source_id", how="semi"), ledger, plan)
    return clips.with_columns(split=split, cut_hash=pl.lit(cutter.hash)).select(*names, "bytes")


def _splits(assets: pl.DataFrame, ledger: Ledger, plan: Plan) -> pl.Expr:
    """The split of a clip of these sources. Voices and faces are looked at only if anything is held back for validation."""
    import polars as pl

    fraction = plan.recipe.pack.validation_fraction
    if not fraction:
        return pl.lit("train")
    is_kept = pl.col("verdict.status") == "keep"
    people = likenesses(plan, lambda level: ledger.scan(level).filter(is_kept))
    sides = split_assets(set(assets["asset_id"]), fraction, people)
    of_sources = {source_id: sides[asset_id] for source_id, asset_id in assets.iter_rows()}
    return pl.col("source_id").replace_strict(of_sources, return_dtype=pl.String)


def bits_for(num_bytes: int, target_mb: float, earlier: int | None) -> int:
    """How many bits tell buckets apart: as few as keep them under the target on the average, or what they were before."""
    if earlier is not None and num_bytes <= OUTGROWN * target_mb * 1e6 * 2**earlier:
        return earlier
    return min(HASH_BITS, max(0, math.ceil(math.log2(max(num_bytes, 1) / (target_mb * 1e6)))))


def _earlier_bits(run: RunDir, target_mb: float) -> int | None:
    """Those of the manifest that is there, if shards are still to have that size."""
    try:
        manifest = read_manifest(run)
    except (LedgerError, ShardError):
        return None
    return manifest.bits if manifest.target_shard_mb == target_mb else None


def drawn(clips: pl.DataFrame, plan: Plan, bits: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(`wanted` clips with the `name` of their shard, shards: name, split, unit), the latter in the order of the manifest."""
    import polars as pl

    settings = [plan.recipe.name, [[spec.name, spec.hash] for spec in plan.stages]]
    common = digest(CONTRACT_VERSION, *INDEX.names, json.dumps(settings))
    head = pl.col("clip_id").str.slice(1, HASH_BITS // 4).str.to_integer(base=16, strict=True)
    placed = clips.with_columns(bucket=head // 2 ** (HASH_BITS - bits))
    shards = pl.concat(_units(part, common) for part in _parts(placed, bits)).sort("split", "bucket")
    width = len(str(2**bits - 1))
    number = pl.col("bucket").cast(pl.String).str.zfill(max(width, 5))
    shards = shards.with_columns(name=pl.concat_str("split", number, pl.col("unit").str.slice(0, 8), separator="-"))
    named = placed.join(shards.select("split", "bucket", "name"), on=["split", "bucket"], maintain_order="left")
    return named.drop("bucket"), shards.select("name", "split", "unit")


def _parts(placed: pl.DataFrame, bits: int) -> Iterator[pl.DataFrame]:
    """The clips of some buckets at a time: about `PART_CLIPS`, where buckets are smaller."""
    import polars as pl

    step = max(1, 2**bits * PART_CLIPS // max(len(placed), 1))
    for first in range(0, 2**bits, step):
        yield placed.filter(pl.col("bucket").is_between(first, first + step, closed="left"))


def _units(part: pl.DataFrame, common: str) -> pl.DataFrame:
    """split, bucket, unit of the buckets of some clips."""
    import polars as pl

    identity = pl.concat_str("clip_id", "cut_hash", "sha256", separator=" ")
    texts = part.group_by("split", "bucket").agg(unit=identity.sort().str.join("\n"))
    return texts.with_columns(pl.col("unit").map_elements(lambda text: digest(common, text), return_dtype=pl.String))


def is_packed(name: str, unit: str, run: RunDir) -> bool:
    """Whether a shard of this unit is there and whole. Its bytes are read only if they were written to after its index."""
    index = _sound_index(name, run)
    return index is not None and ShardFacts.of(index, name).unit == unit


def _sound_index(name: str, run: RunDir) -> pa.Table | None:
    """The index of a shard that is as it says; None where it is damaged, of another contract, or its tar is."""
    try:
        index = read_index(run, name)
        facts = ShardFacts.of(index, name)
    except (LedgerError, ShardError):
        return None
    is_sound = has_columns(index) and _is_whole(name, facts, run)
    return index if is_sound else None


def _is_whole(name: str, facts: ShardFacts, run: RunDir) -> bool:
    tar, index = run.entry(f"shards/{name}.tar"), run.entry(f"index/{name}.arrow")
    if tar is None or index is None or tar.num_bytes != facts.num_bytes:
        return False
    if tar.written_s is None or index.written_s is None or tar.written_s <= index.written_s:
        return True
    with ShardReader(run.open(f"shards/{name}.tar")) as reader:
        return reader.scan().sha256 == facts.sha256


def _located(clips: pl.DataFrame, run: RunDir) -> pl.DataFrame:
    """`clips` with shard and offset of their media: an empty shard for what lies in `cuts`, null for what is nowhere."""
    import polars as pl

    has_cut = pl.Series(_has_cut(clips, run), dtype=pl.Boolean)
    places = clips.with_columns(shard=pl.when(has_cut).then(pl.lit("")), offset=pl.lit(0, pl.Int64))
    for held in (_held_by_index, _held_by_headers):
        open_ = places.filter(pl.col("shard").is_null())
        if not len(open_):
            break
        found = held(open_.drop("shard", "offset"), run)
        if not len(found):
            continue
        rest = open_.drop("shard", "offset").join(found, on=["clip_id", "sha256"], how="left")
        places = pl.concat([places.filter(pl.col("shard").is_not_null()), rest.select(places.columns)])
    return places


def _has_cut(clips: pl.DataFrame, run: RunDir) -> Iterator[bool]:
    """Whether the media of each clip lie in `cuts`, looked at folder by folder, as ids in their order lie there."""
    rows = clips.select("clip_id", "cut_hash", "bytes").iter_rows()
    cuts = ((*cut_file(clip_id, cut_hash).split("/"), num_bytes) for clip_id, cut_hash, num_bytes in rows)
    for folder, files in groupby(cuts, key=itemgetter(0)):
        there = run.entries(f"{CUTS}/{folder}")
        yield from ((entry := there.get(name)) is not None and entry.num_bytes == size for _, name, size in files)


def _held(rows: list[tuple[str, str, str, int]]) -> pl.DataFrame:
    import polars as pl

    schema = {"clip_id": pl.String, "sha256": pl.String, "shard": pl.String, "offset": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").unique(
        ["clip_id", "sha256"], keep="first", maintain_order=True
    )


def _held_by_index(clips: pl.DataFrame, run: RunDir) -> pl.DataFrame:
    """clip_id, sha256, shard, offset of what lies in whole shards of the run."""
    names = [entry.removesuffix(".arrow") for entry in run.names("index") if entry.endswith(".arrow")]
    ids = set(clips["clip_id"]) if names else set()
    rows = []
    for name in names:
        index = _sound_index(name, run)
        if index is None:
            continue
        columns = [index[column].to_pylist() for column in ("clip_id", "cut_sha256", "shard", "sample_offset")]
        rows += [row for row in zip(*columns, strict=True) if row[0] in ids]
    return _held(rows)


def _held_by_headers(clips: pl.DataFrame, run: RunDir) -> pl.DataFrame:
    """The same of shards that are damaged or have no index: what of them is whole by its own SHA-256."""
    import hashlib

    shards = [entry for entry in run.names("shards") if entry.endswith(".tar")]
    known = dict(clips.select("clip_id", "sha256").iter_rows()) if shards else {}
    rows = []
    for shard in shards:
        with run.open(f"shards/{shard}") as file:
            for clip_id, offset, sizes in samples_in(file):
                if clip_id in known and tuple(sizes)[: len(PAYLOAD)] == PAYLOAD:
                    payload = payloads_at(file, offset, {name: sizes[name] for name in PAYLOAD})
                    if hashlib.sha256(payload).hexdigest() == known[clip_id]:
                        rows.append((clip_id, known[clip_id], shard, offset))
    return _held(rows)
