"""The global sample order: a shuffle that needs no list of samples, and its fair division into streams.

    run      contiguous rows of one shard, at most `run_length`: what one worker reads from near one place
    part     one ingredient of the mixture: rows that match, and how often each is drawn per epoch
    stream   one of `num_streams` equal shares of an epoch's FLOPs, the private supply of one packer

Of each part the runs are permuted, laid end to end and cut where the running FLOPs cross k/num_streams of the total, so
every stream gets the same work to within one sample. Inside its share a stream opens `window_runs` runs at a time and
permutes their samples. Everything follows from (seed, epoch): any stream, epoch and position can be computed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def key_of(*parts: object) -> int:
    """64-bit key of any printable values; equal on every machine and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def mix(value: int) -> int:
    """Well-mixed 64-bit hash of an integer (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(positions: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Images of `positions` under a pseudo-random permutation of range(size), without storing the permutation.

    A balanced Feistel network over the next power of four with cycle walking: expected under four passes, no memory
    beyond the positions asked for.
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    low_mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(mix(key ^ (r << 56))) for r in range(6)]
    value = positions.astype(np.uint64)
    outside = np.ones(len(value), dtype=np.bool_)
    while outside.any():
        left, right = value[outside] >> np.uint64(half), value[outside] & low_mask
        for round_key in keys:
            left, right = right, left ^ (_mix_array(right ^ round_key) & low_mask)
        value[outside] = (left << np.uint64(half)) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def _mix_array(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def split_runs(shard_of_row: NDArray[np.int32], run_length: int) -> NDArray[np.int64]:
    """[num_runs + 1] first rows of each run and the end: rows of one shard, cut evenly into at most `run_length`."""
    if not len(shard_of_row):
        return np.zeros(1, dtype=np.int64)
    edges = np.flatnonzero(np.diff(shard_of_row)) + 1
    edges = np.concatenate([[0], edges, [len(shard_of_row)]]).astype(np.int64)
    starts = [
        np.linspace(a, b, -(-(b - a) // run_length), endpoint=False).astype(np.int64)
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    return np.concatenate([*starts, edges[-1:]])


def draws_by_weight(num_rows: list[int], weights: list[float]) -> list[int]:
    """Draws of each part per epoch: in proportion to the weights, and each row of each part at least once, if it has any."""
    if not weights:
        return num_rows
    total = max(n / w for n, w in zip(num_rows, weights, strict=True) if w)
    return [max(n, round(total * w)) if w else 0 for n, w in zip(num_rows, weights, strict=True)]


@dataclass(frozen=True)
class DrawPart:
    """One ingredient: its rows in index order, cut into runs, and how many draws an epoch makes.

    `rows` None means every row of the index. `cost` maps row numbers to (FLOPs, tokens).
    """

    name: str
    num_rows: int
    num_draws: int
    rows: NDArray[np.int64] | None
    run_edges: NDArray[np.int64]
    run_flops: NDArray[np.float64]
    cost: Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.int64]]]

    def rows_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of positions 0 ... num_rows - 1."""
        return positions if self.rows is None else self.rows[positions]


