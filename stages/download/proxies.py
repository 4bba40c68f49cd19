"""Proxies as the environment names them: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

INSIDE = (
    ".local",
    ".localhost",
    ".internal",
    ".intranet",
    ".lan",
    ".home",
    ".corp",
    ".private",
    ".home.arpa",
    ".localdomain",
)
"""Endings of names that lead nowhere in the public internet (RFC 6762, RFC 8375, ICANN's reserved and colliding names)."""
NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]*|\d+)\.?")


def proxy_for(uri: str) -> str | None:
    """The proxy that the environment names for `uri`, as a URL; None for none."""
    parts = urlsplit(uri)
    known = getproxies_environment()
    found = known.get(parts.scheme) or known.get("all")
    if not found or proxy_bypass(parts.netloc.rpartition("@")[2], known):
        return None
    return found if "://" in found else f"http://{found}"


def may_be_public(host: str) -> bool:
    """Whether a name that does not resolve here may be left to a proxy: no address in disguise, no name of a private network."""
    name = unicodedata.normalize("NFKC", host).lower().rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        is_number = NUMBER.fullmatch(name.rpartition(".")[2]) is not None
        return "." in name and not is_number and not f".{name}".endswith(INSIDE)
    return False
