"""Which stretches of speech are one person: voices compared with regard to their length, joined while that is likely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.engines.speakers import unit

F32 = NDArray[np.float32]


@dataclass
class VoicePiece:
    """A stretch of one track: frames [low, high), its clean speech and the embedding of that (None when too short)."""

    track: int
    low: int
    high: int
    duration_s: float
    clean_s: float = 0.0
    embedding: F32 | None = None
    is_alone: bool = False
    """All of it is clean."""
    is_mixed: bool = False
    """Others are heard in what the embedding was taken from."""

    def shared(self, other: VoicePiece) -> int:
        """Frames that both cover."""
        return max(0, min(self.high, other.high) - max(self.low, other.low))


BREVITY_S = 0.1
"""What a second less of speech costs the cosine: b in cosine + b (1/d + 1/e) for d and e seconds of clean speech.

With `EmbeddedConfig.threshold` this is where same and different are equally likely by a logistic regression on clusters of one
voice from mixes (benchmarks/fit_diarize.py): log odds = 46 (cosine + b (1/d + 1/e) - threshold), right for 99 % of pairs.
"""
MAX_BREVITY = 2.5
"""Most of 1/d + 1/e, per second: two stretches of 0.8 s."""


@dataclass
class VoiceCluster:
    """Units held for one person; `vector` is the sum of their embeddings weighted by clean seconds."""

    members: list[int]
    vector: F32
    clean_s: float


def likeness(one: VoiceCluster, other: VoiceCluster) -> float:
    """Cosine of two clusters' voices, and what their brevity takes from it."""
    cosine = float(unit(one.vector) @ unit(other.vector))
    return cosine + BREVITY_S * min(1 / one.clean_s + 1 / other.clean_s, MAX_BREVITY)


@dataclass
class Bonds:
    """What is known about pairs of units [U, U]: how far a network saw them apart (NaN: never in one window), shared seconds."""

    units: list[VoicePiece]
    seen_apart: F32
    overlap_s: F32
    apart: float
    """Weight of having been seen apart."""

    def score(self, one: VoiceCluster, other: VoiceCluster) -> float:
        """How much two clusters look like one person: likeness, less for what the network saw apart, and for speech at once."""
        grid = np.ix_(one.members, other.members)
        weight = np.outer([self.units[i].clean_s for i in one.members], [self.units[i].clean_s for i in other.members])
        apart = self.seen_apart[grid]
        weight = np.where(np.isnan(apart), 0, weight)
        length_s = min(sum(self.units[i].duration_s for i in c.members) for c in (one, other))
        value = likeness(one, other) - float(self.overlap_s[grid].sum()) / length_s
        seen = float(weight.sum())
        return value - self.apart * float((np.nan_to_num(apart) * weight).sum()) / seen if seen else value


def cluster_of(units: list[VoicePiece], members: list[int]) -> VoiceCluster:
    """The cluster of the given units, all of which have embeddings."""
    weighted = [np.float32(units[i].clean_s) * np.asarray(units[i].embedding) for i in members]
    return VoiceCluster(members, np.sum(weighted, axis=0), sum(units[i].clean_s for i in members))


def join(clusters: list[VoiceCluster], bonds: Bonds, threshold: float) -> list[VoiceCluster]:
    """`clusters` after joining, best pair first, every pair whose score reaches the threshold."""
    pool = dict(enumerate(clusters))
    scores = {(a, b): bonds.score(pool[a], pool[b]) for a in pool for b in range(a)}
    fresh = len(pool)
    while scores:
        a, b = max(scores, key=lambda pair: scores[pair])
        if scores[a, b] < threshold:
            break
        joined = cluster_of(bonds.units, pool.pop(a).members + pool.pop(b).members)
        scores = {pair: s for pair, s in scores.items() if a not in pair and b not in pair}
        scores |= {(fresh, c): bonds.score(joined, pool[c]) for c in pool}
        pool[fresh] = joined
        fresh += 1
    return list(pool.values())


MIN_SHARED = 0.3
"""Share of the shorter of two units from which, overlapping, they cannot be one person."""
KIN = 0.25
"""What the track of a person speaks for: added to the cosine of a unit that follows at once in it, halved every 1.4 s."""
UNKNOWN = 0.3
"""Cosine that a unit too short for an embedding is taken to have to everybody."""


def place(units: list[VoicePiece], clusters: list[VoiceCluster], frame_s: float) -> dict[int, int]:
    """Who says each unit: unit -> number of its cluster. What is in no cluster goes where it fits best, best known first.

    Two units that overlap are never one person. A unit in which others are heard too begins a cluster of its own, appended to
    `clusters`, where every other is taken by those who speak at the same time; without that it stays without owner.
    """
    owner = {i: k for k, cluster in enumerate(clusters) for i in cluster.members}
    rest = sorted(set(range(len(units))) - set(owner), key=lambda i: (-units[i].clean_s, i))
    for i in rest:
        taken = {owner[j] for j in owner if _at_once(units[i], units[j])}
        free = [k for k in range(len(clusters)) if k not in taken]
        if free:
            owner[i] = max(free, key=lambda k: (_fit(units, i, clusters[k], frame_s), -k))
        elif units[i].embedding is not None:
            owner[i] = len(clusters)
            clusters.append(cluster_of(units, [i]))
    return owner


def _at_once(one: VoicePiece, other: VoicePiece) -> bool:
    return one.shared(other) > MIN_SHARED * min(one.high - one.low, other.high - other.low)


def _fit(units: list[VoicePiece], i: int, cluster: VoiceCluster, frame_s: float) -> float:
    """How well unit `i` fits a cluster: by voice, and by how soon in its own track somebody of the cluster speaks."""
    told = units[i].embedding
    cosine = UNKNOWN if told is None else float(unit(told) @ unit(cluster.vector))
    gaps = _gaps_s(units[i], (units[j] for j in cluster.members), frame_s)
    return cosine + KIN * max((float(np.exp(-gap_s / 2)) for gap_s in gaps), default=0.0)


def _gaps_s(one: VoicePiece, others: Iterable[VoicePiece], frame_s: float) -> list[float]:
    return [
        max(other.low - one.high, one.low - other.high, 0) * frame_s for other in others if other.track == one.track
    ]
