"""Text from outside as text: names and messages may hold what a terminal, a log or an encoder would act on or fail at."""

from __future__ import annotations

import re

_ACTIVE = (
    "\x00-\x1f\x7f-\x9f"  # control characters, escape sequences among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029"  # line breaks
    "\ud800-\udfff"  # halves of characters: no encoder takes them; file names that are not UTF-8 hold some
)
_IN_NAMES = re.compile(f"[{_ACTIVE}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_ACTIVE}]")
_HALVES = re.compile("[\ud800-\udfff]")


def is_plain(name: str) -> bool:
    """Whether a name is text that everything can print and store."""
    return _IN_NAMES.search(name) is None


def printable(text: str) -> str:
    r"""`text` for a terminal: what it would act on is written as its escape (`\x1b`); line breaks and tabs stay."""
    return _IN_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def percent_escaped(name: str) -> str:
    """A name or address with everything active in it as `%XX`, as in URLs; bytes that are not UTF-8 as themselves."""
    return name if name.isascii() and name.isprintable() else _IN_NAMES.sub(_percent, name)


def _percent(found: re.Match[str]) -> str:
    is_byte = "\udc80" <= found[0] <= "\udcff"
    raw = found[0].encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in raw)


def whole_text(text: str) -> str:
    """`text` that every encoder takes: halves of characters are replaced."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)
