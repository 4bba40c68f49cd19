"""One clock through files whose own begins anew: joined recordings, receivers that lost their signal. In the decoder's child.

Files made with `cat`, and transport streams that were cut, hold several recordings, each with a clock of its own. Time then goes
on where it stopped, for picture and sound alike, as in ffmpeg (fftools, ts_discontinuity_process): every recording is moved as a
whole, so that what was in step stays in step. A file that is read in the order of its bytes shows by its own times that this
is needed; only then are all of its packets looked at.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av

from stages.media.open import open_media

BACK_S = 0.1
"""A clock that goes back by more has begun anew, as in ffmpeg; less is the disorder of a muxer."""
LEAP_S = 10
"""One that jumps ahead by more has begun anew in `LEAPING` containers: ffmpeg's default (dts_delta_threshold)."""
PAUSE_S = 600
"""The same in all others, where less is a pause: of a recorder, or of a still picture."""
LEAPING = ("mpegts", "mpeg")
"""Containers whose clocks are known to leap."""
MOST_WAIT_S = 10
"""How much later than another, by its clock, a stream may begin anew at the same restart."""
BY_PTS = ("matroska,webm",)
"""Containers that store when pictures are shown and not in which order they are decoded: key frames tell there."""
RECENT_PACKETS = 5
"""Packets whose middle time is now, where they come out of order."""
CONFIRM_PACKETS = 4
"""Most of this many packets must agree that the clock is another: single broken stamps are no restart."""
KNOWN_FILES = 32

Version = tuple[str, int, int]
"""Path, bytes, time of the last change in ns."""


@dataclass(frozen=True)
class Restarts:
    """Where the clock of a file begins anew, and how far what follows is moved."""

    firsts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Stream index -> byte positions of the first packets after each restart."""
    shifts_s: Sequence[Fraction] = (Fraction(0),)
    """How much later the packets are after each number of restarts."""

    @property
    def num(self) -> int:
        """How often it does."""
        return len(self.shifts_s) - 1

    def shift_s(self, stream: int, position: int) -> Fraction:
        """How much later the packet at a byte position is on the one clock."""
        return self.shifts_s[bisect_right(self.firsts.get(stream, ()), position)]


_known: dict[Version, Restarts] = {}
"""Files that were read from beginning to end."""


def version_of(container: Any) -> Version:
    """What tells the file of an open container from what it was before."""
    path = container.name.removeprefix("file:")
    stat = Path(path).stat()
    return path, stat.st_size, stat.st_mtime_ns


def note_steady(container: Any) -> None:
    """All packets of the picture were read and its clock never leapt: there is no need to look."""
    _remember(version_of(container), Restarts())


def restarts_known(container: Any) -> int:
    """How often the clock begins anew, as far as somebody had to look."""
    return _known.get(version_of(container), Restarts()).num


def restarts_of(container: Any) -> Restarts:
    """Where the clock of an open container's file begins anew; reads all of its packets unless that is known."""
    if _has_index(container):
        return Restarts()
    version = version_of(container)
    if version not in _known:
        _remember(version, _restarts(_stamps(version[0]), _forward_s(container)))
    return _known[version]


def _remember(version: Version, found: Restarts) -> None:
    _known.setdefault(version, found)
    while len(_known) > KNOWN_FILES:
        del _known[next(iter(_known))]


def _has_index(container: Any) -> bool:
    """Whether times come from one table, in which no clock can begin anew."""
    return bool(container.format.name.startswith("mov"))


class OneClock:
    """Puts the packets of one stream, taken in the order of the file from its beginning, on the file's one clock."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._index = container, stream.index
        self._base = Fraction(stream.time_base)
        self._pace, self._forward_s = _Pace(container, stream), _forward_s(container)
        self._restarts = Restarts() if _has_index(container) else _known.get(version_of(container))
        self._is_watching = self._restarts is None
        self._position = 0

    def put(self, packet: Any) -> None:
        """Moves the times of the next packet."""
        if packet.pos is not None and packet.pos >= 0:
            self._position = packet.pos
        if self._is_watching and packet.size:
            if _leaps(self._pace.step_s(packet), self._forward_s):
                self._restarts, self._is_watching = restarts_of(self._container), False
            self._pace.go_on(packet)
        if self._restarts is None or not self._restarts.num:
            return
        shift = round(self._restarts.shift_s(self._index, self._position) / self._base)
        if shift:
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift


def _forward_s(container: Any) -> int:
    return LEAP_S if container.format.name in LEAPING else PAUSE_S


def _leaps(step_s: float, forward_s: float) -> bool:
    return step_s < -BACK_S or step_s > forward_s


class _Pace:
    """How the clock of one stream runs: by the order of decoding, or by when pictures are shown, where only that is known."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.base = Fraction(stream.time_base)
        self._is_by_pts = container.format.name in BY_PTS
        self._recent: deque[int] = deque(maxlen=RECENT_PACKETS if self._is_by_pts else 1)

    def at(self, packet: Any) -> int | None:
        """The time of a packet that tells; None of one that does not."""
        at: int | None = packet.pts if self._is_by_pts else packet.dts
        return at

    def step_s(self, packet: Any) -> float:
        """By how much the clock leaps with the next packet; 0 where it does not tell."""
        at = self.at(packet)
        if at is None or not self._recent or (self._is_by_pts and not packet.is_keyframe):
            return 0.0
        return float((at - sorted(self._recent)[len(self._recent) // 2]) * self.base)

    def go_on(self, packet: Any) -> None:
        """It is what comes before the next."""
        at = self.at(packet)
        if at is not None:
            self._recent.append(at)

    def begin_anew(self) -> None:
        """What came before belongs to another clock."""
        self._recent.clear()


@dataclass(frozen=True)
class _Stamp:
    """What is kept of a packet."""

    pts: int | None
    dts: int | None
    is_keyframe: bool


class _Stamps:
    """The packets of one stream in the order of the file."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.base = Fraction(stream.time_base)
        self._new_pace = partial(_Pace, container, stream)
        self.positions, self.dts, self.starts, self.ends = (array("q") for _ in range(4))
        self.stamps: list[_Stamp] = []

    def add(self, packet: Any) -> None:
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None:
            return
        before = self.positions[-1] if self.positions else 0
        self.positions.append(max(before, packet.pos if packet.pos is not None else before))
        self.stamps.append(_Stamp(packet.pts, packet.dts, packet.is_keyframe))
        self.dts.append(dts)
        start = packet.pts if packet.pts is not None else dts
        self.starts.append(start)
        self.ends.append(start + (packet.duration or 0))

    def leaps(self, forward_s: float) -> list[int]:
        """Numbers of the packets at which the clock begins anew. What is stamped wrong for itself is left out of `steady`."""
        found: list[int] = []
        self.steady = bytearray(len(self.dts))
        pace = self._new_pace()
        for number, stamp in enumerate(self.stamps):
            step_s = pace.step_s(stamp)
            if _leaps(step_s, forward_s):
                at = pace.at(stamp)
                ahead = [
                    t for each in self.stamps[number : number + CONFIRM_PACKETS] if (t := pace.at(each)) is not None
                ]
                assert at is not None
                if not _leaps(step_s + float((Fraction(median(ahead)) - at) * self.base), forward_s):
                    continue
                found.append(number)
                pace.begin_anew()
            self.steady[number] = 1
            pace.go_on(stamp)
        return found

    def between(self, first: int, end: int) -> tuple[Fraction, Fraction] | None:
        """(earliest, latest) second of the steady packets in [first, end); None without any."""
        numbers = [n for n in range(first, end) if self.steady[n]]
        if not numbers:
            return None
        step = max(0, (self.dts[numbers[-1]] - self.dts[numbers[0]]) // max(1, len(numbers) - 1))
        ends = (max(self.ends[n], self.starts[n] + (0 if self.ends[n] > self.starts[n] else step)) for n in numbers)
        return min(self.starts[n] for n in numbers) * self.base, max(ends) * self.base


def _stamps(path: str) -> dict[int, _Stamps]:
    """The packets of all pictures and sounds of a file, by stream."""
    with open_media(path) as container:
        streams = [s for s in container.streams if s.type in ("video", "audio")]
        found = {s.index: _Stamps(container, s) for s in streams}
        reader = container.demux(*streams)
        while True:
            try:
                packet = next(reader)
            except (StopIteration, EOFError):
                break
            except (av.error.FFmpegError, OSError):
                break
            if packet.size and packet.stream_index in found:
                found[packet.stream_index].add(packet)
    return {index: stamps for index, stamps in found.items() if len(stamps.dts)}


def _restarts(streams: Mapping[int, _Stamps], forward_s: float) -> Restarts:
    """Restarts as all streams tell of them."""
    ahead = {index: stamps.leaps(forward_s) for index, stamps in streams.items()}
    begins = [dict.fromkeys(streams, 0)]
    while any(ahead.values()):
        begins.append(_next_begin(streams, ahead, begins[-1]))
    begins.append({index: len(stamps.dts) for index, stamps in streams.items()})
    shifts = [Fraction(0)]
    firsts: dict[int, list[int]] = {index: [] for index in streams}
    reached: Fraction | None = None
    for begin, after in pairwise(begins):
        spans = [span for i, s in streams.items() if (span := s.between(begin[i], after[i])) is not None]
        if not spans:
            continue
        start, end = min(a for a, _ in spans), max(b for _, b in spans)
        if reached is not None:
            is_pause = 0 <= start + shifts[-1] - reached <= forward_s
            shifts.append(shifts[-1] if is_pause else reached - start)
            for index, stamps in streams.items():
                first = begin[index]
                firsts[index].append(stamps.positions[first] if first < len(stamps.dts) else 1 << 62)
        reached = max(reached or end + shifts[-1], end + shifts[-1])
    return Restarts(firsts, tuple(shifts))


def _next_begin(
    streams: Mapping[int, _Stamps], ahead: dict[int, list[int]], before: Mapping[int, int]
) -> dict[int, int]:
    """The first packet of every stream after the next restart, whose leaps are taken from `ahead`.

    The stream that leaps first says where it is. The others leap there too, some packets later where they lie interleaved; one
    that does not leap by itself begins anew with its first packet behind that place.
    """
    leader = min((i for i in ahead if ahead[i]), key=lambda i: streams[i].positions[ahead[i][0]])
    place = streams[leader].positions[ahead[leader].pop(0)]
    next_place = streams[leader].positions[ahead[leader][0]] if ahead[leader] else 1 << 62
    begin: dict[int, int] = {}
    for index, stamps in streams.items():
        first = max(before[index], bisect_left(stamps.positions, place))
        own = ahead[index][0] if index != leader and ahead[index] else None
        if own is not None and stamps.positions[own] < next_place and own >= first:
            waited_s = (stamps.dts[own - 1] - stamps.dts[first]) * stamps.base if own > first else 0
            if waited_s < MOST_WAIT_S:
                first = own
                ahead[index].pop(0)
        begin[index] = first
    return begin
