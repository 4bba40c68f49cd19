"""Fetching one http(s) URL into a file: retries, resume, limits per host, and no way into private networks."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from schemas.errors import DownloadError
from schemas.machine import is_trouble
from schemas.public import public_uri, told_of
from stages.download.partial import PartFile, host_slot
from stages.download.proxies import may_be_public, proxy_for
from stages.download.receive import HttpLimits, receive
from stages.download.store import suffix_of
from stages.retry import RetryPolicy, TryAgainError

if TYPE_CHECKING:
    import ssl

    import httpx

REDIRECTS = frozenset({301, 302, 303, 307, 308})
NEXT_ADDRESS_S = 3.0
"""How long an address may take to connect while there are others of the same name."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that a translator turns into the IPv4 address of their last 32 bits (RFC 6052)."""
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The only part of IPv6 from which public addresses are given out (RFC 4291)."""


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

    part = PartFile(partial_dir / (hashlib.sha256(uri.encode("utf-8", "surrogatepass")).hexdigest()[:32] + ".part"))
    policy = RetryPolicy(limits.attempts, limits.backoff_s, limits.max_backoff_s)
    passing = (TryAgainError, httpx.TransportError, OSError)
    turns = count()
    with part.locked():
        try:
            final, attempts = policy.run(lambda: _attempt(uri, part, limits, is_checked, next(turns)), passing, sleep)
        except passing as error:
            if is_trouble(error):
                raise
            raise DownloadError(
                f"{public_uri(uri)} could not be fetched in {limits.attempts} attempts: {_reason(uri, error)}",
                reason="network",
                remedy="Run again later; what has arrived is kept and continued.",
            ) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise _no_address(uri, _reason(uri, error)) from None
        yield Fetched(part.path, public_uri(final), attempts, suffix_of(split(uri).path))
        part.forget()


def _reason(uri: str, error: Exception) -> str:
    return told_of(uri, error) or type(error).__name__


def _attempt(uri: str, part: PartFile, limits: HttpLimits, is_checked: bool, turn: int) -> str:
    """Follows redirects and appends to `part`; the final URL. Each turn begins with another address of a host.

    Raises TryAgainError or DownloadError.
    """
    import httpx

    here, cookies = uri, httpx.Cookies()
    for _ in range(limits.max_redirects + 1):
        way = _way(here, limits, turn)
        headers = _headers(uri, here, part, is_checked, cookies)
        with _answer(here, way, headers, limits) as response:
            if response.status_code not in REDIRECTS or "location" not in response.headers:
                receive(response, here, part, limits)
                return here
            said = httpx.Response(response.status_code, headers=response.headers, request=httpx.Request("GET", here))
            cookies.extract_cookies(said)
            here = _next(uri, here, response.headers["location"])
    raise DownloadError(f"{public_uri(uri)} redirects more than {limits.max_redirects} times.", reason="redirect_loop")


def _next(first: str, here: str, location: str) -> str:
    """Where a redirect leads: with the user name and password of `first` if to the same server, and without any of its own."""
    try:
        uri = urljoin(here, location)
        a, b = split(first), split(uri)
    except (ValueError, DownloadError):
        raise DownloadError(f"{public_uri(here)} redirects to what is no address.", reason="redirect_loop") from None
    if "@" in a.netloc and "@" not in b.netloc and _server(a) == _server(b):
        return urlunsplit(b._replace(netloc=a.netloc.rpartition("@")[0] + "@" + b.netloc))
    return uri


def _server(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _headers(first: str, uri: str, part: PartFile, is_checked: bool, cookies: httpx.Cookies) -> dict[str, str]:
    """What a request for `uri` says beside where it goes: what is there already, who asks, and what the server said to keep."""
    import httpx

    headers = {"Accept-Encoding": "identity"}
    size, validator = part.size(), part.validator()
    if size and (validator or is_checked):
        headers["Range"] = f"bytes={size}-"
        if validator:
            headers["If-Range"] = validator
    parts = split(uri)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    asked = httpx.Request("GET", bare)
    cookies.set_cookie_header(asked)
    if parts.username is not None and parts.hostname == split(first).hostname:
        login = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        asked = next(login.auth_flow(asked))
    return headers | {name: asked.headers[name] for name in ("cookie", "authorization") if name in asked.headers}


@dataclass(frozen=True)
class _Way:
    """Where a request goes: to a proxy, or to addresses that were checked."""

    proxy: str | None
    addresses: list[str]


def _way(uri: str, limits: HttpLimits, turn: int) -> _Way:
    proxy = proxy_for(uri) if split(uri).scheme in ("http", "https") else None
    addresses = checked_addresses(uri, limits, by_proxy=proxy is not None)
    first = turn % max(len(addresses), 1)
    return _Way(proxy, addresses[first:] + addresses[:first])


@contextmanager
def _answer(uri: str, way: _Way, headers: dict[str, str], limits: HttpLimits) -> Iterator[httpx.Response]:
    """The answer to a request, its body still to be read; the addresses of the host are tried in turn.

    A request goes to the very addresses that were checked, whatever the name resolves to a moment later, or to the proxy.
    """
    import httpx

    parts = split(uri)
    ways = [None] if way.proxy else way.addresses
    with host_slot(parts.hostname or "", limits.per_host, limits.min_interval_s):
        for number, address in enumerate(ways, start=1):
            is_last = number == len(ways)
            with (
                _client(limits, way.proxy, None if is_last else NEXT_ADDRESS_S) as client,
                _Alarm(limits.timeout_s) as alarm,
            ):
                request = _request(client, parts, address, headers)
                request.extensions["trace"] = alarm.trace
                try:
                    response = client.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if is_last:
                        raise
                    continue
                alarm.off()
                try:
                    yield response
                finally:
                    response.close()
                return


def _request(client: httpx.Client, parts: SplitResult, address: str | None, headers: dict[str, str]) -> httpx.Request:
    """A request to `address`, or by the name where there is none."""
    host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    named = (f"[{host}]" if ":" in host else host) + port
    if address is None:
        target = urlunsplit((parts.scheme, named, parts.path or "/", parts.query, ""))
        return client.build_request("GET", target, headers=headers)
    literal = f"[{address}]" if ":" in address else address
    target = urlunsplit((parts.scheme, literal + port, parts.path or "/", parts.query, ""))
    return client.build_request("GET", target, headers=headers | {"Host": named}, extensions={"sni_hostname": host})


def _client(limits: HttpLimits, proxy: str | None, connect_s: float | None) -> httpx.Client:
    import httpx

    timeout = httpx.Timeout(limits.timeout_s, connect=min(connect_s or limits.timeout_s, limits.timeout_s))
    try:
        return httpx.Client(
            timeout=timeout, trust_env=False, proxy=proxy, verify=_trusted(), headers={"User-Agent": limits.user_agent}
        )
    except (ImportError, ValueError):
        raise DownloadError(
            "The proxy that the environment names cannot be used.",
            reason="network",
            remedy="Give an http:// or https:// proxy in HTTP_PROXY and HTTPS_PROXY.",
        ) from None


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted: certifi's, or those that SSL_CERT_FILE or SSL_CERT_DIR name."""
    import httpx

    return httpx.create_ssl_context()


