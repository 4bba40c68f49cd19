"""Checks a run from outside, artefact by artefact: what `nava-curate verify` does.

Every artefact is looked at whatever is wrong with the others; what is damaged is named with what to do. Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.ask.queries import Run, balance
from pipeline.ask.verify_ledger import ledger_problems
from pipeline.ask.verify_sample import opening_problems, sample_problems
from pipeline.ask.verify_takedown import takedown_problems
from pipeline.pack import MANIFEST, read_index, read_manifest
from pipeline.pack.index import CUTS, has_columns
from pipeline.pack.plan import drawn, wanted
from schemas.cut_file import cut_file
from schemas.errors import DamagedSampleError, LedgerError, ShardError
from schemas.shard import MEMBERS, index_rows
from schemas.shard_file import Manifest, ShardEntry, ShardFacts, ShardReader, locations

if TYPE_CHECKING:
    import polars as pl

AGAIN = "run the same command again"
Identity = tuple[str, str]
"""Cut hash and SHA-256 of a clip's media."""


@dataclass(frozen=True)
class Expected:
    """What the ledger says that the run's shards are."""

    clips: dict[str, Identity]
    frame: pl.DataFrame
    """See `pipeline.pack.plan.wanted`."""


def problems(run: Run, *, is_deep: bool = False) -> Iterator[str]:
    """Every way in which the run is not sound; nothing if it is. `is_deep` decodes every sample, not the first of a shard.

    Holds the ids of all kept clips, and no more of a shard in memory than two samples.
    """
    found = list(ledger_problems(run.ledger))
    yield from found
    expected = None
    if not found:
        yield from takedown_problems(run)
        yield from _hours_problems(run)
        frame = wanted(run.ledger, run.plan)
        rows = frame.select("clip_id", "cut_hash", "sha256").iter_rows()
        expected = Expected({clip_id: (cut_hash, sha256) for clip_id, cut_hash, sha256 in rows}, frame)
    try:
        manifest = read_manifest(run.dir)
    except LedgerError:
        yield f"{MANIFEST} is missing: packing did not finish; {AGAIN}"
    except ShardError as error:
        yield str(error)
    else:
        yield from _plan_problems(run, manifest, expected)
        yield from _shards_problems(run, manifest, expected, is_deep=is_deep)
    yield from _cut_problems(run, expected)


def _hours_problems(run: Run) -> Iterator[str]:
    try:
        sheet = balance(run.ledger)
    except LedgerError as error:
        yield str(error)
        return
    if sheet.difference_us:
        yield f"hours do not add up: {sheet.difference_us} us are unaccounted for"
    try:
        num_open = run.num_sources - sum(sheet.assets.values())
    except pa.ArrowInvalid as error:
        yield f"sources.arrow cannot be read ({error}): delete it and {AGAIN}, with all inputs the run was ever given"
        return
    if num_open:
        yield f"{num_open} of {run.num_sources} sources are not settled; {AGAIN}"


def _plan_problems(run: Run, manifest: Manifest, expected: Expected | None) -> Iterator[str]:
    """Whether the manifest is of the run's recipe and of what its ledger keeps."""
    if expected is None:
        return
    _, shards = drawn(expected.frame, run.plan, manifest.bits)
    units = {f"{name}.tar": unit for name, unit in shards.select("name", "unit").iter_rows()}
    told = {entry.name: entry.unit for entry in manifest.shards}
    if units != told:
        num_other = sum(told.get(name) != unit for name, unit in units.items())
        yield (
            f"{MANIFEST} is of other settings or other clips than recipe and ledger: {num_other} of {len(units)} shards are "
            f"not there, {len(set(told) - set(units))} are of another plan; {AGAIN}"
        )


