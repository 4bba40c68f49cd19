"""What a user points at -> SOURCE rows: folders, globs, files, URLs and manifests, in a fixed order."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from schemas.errors import RecipeError
from schemas.ids import source_id
from schemas.records import Source
from stages.objects import at_store, other_side

SIDECARS = frozenset(
    {
        *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".npy", ".npz", ".yaml", ".yml", ".toml"),
        *(".txt", ".md", ".rst", ".html", ".pdf", ".nfo", ".log", ".rttm", ".srt", ".vtt", ".ass", ".lrc"),
        *(".py", ".sh", ".zip", ".tar", ".gz", ".sha256", ".md5", ".part", ".tmp", ".crdownload", ".ytdl"),
    }
)
"""Suffixes of files that lie beside media and are not sources themselves. Every other file of a folder is taken."""
MANIFESTS = (".jsonl", ".ndjson", ".csv", ".parquet")
SECRET_PARAMETERS = frozenset(
    {
        *("sig", "signature", "token", "access_token", "auth", "key", "api_key", "apikey", "password", "expires"),
        *("policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "hdnea", "hdnts"),
        *("se", "sp", "sv", "sr", "st", "skoid", "sktid", "ske", "sks", "skv"),
    }
)
"""Query parameters that authorise a request (signed URLs of S3, GCS, Azure, CloudFront, Akamai)."""
SECRET_PREFIXES = ("x-amz-", "x-goog-")


def expand_sources(inputs: Sequence[str]) -> list[Source]:
    """The sources of everything `inputs` names, sorted within each input, without repeats.

    A folder is searched recursively, and so is a prefix of an object store; every file counts unless it is hidden or a
    known sidecar, for media comes under wrong names. A manifest (.jsonl .csv .parquet) has a column `uri`, relative to
    the manifest; `licence` (or `license`) and all other columns travel along. Credentials never enter `uri`: where a URL
    holds any, the source has the URL to fetch as `fetch_uri`, which is to stay in memory.

    Raises RecipeError for an input that does not exist or a manifest that cannot be read, and MachineError where a store
    of objects stays away.
    """
    found: dict[str, Source] = {}
    for item in inputs:
        for uri, licence, metadata in _expand(item):
            public = public_uri(uri)
            source = Source(
                source_id=source_id(public),
                uri=public,
                licence=licence,
                metadata=json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=str),
                fetch_uri=uri if public != uri else None,
            )
            found.setdefault(source.source_id, source)
    return list(found.values())


Found = tuple[str, str | None, dict[str, Any]]


def _expand(item: str) -> Iterator[Found]:
    """(uri, licence, metadata) of everything one input names."""
    if "://" in item and not item.startswith("file://"):
        is_manifest = urlsplit(item).path.lower().endswith(MANIFESTS)
        is_page = urlsplit(item).scheme.lower() in ("http", "https")
        yield from _manifest(item) if is_manifest else [(item, None, {})] if is_page else _objects(item)
        return
    path_text = item.removeprefix("file://")
    path = Path(path_text).expanduser()
    if path.is_dir():
        inside: list[Path] = sorted(path.rglob("*"))
        yield from _plain(found for found in inside if _is_source(found, path))
    elif path.is_file():
        yield from _manifest(str(path)) if path.suffix.lower() in MANIFESTS else _plain([path])
    elif glob.has_magic(path_text):
        matches = [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
        matches = [found for found in matches if _is_source(found, found.parent)]
        if not matches:
            raise RecipeError(f"No file matches '{item}'.", remedy="Quote the pattern and check the folder.")
        yield from _plain(matches)
    else:
        raise RecipeError(
            f"'{item}' is neither a file, a folder, a pattern with matches nor a URL.", remedy="Check the path."
        )


def _objects(url: str) -> Iterator[Found]:
    """What lies below a prefix of an object store; the URL itself where it names one object, or nothing that can be listed."""
    import fsspec

    def listed() -> tuple[str, list[str]]:
        with other_side():
            fs, root = fsspec.core.url_to_fs(url)
            return root, sorted(fs.find(root))

    try:
        root, places = at_store(url, listed)
    except (ImportError, ValueError):
        root, places = url, []
    names = [PurePosixPath(place.removeprefix(root).lstrip("/")) for place in places if place != root]
    prefix = url.rstrip("/")
    found = [f"{prefix}/{name}" for name in names if _is_medium(name)]
    yield from ((each, None, {}) for each in (found if names else [url]))


def _plain(paths: Iterable[Path]) -> Iterator[Found]:
    for path in paths:
        yield str(path.absolute()), None, {}


def _is_source(path: Path, root: Path) -> bool:
    return _is_medium(path.relative_to(root)) and path.is_file()


def _is_medium(name: PurePath) -> bool:
    """Whether a path below a folder is neither hidden nor a known sidecar."""
    return not any(part.startswith(".") for part in name.parts) and name.suffix.lower() not in SIDECARS


def _manifest(uri: str) -> Iterator[Found]:
    """The rows of a manifest, in its own order."""
    records = _records(uri)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get("uri"), str) or not record["uri"].strip():
            raise RecipeError(
                f"Row {number} of manifest '{uri}' has no text in column 'uri'.",
                remedy="Give every row a path or URL in a column named uri.",
            )
        licence = record.get("licence") or record.get("license")
        rest = {
            key: value
            for key, value in record.items()
            if key not in ("uri", "licence", "license") and value is not None
        }
        yield _beside(uri, record["uri"].strip()), None if licence is None else str(licence), rest


def _beside(manifest: str, uri: str) -> str:
    """`uri` as seen from the folder of the manifest."""
    if "://" in uri or uri.startswith("/"):
        return uri.removeprefix("file://")
    if "://" in manifest:
        return manifest.rpartition("/")[0] + "/" + uri
    return str(Path(manifest).absolute().parent / uri)


def _records(uri: str) -> list[Any]:
    import fsspec  # type: ignore[import-untyped]

    suffix = Path(urlsplit(uri).path if "://" in uri else uri).suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            with fsspec.open(uri, "rb") as file:
                rows: list[Any] = pq.read_table(file).to_pylist()
                return rows
        with fsspec.open(uri, "rt", encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                return [{key: value or None for key, value in row.items() if key} for row in csv.DictReader(file)]
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"Manifest '{public_uri(uri)}' cannot be read: {error}", remedy="It must be JSON lines, CSV or Parquet."
        ) from error


def public_uri(uri: str) -> str:
    """`uri` without user name, password and authorising query parameters; local paths unchanged."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not _is_secret(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(kept)
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def _is_secret(name: str) -> bool:
    return name.lower() in SECRET_PARAMETERS or name.lower().startswith(SECRET_PREFIXES)
