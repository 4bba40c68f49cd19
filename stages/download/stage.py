"""`download`: a source's bytes, fetched, checked and named by their content."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field

from schemas.errors import DownloadError, RecipeError
from schemas.fields import f, struct
from schemas.files import sha256_of
from schemas.ids import asset_id, digest, source_id
from schemas.machine import is_trouble
from schemas.printable import is_plain, printable
from schemas.public import public_uri, told_of
from schemas.records import Row
from stages.base import Context, Measure, Resources, StageConfig
from stages.download.fetch_http import Fetched, checked_addresses, fetched_http
from stages.download.partial import locked_file
from stages.download.places import is_local, path_of, scheme_of, uri_of
from stages.download.proxies import proxy_for
from stages.download.receive import HttpLimits, too_large
from stages.download.sources import ROWS
from stages.download.store import AssetStore, suffix_of
from stages.objects import fetch
from stages.retry import RetryPolicy, TryAgainError

ADDS = struct(
    f("asset_id", pa.string(), doc="id derived from the bytes"),
    f("path", pa.string(), doc="local path or URL of the bytes: in the store, or where a referenced local file lies"),
    f("sha256", pa.string(), doc="SHA-256 of the bytes, hexadecimal"),
    f("bytes", pa.int64(), unit="bytes", doc="size"),
    f(
        "mtime_ns",
        pa.int64(),
        unit="ns",
        doc="when a referenced local file was last written to; null for the store's own",
    ),
    f("final_uri", pa.string(), doc="address the bytes came from after redirects, without credentials"),
    f("attempts", pa.int32(), unit="count", doc="attempts the fetch took; 1 for local files"),
    in_shard=False,
)


class DownloadConfig(StageConfig):
    """Where bytes may come from and how hard to try."""

    engine: Literal["direct", "yt_dlp"] = "direct"
    """direct: fetches what the URL names. yt_dlp: hands http(s) URLs to yt-dlp, for pages that contain a video (pip
    install 'nava-engine[youtube]'); everything else still goes direct."""
    mode: Literal["reference", "copy"] = "reference"
    """What to do with local files. reference: they stay where they are and nothing is duplicated. copy: the store gets
    them too (hard-linked where possible), for runs that must stand alone or whose workers lack the folder."""
    schemes: tuple[str, ...] = ("file", "http", "https", "s3", "gs")
    """Only these are fetched, redirects included. Any other than file and http(s) goes through fsspec."""
    allow_private_hosts: bool = False
    """Allow http(s) to loopback, link-local and private addresses."""
    max_bytes: int = Field(default=50 * 2**30, gt=0)
    """Larger sources are refused."""
    attempts: int = Field(default=5, ge=1)
    """Attempts per source before it settles as an error."""
    backoff_s: float = Field(default=0.5, ge=0)
    """Pause after the first failure; doubles, with jitter."""
    max_backoff_s: float = Field(default=60.0, ge=0)
    """Longest pause between attempts."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest silence of a server, less than 1000 bytes a second over such a time included."""
    per_host: int = Field(default=2, ge=1)
    """Connections to one host at a time, per machine."""
    min_interval_s: float = Field(default=0.0, ge=0)
    """Shortest time between requests to one host."""
    max_redirects: int = Field(default=5, ge=0)
    """Redirects followed per source."""
    yt_dlp_format: str = "b"
    """yt-dlp's format selection; 'bv*+ba' is better but needs the ffmpeg program to join."""


