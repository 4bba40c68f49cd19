"""Where the media of one packed clip lie, without a look at the indexes of other shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pack.index import read_index
from pipeline.pack.plan import HASH_BITS
from pipeline.store import RunDir
from schemas.shard_file import Manifest, SampleLocation, locations

KEPT_INDEXES = 8
"""Indexes held at a time: 600 bytes a clip."""


class PackedClips:
    """The shards of a run as its manifest names them, for finding clips in them."""

    def __init__(self, run: RunDir, manifest: Manifest) -> None:
        self.run, self.manifest = run, manifest
        self.index = lru_cache(KEPT_INDEXES)(lambda name: read_index(run, name))
        """The index of one shard, by its name without suffix. Raises LedgerError and ShardError."""

    def find(self, clip_id: str, members: Sequence[str]) -> SampleLocation | None:
        """Where a clip with these members lies; None if it is in no shard.

        The shard is told by the first bits of the id, as in `pipeline.pack.plan`. Raises LedgerError and ShardError where
        its index cannot be read.
        """
        bucket = int(clip_id[1 : 1 + HASH_BITS // 4], 16) // 2 ** (HASH_BITS - self.manifest.bits)
        for shard in self.manifest.shards:
            name = shard.name.removesuffix(".tar")
            if int(name.split("-")[-2]) == bucket:
                index: pa.Table = self.index(name)
                found = index.filter(pc.equal(index["clip_id"], clip_id))
                if found.num_rows:
                    return locations(found, members)[0]
        return None
