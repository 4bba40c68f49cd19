"""Local files as addresses: a path where everybody can print and store it, else a `file://` URI that spells every byte."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from schemas.printable import is_plain

HERE = ("", "localhost")
"""Hosts of `file://` URIs that mean this machine (RFC 8089)."""


def is_local(address: str) -> bool:
    """Whether an address names a file of this machine."""
    return "://" not in address or address[:7].lower() == "file://"


def uri_of(path: Path) -> str:
    """The address of a local file: its absolute path, or its `file://` URI where the name is not plain text."""
    absolute = path.absolute()
    return str(absolute) if is_plain(str(absolute)) else absolute.as_uri()


def path_of(address: str) -> Path:
    """The file that a path or a `file://` URI names, whatever bytes its name has. Raises ValueError for another host's."""
    if address[:6].lower() != "file:/":
        return Path(address)
    place = address[7:] if address[5:7] == "//" else address[5:]
    host, slash, rest = place.partition("/")
    if host.lower() not in HERE:
        raise ValueError(f"'{host}' is not this machine: write file:///PATH")
    return Path(os.fsdecode(unquote_to_bytes(slash + rest)))


def scheme_of(address: str) -> str:
    """The scheme of an address, lower case; `file` for a path, and nothing for several addresses chained by `::`."""
    if is_local(address):
        return "file"
    scheme = address.partition("://")[0].lower()
    is_chain = "::" in scheme or (scheme not in ("http", "https") and "::" in address)
    return "" if is_chain else urlsplit(f"{scheme}://").scheme
