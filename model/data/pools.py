"""Pools that `nava-curate select` wrote, as the planner sees them: ids of clips, which rows of an index may be of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.data.index import ShardIndex
from model.data.plan_config import MixPart
from schemas.errors import ShardError
from schemas.pool import CLIPS_FILE, clips_in


@dataclass(frozen=True)
class PoolClips:
    """The clips of one pool."""

    clip_ids: pa.ChunkedArray
    digest: str
    """Identifies them in the digest of a plan."""

    @classmethod
    def open(cls, pool: str) -> PoolClips:
        """Those of a pool's folder or fsspec URL. Raises ShardError where there is none."""
        import fsspec  # type: ignore[import-untyped]

        place = f"{pool.rstrip('/')}/{CLIPS_FILE}"
        try:
            with fsspec.open(place, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            remedy = "Make it with `nava-curate select RUN --out POOL`, or leave `pool` out of the mixture."
            raise ShardError(f"{place} is not there.", remedy=remedy) from None
        return cls(clips_in(data, place), hashlib.sha256(data).hexdigest())


def rows_of_pool(index: ShardIndex, pool: str | None) -> NDArray[np.bool_]:
    """[num_rows] which rows of an index a pool has; all of them where there is none. Raises ShardError."""
    return np.ones(len(index), np.bool_) if pool is None else index.are_of_clips(PoolClips.open(pool).clip_ids)


def pools_digest(mixture: Iterable[MixPart]) -> str:
    """What the pools of a mixture add to the identity of a plan: nothing where there are none. Raises ShardError."""
    return "".join(f" {PoolClips.open(part.pool).digest}" for part in mixture if part.pool is not None)
