"""Publishes the shards of a finished plan as a whole, and removes what no longer belongs to the run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.config import Recipe
from pipeline.pack.index import CUTS, MANIFEST, read_index
from pipeline.pack.plan import ShardPlan
from pipeline.store import RunDir
from schemas.errors import ShardError
from schemas.shard import CONTRACT_VERSION
from schemas.shard_file import PACK_AGAIN, Manifest, ShardEntry, ShardFacts


def publish(run: RunDir, packing: ShardPlan, recipe: Recipe) -> Manifest:
    """Publishes the manifest over the shards of a finished plan; only then removes what no longer belongs to the run.

    That is every other shard and index, and the cut media, all of which lie in shards now. Raises ShardError when a shard
    is not whole.
    """
    entries, facts = [], []
    for name in packing.names:
        index = read_index(run, name)
        facts.append(ShardFacts.of(index, f"index/{name}.arrow"))
        entries.append(_entry(name, index, facts[-1]))
    told = {(each.embedder, each.embedding_dim) for each in facts if each.embedder}
    if len(told) > 1:
        raise ShardError(f"shards hold embeddings of {sorted(told)}; expected those of one network.", remedy=PACK_AGAIN)
    embedder, embedding_dim = next(iter(told), ("", 0))
    manifest = Manifest(
        contract_version=CONTRACT_VERSION,
        recipe=recipe.name,
        measure_hash=recipe.measure_hash(),
        num_samples=sum(entry.num_samples for entry in entries),
        bits=packing.bits,
        target_shard_mb=recipe.pack.target_shard_mb,
        embedder=embedder,
        embedding_dim=embedding_dim,
        shards=tuple(entries),
    )
    content = manifest.to_json()
    if not run.exists(MANIFEST) or run.read(MANIFEST) != content:
        run.write(MANIFEST, content)
    _remove_others(run, set(packing.names))
    return manifest


def _entry(name: str, index: pa.Table, facts: ShardFacts) -> ShardEntry:
    return ShardEntry(
        name=f"{name}.tar",
        index=f"{name}.arrow",
        sha256=facts.sha256,
        num_bytes=facts.num_bytes,
        split=facts.split,
        num_samples=index.num_rows,
        duration_s=float(np.sum(index["duration_s"].to_numpy())),
        unit=facts.unit,
    )


def _remove_others(run: RunDir, names: set[str]) -> None:
    for folder, suffix in (("shards", ".tar"), ("index", ".arrow")):
        for entry in run.names(folder):
            if entry.startswith(".") or (entry.endswith(suffix) and entry.removesuffix(suffix) not in names):
                run.remove(f"{folder}/{entry}")
    for entry in run.entries(CUTS):
        run.remove(f"{CUTS}/{entry}")
