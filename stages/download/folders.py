"""The files of a local folder, links followed; what is left out is said."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath

from schemas.errors import RecipeError
from schemas.machine import is_trouble
from schemas.printable import percent_escaped
from stages.download.companions import OWN_FOLDERS, is_own, stems_of, why_no_medium
from stages.download.skips import Skips

UNREADABLE = "folders that cannot be read"
BROKEN = "links that lead nowhere"
SPECIAL = "pipes, sockets and devices"
AGAIN = "links to folders that are searched anyway"
FOLDERS = "folders that a pattern for files matches"
FileId = tuple[int, int]
"""Device and number: what a file is, by whatever name."""


def files_below(root: Path, skips: Skips) -> Iterator[Path]:
    """The media of a folder and of all below it, sorted; then those of the folders that links lead to, each folder once."""
    walk = _Walk(root, skips)
    yield from walk.files(root)
    while walk.links:
        link = walk.links.pop(0)
        yield from walk.files(link)


class _Walk:
    """Which folders were searched, and which links wait until all real folders have been."""

    def __init__(self, root: Path, skips: Skips) -> None:
        self._skips = skips
        self._seen: set[FileId] = set()
        self._root, self._real_root = root, os.path.realpath(root)
        self.links: list[Path] = []

    def files(self, folder: Path) -> Iterator[Path]:
        """The media below `folder`, depth first by name. A link to what holds the input leads everywhere: not followed."""
        if folder != self._root and folder.is_symlink() and not self._is_new(folder):
            return
        waiting = [iter(self._entries(folder))]
        while waiting:
            entry = next(waiting[-1], None)
            if entry is None:
                waiting.pop()
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(iter(self._entries(Path(entry.path))))
            elif entry.is_dir():
                self.links.append(Path(entry.path))
            else:
                yield Path(entry.path)

    def _is_new(self, link: Path) -> bool:
        real = os.path.realpath(link)
        is_above = f"{self._real_root}/".startswith(f"{real.rstrip('/')}/")
        is_new = not is_above and _id_of(real) not in self._seen
        if not is_new:
            self._skips.add(AGAIN, link)
        return is_new

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Media and folders in a folder, sorted; none where it was searched before, or must not be."""
        try:
            identity = _id_of(folder)
            if identity in self._seen:
                return []
            self._seen.add(identity)
            if is_own(folder):
                self._skips.add(OWN_FOLDERS, folder)
                return []
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if is_trouble(error):
                raise
            self._skips.add(UNREADABLE, folder)
            return []
        stems = stems_of(PurePath(entry.name) for entry in entries)
        return [entry for entry in entries if not self._is_skipped(entry, stems)]

    def _is_skipped(self, entry: os.DirEntry[str], stems: frozenset[str]) -> bool:
        why = why_no_source(entry, stems)
        if why is not None:
            self._skips.add(why, entry.path)
        return why is not None


def why_no_source(entry: os.DirEntry[str] | Path, stems: frozenset[str]) -> str | None:
    """Why what lies there is neither a source nor a folder to search; None for one that is."""
    try:
        is_file, is_folder = entry.is_file(), entry.is_dir()
    except OSError as error:
        if is_trouble(error):
            raise
        is_file = is_folder = False
    if is_file or entry.name.startswith("."):
        return why_no_medium(PurePath(entry.name), stems)
    if is_folder:
        return None
    return SPECIAL if os.path.exists(entry) else BROKEN if entry.is_symlink() else UNREADABLE


def _id_of(path: str | Path) -> FileId:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def files_matching(pattern: Path, skips: Skips) -> list[Path]:
    """The media that a pattern matches, sorted, each once even where links make a circle. Raises RecipeError for none."""
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    beside: dict[Path, list[Path]] = defaultdict(list)
    for path in matches:
        beside[path.parent].append(path)
    real = {parent: os.path.realpath(parent) for parent in beside}
    stems = {parent: stems_of(paths) for parent, paths in beside.items()}
    seen: set[tuple[str, str]] = set()
    found = []
    for path in matches:
        if path in beside:  # a folder, and what is in it matches too
            continue
        place = (real[path.parent], path.name)
        why = AGAIN if place in seen else why_no_source(path, stems[path.parent])
        if why is None and path.is_dir():
            why = FOLDERS
        seen.add(place)
        if why is None:
            found.append(path)
        else:
            skips.add(why, path)
    if not found:
        rest = f"; {'; '.join(skips.lines())}" if skips.counts else ""
        raise RecipeError(
            f"No file matches '{percent_escaped(str(pattern))}'{rest}.",
            remedy="Quote the pattern and check the folder.",
        )
    return found
