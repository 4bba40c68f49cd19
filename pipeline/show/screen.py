"""What fits a terminal: its width, the characters it can show, times, counts with their nouns, and tables."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import Any
from urllib.parse import urlsplit, urlunsplit

COLUMNS_ELSEWHERE = 108
"""Width where there is no terminal: bars have room."""
FEWEST_COLUMNS = 60
LEAST_CELL = 12
"""Characters to which a cell is cut at most."""
DRAWN = "█▁▂▃▄▅▆▇–→±≥≤…"
IN_ASCII = str.maketrans(
    dict(zip(DRAWN, ("#", ".", ":", "-", "=", "+", "*", "%", "-", "->", "+-", ">=", "<=", ".."), strict=True))
)


def columns() -> int:
    """Characters of a line."""
    return max(FEWEST_COLUMNS, shutil.get_terminal_size((COLUMNS_ELSEWHERE, 24)).columns)


def drawable(text: str, encoding: str | None) -> str:
    """`text` with bars and signs in ASCII where an encoding has no others; names are left to the stream."""
    try:
        DRAWN.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return text.translate(IN_ASCII)
    return text


def plural(number: int, noun: str) -> str:
    """A count with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def hms(us: float, *, millis: bool = False, is_signed: bool = False) -> str:
    """Microseconds as h:mm:ss."""
    total_ms = round(abs(us) / 1000)
    seconds, ms = divmod(total_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if us < 0 else "+" if is_signed and us > 0 else ""
    return f"{sign}{hours}:{minutes:02d}:{seconds:02d}" + (f".{ms:03d}" if millis else "")


def value(given: Any) -> str:
    """A measured value, short: four digits of a number, yes or no for a flag, a dash for nothing."""
    if given is None:
        return "–"
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, list | tuple):
        return ", ".join(map(value, given))
    if isinstance(given, float):
        return f"{given:,.0f}" if 1000 <= abs(given) < 1e15 else f"{given:.4g}"
    return str(given)


def signed(given: float | None) -> str:
    """The same with its sign; empty for nothing."""
    return "" if given is None else ("+" if given > 0 else "") + value(given)


def bar(share: float, width: int) -> str:
    """A bar of `share` of `width` characters."""
    return "█" * round(share * max(width, 0))


def cut(text: str, width: int) -> str:
    """`text` in at most `width` characters."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    *,
    uncut: Collection[int] = (),
    is_whole: bool = False,
) -> list[str]:
    """Lines of a table no wider than the terminal: the widest columns are cut first, but those `uncut`.

    `right` are set flush right. Where it `is_whole`, the last column is not cut but goes on in the next line.
    """
    widths = [max(map(len, each)) for each in zip(head, *rows, strict=True)]
    room = columns() - 2 * (len(widths) - 1)
    while sum(widths) > room:
        widest = max((width, at) for at, width in enumerate(widths) if at not in uncut)
        if widest[0] <= LEAST_CELL:
            break
        widths[widest[1]] -= 1
    lines = []
    for row in (head, *rows):
        cells = [cut(cell, width) for cell, width in zip(row, widths, strict=True)]
        rest = []
        if is_whole and len(row[-1]) > widths[-1]:
            cells[-1], *rest = wrap(row[-1], widths[-1]) or [""]
        told = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(told).rstrip())
        lines += [" " * (sum(widths[:-1]) + 2 * len(widths) - 2) + line for line in rest]
    return lines


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of a sentence; all but the first begin with `indent`."""
    return wrap(text, columns(), subsequent_indent=indent, break_on_hyphens=False) or [""]


def address(uri: str) -> str:
    """An address without user, password and query, which may be secrets."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if parts.port:
        host += f":{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
