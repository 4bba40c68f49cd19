"""Fetching one http(s) URL into a file: retries, resume, limits per host, and no way into private networks."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from schemas.errors import DownloadError
from schemas.machine import is_trouble
from stages.download.partial import Part, host_slot
from stages.download.sources import public_uri
from stages.download.store import suffix_of
from stages.retry import RetryPolicy, TryAgainError, retry_after_s

if TYPE_CHECKING:
    import httpx

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a moment later (RFC 9110, RFC 6585)."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that a translator turns into the IPv4 address of their last 32 bits (RFC 6052)."""


@dataclass(frozen=True)
class HttpLimits:
    """What a fetch may do."""

    schemes: frozenset[str] = frozenset({"http", "https"})
    max_bytes: int = 50 * 2**30
    attempts: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    timeout_s: float = 60.0
    per_host: int = 2
    min_interval_s: float = 0.0
    max_redirects: int = 5
    allow_private_hosts: bool = False
    user_agent: str = "nava-curate"


@dataclass(frozen=True)
class Fetched:
    """Where the bytes lie, and how they came."""

    path: Path
    final_uri: str
    attempts: int
    suffix: str
    """The ending to keep for people's sake, such as `.mp4`."""


@contextmanager
def fetched_http(
    uri: str,
    partial_dir: Path,
    limits: HttpLimits,
    *,
    is_checked: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Fetched]:
    """The complete content of `uri` in a file below `partial_dir`, continuing what an earlier run left there.

    The file is the caller's to move or remove until the block ends; whoever else wants the same URL waits until then. A
    partial file is continued only if the server says that the content is still the same (a strong ETag or Last-Modified in
    `If-Range`); `is_checked` (a checksum will be compared afterwards) makes up for a missing one. Raises DownloadError, and
    OSError where this machine is in trouble.
    """
    import httpx

    part = Part(partial_dir / (hashlib.sha256(uri.encode()).hexdigest()[:32] + ".part"))
    policy = RetryPolicy(limits.attempts, limits.backoff_s, limits.max_backoff_s)
    passing = (TryAgainError, httpx.TransportError, OSError)
    with part.locked():
        try:
            final, attempts = policy.run(lambda: _attempt(uri, part, limits, is_checked), passing, sleep)
        except passing as error:
            if is_trouble(error):
                raise
            raise DownloadError(
                f"{public_uri(uri)} could not be fetched in {limits.attempts} attempts: {_reason(error)}",
                reason="network",
                remedy="Run again later; what has arrived is kept and continued.",
            ) from None
        yield Fetched(part.path, public_uri(final), attempts, suffix_of(urlsplit(uri).path))
        part.forget()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _attempt(uri: str, part: Part, limits: HttpLimits, is_checked: bool) -> str:
    """Follows redirects and appends to `part`; the final URL. Raises TryAgainError or DownloadError."""
    here = uri
    first_host = urlsplit(uri).hostname
    for _ in range(limits.max_redirects + 1):
        address = checked_address(here, limits)
        with (
            host_slot(urlsplit(here).hostname or "", limits.per_host, limits.min_interval_s),
            _client(limits) as client,
        ):
            request = _request(
                client, here, address, part, is_checked, with_login=urlsplit(here).hostname == first_host
            )
            response = client.send(request, stream=True)
            try:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    here = _with_login_of(uri, urljoin(here, response.headers["location"]))
                    continue
                _receive(response, here, part, limits)
                return here
            finally:
                response.close()
    raise DownloadError(f"{public_uri(uri)} redirects more than {limits.max_redirects} times.", reason="redirect_loop")


def _client(limits: HttpLimits) -> httpx.Client:
    import httpx

    return httpx.Client(timeout=limits.timeout_s, trust_env=False, headers={"User-Agent": limits.user_agent})


def _with_login_of(first: str, uri: str) -> str:
    """`uri`, with the user name and password of `first` if it leads to the same host and has none."""
    a, b = urlsplit(first), urlsplit(uri)
    if "@" in a.netloc and "@" not in b.netloc and a.hostname == b.hostname and a.scheme == b.scheme:
        return urlunsplit(b._replace(netloc=a.netloc.rpartition("@")[0] + "@" + b.netloc))
    return uri


