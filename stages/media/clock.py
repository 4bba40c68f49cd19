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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import av

from stages.child import progress
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

MAX_DEMUX_ERRORS = 100
"""Read errors after which the rest of a file is given up as unreadable."""
NOWHERE = 1 << 62
"""A byte position behind all."""
T = TypeVar("T")
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
"""Files of which all packets were looked at."""
_steady: dict[Version, None] = {}
"""Files whose picture was read from beginning to end, and its clock never leapt."""


def version_of(container: Any) -> Version:
    """What tells the file of an open container from what it was before."""
    return version_at(container.name.removeprefix("file:"))


def version_at(path: str) -> Version:
    """What tells the file at `path` from what it was before."""
    stat = Path(path).stat()
    return path, stat.st_size, stat.st_mtime_ns


def note_steady(container: Any) -> None:
    """All packets of the picture were read; unless its clock leapt there is no need to look before a seek."""
    if not restarts_known(container):
        _remember(_steady, version_of(container), None)


def is_steady(container: Any) -> bool:
    """Whether a time leads to one place in an open container's file, so that it can be sought."""
    return _has_index(container) or version_of(container) in _steady or not _restarts_of(container).num


def restarts_known(container: Any) -> int:
    """How often the clock begins anew, as far as somebody had to look."""
    return _known.get(version_of(container), Restarts()).num


def _restarts_of(container: Any) -> Restarts:
    """Where the clock of an open container's file begins anew; reads all of its packets unless that is known."""
    version = version_of(container)
    if version not in _known:
        _remember(_known, version, _restarts(_all_stamps(version[0]), _forward_s(container)))
    return _known[version]


def _remember(known: dict[Version, T], version: Version, found: T) -> None:
    known[version] = found
    while len(known) > KNOWN_FILES:
        del known[next(iter(known))]


def _has_index(container: Any) -> bool:
    """Whether times come from one table, in which no clock can begin anew."""
    return bool(container.format.name.startswith("mov"))


def _forward_s(container: Any) -> int:
    return LEAP_S if container.format.name in LEAPING else PAUSE_S


