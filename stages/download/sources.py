"""What a user points at -> SOURCE rows: folders, globs, files, URLs and manifests, in a fixed order."""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from schemas.errors import RecipeError
from schemas.ids import source_id
from schemas.machine import is_trouble
from schemas.printable import percent_escaped, whole_text
from schemas.public import is_secret, public_uri, scrubbed
from schemas.records import Source
from stages.download.companions import is_own
from stages.download.folders import files_below, files_matching
from stages.download.licences import strictest
from stages.download.manifests import BAD_ROWS, kind_of, records_of
from stages.download.places import is_local, path_of, scheme_of, uri_of
from stages.download.prefixes import objects_of
from stages.download.skips import Skips

MOST_LEVELS = 32
"""Depth of lists and objects in a manifest's column; readers of shards have limits of their own."""
LICENCE_COLUMNS = ("licence", "license")
CLIP_RANGE = re.compile(r"(?:t|xywh|track)=", re.IGNORECASE)
"""Begins a fragment that names a part of the same bytes (W3C Media Fragments)."""
ROWS = "rows"
"""Column of what several manifest rows of one source say, where they differ."""

Found = tuple[str, str | None, dict[str, Any] | None]
"""(address to fetch from, licence, other columns of a manifest's row; None where it is no row)."""


@dataclass
class Listing:
    """Everything that inputs name: sources, what is none and why, and what was done to rows that say the same."""

    sources: list[Source] = field(default_factory=list)
    skips: Skips = field(default_factory=Skips)
    num_repeats: int = 0
    """Manifest rows of sources that were named before."""
    secret_columns: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        """What people should know of it, a line each."""
        lines = self.skips.lines()
        if self.num_repeats:
            lines.append(
                f"rows that name a source named before: {self.num_repeats}; each source is read once, what its rows say "
                f"differently is in its metadata under '{ROWS}', and the strictest of their licences holds"
            )
        if self.secret_columns:
            names = ", ".join(sorted(self.secret_columns))
            lines.append(f"credentials in columns of manifests are not kept: {names}")
        return lines


def expand_sources(inputs: Sequence[str]) -> list[Source]:
    """The sources of everything `inputs` names (`list_inputs`)."""
    return list_inputs(inputs).sources


def list_inputs(inputs: Sequence[str]) -> Listing:
    """Everything that `inputs` name, sorted within each input, each source once.

    A folder is searched recursively, links followed, and so is a prefix of an object store; every file counts unless it is
    hidden, a known companion of media, or this program's own. A manifest has a column `uri`, relative to the manifest;
    `licence` (or `license`) and all other columns travel along. Secrets never enter a row: where an address holds any, the
    source has the address to fetch as `fetch_uri`, which is to stay in memory.

    Raises RecipeError for an input that does not exist or a manifest that cannot be read, and MachineError where a store
    of objects stays away.
    """
    listing = Listing()
    found: dict[str, Source] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for item in inputs:
        for address, licence, columns in _expand(item, listing):
            source = _source(address, licence, columns or {})
            first = found.setdefault(source.source_id, source)
            if first is source or columns is None:
                continue
            rows.setdefault(source.source_id, [json.loads(first.metadata or "{}")]).append(columns)
            listing.num_repeats += 1
            found[source.source_id] = replace(first, licence=strictest(first.licence, licence))
    for identifier, said in rows.items():
        found[identifier] = replace(found[identifier], metadata=_json(_joined(said)))
    listing.sources = list(found.values())
    return listing


def _source(address: str, licence: str | None, columns: Mapping[str, Any]) -> Source:
    shown = address if is_local(address) else public_uri(address)
    return Source(
        source_id=source_id(address),
        uri=shown,
        licence=licence,
        metadata=_json(columns),
        fetch_uri=None if shown == address else address,
    )


