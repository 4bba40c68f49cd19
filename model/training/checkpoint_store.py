"""Checkpoints under an fsspec URL (s3://bucket/run and the like): files are put there whole, and `state.json` last.

    step-00000500/    .metadata  *.distcp  as in a folder; without `state.json` it is no checkpoint, and the next start removes it
        state.json    put when all others are there, as many bytes as were written; `damaged-state.json` once it was found damaged
    good              the name of the newest one after which training went on soundly

A store renames nothing in one go, so what publishes a checkpoint is its one last object. Each rank writes its files into a
temporary folder of its host first (TMPDIR), sums them up there, and puts them into the store from there.
"""

# mypy: disallow-subclassing-any=False
from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from model.data.retry import patiently, store_errors
from model.training.checkpoint_folders import DAMAGED, GOOD, NAME, LocalFolder, step_of
from model.weights.dcp_files import METADATA, NOTES, SummedWriter
from schemas.errors import NavaError, RecipeError
from schemas.scratch import Scratch

if TYPE_CHECKING:
    from upath import UPath

T = TypeVar("T")


def open_folder(where: Path | str) -> LocalFolder | StoreFolder:
    """The checkpoints in a folder, or under an fsspec URL. Raises RecipeError for a URL that nothing here can open."""
    text = str(where)
    return StoreFolder(text) if "://" in text else LocalFolder(Path(text))


def as_path(text: str) -> Path | UPath:
    """A path, or a URL as one; of stores no listings are remembered, because other ranks write there."""
    if "://" not in text:
        return Path(text)
    from upath import UPath

    return UPath(text, use_listings_cache=False)


class StoreFolder:
    """See the module. All but `writer` is for the first rank alone; it is tried again for minutes while a store is away."""

    def __init__(self, url: str) -> None:
        try:
            path = as_path(url.rstrip("/"))
            assert not isinstance(path, Path), "a URL"
            self._path, self._files = path, cast("Any", path.fs)
        except (ImportError, ValueError) as error:
            raise RecipeError(
                f"no checkpoints can be kept at {url}: {error}.", remedy="Install what opens it, such as s3fs or gcsfs."
            ) from error

    def __str__(self) -> str:
        return str(self._path)

    def prepare(self) -> None:
        """Remove what a kill has left."""
        for name, files in self._listed().items():
            if name.startswith("step-") and not files & {NOTES, DAMAGED + NOTES}:
                self._removed(name)

    def complete(self) -> list[UPath]:
        """The published checkpoints, the oldest first."""
        found = [name for name, files in self._listed().items() if {NOTES, METADATA} <= files]
        return sorted((self._path / name for name in found if name.startswith("step-")), key=step_of)

    def begin(self, step: int) -> None:
        """Remove what a damaged one of this step has left."""
        self._removed(NAME.format(step))

    def writer(self, step: int, notes: dict[str, Any] | None) -> StoreWriter:
        """What this rank writes the checkpoint with; `notes` on the first one."""
        return StoreWriter(self._path / NAME.format(step), notes)

    def publish(self, step: int) -> None:
        """Nothing: its last object has published it."""

    def discard(self, step: int) -> None:
        """Remove what there is of a checkpoint that could not be written, if the store allows."""
        with suppress(NavaError, *store_errors()):
            self._removed(NAME.format(step))

    def remove(self, checkpoint: Path | UPath) -> None:
        """Remove a published checkpoint, first of all what publishes it."""
        self._removed(f"{checkpoint.name}/{NOTES}")
        self._removed(checkpoint.name)

    def set_aside(self, checkpoint: Path | UPath) -> str:
        """Publish it no longer, but keep it until its step is written again; what its notes are called then."""
        notes = f"{self._path.path}/{checkpoint.name}/{NOTES}"
        aside = f"{checkpoint.name}/{DAMAGED}{NOTES}"
        self._wait(lambda: self._files.cp_file(notes, f"{self._path.path}/{aside}"), notes, "copied")
        self._removed(f"{checkpoint.name}/{NOTES}")
        if checkpoint.name == self.good():
            self._removed(GOOD)
        return aside

    def good(self) -> str:
        """Name of the checkpoint after which training went on soundly; empty where none is marked."""
        with suppress(FileNotFoundError):
            return self._wait((self._path / GOOD).read_text, f"{self._path / GOOD}", "read")
        return ""

    def mark_good(self, checkpoint: Path | UPath) -> None:
        """Mark it as the one."""
        self._wait(lambda: (self._path / GOOD).write_text(checkpoint.name), f"{self._path / GOOD}", "written")

    def room(self) -> str:
        """Nothing is known of it."""
        return ""

    def _listed(self) -> dict[str, set[str]]:
        """Folder -> names of its files."""
        root, found = f"{self._path.path.rstrip('/')}/", dict[str, set[str]]()
        for path in self._wait(lambda: self._files.find(self._path.path), str(self._path), "listed"):
            folder, _, name = path[path.find(root) + len(root) :].partition("/")
            found.setdefault(folder, set()).add(name)
        return found

    def _removed(self, name: str) -> None:
        path = f"{self._path.path}/{name}"
        with suppress(FileNotFoundError):
            self._wait(lambda: self._files.rm(path, recursive=True), path, "removed")

    def _wait(self, act: Callable[[], T], what: str, doing: str) -> T:
        return patiently(act, what, doing=doing)


class StoreWriter(SummedWriter):
    """Writes files where this host has room, and puts them into the store; `state.json` when all others are there."""

    def __init__(self, target: UPath, notes: dict[str, Any] | None) -> None:
        self._scratch = Scratch("checkpoint")
        super().__init__(Path(self._scratch.name), notes)
        self._target, self._is_first = target, False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The library's."""
        self._is_first = is_coordinator
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """The files of this rank. Raises OSError for one that has not arrived whole."""
        is_kept = False
        try:
            done = super().write_data(plan, planner)
            for path in sorted(self._directory.iterdir()):
                self._put(path.name)
            is_kept = self._is_first
        finally:
            if not is_kept:
                self._scratch.cleanup()
        return done

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """What joins them, and what publishes them."""
        try:
            super().finish(metadata, results)
            for name in (METADATA, NOTES):
                self._put(name)
        finally:
            self._scratch.cleanup()

    def _put(self, name: str) -> None:
        local, target = self._directory / name, self._target / name
        files: Any = target.fs
        patiently(lambda: files.put_file(str(local), target.path), str(target), doing="written")
        arrived, num_bytes = target.stat().st_size, local.stat().st_size
        if arrived != num_bytes:
            raise OSError(f"{target} has {arrived:,} of the {num_bytes:,} bytes that were put there")
        local.unlink()
