"""Packed clips one after another, their media written to files: what every form of export is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from pipeline.ask.queries import Run
from pipeline.pack import MANIFEST, read_index, read_manifest
from pipeline.splits import SPLITS
from pipeline.store import RunDir
from schemas.errors import LedgerError, RecipeError
from schemas.lines import plain_caption
from schemas.pool import CLIP_ID, CLIPS_FILE, clips_in
from schemas.recipe import nearest
from schemas.records import Level
from schemas.shard import MEMBERS, IndexRow, index_rows
from schemas.shard_file import ShardReader, locations
from schemas.spans import SpeechSpan

MEDIA = "media"


@dataclass(frozen=True)
class ExportChoice:
    """Which clips, and which of their media."""

    split: str = "train"
    pool: str | None = None
    """Folder of a pool whose clips alone are exported."""
    has_picture: bool = True
    has_sound: bool = False
    """Whether the lossless sound is written beside the picture, in which it is too; of a clip without a picture it always is."""


@dataclass(frozen=True)
class ExportedClip:
    """One clip, its media on the disk."""

    row: IndexRow
    picture: Path | None
    """Absolute path of its .mp4."""
    sound: Path | None
    """Absolute path of its .flac; None where it was not asked for, or there is none."""
    caption: str | None
    """As NAVA reads it; None where none was written."""
    spans: tuple[SpeechSpan, ...]
    uri: str
    licence: str | None

    @property
    def plain_text(self) -> str:
        """What other programs are given as its text: spoken lines stand in quotes, and alone where there is no caption."""
        return plain_caption(self.caption, [span.text for span in self.spans])


def exported_clips(run: Run, out: Path, choice: ExportChoice) -> Iterator[ExportedClip]:
    """The packed clips of a split in the order of shards, once their media lie in `out/media`.

    Raises RecipeError for a split that does not exist, LedgerError if nothing is packed or a shard is missing,
    DamagedSampleError if a clip's bytes are not those that were packed.
    """
    if choice.split not in SPLITS:
        raise RecipeError(f"--split {choice.split} is not known.", remedy=nearest(choice.split, SPLITS))
    if not run.dir.exists(MANIFEST):
        raise LedgerError(f"{run.dir.uri} has no shards yet.", remedy="Finish `nava-curate run` first.")
    media = (out / MEDIA).resolve()
    media.mkdir(parents=True, exist_ok=True)
    chosen = None if choice.pool is None else _clips_of(choice.pool)
    for shard in read_manifest(run.dir).shards:
        if shard.split != choice.split:
            continue
        index = read_index(run.dir, shard.index.removesuffix(".arrow"))
        if chosen is not None:
            index = index.filter(pc.is_in(index[CLIP_ID], value_set=chosen))
        if not index.num_rows:
            continue
        if not run.dir.exists(f"shards/{shard.name}"):
            msg = f"{run.dir.url(f'shards/{shard.name}')} is missing."
            raise LedgerError(msg, remedy="Run `nava-curate run` again, which makes it anew.")
        with ShardReader(run.dir.open(f"shards/{shard.name}")) as reader:
            for row, place in zip(index_rows(index), locations(index, MEMBERS), strict=True):
                yield _written(run, row, reader.sample(place), media, choice)


def _written(
    run: Run, row: IndexRow, members: dict[str, memoryview], media: Path, choice: ExportChoice
) -> ExportedClip:
    paths: dict[str, Path | None] = {"mp4": None, "flac": None}
    for name, is_asked in (("mp4", choice.has_picture), ("flac", choice.has_sound or not row.has_video)):
        if is_asked and members[name]:
            paths[name] = path = media / f"{row.clip_id}.{name}"
            path.write_bytes(members[name])
    note = json.loads(bytes(members["json"]))
    texts = [text for text in run.plan.values("text", note) if text]
    spans = SpeechSpan.all_of(note[Level.CLIP]["spans"])
    source = note["source"]
    return ExportedClip(
        row, paths["mp4"], paths["flac"], texts[0] if texts else None, tuple(spans), source["uri"], source["licence"]
    )


def _clips_of(pool: str) -> object:
    return clips_in(RunDir(pool).read(CLIPS_FILE), pool).combine_chunks()