def _shards_problems(run: Run, manifest: Manifest, expected: Expected | None, *, is_deep: bool) -> Iterator[str]:
    packed: Counter[str] = Counter()
    for shard in manifest.shards:
        yield from _shard_problems(run, shard, expected, packed, is_deep=is_deep)
    num_twice = sum(packed.values()) - len(packed)
    if num_twice:
        yield f"{num_twice} clips are packed twice"
    if expected is not None and packed.keys() != expected.clips.keys():
        missing, extra = len(expected.clips.keys() - packed.keys()), len(packed.keys() - expected.clips.keys())
        yield (
            f"shards and ledger disagree: {missing} kept clips are not packed, {extra} packed clips are not kept; {AGAIN}"
        )


def _shard_problems(
    run: Run, shard: ShardEntry, expected: Expected | None, packed: Counter[str], *, is_deep: bool
) -> Iterator[str]:
    """What is wrong with one shard; the clips in its index are added to `packed`."""
    name, index = f"shards/{shard.name}", None
    try:
        index = read_index(run.dir, shard.index.removesuffix(".arrow"))
        facts = ShardFacts.of(index, f"index/{shard.index}")
    except (LedgerError, ShardError) as error:
        yield f"{error}"
        index = None
    if index is not None:
        if not has_columns(index):
            yield f"index of {shard.name} has other columns than the contract; {AGAIN}"
            index = None
        elif (facts.sha256, facts.num_bytes, facts.unit, index.num_rows) != (
            shard.sha256,
            shard.num_bytes,
            shard.unit,
            shard.num_samples,
        ):
            yield f"index of {shard.name} describes another tar than the manifest; {AGAIN}"
    if index is not None:
        ids = index["clip_id"].to_pylist()
        packed.update(ids)
        found = dict(
            zip(ids, zip(index["cut_hash"].to_pylist(), index["cut_sha256"].to_pylist(), strict=True), strict=True)
        )
        known = {} if expected is None else expected.clips
        other = [clip_id for clip_id, identity in found.items() if known.get(clip_id, identity) != identity]
        if other:
            yield f"{shard.name}: {len(other)} clips, {other[0]} among them, were cut otherwise than the ledger says; {AGAIN}"
    if not run.dir.exists(name):
        yield f"{name} is missing; {AGAIN}"
        return
    yield from _tar_problems(run, shard, index, is_deep=is_deep)


def _tar_problems(run: Run, shard: ShardEntry, index: pa.Table | None, *, is_deep: bool) -> Iterator[str]:
    name = f"shards/{shard.name}"
    places = [] if index is None else locations(index, MEMBERS)
    with ShardReader(run.dir.open(name)) as reader:
        scan = reader.scan(places)
        if scan.sha256 != shard.sha256:
            yield f"{name} has changed since it was written (sha256 differs): delete it and {AGAIN}"
        for place in scan.damaged:
            yield f"{shard.name}: sample {place.clip_id} is damaged (crc32 differs)"
        if index is None or not places:
            return
        yield from opening_problems(run.dir, name, places[0], reader)
        for row, place in zip(index_rows(index), places if is_deep else places[:1], strict=False):
            try:
                members = reader.sample(place)
            except DamagedSampleError:
                continue  # the scan has said so
            yield from sample_problems(row, members)


def _cut_problems(run: Run, expected: Expected | None) -> Iterator[str]:
    """What lies in `cuts`: only what waits to be packed, and that as it was cut."""
    entries = run.dir.entries(CUTS)
    if not entries:
        return
    num_known = 0
    if expected is not None:
        import hashlib

        for clip_id, (cut_hash, sha256) in expected.clips.items():
            name = cut_file(clip_id, cut_hash)
            if name in entries:
                num_known += 1
                if hashlib.sha256(run.dir.read(f"{CUTS}/{name}")).hexdigest() != sha256:
                    yield f"{CUTS}/{name} has changed since it was cut (sha256 differs); {AGAIN}"
    yield f"{len(entries)} cut clips wait to be packed, {len(entries) - num_known} of them of no use any more; {AGAIN}"
