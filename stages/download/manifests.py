"""Lists of sources in files: their rows, one at a time, in the file's own order; what cannot be used is said and left out."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from schemas.errors import DownloadError, RecipeError
from schemas.machine import is_trouble
from schemas.public import public_uri, told_of
from schemas.scratch import Scratch
from stages.download.companions import SIDECARS
from stages.download.fetch_http import fetched_http, leads_to_private
from stages.download.places import is_local, path_of, scheme_of
from stages.download.prefixes import discreet
from stages.download.receive import HttpLimits
from stages.download.skips import Skips
from stages.objects import at_store, fetch

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""First bytes of a compressed file -> who opens it. The name says .gz, but servers unpack some on the way."""
PACKED_ENDINGS = (".gz", ".bz2", ".xz")
OTHER_LISTS = SIDECARS - {".html", ".htm"}
"""Endings that are refused where they are given by name: neither media nor a list of a kind known here."""
BAD_ROWS = "rows of lists that cannot be used"
KNOWN = "lists are read as .jsonl, .ndjson, .json, .csv, .tsv, .txt and .parquet, also .gz, .bz2 or .xz"
BATCH_ROWS = 1024
WIDE = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks -> encoding; without one it is UTF-8, and other bytes are those of file names."""
TURNED = re.compile(r"(?:https?|ftp|s3|gs):(?!//)[\\/]|file:\\", re.IGNORECASE)
"""Begins what was meant as a URL and is none: it would be taken for a path, login and all."""
NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters that stand for no byte of a file name (PEP 383)."""
Record = dict[str, Any]


class BadRowError(ValueError):
    """A row that names no source; says why, to stand behind `Row N of ...`."""


def kind_of(address: str) -> str | None:
    """The ending of a list that can be read; None for what is no list. Raises RecipeError for lists of other kinds."""
    path = address.partition("?")[0].partition("#")[0] if "://" in address else address
    name = PurePosixPath(path).name.lower()
    packed = next((each for each in PACKED_ENDINGS if name.endswith(each)), "")
    ending = PurePosixPath(name.removesuffix(packed)).suffix
    if ending in KINDS:
        return ending
    if ending in OTHER_LISTS or packed:
        raise RecipeError(
            f"'{public_uri(address)}' is neither media nor a list that can be read: {KNOWN}.",
            remedy="Convert it, or unpack it, and give that.",
        )
    return None


def records_of(address: str, skips: Skips) -> Iterator[tuple[int, Record]]:
    """(number from 1, columns) of each row of a list that names a source in `uri`; others are added to `skips`.

    Raises RecipeError where the list cannot be read, or no row of it can be used, and MachineError where a store stays away.
    """
    kind, shown = kind_of(address), public_uri(address)
    num_good, first_bad = 0, ""
    try:
        with _local_copy(address) as path, _unpacked(path) as file:
            for number, row in enumerate(_rows(file, kind or ""), start=1):
                try:
                    yield number, _checked(row)
                    num_good += 1
                except BadRowError as error:
                    first_bad = first_bad or f"Row {number} of manifest '{shown}' {error}."
                    skips.add(BAD_ROWS, f"row {number} of {PurePosixPath(shown).name}, which {error}")
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, RecursionError) as error:
        if is_trouble(error):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else told_of(address, error).rstrip(".")
        raise RecipeError(f"Manifest '{shown}' cannot be read: {reason}.", remedy=f"Mend it: {KNOWN}.") from None
    if first_bad and not num_good:
        raise RecipeError(first_bad, remedy="Give every row a path or URL in a column named uri.")


@contextmanager
def _local_copy(address: str) -> Iterator[Path]:
    """A local file with the bytes of a list, wherever it lies."""
    if is_local(address):
        yield path_of(address)
        return
    with Scratch("list") as folder:
        if scheme_of(address) in ("http", "https"):
            limits = HttpLimits(
                allow_private_hosts=leads_to_private(address)
            )  # named by the one who runs this, not by a list
            try:
                with fetched_http(address, Path(folder), limits) as fetched:
                    yield fetched.path
            except DownloadError as error:
                raise RecipeError(f"A manifest cannot be fetched: {error.message}", remedy=error.remedy) from None
        else:
            target = Path(folder, "list")
            at_store(public_uri(address), lambda: _fetch(address, target))
            yield target


def _fetch(address: str, target: Path) -> None:
    with discreet(address):
        fetch(address, target)


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        opener = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
        if opener is None:
            yield file
        else:
            with opener(file, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)


def _rows(file: IO[bytes], kind: str) -> Iterator[Any]:
    """The rows as they stand there, or the BadRowError of one that cannot be read."""
    if kind == ".parquet":
        yield from _parquet(file)
        return
    start = file.peek(2)[:2] if hasattr(file, "peek") else b""
    encoding = WIDE.get(bytes(start), "utf-8-sig")
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
    if kind in (".csv", ".tsv"):
        yield from _table(text, "\t" if kind == ".tsv" else ",")
    elif kind == ".txt":
        yield from (line.strip() for line in text if line.strip() and not line.startswith("#"))
    elif kind == ".json":
        yield from _array(json.load(text))
    else:
        yield from (_parsed(line) for line in text if line.strip())


def _parquet(file: IO[bytes]) -> Iterator[Any]:
    """The rows of a Parquet file; instants as text, for Python knows neither nanoseconds nor all years."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
            columns = [
                column.cast(pa.string())
                if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
                else column
                for column in batch.columns
            ]
            yield from pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _table(text: IO[str], delimiter: str) -> Iterator[Any]:
    """The rows of a table as dicts; strict about quotes, for an open one would take all that follows for one field."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    for number in itertools.count(1):
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"row {number}: {error}; is a quote open, or not doubled inside a field?") from None
        if fields is None:
            return
        if any(fields[len(header) :]):
            yield BadRowError(
                f"has {len(fields)} fields for {len(header)} columns: quote those with a separator in them"
            )
        elif any(fields):
            yield {name: value or None for name, value in zip(header, fields, strict=False) if name}


def _array(found: Any) -> list[Any]:
    if isinstance(found, list):
        return found
    raise ValueError("a .json list is one array, of addresses or of objects with a key uri")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return BadRowError("is nested too deeply")
    except ValueError as error:
        return BadRowError(f"cannot be read: {error}")


def _checked(row: Any) -> Record:
    """The columns of a row, with its address as text under `uri`. Raises BadRowError."""
    if isinstance(row, BadRowError):
        raise row
    record: Record = {"uri": row} if isinstance(row, str) else dict(row) if isinstance(row, dict) else {}
    named = record.get("uri")
    uri = named.decode("utf-8", "surrogateescape") if isinstance(named, bytes) else named
    if not isinstance(uri, str) or not uri.strip():
        raise BadRowError(f"has no text in column 'uri'; its columns are {', '.join(map(str, record))[:200]}")
    if "\0" in uri:
        raise BadRowError("has an address with a zero byte in it")
    if NO_BYTES.search(uri):
        raise BadRowError("has an address that is not text")
    if TURNED.match(uri.strip()):
        raise BadRowError("has an address whose slashes are turned or missing")
    return record | {"uri": uri.strip()}
