"""Shards in the form that the official NAVA trainer reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ask.queries import Run
from pipeline.pack import MANIFEST, read_index, read_manifest
from pipeline.splits import SPLITS
from schemas.errors import LedgerError, RecipeError
from schemas.lines import caption_or_lines, lines_in
from schemas.recipe import nearest
from schemas.records import Level
from schemas.shard import MEMBERS, IndexRow, index_rows
from schemas.shard_file import ShardReader, locations
from schemas.spans import SpeechSpan
from stages.download.companions import EXPORT_MARK


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    num_records: int
    duration_s: float


def export_nava(run: Run, out: Path, split: str = "train") -> Exported:
    """Writes the official NAVA trainer's input: media/*.mp4, data.jsonl, data.list, data.weight, and a mark that keeps
    them from being taken for recordings.

    One record per clip, with one speech_start/speech_end pair per `<S>...<E>` of its caption (design of the release:
    counts must match). Raises RecipeError for a split that does not exist, LedgerError if nothing is packed, a shard is
    missing or a caption does not match, DamagedSampleError if a clip's bytes are not those that were packed.
    """
    if split not in SPLITS:
        raise RecipeError(f"--split {split} is not known.", remedy=nearest(split, SPLITS))
    if not run.dir.exists(MANIFEST):
        raise LedgerError(f"{run.dir.uri} has no shards yet.", remedy="Finish `nava-curate run` first.")
    media = out / "media"
    media.mkdir(parents=True, exist_ok=True)
    (out / EXPORT_MARK).touch()
    num_records, duration_s = 0, 0.0
    with open(out / "data.jsonl", "w", encoding="utf-8") as lines:
        for shard in read_manifest(run.dir).shards:
            if shard.split != split:
                continue
            index = read_index(run.dir, shard.index.removesuffix(".arrow"))
            if not run.dir.exists(f"shards/{shard.name}"):
                msg = f"{run.dir.url(f'shards/{shard.name}')} is missing."
                raise LedgerError(msg, remedy="Run `nava-curate run` again, which makes it anew.")
            with ShardReader(run.dir.open(f"shards/{shard.name}")) as reader:
                for row, place in zip(index_rows(index), locations(index, MEMBERS), strict=True):
                    members = reader.sample(place)
                    path = media / f"{row.clip_id}.mp4"
                    path.write_bytes(members["mp4"])
                    note = json.loads(bytes(members["json"]))
                    spans = SpeechSpan.all_of(note[Level.CLIP]["spans"])
                    texts = [text for text in run.plan.values("text", note) if text]
                    record = nava_record(spans, texts[0] if texts else None, row, str(path.resolve()))
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                    num_records += 1
                    duration_s += row.duration_s
    key = "curated"
    (out / "data.list").write_text(f"0\t{key}\t{(out / 'data.jsonl').resolve()}\n")
    (out / "data.weight").write_text(f"{key}\t1.0\ttext_to_av\n")
    return Exported(num_records, duration_s)


def nava_record(spans: Sequence[SpeechSpan], caption: str | None, row: IndexRow, path: str) -> dict[str, Any]:
    """One JSONL record of the official data contract (docs/shards.md lists its fields), as JSON."""
    text = caption_or_lines(caption, [span.text for span in spans])
    lines = lines_in(text)
    if lines is None or len(lines) != len(spans):
        marks = "marks that do not pair up" if lines is None else f"{len(lines)} <S>...<E>"
        raise LedgerError(f"{row.clip_id}: its caption has {marks} for {len(spans)} speech spans.")
    return {
        "data_id": row.clip_id,
        "video_info": [
            {"data_path": path, "fps": row.fps, "duration": row.duration_s,
             "image_width": row.width_px, "image_height": row.height_px, "is_valid": True}
        ],
        "text_list": [
            {"text": text, "text_type": "caption", "is_valid": True,
             "speech_start": [span.start_s for span in spans], "speech_end": [span.end_s for span in spans]}
        ],
    }  # fmt: skip