def _json(columns: Mapping[str, Any]) -> str:
    return json.dumps(columns, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _joined(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several rows say of one source: columns in which all agree, and under `rows` the others, row by row."""
    rows = list({_json(row): row for row in said if row}.values())
    if len(rows) < 2:
        return dict(*rows)
    common = {key: value for key, value in rows[0].items() if all(row.get(key) == value for row in rows)}
    return common | {ROWS: [{key: value for key, value in row.items() if key not in common} for row in rows]}


def _expand(item: str, listing: Listing) -> Iterator[Found]:
    """Everything one input names."""
    if is_local(item):
        yield from _local(item, listing)
        return
    if not scheme_of(item):
        raise RecipeError(f"'{public_uri(item)}' chains addresses with '::'.", remedy="Give one address.")
    if kind_of(item) is not None:
        yield from _manifest(item, listing)
    elif scheme_of(item) in ("http", "https"):
        yield _place(item), None, None
    else:
        yield from ((url, None, None) for url in objects_of(item, listing.skips))


def _local(item: str, listing: Listing) -> Iterator[Found]:
    """What a path, a `file://` URI or a pattern names."""
    try:
        path = path_of(item)
        with suppress(RuntimeError):  # nobody is called so
            path = path.expanduser()
        with suppress(FileNotFoundError):
            path.stat()
    except (ValueError, OSError) as error:
        if is_trouble(error):
            raise
        told = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"'{percent_escaped(item)}' cannot be found: {told}.", remedy="Check the path.") from None
    if path.is_dir():
        if is_own(path):
            raise RecipeError(
                f"'{percent_escaped(str(path))}' was written by a run or an export: its clips would be curated again.",
                remedy="Give the folder with the recordings, or a single file of this one.",
            )
        yield from _plain(files_below(path, listing.skips))
    elif path.is_file():
        yield from _manifest(uri_of(path), listing) if kind_of(str(path)) else _plain(iter([path]))
    elif glob.has_magic(str(path)):
        yield from _plain(iter(files_matching(path, listing.skips)))
    else:
        nothing = "neither a file, a folder, a pattern with matches nor a URL"
        what = "a link that leads nowhere" if path.is_symlink() else nothing
        raise RecipeError(f"'{scrubbed(percent_escaped(item))}' is {what}.", remedy="Check the path.")


def _plain(paths: Iterator[Path]) -> Iterator[Found]:
    for path in paths:
        yield uri_of(path), None, None


def _manifest(address: str, listing: Listing) -> Iterator[Found]:
    """The rows of a manifest, in its own order."""
    for number, record in records_of(address, listing.skips):
        try:
            rest, licence = _columns(record, listing.secret_columns), _licence(record)
        except RecursionError:
            name = public_uri(address).rpartition("/")[2]
            listing.skips.add(BAD_ROWS, f"row {number} of {name}, which is nested more than {MOST_LEVELS} levels deep")
            continue
        place, part = _whole(_beside(address, record["uri"]))
        rest |= {"fragment": part} if part else {}
        yield place, licence, rest


def _licence(record: Mapping[str, Any]) -> str | None:
    """The licence that a row states, in one line; the stricter of two."""
    stated = [_kept("licence", record.get(name), set(), MOST_LEVELS) for name in LICENCE_COLUMNS]
    texts = [" ".join(str(each).split()) or None for each in stated if each is not None]
    return reduce(strictest, texts, None)


def _columns(record: Mapping[str, Any], secret: set[str]) -> dict[str, Any]:
    """What a row says beside address and licence. Raises RecursionError for what is nested too deeply."""
    told = {key: value for key, value in record.items() if key not in ("uri", *LICENCE_COLUMNS)}
    kept = _kept("", told, secret, MOST_LEVELS)
    return dict(kept)


def _whole(address: str) -> tuple[str, str]:
    """An address, and apart from it the fragment that names a part of what lies there."""
    place, _, fragment = address.partition("#")
    is_part = scheme_of(address) in ("http", "https") and CLIP_RANGE.match(fragment) is not None
    return (place, fragment) if is_part else (address, "")


def _kept(name: str, value: Any, secret: set[str], levels: int) -> Any:
    """A manifest's value as JSON that everybody can read, without secrets; None for what is not kept."""
    if levels == 0:
        raise RecursionError
    if isinstance(value, Mapping):
        inside = {whole_text(str(key)): _kept(str(key), each, secret, levels - 1) for key, each in value.items()}
        return {key: each for key, each in inside.items() if each is not None}
    if isinstance(value, list | tuple | set):
        return [_kept(name, each, secret, levels - 1) for each in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    text = whole_text(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
    kept = None if is_secret(name, text) else scrubbed(text)
    if kept != text:
        secret.add(percent_escaped(whole_text(name)))
    return kept


def _beside(manifest: str, uri: str) -> str:
    """The address that a row's `uri` names, seen from the folder of the manifest."""
    if "://" in uri or uri[:6].lower() == "file:/":
        return _place(uri)
    if is_local(manifest):
        return uri_of(path_of(manifest).absolute().parent / uri)
    if scheme_of(manifest) in ("http", "https"):
        return _place(urljoin(manifest.partition("?")[0], uri))
    return uri_of(Path(uri)) if uri.startswith("/") else manifest.rpartition("/")[0] + "/" + uri


def _place(uri: str) -> str:
    """One spelling for one address: a `file://` URI of a plain name is its path, and web addresses hold no active characters."""
    if is_local(uri):
        try:
            return uri_of(path_of(uri))
        except ValueError:
            return percent_escaped(uri)
    return percent_escaped(uri) if scheme_of(uri) in ("http", "https") else whole_text(uri)
