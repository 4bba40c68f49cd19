"""Kept clips -> shards: a shuffle of bytes that were cut before, by the hash of the clip.

plan      which clips belong into which shard, what of it is there, where the bytes of the rest lie
shuffle   one shard: bytes, annotations, index
sample    what a shard says of a clip: its .json, .npy and index row
index     the index and the manifest of a run, read and published
"""

from pipeline.pack.index import MANIFEST, read_index, read_manifest
from pipeline.pack.plan import ShardPlan, ShardTask, is_packed, plan_shards
from pipeline.pack.publish import publish
from pipeline.pack.shuffle import pack_shard

__all__ = [
    "MANIFEST",
    "ShardPlan",
    "ShardTask",
    "is_packed",
    "pack_shard",
    "plan_shards",
    "publish",
    "read_index",
    "read_manifest",
]
