"""A run's directory, local or on an object store, in which files appear whole or not at all.

run/  recipe.yaml  plan.txt  sources.arrow  ledger/ (Delta)  assets/  cuts/ (until packed)  shards/  index/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from schemas.errors import LedgerError
from schemas.files import publish_file, write_whole


class Entry(NamedTuple):
    """A file of a run."""

    num_bytes: int
    written_s: float | None
    """When it was last written to, as a Unix time; None where the store does not say."""


def _written(told: Mapping[str, Any]) -> float | None:
    when = told.get("mtime") or told.get("LastModified") or told.get("created")
    return when.timestamp() if isinstance(when, datetime) else when


class RunDir:
    """Paths and atomic writes below one folder or URL prefix."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri).rstrip("/")
        if "://" not in self.uri:
            self.uri = os.path.abspath(self.uri)
        self.fs, self.root = fsspec.core.url_to_fs(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the run lies on this machine's file system."""
        return "://" not in self.uri

    def url(self, name: str) -> str:
        """Full path or URL of an entry."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        """Whether an entry is there."""
        return bool(self.fs.exists(f"{self.root}/{name}"))

    def names(self, folder: str) -> list[str]:
        """Sorted entry names of a folder; empty if there is none."""
        try:
            found = self.fs.ls(f"{self.root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def entries(self, folder: str) -> dict[str, Entry]:
        """Name -> what is known of each file below a folder at any depth; empty if there is none."""
        root = f"{self.root}/{folder}"
        found = self.fs.find(root, detail=True)
        return {
            str(path).removeprefix(f"{root}/"): Entry(int(told["size"]), _written(told)) for path, told in found.items()
        }

    def entry(self, name: str) -> Entry | None:
        """What is known of a file; None if it is not there."""
        try:
            told = self.fs.info(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        return Entry(int(told["size"]), _written(told))

    def read(self, name: str) -> bytes:
        """The bytes of an entry. Raises LedgerError if it is not there."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            remedy = "Give the folder that `nava-curate run --out` wrote."
            raise LedgerError(f"{self.url(name)} is not there.", remedy=remedy) from None

    def open(self, name: str) -> Any:
        """A seekable binary file for reading."""
        return self.fs.open(f"{self.root}/{name}", "rb")

    def write(self, name: str, data: bytes) -> None:
        """Writes an entry whole or not at all."""
        if not self.is_local:
            self.fs.pipe_file(f"{self.root}/{name}", data)
            return
        write_whole(Path(self.root, name), data)

    def publish(self, local: Path, name: str) -> None:
        """Moves a finished local file to an entry, whole or not at all."""
        if not self.is_local:
            self.fs.put_file(str(local), f"{self.root}/{name}")
            local.unlink()
            return
        publish_file(local, Path(self.root, name))

    def remove(self, name: str) -> None:
        """Removes an entry if it is there."""
        if self.exists(name):
            self.fs.rm_file(f"{self.root}/{name}")
