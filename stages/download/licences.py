"""Licences that are said of the same bytes, and what then holds."""

from __future__ import annotations

import re

FREE = re.compile(r"\bcc[ -]?0\b|public[ -]?domain|\bunlicense\b", re.IGNORECASE)
CLOSED = re.compile(r"propriet|all rights|no[ -]?licen[cs]e|unlicensed|restricted", re.IGNORECASE)
CREATIVE_COMMONS = re.compile(r"\bcc[ -]?by|creative commons.*attribution", re.IGNORECASE)
DUTIES = {
    "by": r"\bby\b|attribution",
    "nc": r"\bnc\b|non-?commercial",
    "sa": r"\bsa\b|share-?alike",
    "nd": r"\bnd\b|no-?deriv",
}
"""Elements of Creative Commons licences and how they are written; with more of them less is allowed."""


def strictest(one: str | None, other: str | None) -> str | None:
    """What holds of bytes that are given under both: the stricter, or both (`A AND B`, as SPDX writes it) if neither is.

    One that is not stated contradicts nothing.
    """
    if one is None or other is None:
        return one if other is None else other
    if one.casefold() == other.casefold():
        return one
    for first, second in ((one, other), (other, one)):
        if CLOSED.search(second) and not CLOSED.search(first):
            return second
        if FREE.search(first) and not FREE.search(second):
            return second
    duties, others = _duties(one), _duties(other)
    if duties and others and duties != others:
        if duties <= others:
            return other
        if others <= duties:
            return one
    return " AND ".join(dict.fromkeys([*one.split(" AND "), *other.split(" AND ")]))


def _duties(licence: str) -> frozenset[str]:
    if not CREATIVE_COMMONS.search(licence):
        return frozenset()
    return frozenset(name for name, form in DUTIES.items() if re.search(form, licence, re.IGNORECASE))
