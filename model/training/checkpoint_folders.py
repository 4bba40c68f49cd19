"""Where checkpoints lie, as far as one process moves them about: begun, published, found, proven good, set aside, removed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.weights.dcp_files import METADATA, NOTES, SummedWriter
from schemas.files import publish_dir

if TYPE_CHECKING:
    from upath import UPath

NAME = "step-{:08d}"
PARTIAL = ".partial-{:08d}"
DAMAGED, GOOD = "damaged-", "good"


class LocalFolder:
    """A folder of one file system that all ranks see. All but `writer` is for the first rank alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def prepare(self) -> None:
        """Make it, and remove what a kill has left."""
        self._path.mkdir(parents=True, exist_ok=True)
        for leftover in self._path.glob(".partial-*"):
            shutil.rmtree(leftover)

    def complete(self) -> list[Path]:
        """The published checkpoints, the oldest first."""
        return complete(self._path)

    def begin(self, step: int) -> None:
        """Make room for a checkpoint. Raises OSError."""
        (self._path / PARTIAL.format(step)).mkdir()

    def writer(self, step: int, notes: dict[str, Any] | None) -> SummedWriter:
        """What this rank writes the checkpoint with; `notes` on the first one."""
        return SummedWriter(self._path / PARTIAL.format(step), notes)

    def publish(self, step: int) -> None:
        """Give the written checkpoint its name. Raises OSError."""
        publish_dir(self._path / PARTIAL.format(step), self._path / NAME.format(step))

    def discard(self, step: int) -> None:
        """Remove what there is of a checkpoint that could not be written."""
        shutil.rmtree(self._path / PARTIAL.format(step), ignore_errors=True)

    def remove(self, checkpoint: Path) -> None:
        """Remove a published checkpoint."""
        shutil.rmtree(checkpoint)

    def set_aside(self, checkpoint: Path) -> str:
        """Publish it no longer, but keep it; where it is then."""
        aside = checkpoint.with_name(DAMAGED + checkpoint.name)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        if checkpoint.name == self.good():
            (self._path / GOOD).unlink()
        return aside.name

    def good(self) -> str:
        """Name of the checkpoint after which training went on soundly; empty where none is marked."""
        link = self._path / GOOD
        return link.readlink().name if link.is_symlink() else ""

    def mark_good(self, checkpoint: Path) -> None:
        """Mark it as the one."""
        link, fresh = self._path / GOOD, self._path / f".{GOOD}"
        if link.exists() and not link.is_symlink():
            return  # a copy of the link's target, by a tool that follows links
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(checkpoint.name)
        fresh.replace(link)

    def room(self) -> str:
        """How much more could be written, to be added to why it was not."""
        return f"; {shutil.disk_usage(self._path).free / 1e9:.2f} GB are free there"


def complete(folder: Path) -> list[Path]:
    """The published checkpoints of a folder, the oldest first."""
    found = [path for path in folder.glob("step-*") if (path / METADATA).is_file() and (path / NOTES).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path | UPath) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
