"""Ids derived from content, so that the same input has the same name on every machine and in every run."""

from __future__ import annotations

import hashlib

from schemas.timing import Span

ID_CHARS = 20
"""80 bits: two of 1e9 clips collide with a probability below 1e-6 (birthday bound n^2 / 2^81)."""


def digest(*parts: object) -> str:
    """A short hexadecimal name for `parts`."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_CHARS]


def source_id(uri: str) -> str:
    """The id of a source: where it is said to lie."""
    return "s" + digest("source", uri)


def asset_id(sha256_hex: str) -> str:
    """The id of an asset: its bytes, wherever they came from."""
    return "a" + sha256_hex[:ID_CHARS]


def shot_id(asset: str, span: Span) -> str:
    """The id of a shot: its asset and its exact span."""
    return "h" + digest("shot", asset, span.start_pts, span.end_pts, span.num, span.den)


def clip_id(asset: str, span: Span, cut_version: str) -> str:
    """The id of a clip: its asset, its exact span and the version of the cutting rules."""
    return "c" + digest("clip", asset, span.start_pts, span.end_pts, span.num, span.den, cut_version)


def fraction_of(identifier: str) -> float:
    """A number in [0, 1) fixed by the id alone; picks the audit lane and deterministic samples."""
    return int(hashlib.sha256(identifier.encode()).hexdigest()[:13], 16) / 16**13