class _Alarm:
    """Ends a connection whose answer does not begin in time, however busily its other end sends a byte now and then."""

    def __init__(self, after_s: float) -> None:
        self._timer = threading.Timer(after_s, self._ring)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> _Alarm:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    def off(self) -> None:
        """The answer has begun."""
        self._timer.cancel()

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """Told by httpx of every step: keeps the connection's socket."""
        if name.endswith("connect_tcp.complete"):
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)

    def _ring(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


# --- where a name may lead


def split(uri: str) -> SplitResult:
    """The parts of an address. Raises DownloadError for what is none, without repeating what may be secret."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise _no_address(uri) from None
    return parts


def _no_address(uri: str, why: str = "") -> DownloadError:
    told = f"'{public_uri(uri)}' is no address{': ' if why else ''}{why}."
    return DownloadError(told, reason="bad_address", remedy="Check it for odd characters.")


def checked_addresses(uri: str, limits: HttpLimits, *, by_proxy: bool = False) -> list[str]:
    """The addresses to connect to for `uri`, IPv6 and IPv4 in turn (RFC 8305). Raises DownloadError for undeclared schemes
    and private networks.

    A name that resolves to any private address is refused altogether; for one that does not resolve, which it may do a
    moment later, TryAgainError is raised. With `by_proxy` such a name is left to the proxy, unless it can only be private.
    """
    parts = split(uri)
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
    except (OSError, UnicodeError, ValueError) as error:
        if not by_proxy:
            raise TryAgainError(f"the name '{_host_of(uri)}' does not resolve ({_reason(uri, error)})") from None
        if not limits.allow_private_hosts and not may_be_public(parts.hostname):
            raise _private(uri, "of its name") from None
        return []
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    for address in addresses:
        if not limits.allow_private_hosts and not is_public(address):
            raise _private(uri, address)
    families = [
        [each for each in addresses if (":" in each) is is_six]
        for is_six in (":" in addresses[0], ":" not in addresses[0])
    ]
    return list(dict.fromkeys(each for each in chain.from_iterable(zip_longest(*families)) if each))


def _host_of(uri: str) -> str:
    return urlsplit(public_uri(uri)).hostname or ""


def _private(uri: str, address: str) -> DownloadError:
    return DownloadError(
        f"{public_uri(uri)} leads to the private address {address}.",
        reason="private_address",
        remedy="Set stages.download.allow_private_hosts if this is your own server.",
    )


def leads_to_private(uri: str) -> bool:
    """Whether the host that `uri` names is a private one, as it resolves now."""
    try:
        checked_addresses(uri, HttpLimits(), by_proxy=True)
    except DownloadError as error:
        return error.reason == "private_address"
    return False


def is_public(address: str) -> bool:
    """Whether an address is reachable from the whole internet, translated and mapped IPv4 addresses looked into."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and ip not in GLOBAL_UNICAST:
            return False
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast
