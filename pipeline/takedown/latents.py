"""Latent shards without the samples of what was taken down. Only shards that hold any are written anew, by bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.tombstones import Tombstones
from schemas.arrow_file import facts_of, table_bytes, with_facts
from schemas.errors import ShardError
from schemas.files import open_whole, write_whole
from schemas.ids import digest
from schemas.shard import LATENT_MEMBER
from schemas.shard_file import ShardReader, ShardWriter, locations, parse_index

CLIP_COLUMNS = ("source_clip_id", "source")
"""Columns of a latent index that hold ids of the ledger."""
MANIFEST_NAME = "manifest.json"


class PurgedLatents(NamedTuple):
    """What was done to a folder."""

    num_samples: int
    num_shards: int
    """Shards that held any of them."""


def purge_latents(folder: Path, stones: Tombstones) -> PurgedLatents:
    """Removes from OUT of `nava-train encode` every sample of what was taken down, and its name from what was left out.

    The other samples keep their bytes; their shard gets another name, which a trainer that is started again finds in the
    index. Raises ShardError where there is no index.
    """
    indexes = sorted((folder / "index").glob("*.arrow"))
    if not indexes:
        raise ShardError(f"{folder} has no index.", remedy="Give the folder that `nava-train encode` wrote.")
    touched = [path for path in indexes if _is_touched(_read(path), stones)]
    num_samples = sum(_without(folder, path, stones) for path in touched)
    _tell_manifest(folder / "index", stones)
    return PurgedLatents(num_samples, len(touched))


def _read(path: Path) -> pa.Table:
    return parse_index(path.read_bytes(), str(path))


def _is_gone(table: pa.Table, stones: Tombstones) -> list[bool]:
    columns = [table[name].to_pylist() for name in CLIP_COLUMNS if name in table.column_names]
    return [any(stones.cover(each) for each in row) for row in zip(*columns, strict=True)]


def _is_touched(table: pa.Table, stones: Tombstones) -> bool:
    return any(_is_gone(table, stones)) or bool(
        stones.covered(json.loads(facts_of(table.schema).get("left_out", "{}")))
    )


def _without(folder: Path, path: Path, stones: Tombstones) -> int:
    """Writes one shard and its index anew, then removes the old ones; how many samples went."""
    table = _read(path)
    is_gone = _is_gone(table, stones)
    kept = table.filter(pa.array([not each for each in is_gone]))
    if kept.num_rows:
        _write(folder, table, kept, path.stem, stones)
    path.unlink()
    (folder / "shards" / f"{path.stem}.tar").unlink(missing_ok=True)
    return sum(is_gone)


def _write(folder: Path, table: pa.Table, kept: pa.Table, stem: str, stones: Tombstones) -> None:
    name = f"{'-'.join(stem.split('-')[:3])}-{digest(stem, *kept['clip_id'].to_pylist())[:8]}"
    rows: list[dict[str, Any]] = []
    with (
        ShardReader(folder / "shards" / f"{stem}.tar") as reader,
        open_whole(folder / "shards" / f"{name}.tar") as file,
        ShardWriter(file, f"{name}.tar", (LATENT_MEMBER,)) as shard,
    ):
        for row, place in zip(kept.to_pylist(), locations(kept, (LATENT_MEMBER,)), strict=True):
            written = shard.add(place.clip_id, {LATENT_MEMBER: bytes(reader.sample(place)[LATENT_MEMBER])})
            rows.append({**row, "shard": f"{name}.tar", **written.columns()})
    told = facts_of(table.schema)
    left_out = json.loads(told.get("left_out", "{}"))
    facts = told | {
        "identity": "",
        "num_samples": str(len(rows)),
        "left_out": json.dumps({each: why for each, why in left_out.items() if not stones.cover(each)}),
    }
    schema = with_facts(pa.schema(list(table.schema)), facts)
    write_whole(folder / "index" / f"{name}.arrow", table_bytes(pa.Table.from_pylist(rows, schema=schema)))


def _tell_manifest(index: Path, stones: Tombstones) -> None:
    """The manifest says what is there now; one of a folder that is being written has none yet."""
    path = index / MANIFEST_NAME
    if not path.exists():
        return
    told: dict[str, Any] = json.loads(path.read_bytes())
    left_out = {each: why for each, why in told["left_out"].items() if not stones.cover(each)}
    counted: dict[str, int] = {}
    for why in left_out.values():
        reason = why.partition(":")[0]
        counted[reason] = counted.get(reason, 0) + 1
    tables = {each.stem: _read(each) for each in sorted(index.glob("*.arrow"))}
    clips = {each for table in tables.values() for each in table["source_clip_id"].to_pylist()}
    now = told | {
        "num_clips": len(clips | set(left_out)),
        "num_samples": sum(table.num_rows for table in tables.values()),
        "num_left_out_by_reason": counted,
        "left_out": left_out,
        "shards": [{"name": f"{stem}.tar", "num_samples": table.num_rows} for stem, table in tables.items()],
    }
    if now != told:
        write_whole(path, json.dumps(now, indent=1).encode())