@dataclass(frozen=True)
class EpochShare:
    """A part's runs in the order of one epoch, cut into equal shares.

    begin, end: [num_runs] positions in `DrawPart.rows`; before: [num_runs + 1] samples in the runs before each; bounds:
    [num_streams + 1] samples before each share.
    """

    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    before: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def of_stream(self, stream: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Run begins and ends of one stream's share; the first and last run may be partial."""
        first, last = int(self.bounds[stream]), int(self.bounds[stream + 1])
        a = int(np.searchsorted(self.before, first, side="right")) - 1
        b = int(np.searchsorted(self.before, last, side="left"))
        begin, end = self.begin[a:b].copy(), self.end[a:b].copy()
        if len(begin):
            end[-1] = begin[-1] + last - int(self.before[b - 1])
            begin[0] += first - int(self.before[a])
        return begin, end


def epoch_share(part: DrawPart, epoch: int, num_streams: int, key: int) -> EpochShare:
    """The part's runs permuted for `epoch`, repeated until `num_draws` samples, and cut into equal FLOPs.

    Cost: O(runs). Every row is drawn floor or ceil of num_draws / num_rows times.
    """
    if not part.num_draws:
        nothing = np.zeros(0, dtype=np.int64)
        return EpochShare(nothing, nothing, np.zeros(1, dtype=np.int64), np.zeros(num_streams + 1, dtype=np.int64))
    num_rows, edges = part.num_rows, part.run_edges
    begins, ends, flops, left, turn = [], [], [], part.num_draws, 0
    while left > 0:
        order = permuted(np.arange(len(edges) - 1), len(edges) - 1, key_of(key, part.name, epoch, turn))
        begin, end, run_flops = edges[:-1][order], edges[1:][order], part.run_flops[order]
        if left < num_rows:
            before = np.concatenate([[0], np.cumsum(end - begin)])
            keep = int(np.searchsorted(before, left, side="left"))
            begin, end, run_flops = begin[:keep], end[:keep].copy(), run_flops[:keep].copy()
            end[-1] = begin[-1] + left - before[keep - 1]
            run_flops[-1] = _flops_within(part, int(begin[-1]), int(end[-1]))[-1]
        begins.append(begin)
        ends.append(end)
        flops.append(run_flops)
        left -= num_rows
        turn += 1
    begin, end = np.concatenate(begins), np.concatenate(ends)
    before = np.concatenate([[0], np.cumsum(end - begin)])
    bounds = np.zeros(num_streams + 1, dtype=np.int64)
    share = EpochShare(begin, end, before, bounds)
    _cut_into_equal_flops(part, share, np.concatenate(flops))
    return share


def _flops_within(part: DrawPart, begin: int, end: int) -> NDArray[np.float64]:
    """[end - begin + 1] running FLOPs of positions begin ... end."""
    flops, _ = part.cost(part.rows_at(np.arange(begin, end)))
    return np.concatenate([[0.0], np.cumsum(flops)])


def _cut_into_equal_flops(part: DrawPart, share: EpochShare, flops: NDArray[np.float64]) -> None:
    """Set `share.bounds` to the samples before the running FLOPs first reach each k / num_streams of the total."""
    flops_before = np.concatenate([[0.0], np.cumsum(flops)])
    num_streams = len(share.bounds) - 1
    share.bounds[-1] = share.before[-1]
    for k in range(1, num_streams):
        wanted = flops_before[-1] * k / num_streams
        run = min(int(np.searchsorted(flops_before, wanted, side="right")) - 1, len(share.begin) - 1)
        if share.end[run] - share.begin[run] == 1:
            ordinal = int(wanted > flops_before[run])
        else:
            within = _flops_within(part, int(share.begin[run]), int(share.end[run]))
            ordinal = int(np.searchsorted(within[:-1], wanted - flops_before[run], side="left"))
        share.bounds[k] = share.before[run] + ordinal
    np.maximum.accumulate(share.bounds, out=share.bounds)


@dataclass(frozen=True)
class DrawWindow:
    """Draws first ... last - 1 of one part in one stream, in the order they are drawn."""

    first: int
    last: int
    rows: list[int]
    flops: list[float]
    tokens: list[int]


class EpochStream:
    """One stream of one epoch: rows by ordinal, parts interleaved evenly. O(1) to enter at any position."""

    def __init__(
        self, parts: list[DrawPart], shares: list[EpochShare], stream: int, window_runs: int, key: int
    ) -> None:
        self._parts = parts
        self._runs = [share.of_stream(stream) for share in shares]
        self._before = [np.concatenate([[0], np.cumsum(end - begin)]) for begin, end in self._runs]
        self._window_runs, self._key = window_runs, key
        self._windows: list[DrawWindow | None] = [None for _ in parts]
        self.lengths = [int(before[-1]) for before in self._before]

    def next_part(self, drawn: list[int]) -> int:
        """Part to draw from after `drawn` samples of each: the one furthest behind its share, -1 at the end."""
        best, best_done = -1, 1.0
        for i, (done, length) in enumerate(zip(drawn, self.lengths, strict=True)):
            if length and (done + 0.5) / length < best_done and done < length:
                best, best_done = i, (done + 0.5) / length
        return best

    def draw(self, part: int, ordinal: int) -> tuple[int, float, int]:
        """(row, FLOPs, tokens) of the ordinal-th draw of a part in this stream."""
        window = self._windows[part]
        if window is None or not window.first <= ordinal < window.last:
            window = self._windows[part] = self._open_window(part, ordinal)
        i = ordinal - window.first
        return window.rows[i], window.flops[i], window.tokens[i]

    def _open_window(self, part: int, ordinal: int) -> DrawWindow:
        before, (begin, end) = self._before[part], self._runs[part]
        group = (int(np.searchsorted(before, ordinal, side="right")) - 1) // self._window_runs
        a, b = group * self._window_runs, min((group + 1) * self._window_runs, len(begin))
        positions = _ranges(begin[a:b], end[a:b])
        order = permuted(np.arange(len(positions)), len(positions), key_of(self._key, self._parts[part].name, group))
        rows = self._parts[part].rows_at(positions[order])
        flops, tokens = self._parts[part].cost(rows)
        return DrawWindow(int(before[a]), int(before[b]), rows.tolist(), flops.tolist(), tokens.tolist())


def _ranges(begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenation of range(b, e) for each pair, without a loop."""
    sizes = end - begin
    starts = np.repeat(begin - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    return starts + np.arange(int(sizes.sum()))
