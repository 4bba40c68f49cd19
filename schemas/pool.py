"""A pool: some clips of a run, told by rules. Its shards are the run's, or latents made of them; a pool copies none.

    POOL/pool.yaml     the rules, the run they were asked of, and how much they found
    POOL/clips.arrow   `clip_id` of what they found, sorted; made again from the rules whenever the run has changed

Whoever reads shards takes of each the samples whose clip is in the pool, by their byte ranges.
"""

from __future__ import annotations

import pyarrow as pa

from schemas.arrow_file import read_table, table_bytes
from schemas.errors import ShardError

RULES_FILE, CLIPS_FILE = "pool.yaml", "clips.arrow"
CLIP_ID, OF_CLIP = "clip_id", "source_clip_id"
"""Columns of an index that name a sample's clip: its key, or of a window of latents the clip that it was taken of."""


def clips_bytes(clip_ids: pa.Array) -> bytes:
    """The content of `clips.arrow`, of sorted ids."""
    return table_bytes(pa.table({CLIP_ID: clip_ids.cast(pa.string())}))


def clips_in(data: bytes, name: str) -> pa.ChunkedArray:
    """The ids in the content of a `clips.arrow`, `name` being what an error calls it. Raises ShardError."""
    try:
        return read_table(data)[CLIP_ID]
    except (pa.ArrowInvalid, KeyError) as error:
        raise ShardError(f"{name} is no list of a pool's clips: {error}.", remedy="Select the pool again.") from error
