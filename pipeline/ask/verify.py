"""Checks a finished run from outside: what `nava-curate verify` does."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa

from pipeline.ask.queries import Run, balance
from pipeline.pack import MANIFEST, read_index, read_manifest
from schemas.errors import DamagedSampleError, LedgerError, ShardError
from schemas.records import Level
from schemas.shard import CONTRACT_VERSION, INDEX, MEMBERS, IndexRow, index_rows
from schemas.shard_file import SampleLocation, ShardEntry, ShardReader, locations


def problems(run: Run) -> Iterator[str]:
    """Every way in which the run is not sound; nothing if it is. Holds no more of a shard in memory than two samples."""
    sheet = balance(run.ledger)
    if sheet.difference_us:
        yield f"hours do not add up: {sheet.difference_us} us are unaccounted for"
    settled = sum(sheet.assets.values())
    if settled != run.num_sources:
        yield f"{run.num_sources - settled} of {run.num_sources} sources are not settled; run the same command again"
    if not run.dir.exists(MANIFEST):
        yield f"{MANIFEST} is missing: packing did not finish; run the same command again"
        return
    try:
        manifest = read_manifest(run.dir)
    except ShardError as error:
        yield str(error)
        return
    if manifest.contract_version != CONTRACT_VERSION:
        yield f"shards follow contract {manifest.contract_version}, this program {CONTRACT_VERSION}"
        return
    kept = {
        row["row_id"]
        for row in run.ledger.settled(Level.CLIP, ["duration_us"]).to_pylist()
        if row["verdict"]["status"] == "keep"
    }
    packed: list[str] = []
    for shard in manifest.shards:
        yield from _shard_problems(run, shard, packed)
    if len(packed) != len(set(packed)):
        yield f"{len(packed) - len(set(packed))} clips are packed twice"
    if set(packed) != kept:
        missing, extra = len(kept - set(packed)), len(set(packed) - kept)
        yield f"shards and ledger disagree: {missing} kept clips are not packed, {extra} packed clips are not kept"


def _shard_problems(run: Run, shard: ShardEntry, packed: list[str]) -> Iterator[str]:
    """What is wrong with one shard; the clips in its index are added to `packed`."""
    name, index = f"shards/{shard.name}", None
    if not run.dir.exists(name):
        yield f"{name} is missing"
        return
    try:
        index = read_index(run.dir, shard.index.removesuffix(".arrow"))
    except (LedgerError, ShardError) as error:
        yield str(error)
    if index is not None and index.schema.remove_metadata() != pa.schema(list(INDEX)).remove_metadata():
        yield f"index of {shard.name} has other columns than the contract"
        index = None
    places = [] if index is None else locations(index, MEMBERS)
    packed += [place.clip_id for place in places]
    with ShardReader(run.dir.open(name)) as reader:
        scan = reader.scan(places)
    if scan.sha256 != shard.sha256:
        yield f"{name} has changed since it was written (sha256 differs)"
    for place in scan.damaged:
        yield f"{shard.name}: sample {place.clip_id} is damaged (crc32 differs)"
    if places:
        yield from _decoding_problems(run, name, next(index_rows(index)), places[0])


def _decoding_problems(run: Run, name: str, row: IndexRow, place: SampleLocation) -> Iterator[str]:
    """Opens the first sample of a shard the way a reader without our index would, and decodes it."""
    import av

    shard = row.shard
    try:
        with run.dir.open(name) as file:
            sample = _first_by_webdataset(file, name)
    except (tarfile.TarError, ValueError) as error:
        yield f"{shard}: webdataset cannot read the first sample: {error}"
        return
    members = {key: value for key, value in sample.items() if not key.startswith("__")}
    if set(members) != set(MEMBERS):
        yield f"{shard}: first sample has members {sorted(members)}, expected {sorted(MEMBERS)}"
        return
    try:
        with ShardReader(run.dir.open(name)) as reader:
            if reader.sample(place) != members:
                yield f"{shard}: the index gives other bytes of {row.clip_id} than webdataset"
        json.loads(members["json"])
        with av.open(io.BytesIO(members["mp4"])) as container:
            frames = sum(1 for _ in container.decode(video=0)) if container.streams.video else 0
    except DamagedSampleError:
        return  # the scan has said so
    except (ValueError, av.FFmpegError) as error:
        yield f"{shard}: {row.clip_id} cannot be decoded: {error}"
        return
    if frames != row.num_frames:
        yield f"{shard}: {row.clip_id}.mp4 decodes to {frames} frames, the index says {row.num_frames}"


def _first_by_webdataset(file: BinaryIO, name: str) -> Mapping[str, bytes]:
    """The first sample that webdataset finds in an open tar, local or not; empty if there is none."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    samples: Iterator[Mapping[str, bytes]] = group_by_keys(tar_file_expander([{"url": name, "stream": file}]))
    return next(samples, {})
