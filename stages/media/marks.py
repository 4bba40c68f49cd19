"""What a file's own marks say that libav does not tell: its programs, what is encrypted, what was joined. In the decoder's child.

libav decodes what it cannot decrypt to grey pictures and noise, and reads the first of several joined files as if it were all; so
marks are looked for before anything is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.media.boxes import kinds_at_top, protected_tracks
from stages.media.mpegts import multiplex_of

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""Elements at the top level of Matroska (RFC 8794 and 9559)."""
READABLE_SEGMENTS = 2
"""libav 62 reads on behind the first, and not behind the second."""
ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
)
"""Objects in the header of an ASF file: content encryption, and the extended form (ASF specification, 10.14 and 10.15)."""
HEADER_BYTES = 1 << 18
PROGRAM_STREAM_BYTES, SECTOR_BYTES = 8 << 20, 2048
SCRAMBLED_SHARE = 0.1
"""Of the sectors of a program stream that hold media."""


@dataclass(frozen=True)
class FileMarks:
    """The marks of a file; streams by the ids that its container gives them."""

    programs: tuple[frozenset[int], ...] = ()
    encrypted: frozenset[int] = frozenset()
    is_locked: bool = False
    """All of it is encrypted."""
    num_joined: int = 1
    """Files that lie one behind the other, where libav reads only the beginning."""


@dataclass(frozen=True)
class Marks:
    """The marks of an open container."""

    programs: tuple[frozenset[int], ...]
    """Ids of the streams of each program; none where the container knows no programs."""
    encrypted: frozenset[int]
    """Indices of streams nobody can read without a key."""
    num_joined: int


def marks_of(container: Any) -> Marks:
    """The marks of an open container."""
    path, name = container.name.removeprefix("file:"), container.format.name
    stat = Path(path).stat()
    marks = _file_marks(path, name, stat.st_size, stat.st_mtime_ns)
    encrypted = frozenset(
        s.index
        for s in container.streams
        if marks.is_locked or s.id in marks.encrypted or (name.startswith("matroska") and "enc_key_id" in s.metadata)
    )
    return Marks(marks.programs, encrypted, marks.num_joined)


@lru_cache(maxsize=32)
def _file_marks(path: str, name: str, size: int, version: int) -> FileMarks:
    """The marks of a file of libav's format `name`; `version` (mtime) only keeps the memory honest."""
    if name.startswith("mov"):
        kinds = kinds_at_top(Path(path))
        return FileMarks(encrypted=protected_tracks(Path(path)), num_joined=max(1, min(kinds[b"ftyp"], kinds[b"moov"])))
    if name == "mpegts":
        multiplex = multiplex_of(path)
        return FileMarks(multiplex.programs, multiplex.scrambled)
    if name.startswith("matroska"):
        num = _segments(path, size)
        return FileMarks(num_joined=num if num > READABLE_SEGMENTS else 1)
    if name in ("wav", "avi"):
        return FileMarks(num_joined=_riffs(path, size))
    return FileMarks(
        is_locked=(name == "asf" and _has_asf_encryption(path)) or (name == "mpeg" and _is_scrambled(path))
    )


def _segments(path: str, size: int) -> int:
    """Matroska files that lie one behind the other by their lengths; those after one without a length are not counted."""
    found, at = 0, 0
    with open(path, "rb") as file:
        while at + 12 <= size:
            file.seek(at)
            head = file.read(12)
            width = 9 - head[4].bit_length()
            length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
            if head[:4] not in (EBML, SEGMENT) or width > 8 or length == (1 << 7 * width) - 1:
                break
            found += head[:4] == SEGMENT
            at += 4 + width + length
    return found


def _riffs(path: str, size: int) -> int:
    """Files of one kind that lie one behind the other by their lengths; an AVI goes on in segments called AVIX."""
    found, at, first = 0, 0, b""
    with open(path, "rb") as file:
        while at + 12 <= size:
            file.seek(at)
            head = file.read(12)
            if head[:4] != b"RIFF":
                break
            first = first or head[8:]
            found += head[8:] == first
            length = int.from_bytes(head[4:8], "little")
            at += 8 + length + length % 2
    return max(1, found)


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
