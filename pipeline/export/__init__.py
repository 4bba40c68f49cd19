"""Kept clips in the forms other programs read: what `nava-curate export` writes. A form is a line in `FORMS`.

clips      packed clips one after another, their media on the disk
nava       the official NAVA trainer
trainers   LTX-2, musubi-tuner, diffusion-pipe
cuts       lhotse
tables     CSV, Parquet, a folder for Hugging Face's `datasets`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.ask.queries import Run
from pipeline.export.clips import ExportChoice, ExportedClip, exported_clips
from pipeline.export.cuts import write_lhotse
from pipeline.export.nava import nava_record, write_nava
from pipeline.export.tables import write_csv, write_hf, write_parquet
from pipeline.export.trainers import write_diffusion_pipe, write_ltx, write_musubi
from schemas.errors import RecipeError
from schemas.recipe import nearest
from stages.download.companions import EXPORT_MARK

__all__ = ["FORMS", "Exported", "export", "export_nava", "nava_record"]


class ExportForm(NamedTuple):
    """One form."""

    write: Callable[[Iterable[ExportedClip], Path], None]
    has_picture: bool = True
    has_sound: bool = False


FORMS = {
    "nava": ExportForm(write_nava),
    "ltx2": ExportForm(write_ltx),
    "musubi": ExportForm(write_musubi, has_sound=True),
    "diffusion-pipe": ExportForm(write_diffusion_pipe),
    "lhotse": ExportForm(write_lhotse, has_sound=True),
    "hf": ExportForm(write_hf),
    "parquet": ExportForm(write_parquet, has_sound=True),
    "csv": ExportForm(write_csv),
}
"""Name of a form -> who writes it, and which media it wants."""


@dataclass
class Exported:
    """What an export wrote."""

    num_records: int = 0
    duration_s: float = 0.0


def export(run: Run, out: Path, form: str, split: str = "train", pool: str | None = None) -> Exported:
    """Writes the packed clips of a split, or those of them in a pool, and a mark that keeps them from being taken for recordings.

    Raises RecipeError for a form or split that does not exist, LedgerError if nothing is packed or a shard is missing,
    DamagedSampleError if a clip's bytes are not those that were packed.
    """
    if form not in FORMS:
        raise RecipeError(f"--format {form} is not known.", remedy=nearest(form, FORMS))
    chosen, done = FORMS[form], Exported()
    choice = ExportChoice(split, pool, chosen.has_picture, chosen.has_sound)

    def counted() -> Iterator[ExportedClip]:
        for clip in exported_clips(run, out, choice):
            done.num_records += 1
            done.duration_s += clip.row.duration_s
            yield clip

    out.mkdir(parents=True, exist_ok=True)
    (out / EXPORT_MARK).touch()
    chosen.write(counted(), out)
    return replace(done)


def export_nava(run: Run, out: Path, split: str = "train") -> Exported:
    """`export` in the form of the official NAVA trainer."""
    return export(run, out, "nava", split)
