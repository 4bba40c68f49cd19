"""Ids derived from content, so that the same input has the same name on every machine and in every run."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from schemas.timing import Span

ID_CHARS = 20
"""80 bits: two of 1e9 clips collide with a probability below 1e-6 (birthday bound n^2 / 2^81)."""
SIGNATURES = (
    (("x-amz-signature", "x-amz-credential"), ("x-amz-",)),
    (("x-goog-signature", "x-goog-credential"), ("x-goog-",)),
    (("awsaccesskeyid", "signature", "expires"), ("awsaccesskeyid", "signature", "expires", "x-amz-security-token")),
    (("googleaccessid", "signature", "expires"), ("googleaccessid", "signature", "expires")),
    (("key-pair-id", "signature"), ("key-pair-id", "signature", "expires", "policy")),
    (("sig", "sv"), ("sig", "sv", "se", "st", "sp", "spr", "sr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv")),
)
"""(parameters that a signed URL has, lower case; what is part of the signature, where `-` ends the beginning of names).

Of Amazon (versions 4 and 2), Google (the same), CloudFront and Azure, as their references say. Whoever signs the same object
anew gets other values.
"""


def digest(*parts: object) -> str:
    """A short hexadecimal name for `parts`."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_CHARS]


def source_id(uri: str) -> str:
    """The id of a source: the whole address where it is said to lie, but for a signature that is made anew every time."""
    return "s" + digest("source", unsigned(uri))


def unsigned(uri: str) -> str:
    """`uri` without the parameters of a signature it carries; one that carries none as it is (`SIGNATURES`)."""
    if "?" not in uri or "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return uri
    names = {name.lower() for name, _ in query}
    signed = [part for needed, members in SIGNATURES if names.issuperset(needed) for part in members]
    if not signed:
        return uri
    rest = [(name, value) for name, value in query if not _is_signature(name.lower(), signed)]
    return urlunsplit(parts._replace(query=urlencode(rest)))


def _is_signature(name: str, members: list[str]) -> bool:
    return any(name == part or (part.endswith("-") and name.startswith(part)) for part in members)


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