class Download(Measure[DownloadConfig]):
    """The bytes of each source. Same content, same asset: what the store has already is not fetched into it twice."""

    name = "download"
    version = "2"
    level = "asset"
    reads = ("source_id", "uri", "fetch_uri", "metadata")
    adds = ADDS
    Config = DownloadConfig
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=7200.0)

    def setup(self, ctx: Context) -> None:
        """Opens the store. Raises RecipeError if yt-dlp is asked for and missing."""
        super().setup(ctx)
        self.store = AssetStore(ctx.store_dir or str(ctx.scratch_dir / "store"))
        if self.config.engine == "yt_dlp":
            _yt_dlp()

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one source. Raises the DownloadError it runs into."""
        uri = row.get("fetch_uri") or row["uri"]
        if uri == row["uri"] and is_shortened(uri, row["source_id"]):
            raise DownloadError(
                f"{uri}: the address that it was fetched from had parts that are kept nowhere, as they may be secret.",
                reason="address_not_kept",
                remedy="Give the input that named it again.",
            )
        return self._fetch(uri, _stated_sha256(row))

    def _fetch(self, uri: str, stated: str | None) -> dict[str, Any]:
        scheme = scheme_of(uri)
        if scheme not in self.config.schemes:
            raise DownloadError(
                f"{public_uri(uri)}: scheme '{scheme}' is not allowed here.",
                reason="scheme_not_allowed",
                remedy="Add it to stages.download.schemes if it is wanted.",
            )
        if is_local(uri):
            return self._local(uri, stated)
        with self._remote(uri, scheme, stated) as fetched:
            sha256, size = sha256_of(fetched.path)
            if stated and sha256 != stated:
                fetched.path.unlink()
                raise _mismatch(uri, stated, sha256)
            path = self.store.put(fetched.path, sha256, fetched.suffix, keep=False)
        return _struct(path, sha256, size, fetched)

    def _local(self, uri: str, stated: str | None) -> dict[str, Any]:
        try:
            path = path_of(uri)
            if not path.is_file():
                what = f"'{uri}' is a folder." if path.is_dir() else f"There is no file '{uri}'."
                raise DownloadError(what, reason="not_found", remedy="Check the manifest.")
            stat = path.stat()
            if stat.st_size > self.config.max_bytes:
                raise too_large(uri, stat.st_size, self.config.max_bytes)
            sha256, size = sha256_of(path)
        except ValueError as error:
            raise DownloadError(f"{public_uri(uri)}: {error}.", reason="not_found") from None
        except OSError as error:
            if is_trouble(error):
                raise
            raise DownloadError(f"'{uri}' cannot be read: {error.strerror}.", reason="unreadable") from error
        if stated and sha256 != stated:
            raise _mismatch(uri, stated, sha256)
        fetched = Fetched(path, uri_of(path), 1, suffix_of(path.name))
        if self.config.mode == "copy":
            return _struct(self.store.put(path, sha256, fetched.suffix, keep=True), sha256, size, fetched)
        place = str(path.absolute())
        if not is_plain(place):  # no column can hold such a name
            place = self.store.link(path, sha256, fetched.suffix)
        is_referenced = is_local(place)
        return _struct(place, sha256, size, fetched) | {"mtime_ns": stat.st_mtime_ns if is_referenced else None}

    def _remote(self, uri: str, scheme: str, stated: str | None) -> AbstractContextManager[Fetched]:
        partial = self.store.partial_dir(self.ctx.scratch_dir)
        if scheme not in ("http", "https"):
            return fetched_object(uri, partial, self.config)
        if self.config.engine == "yt_dlp":
            return fetched_page(uri, partial, self.config)
        return fetched_http(uri, partial, http_limits(self.config), is_checked=stated is not None)


def http_limits(config: DownloadConfig) -> HttpLimits:
    """The part of the configuration that concerns http(s)."""
    return HttpLimits(
        schemes=frozenset(config.schemes),
        max_bytes=config.max_bytes,
        attempts=config.attempts,
        backoff_s=config.backoff_s,
        max_backoff_s=config.max_backoff_s,
        timeout_s=config.timeout_s,
        per_host=config.per_host,
        min_interval_s=config.min_interval_s,
        max_redirects=config.max_redirects,
        allow_private_hosts=config.allow_private_hosts,
    )


@contextmanager
def fetched_object(uri: str, partial_dir: Path, config: DownloadConfig) -> Iterator[Fetched]:
    """The object at an fsspec URL in a file below `partial_dir`, which is the caller's until the block ends.

    Tried again from its beginning after a failure, with the credentials of the environment, as fsspec's own back ends look
    them up. Raises DownloadError, and OSError where this machine is in trouble.
    """
    target = partial_dir / f"object-{digest(uri)}-{random.getrandbits(32):08x}"

    def check(size: int) -> None:
        if size > config.max_bytes:
            raise too_large(uri, size, config.max_bytes)

    policy = RetryPolicy(config.attempts, config.backoff_s, config.max_backoff_s)
    try:
        try:
            _, attempts = policy.run(lambda: fetch(uri, target, check))
        except FileNotFoundError:
            raise DownloadError(f"{public_uri(uri)} is not there.", reason="not_found") from None
        except (ImportError, ValueError) as error:
            raise DownloadError(
                f"{public_uri(uri)}: {told_of(uri, error)}",
                reason="scheme_not_allowed",
                remedy="Install fsspec's back end for it.",
            ) from None
        except TryAgainError as error:
            raise DownloadError(
                f"{public_uri(uri)} could not be read: {told_of(uri, error)}", reason="network"
            ) from None
        yield Fetched(target, public_uri(uri), attempts, suffix_of(urlsplit(uri).path))
    finally:
        target.unlink(missing_ok=True)


@contextmanager
def fetched_page(uri: str, partial_dir: Path, config: DownloadConfig) -> Iterator[Fetched]:
    """The video of a web page, found by yt-dlp; the file is the caller's until the block ends.

    Only the page's own address is checked against private networks; yt-dlp follows what the page says. Raises DownloadError,
    and OSError where this machine is in trouble.
    """
    try:
        checked_addresses(uri, http_limits(config), by_proxy=proxy_for(uri) is not None)
    except TryAgainError as error:
        raise DownloadError(
            f"{public_uri(uri)} could not be fetched: {told_of(uri, error)}",
            reason="network",
            remedy="Run again later.",
        ) from None
    with locked_file(partial_dir / f"page-{digest(uri)}.lock"):
        yield _page(uri, partial_dir, config)


def _page(uri: str, partial_dir: Path, config: DownloadConfig) -> Fetched:
    module = _yt_dlp()
    options = {
        "outtmpl": str(partial_dir / f"page-{digest(uri)}-%(extractor)s-%(id)s.%(ext)s"),
        "format": config.yt_dlp_format,
        "noplaylist": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "retries": config.attempts,
        "socket_timeout": config.timeout_s,
        "max_filesize": config.max_bytes,
        "continuedl": True,
    }
    try:
        with module.YoutubeDL(options) as downloader:
            about = downloader.extract_info(uri, download=True)
            path = Path(about["requested_downloads"][0]["filepath"])
    except (module.utils.YoutubeDLError, KeyError, IndexError) as error:
        _, cause, _ = getattr(error, "exc_info", None) or (None, None, None)
        if isinstance(cause, OSError) and is_trouble(cause):
            raise cause from None
        raise DownloadError(
            f"{public_uri(uri)}: yt-dlp says {printable(told_of(uri, error))}", reason="page_without_video"
        ) from None
    if not path.is_file():
        raise too_large(uri, config.max_bytes, config.max_bytes)
    return Fetched(path, public_uri(about.get("webpage_url") or uri), 1, suffix_of(path.name))


def _yt_dlp() -> Any:
    try:
        import yt_dlp
    except ImportError:
        raise RecipeError(
            "stages.download.engine is yt_dlp, but yt-dlp is not installed.",
            remedy="Run: pip install 'nava-engine[youtube]'",
        ) from None
    return yt_dlp


def is_shortened(uri: str, identifier: str) -> bool:
    """Whether `uri` is only what may be shown of the address of the source `identifier`, an id made of the whole of it."""
    return not is_local(uri) and re.fullmatch("s[0-9a-f]+", identifier) is not None and source_id(uri) != identifier


def _stated_sha256(row: Row) -> str | None:
    """The checksum that the manifest states in a column `sha256`, lower case. Raises DownloadError if its rows disagree."""
    told = json.loads(row.get("metadata") or "{}")
    rows = told.get(ROWS) if isinstance(told.get(ROWS), list) else []
    stated = {str(each["sha256"]).lower() for each in (told, *rows) if isinstance(each, dict) and each.get("sha256")}
    if len(stated) > 1:
        raise DownloadError(
            f"{public_uri(row['uri'])}: rows of the manifest state {len(stated)} different sha256 of it.",
            reason="checksum_mismatch",
            remedy="Correct the manifest.",
        )
    return next(iter(stated), None)


def _struct(path: str, sha256: str, size: int, fetched: Fetched) -> dict[str, Any]:
    return {
        "asset_id": asset_id(sha256),
        "path": path,
        "sha256": sha256,
        "bytes": size,
        "mtime_ns": None,
        "final_uri": fetched.final_uri,
        "attempts": fetched.attempts,
    }


def _mismatch(uri: str, stated: str, got: str) -> DownloadError:
    return DownloadError(
        f"{public_uri(uri)} is not what the manifest says: sha256 {stated[:12]}... expected, {got[:12]}... got.",
        reason="checksum_mismatch",
        remedy="Fetch it again or correct the manifest.",
    )
