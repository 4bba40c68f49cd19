"""Files and directories that appear whole or not at all, and what is in them: one way for every writer.

A file is written under a temporary name beside its target, flushed to the disk and renamed; the directory entry is
flushed as well. After a crash of the machine a name either is not there or has all its bytes. Temporary names begin
with a dot and end in `.partial`; what a killed process leaves under such a name is never read and may be deleted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
"""Bytes held at a time by whoever copies a file from elsewhere."""


def cache_folder() -> Path:
    """Where caches of this program lie unless a command says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nava")


@contextmanager
def whole_path(target: Path) -> Iterator[Path]:
    """A path to write a file to, for writers that want a name; the file gets the name `target` if the block ends well.

    Parent folders are made; an older `target` is replaced. If the block raises, nothing is left and nothing replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    try:
        yield partial
        _flush(partial)
        _rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def open_whole(target: Path) -> Iterator[BinaryIO]:
    """A binary file to write to, which gets the name `target` if the block ends well (`whole_path`)."""
    with whole_path(target) as partial, open(partial, "wb") as file:
        yield file


def write_whole(target: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with open_whole(target) as file:
        file.write(data)


def publish_file(local: Path, target: Path, *, keep: bool = False) -> None:
    """Gives a finished local file the name `target`, across file systems if need be.

    `keep` leaves `local` in place (as a hard link where the file system allows), otherwise it is moved.
    """
    with whole_path(target) as partial:
        if keep:
            try:
                os.link(local, partial)
            except OSError:
                shutil.copyfile(local, partial)
        else:
            shutil.move(local, partial)


@contextmanager
def whole_dir(target: Path) -> Iterator[Path]:
    """An empty directory to fill, which gets the name `target` if the block ends well (`publish_dir`).

    Its files are flushed by whoever writes them. If the block raises, nothing is left and nothing replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    partial.mkdir()
    try:
        yield partial
        publish_dir(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_dir(local: Path, target: Path) -> None:
    """Gives a finished directory on the same file system the name `target`; an older `target` is removed before."""
    _flush(local)
    if target.exists():
        shutil.rmtree(target)
    _rename(local, target)


def sha256_of(path: Path) -> tuple[str, int]:
    """(hexadecimal sha256, bytes) of a file; reads it once, in blocks. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()


def _partial(target: Path) -> Path:
    """A name no other process on any host uses: workers of several hosts may write one target on a shared disk."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def _rename(partial: Path, target: Path) -> None:
    os.replace(partial, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Puts the bytes of a file, or the entries of a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)