def _request(
    client: httpx.Client, uri: str, address: str, part: Part, is_checked: bool, *, with_login: bool
) -> httpx.Request:
    """A request to the very address that was checked, whatever the name resolves to a moment later."""
    import httpx

    parts = urlsplit(uri)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    literal = f"[{address}]" if ":" in address else address
    target = urlunsplit((parts.scheme, literal + port, parts.path or "/", parts.query, ""))
    headers = {"Host": (f"[{host}]" if ":" in host else host) + port, "Accept-Encoding": "identity"}
    size, validator = part.size(), part.validator()
    if size and (validator or is_checked):
        headers["Range"] = f"bytes={size}-"
        if validator:
            headers["If-Range"] = validator
    login = None
    if with_login and parts.username is not None:
        login = (unquote(parts.username), unquote(parts.password or ""))
    request = client.build_request("GET", target, headers=headers, extensions={"sni_hostname": host})
    if login:
        request = next(httpx.BasicAuth(*login).auth_flow(request))
    return request


def _receive(response: httpx.Response, uri: str, part: Part, limits: HttpLimits) -> None:
    """Writes the body where it belongs. Raises TryAgainError if it is cut short, DownloadError if it never will do."""
    status, shown = response.status_code, public_uri(uri)
    if status in RETRIED_STATUS:
        raise TryAgainError(f"the server answered {status}", retry_after_s(response.headers.get("retry-after")))
    offset = 0
    if status == 206:
        start, total = _content_range(response.headers.get("content-range", ""))
        if start != part.size():
            part.clear()
            raise TryAgainError("the server continued at another place than asked for")
        offset = start
    elif status == 416:
        _, total = _content_range(response.headers.get("content-range", ""))
        if total is not None and total == part.size():
            return
        part.clear()
        raise TryAgainError("the partial file does not fit what the server has")
    elif status == 200:
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else None
    else:
        _refuse(status, shown)
    if total is not None and total > limits.max_bytes:
        raise too_large(uri, total, limits.max_bytes)
    with part.path.open("r+b") as out:
        out.truncate(offset)
        part.remember(response.headers)
        out.seek(offset)
        for block in response.iter_raw():  # as it arrives: what is held back is lost when the connection breaks
            offset += len(block)
            if offset > limits.max_bytes:
                part.clear()
                raise too_large(uri, offset, limits.max_bytes)
            out.write(block)
    if total is not None and offset != total:
        raise TryAgainError(f"the connection ended after {offset} of {total} bytes")


def too_large(uri: str, size: int, limit: int) -> DownloadError:
    """The error of a source larger than download.max_bytes."""
    return DownloadError(
        f"{public_uri(uri)} has at least {size} bytes, more than the limit of {limit}.",
        reason="too_large",
        remedy="Raise stages.download.max_bytes if it is wanted.",
    )


def _refuse(status: int, shown: str) -> NoReturn:
    known = {401: "forbidden", 403: "forbidden", 451: "forbidden", 404: "not_found", 410: "not_found"}
    reason = known.get(status, "http_error")
    raise DownloadError(f"{shown}: the server answered {status}.", reason=reason)


def _content_range(value: str) -> tuple[int | None, int | None]:
    """(first byte, total bytes) of a Content-Range header; None for what it does not say."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", value.strip())
    if not found:
        return None, None
    return (int(found[1]) if found[1] else None), (int(found[2]) if found[2] != "*" else None)


# --- where a name may lead


def checked_address(uri: str, limits: HttpLimits) -> str:
    """The address to connect to for `uri`. Raises DownloadError for undeclared schemes and private networks.

    A name that resolves to any private address is refused altogether; for one that does not resolve, which it may do a
    moment later, TryAgainError is raised.
    """
    parts = urlsplit(uri)
    if parts.scheme not in limits.schemes or parts.scheme not in ("http", "https"):
        raise DownloadError(
            f"{public_uri(uri)}: scheme '{parts.scheme}' is not allowed here.",
            reason="scheme_not_allowed",
            remedy="Add it to stages.download.schemes if it is wanted.",
        )
    if not parts.hostname:
        raise DownloadError(f"'{public_uri(uri)}' names no host.", reason="scheme_not_allowed")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError, ValueError) as error:
        raise TryAgainError(f"the name '{parts.hostname}' does not resolve ({error})") from None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    for address in addresses:
        if not limits.allow_private_hosts and not is_public(address):
            raise DownloadError(
                f"{public_uri(uri)} leads to the private address {address}.",
                reason="private_address",
                remedy="Set stages.download.allow_private_hosts if this is your own server.",
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is reachable from the whole internet, translated and mapped IPv4 addresses looked into."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast
