"""Boxes of ISO media files (MP4, MOV, fragments), as far as libav does not tell what they say. In the decoder's child.

A file's boxes are walked by their headers; payload is skipped (ISO/IEC 14496-12, 4.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

AT_TOP = (b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid", b"emsg",
          b"prft", b"mfra", b"meta")  # fmt: skip
"""Kinds at the top level."""
INNER = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
"""Boxes that are looked into."""
PROTECTED = (b"encv", b"enca", b"enct", b"encs", b"drmi", b"drms", b"drmt")
"""Sample entries of protected tracks: 8.12, and what iTunes wrote before."""
MAX_TABLE_BYTES = 1 << 20


def kinds_at_top(path: Path) -> Counter[bytes]:
    """How many boxes of each kind a file has at its top level; none if it is no ISO media file."""
    size, found = path.stat().st_size, Counter[bytes]()
    with path.open("rb") as file:
        if file.read(8)[4:8] in AT_TOP:
            found.update(kind for kind, _ in _boxes(file, 0, size, ()))
    return found


def protected_tracks(path: Path) -> frozenset[int]:
    """Ids of the tracks whose sample entries are protected."""
    found: set[int] = set()
    track = 0
    with path.open("rb") as file:
        for kind, size in _boxes(file, 0, path.stat().st_size, INNER):
            content = file.read(min(size, MAX_TABLE_BYTES)) if kind in (b"tkhd", b"stsd") else b""
            if kind == b"tkhd" and len(content) >= 24:
                at = 20 if content[0] == 1 else 12  # the times before it are longer in version 1
                track = int.from_bytes(content[at : at + 4], "big")
            if kind == b"stsd" and (content[12:16] in PROTECTED or b"sinf" in content):
                found.add(track)
    return frozenset(found)


def _boxes(file: BinaryIO, at: int, end: int, inner: tuple[bytes, ...]) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes of content) of the boxes in [at, end) and of those in `inner`, the file being at their content."""
    while at + 8 <= end:
        file.seek(at)
        header = file.read(16)
        size, kind, head = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:
            size, head = int.from_bytes(header[8:16], "big"), 16
        if size == 0:  # to the end
            size = end - at
        if size < head:
            return
        if kind in inner:
            yield from _boxes(file, at + head, min(at + size, end), inner)
        else:
            file.seek(at + head)
            yield kind, size - head
        at += size
