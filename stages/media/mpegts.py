"""What an MPEG transport stream says of itself: its programs, and what is scrambled. Runs inside the decoder's child process.

libav joins all programs of a multiplex and PyAV does not tell which stream is of which, so the tables are read here
(ISO/IEC 13818-1, 2.4.3 and 2.4.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYNC = 0x47
PACKET_BYTES = (188, 192, 204)
"""Plain, with a time stamp before each packet (Blu-ray, AVCHD), with error correction behind it."""
SYNCS = 5
"""Packets in a row whose first byte must be right for their size to be believed."""
TABLE_BYTES = 16 << 20
"""Where tables are looked for: they are repeated every half second at most, which is 10 MB at 160 Mbit/s."""
WINDOWS, WINDOW_BYTES = 16, 128 << 10
"""Stretches, evenly over the file, in which scrambled packets are counted."""
SCRAMBLED_SHARE = 0.1
"""Of a stream's packets; damaged headers set the two bits in far fewer."""
SAMPLE_AES = {0xC1, 0xC2, 0xCF, 0xD0, 0xDB}
"""Stream types of samples that are encrypted one by one (Apple, HTTP Live Streaming Sample Encryption)."""


@dataclass(frozen=True)
class Multiplex:
    """The programs of a transport stream, each as the PIDs of its streams, and the PIDs nobody can read."""

    programs: tuple[frozenset[int], ...] = ()
    scrambled: frozenset[int] = frozenset()


def multiplex_of(path: str) -> Multiplex:
    """What the tables of `path` say and its packets show; nothing where it holds no tables."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        framing = _framing(file.read(SYNCS * 2 * max(PACKET_BYTES)))
        if framing is None:
            return Multiplex()
        offset, packet_bytes = framing
        tables = _Tables()
        file.seek(offset)
        while not tables.are_whole and file.tell() < TABLE_BYTES:
            block = file.read(packet_bytes * 4096)
            if not block:
                break
            for packet in _packets(block, packet_bytes):
                tables.add(packet)
        seen: Counter[int] = Counter()
        scrambled: Counter[int] = Counter()
        for window in range(WINDOWS):
            at = size * window // WINDOWS
            file.seek(at - (at - offset) % packet_bytes if at > offset else offset)
            for packet in _packets(file.read(WINDOW_BYTES), packet_bytes):
                pid = _pid(packet)
                seen[pid] += 1
                scrambled[pid] += packet[3] >> 7
    unreadable = {pid for pid, num in scrambled.items() if num > SCRAMBLED_SHARE * seen[pid]}
    return Multiplex(tuple(tables.programs.values()), frozenset(unreadable | tables.encrypted))


def _framing(head: bytes) -> tuple[int, int] | None:
    """(first byte of the first packet, bytes from one to the next)."""
    for size in PACKET_BYTES:
        for offset in range(size):
            marks = head[offset : offset + SYNCS * size : size]
            if len(marks) == SYNCS and set(marks) == {SYNC}:
                return offset, size
    return None


def _packets(block: bytes, size: int) -> Iterator[bytes]:
    """The whole packets in `block`, which begins with one; those out of step are left out."""
    for at in range(0, len(block) - 187, size):
        if block[at] == SYNC:
            yield block[at : at + 188]


def _pid(packet: bytes) -> int:
    return (packet[1] & 0x1F) << 8 | packet[2]


class _Tables:
    """Program association and program maps, put together from packets."""

    def __init__(self) -> None:
        self.programs: dict[int, frozenset[int]] = {}
        """Program number -> PIDs of its streams."""
        self.encrypted: set[int] = set()
        self._maps: dict[int, set[int]] | None = None
        """PID of a map -> numbers of the programs it describes."""
        self._parts: dict[int, bytes] = {}

    @property
    def are_whole(self) -> bool:
        """Whether every program that is listed has been described."""
        return self._maps is not None and set().union(*self._maps.values()) <= self.programs.keys()

    def add(self, packet: bytes) -> None:
        pid, begins = _pid(packet), bool(packet[1] & 0x40)
        is_wanted = pid == 0 or (self._maps is not None and pid in self._maps)
        if not is_wanted or packet[3] >> 6 or not packet[3] & 0x10:
            return
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        if begins and payload:
            self._parts[pid] = payload[1 + payload[0] :]
        elif pid in self._parts:
            self._parts[pid] += payload
        section = self._parts.get(pid, b"")
        length = 3 + ((section[1] & 0x0F) << 8 | section[2]) if len(section) >= 3 else 0
        if length and len(section) >= length:
            del self._parts[pid]
            self._read(section[: length - 4])

    def _read(self, section: bytes) -> None:
        """A section without its checksum."""
        number, content = int.from_bytes(section[3:5], "big"), section[8:]
        if section[0] == 0:
            self._maps = {}
            for at in range(0, len(content) - 3, 4):
                program, pid = (
                    int.from_bytes(content[at : at + 2], "big"),
                    (content[at + 2] & 0x1F) << 8 | content[at + 3],
                )
                if program:  # 0 is the network's own table
                    self._maps.setdefault(pid, set()).add(program)
        elif section[0] == 2 and len(content) >= 4:
            at, streams = 4 + ((content[2] & 0x0F) << 8 | content[3]), set()
            while at + 5 <= len(content):
                kind, pid = content[at], (content[at + 1] & 0x1F) << 8 | content[at + 2]
                streams.add(pid)
                if kind in SAMPLE_AES:
                    self.encrypted.add(pid)
                at += 5 + ((content[at + 3] & 0x0F) << 8 | content[at + 4])
            self.programs[number] = frozenset(streams)
