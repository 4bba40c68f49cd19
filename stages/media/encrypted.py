"""Which streams of a file are encrypted, told by its own marks. Runs inside the decoder's child process.

libav decodes what it cannot decrypt to grey pictures and noise, so marks are looked for before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stages.media.mpegts import Multiplex

ENTRIES = (b"encv", b"enca", b"enct", b"encs", b"drmi", b"drms", b"drmt")
"""Sample entries of protected tracks: ISO/IEC 14496-12, 8.12, and what iTunes wrote before."""
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
"""Boxes that are looked into."""
MAX_ENTRIES_BYTES = 1 << 20
ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
)
"""Objects in the header of an ASF file: content encryption, and the extended form (ASF specification, 10.14 and 10.15)."""
HEADER_BYTES = 1 << 18
PROGRAM_STREAM_BYTES, SECTOR_BYTES = 8 << 20, 2048
SCRAMBLED_SHARE = 0.1
"""Of the sectors of a program stream that hold media."""


def encrypted_streams(container: Any, path: str, multiplex: Multiplex) -> frozenset[int]:
    """Indices of the streams of an open `container` that nobody can read without a key."""
    name = container.format.name
    if name.startswith("mov"):
        tracks = protected_tracks(path)
        return frozenset(s.index for s in container.streams if s.id in tracks)
    if name == "mpegts":
        return frozenset(s.index for s in container.streams if s.id in multiplex.scrambled)
    if name.startswith("matroska"):
        return frozenset(s.index for s in container.streams if "enc_key_id" in s.metadata)
    is_locked = (name == "asf" and _has_asf_encryption(path)) or (name == "mpeg" and _is_scrambled(path))
    return frozenset(s.index for s in container.streams) if is_locked else frozenset()


def protected_tracks(path: str) -> set[int]:
    """Ids of the tracks of an ISO media file whose sample entries are protected; of anything else none."""
    found: set[int] = set()
    track = 0
    with open(path, "rb") as file:
        for kind, size in _boxes(file, 0, Path(path).stat().st_size):
            content = b""
            if kind in (b"tkhd", b"stsd"):
                content = file.read(min(size, MAX_ENTRIES_BYTES))
            if kind == b"tkhd" and len(content) >= 24:
                at = 20 if content[0] == 1 else 12  # the times before it are longer in version 1
                track = int.from_bytes(content[at : at + 4], "big")
            if kind == b"stsd" and (content[12:16] in ENTRIES or b"sinf" in content):
                found.add(track)
    return found


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes of content) of the boxes in [at, end) and in `CONTAINERS`, the file being at their content."""
    while at + 8 <= end:
        file.seek(at)
        header = file.read(16)
        size, kind, head = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:
            size, head = int.from_bytes(header[8:16], "big"), 16
        if size == 0:
            size = end - at
        if size < head:
            return
        if kind in CONTAINERS:
            yield from _boxes(file, at + head, min(at + size, end))
        else:
            file.seek(at + head)
            yield kind, size - head
        at += size


def _has_asf_encryption(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    return any(guid in head for guid in ASF_ENCRYPTION)


def _is_scrambled(path: str) -> bool:
    """Whether a program stream in sectors, as on a DVD, has packets whose scrambling bits are set."""
    num = scrambled = 0
    with open(path, "rb") as file:
        while (sector := file.read(SECTOR_BYTES)) and file.tell() <= PROGRAM_STREAM_BYTES:
            if sector[:4] != b"\0\0\1\xba" or len(sector) < SECTOR_BYTES:
                continue
            at = 14 + (sector[13] & 7)
            if sector[at : at + 3] == b"\0\0\1" and (sector[at + 3] == 0xBD or 0xC0 <= sector[at + 3] <= 0xEF):
                num += 1
                scrambled += sector[at + 6] >> 6 == 2 and bool(sector[at + 6] & 0x30)
    return num > 0 and scrambled > SCRAMBLED_SHARE * num
