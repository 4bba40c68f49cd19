"""The index and the manifest of a run's shards, as they are read."""

from __future__ import annotations

import pyarrow as pa

from pipeline.store import RunDir
from schemas.shard import INDEX
from schemas.shard_file import Manifest, parse_index

MANIFEST = "index/manifest.json"
CUTS = "cuts"


def read_manifest(run: RunDir) -> Manifest:
    """The manifest of a run's shards.

    Raises LedgerError when it is not there, ShardError when it cannot be read or follows another contract.
    """
    return Manifest.from_json(run.read(MANIFEST))


def read_index(run: RunDir, name: str) -> pa.Table:
    """The Arrow index of one shard. Raises LedgerError when it is not there, ShardError when it cannot be read."""
    return parse_index(run.read(f"index/{name}.arrow"), f"index/{name}.arrow")


def has_columns(index: pa.Table) -> bool:
    """Whether an index has the columns of the contract, and no others."""
    return bool(index.schema.remove_metadata() == pa.schema(list(INDEX)).remove_metadata())
