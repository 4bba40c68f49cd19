"""How values read on a page: times, numbers with units, addresses without secrets. Jinja's filters, and nothing else."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from pipeline.ask.queries import US_PER_HOUR
from pipeline.show.screen import address


def hms(us: float, millis: bool = False) -> str:
    """Microseconds as h:mm:ss, with a sign where they are negative."""
    total = round(abs(us) / 1000)
    seconds, ms = divmod(total, 1000)
    if not millis:
        seconds, ms = round(total / 1000), 0
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    sign = "\u2212" if us < 0 and (total if millis else round(total / 1000)) else ""
    return f"{sign}{hours:,}:{minutes:02d}:{seconds:02d}" + (f".{ms:03d}" if millis else "")


def clock(seconds: float) -> str:
    """Seconds on a source's clock as m:ss.mmm or h:mm:ss.mmm."""
    told = hms(seconds * 1e6, millis=True).removeprefix("0:")
    return told.removeprefix("0") if told[1].isdigit() else told


def number(value: Any) -> str:
    """A measured value, short: four digits of a number, a word for a flag, a dash for nothing."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        text = f"{value:.4g}"
        return (f"{value:,.0f}" if "e+" in text and abs(value) < 1e15 else text).replace("-", "\u2212")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def signed(value: float | None) -> str:
    """A number with its sign."""
    if value is None:
        return "\u2013"
    return ("+" if value > 0 else "") + number(float(value))


def share(part: float, whole: float) -> str:
    """A share as a per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "\u2013"


def width(part: float, whole: float) -> str:
    """Width of a bar in per cent, as CSS wants it; what is not nothing is seen."""
    if not whole or part <= 0:
        return "0"
    return f"{max(100 * part / whole, 0.4):.2f}"


def plain(value: Any) -> str:
    """A number as a form field takes it."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def breaks(path: str) -> Markup:
    """A dotted path that may be broken behind its dots and underscores."""
    return Markup(str(escape(path)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def ago(seconds: float) -> str:
    """A time that has passed, in its largest unit."""
    for length, noun in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= length:
            return plural(int(seconds // length), noun)
    return plural(int(seconds), "second")


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def last_part(uri: str) -> str:
    """The name at the end of an address or path."""
    return address(uri).rstrip("/").rsplit("/", 1)[-1] or uri


def query(given: dict[str, Any], **changed: Any) -> str:
    """A query string of what is given with changes; what is empty is left out."""
    merged = {name: value for name, value in {**given, **changed}.items() if value not in (None, "")}
    return "?" + urlencode(merged) if merged else "?"


def as_json(value: Any) -> str:
    """Data for a script, safe inside an element of a page."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


FILTERS = {
    "hms": hms,
    "clock": clock,
    "number": number,
    "signed": signed,
    "share": share,
    "width": width,
    "plural": plural,
    "address": address,
    "last_part": last_part,
    "as_json": as_json,
    "plain": plain,
    "breaks": breaks,
    "ago": ago,
    "hours": lambda hours: hms(hours * US_PER_HOUR),
}
