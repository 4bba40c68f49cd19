"""Checks a finished run from outside: what `nava-curate verify` does."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.ask.queries import Run, balance
from pipeline.pack import read_index
from schemas.shard import CONTRACT_VERSION, INDEX, MEMBERS


def problems(run: Run) -> Iterator[str]:
    """Every way in which the run is not sound; nothing if it is."""
    sheet = balance(run.ledger)
    if sheet.difference_us:
        yield f"hours do not add up: {sheet.difference_us} us are unaccounted for"
    settled = sum(sheet.assets.values())
    if settled != run.num_sources:
        yield f"{run.num_sources - settled} of {run.num_sources} sources are not settled; run the same command again"
    if not run.dir.exists("index/manifest.json"):
        yield "index/manifest.json is missing: packing did not finish; run the same command again"
        return
    manifest = json.loads(run.dir.read("index/manifest.json"))
    if manifest["contract_version"] != CONTRACT_VERSION:
        yield f"shards follow contract {manifest['contract_version']}, this program {CONTRACT_VERSION}"
        return
    kept = {
        row["row_id"]
        for row in run.ledger.settled("clip", ["duration_us"]).to_pylist()
        if row["verdict"]["status"] == "keep"
    }
    packed: list[str] = []
    for shard in manifest["shards"]:
        yield from _shard_problems(run, shard, packed)
    if len(packed) != len(set(packed)):
        yield f"{len(packed) - len(set(packed))} clips are packed twice"
    if set(packed) != kept:
        missing, extra = len(kept - set(packed)), len(set(packed) - kept)
        yield f"shards and ledger disagree: {missing} kept clips are not packed, {extra} packed clips are not kept"


def _shard_problems(run: Run, shard: dict[str, object], packed: list[str]) -> Iterator[str]:
    name = str(shard["name"])
    if not run.dir.exists(f"shards/{name}"):
        yield f"shards/{name} is missing"
        return
    data = run.dir.read(f"shards/{name}")
    if hashlib.sha256(data).hexdigest() != shard["sha256"]:
        yield f"shards/{name} has changed since it was written (sha256 differs)"
    index = read_index(run.dir, name.removesuffix(".tar"))
    if index.schema.remove_metadata() != pa.schema(list(INDEX)).remove_metadata():
        yield f"index of {name} has other columns than the contract"
        return
    for row in index.to_pylist():
        packed.append(row["clip_id"])
        sample = data[row["sample_offset"] : row["sample_offset"] + row["sample_bytes"]]
        if zlib.crc32(sample) != row["crc32"]:
            yield f"{name}: sample {row['clip_id']} is damaged (crc32 differs)"
    yield from _decoding_problems(data, index, name)


def _decoding_problems(data: bytes, index: pa.Table, name: str) -> Iterator[str]:
    """Opens the first sample of a shard the way a reader without our index would, and decodes it."""
    import av

    if not index.num_rows:
        return
    first = index.slice(0, 1).to_pylist()[0]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name.split(".", 1)[1]: tar.extractfile(member) for member in tar.getmembers()[: len(MEMBERS)]}
    if set(members) != set(MEMBERS):
        yield f"{name}: first sample has members {sorted(members)}, expected {sorted(MEMBERS)}"
        return
    json.loads(members["json"].read())  # type: ignore[union-attr]
    with av.open(io.BytesIO(members["mp4"].read())) as container:  # type: ignore[union-attr]
        frames = sum(1 for _ in container.decode(video=0))
    if frames != first["num_frames"]:
        yield f"{name}: {first['clip_id']}.mp4 decodes to {frames} frames, the index says {first['num_frames']}"