class OneClock:
    """Puts the packets of one stream, taken in the order of the file from its beginning, on the file's one clock."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._index = container, stream.index
        self._base = Fraction(stream.time_base)
        self._is_by_pts = container.format.name in BY_PTS
        self._pace = _Pace(self._base, _forward_s(container), RECENT_PACKETS if self._is_by_pts else 1)
        self._restarts = Restarts() if _has_index(container) else _known.get(version_of(container))
        self._position = 0

    def put(self, packet: Any) -> None:
        """Moves the times of the next packet."""
        if self._restarts is None:
            at = packet.pts if self._is_by_pts else packet.dts
            if at is not None:
                if self._pace.leaps_to(at, may_go_back=not self._is_by_pts or packet.is_keyframe):
                    self._restarts = _restarts_of(self._container)
                self._pace.go_on(at)
        position = packet.pos
        if position is not None and position >= 0:
            self._position = position
        if self._restarts is None or not self._restarts.num:
            return
        shift = round(self._restarts.shift_s(self._index, self._position) / self._base)
        if shift:
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift


def _middle(stamps: Iterable[int]) -> int:
    ordered = sorted(stamps)
    return ordered[len(ordered) // 2]


class _Pace:
    """How the clock of one stream runs."""

    def __init__(self, base: Fraction, forward_s: float, num_recent: int) -> None:
        self._back, self._forward = -int(BACK_S / base), int(forward_s / base)
        self._recent: deque[int] = deque(maxlen=num_recent)

    def leaps_to(self, at: int, *, may_go_back: bool) -> bool:
        """Whether the clock begins anew at `at`; it `may_go_back` where packets come in the order of `at`."""
        if not self._recent:
            return False
        step = at - (self._recent[0] if len(self._recent) == 1 else _middle(self._recent))
        return (may_go_back and step < self._back) or step > self._forward

    def go_on(self, at: int) -> None:
        """The next packet is at `at`."""
        self._recent.append(at)

    def begin_anew(self) -> None:
        """What came before belongs to another clock."""
        self._recent.clear()


class _Stamps:
    """The packets of one stream in the order of the file."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.base = Fraction(stream.time_base)
        self._is_by_pts = container.format.name in BY_PTS
        self.positions, self._told, self.starts, self._ends = (array("q") for _ in range(4))
        self._may_go_back = bytearray()
        """Whether a packet before the one before it has another clock."""
        self._is_steady = bytearray()

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, packet: Any) -> None:
        """The next packet."""
        start = packet.pts if packet.pts is not None else packet.dts
        if start is None:
            return
        before = self.positions[-1] if self.positions else 0
        self.positions.append(max(before, packet.pos if packet.pos is not None else before))
        self._told.append(start if self._is_by_pts or packet.dts is None else packet.dts)
        self._may_go_back.append(packet.is_keyframe if self._is_by_pts else packet.dts is not None)
        self.starts.append(start)
        self._ends.append(start + (packet.duration or 0))

    def leaps(self, forward_s: float) -> list[int]:
        """Numbers of the packets at which the clock begins anew. Stamps that are wrong for themselves count nowhere."""
        found: list[int] = []
        self._is_steady = bytearray(len(self))
        pace = _Pace(self.base, forward_s, RECENT_PACKETS if self._is_by_pts else 1)
        for number, at in enumerate(self._told):
            may_go_back = bool(self._may_go_back[number])
            if pace.leaps_to(at, may_go_back=may_go_back):
                ahead = _middle(self._told[number : number + CONFIRM_PACKETS])
                if not pace.leaps_to(ahead, may_go_back=may_go_back):
                    continue
                found.append(number)
                pace.begin_anew()
            self._is_steady[number] = 1
            pace.go_on(at)
        return found

    def between(self, first: int, end: int) -> tuple[Fraction, Fraction] | None:
        """(earliest, latest) second of the packets in [first, end); None without any."""
        numbers = [n for n in range(first, end) if self._is_steady[n]]
        if not numbers:
            return None
        step = max(0, (self.starts[numbers[-1]] - self.starts[numbers[0]]) // max(1, len(numbers) - 1))
        lengths = (self._ends[n] - self.starts[n] or step for n in numbers)
        latest = max(self.starts[n] + length for n, length in zip(numbers, lengths, strict=True))
        return min(self.starts[n] for n in numbers) * self.base, latest * self.base


def _all_stamps(path: str) -> dict[int, _Stamps]:
    """The packets of all pictures and sounds of a file, by stream."""
    with open_media(path) as container:
        streams = [s for s in container.streams if s.type in ("video", "audio")]
        found = {s.index: _Stamps(container, s) for s in streams}
        reader, failures = container.demux(*streams), 0
        while failures < MAX_DEMUX_ERRORS:
            try:
                packet = next(reader)
            except (StopIteration, EOFError):
                break
            except (av.error.FFmpegError, OSError, IndexError):  # see stages.media.picture.packets
                reader, failures = container.demux(*streams), failures + 1
                continue
            progress()
            if packet.size and packet.stream_index in found:
                found[packet.stream_index].add(packet)
    return {index: stamps for index, stamps in found.items() if len(stamps)}


def _restarts(streams: Mapping[int, _Stamps], forward_s: float) -> Restarts:
    """Restarts as all streams tell of them; none where packets have no places in the file."""
    leaps = {index: deque(stamps.leaps(forward_s)) for index, stamps in streams.items()}
    if any(streams[index].positions[n] <= streams[index].positions[n - 1] for index in leaps for n in leaps[index]):
        return Restarts()
    begins = [dict.fromkeys(streams, 0)]
    while any(leaps.values()):
        begins.append(_next_begin(streams, leaps, begins[-1]))
    begins.append({index: len(stamps) for index, stamps in streams.items()})
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
                firsts[index].append(stamps.positions[first] if first < len(stamps) else NOWHERE)
        reached = end + shifts[-1] if reached is None else max(reached, end + shifts[-1])
    return Restarts(firsts, tuple(shifts))


def _next_begin(
    streams: Mapping[int, _Stamps], leaps: Mapping[int, deque[int]], before: Mapping[int, int]
) -> dict[int, int]:
    """The first packet of every stream after the next restart, whose leaps are taken from `leaps`.

    The stream that leaps first says where it is. The others leap there too, some packets later where they lie interleaved; one
    that does not leap by itself begins anew with its first packet behind that place.
    """
    leader = min((i for i in leaps if leaps[i]), key=lambda i: streams[i].positions[leaps[i][0]])
    place = streams[leader].positions[leaps[leader].popleft()]
    next_place = streams[leader].positions[leaps[leader][0]] if leaps[leader] else NOWHERE
    begin: dict[int, int] = {}
    for index, stamps in streams.items():
        first = max(before[index], bisect_left(stamps.positions, place))
        own = leaps[index][0] if index != leader and leaps[index] else None
        if own is not None and own >= first and stamps.positions[own] < next_place:
            waited = stamps.starts[own - 1] - stamps.starts[first] if own > first else 0
            if waited * stamps.base < MOST_WAIT_S:
                first = leaps[index].popleft()
        begin[index] = first
    return begin
