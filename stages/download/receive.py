"""What a server answers -> the bytes of a file: which answers hold them, in which coding, and whether all came, fast enough."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.errors import DownloadError
from schemas.public import public_uri
from stages.download.partial import PartFile
from stages.retry import TryAgainError, retry_after_s

if TYPE_CHECKING:
    import httpx

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a moment later (RFC 9110, RFC 6585)."""
WHOLE = frozenset({200, 203})
"""Answers with the whole content; 203 came by way of somebody who may have changed it (RFC 9110, 15.3.4)."""
NOT_YET = frozenset({202})
"""Taken on, but not there yet (RFC 9110, 15.3.3)."""
UNCODED = frozenset({"", "identity", "none", "binary", "utf-8", "aws-chunked"})
"""What servers call a body that is as it is; `aws-chunked` is how it was once uploaded."""
DECODED = frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(frozen=True)
class HttpLimits:
    """What a fetch may do."""

    schemes: frozenset[str] = frozenset({"http", "https"})
    max_bytes: int = 50 * 2**30
    attempts: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    timeout_s: float = 60.0
    """Longest silence, longest time to the first byte of the body, and the stretch over which the speed counts."""
    min_bytes_per_s: float = 1000.0
    per_host: int = 2
    min_interval_s: float = 0.0
    max_redirects: int = 5
    allow_private_hosts: bool = False
    user_agent: str = "nava-curate"


def receive(response: httpx.Response, uri: str, part: PartFile, limits: HttpLimits) -> None:
    """Writes the body where it belongs. Raises TryAgainError if it is cut short, DownloadError if it never will do."""
    total, offset = _extent(response, uri, part)
    if response.status_code == 416:
        return
    codings = [each.strip().lower() for each in response.headers.get("content-encoding", "").split(",")]
    response.headers["content-encoding"] = ", ".join(each.removeprefix("x-") for each in codings)
    is_coded = not UNCODED.issuperset(codings)
    if is_coded and not (UNCODED | DECODED).issuperset(codings):
        raise DownloadError(
            f"{public_uri(uri)} comes in a coding that is not known here: {', '.join(codings)[:80]}.",
            reason="content_encoding",
            remedy="Let the server send the file as it is.",
        )
    if is_coded and offset:
        part.clear()
        raise TryAgainError("the server continued in another coding")
    if total is not None and total > limits.max_bytes:
        raise too_large(uri, total, limits.max_bytes)
    got, is_whole = _Arrived(total, limits), False
    try:
        with part.path.open("r+b") as out:
            out.truncate(offset)
            part.forget() if is_coded else part.remember(response.headers)
            out.seek(offset)
            got.raw = offset
            for block in _blocks(response, is_coded):
                offset += len(block)
                if offset > limits.max_bytes:
                    part.clear()
                    raise too_large(uri, offset, limits.max_bytes)
                out.write(block)
                got.count(offset if not is_coded else response.num_bytes_downloaded)
        got.check_end()
        is_whole = True
    finally:
        if is_coded and not is_whole:  # what arrived cannot be continued
            part.clear()


def _blocks(response: httpx.Response, is_coded: bool) -> Iterator[bytes]:
    """The body as it arrives: what is held back is lost when the connection breaks."""
    import httpx

    try:
        yield from response.iter_bytes() if is_coded else response.iter_raw()
    except httpx.DecodingError:
        raise DownloadError(
            f"The body is not coded as its header says: {response.headers['content-encoding'][:80]}.",
            reason="content_encoding",
            remedy="Let the server send the file as it is, or without that header.",
        ) from None


@dataclass
class _Arrived:
    """How many bytes came, and whether fast enough."""

    total: int | None
    limits: HttpLimits
    raw: int = 0
    _since: float = field(default_factory=time.monotonic)
    _before: int | None = None

    def count(self, raw: int) -> None:
        """So many in all. Raises TryAgainError where too few came in the last `timeout_s`."""
        self._before = self.raw if self._before is None else self._before
        self.raw = raw
        passed = time.monotonic() - self._since
        if passed >= self.limits.timeout_s:
            if raw - self._before < self.limits.min_bytes_per_s * passed:
                raise TryAgainError(f"only {raw - self._before} bytes came in {passed:.0f} s")
            self._since, self._before = time.monotonic(), raw

    def check_end(self) -> None:
        """Raises TryAgainError where the body ended too early."""
        if self.total is not None and self.raw != self.total:
            raise TryAgainError(f"the connection ended after {self.raw} of {self.total} bytes")


def _extent(response: httpx.Response, uri: str, part: PartFile) -> tuple[int | None, int]:
    """(bytes of the whole as they are sent, if said; where the body begins). Raises TryAgainError or DownloadError."""
    status = response.status_code
    if status in RETRIED_STATUS | NOT_YET:
        raise TryAgainError(f"the server answered {status}", retry_after_s(response.headers.get("retry-after")))
    if status == 206:
        start, total = _content_range(response.headers.get("content-range", ""))
        if start != part.size():
            part.clear()
            raise TryAgainError("the server continued at another place than asked for")
        return total, start
    if status == 416:
        _, total = _content_range(response.headers.get("content-range", ""))
        if total is not None and total == part.size():
            return total, total
        part.clear()
        raise TryAgainError("the partial file does not fit what the server has")
    if status in WHOLE:
        length = response.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None, 0
    raise _refusal(status, public_uri(uri))


def too_large(uri: str, size: int, limit: int) -> DownloadError:
    """The error of a source larger than download.max_bytes."""
    return DownloadError(
        f"{public_uri(uri)} has at least {size} bytes, more than the limit of {limit}.",
        reason="too_large",
        remedy="Raise stages.download.max_bytes if it is wanted.",
    )


def _refusal(status: int, shown: str) -> DownloadError:
    known = {401: "forbidden", 403: "forbidden", 451: "forbidden", 404: "not_found", 410: "not_found"}
    reason = known.get(status, "http_error")
    return DownloadError(f"{shown}: the server answered {status}.", reason=reason)


def _content_range(value: str) -> tuple[int | None, int | None]:
    """(first byte, total bytes) of a Content-Range header; None for what it does not say."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", value.strip())
    if not found:
        return None, None
    return (int(found[1]) if found[1] else None), (int(found[2]) if found[2] != "*" else None)
