"""Shards in the forms other programs read: what `nava-curate export` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.ask.queries import Run
from pipeline.pack import MANIFEST, read_index, read_manifest
from schemas.errors import LedgerError
from schemas.shard import MEMBERS, IndexRow, index_rows
from schemas.shard_file import ShardReader, locations

SPEECH_MARK = re.compile(r"<S>.*?<E>", re.DOTALL)


def export_nava(run: Run, out: Path, split: str = "train") -> dict[str, Any]:
    """Writes the official NAVA trainer's input: media/*.mp4, data.jsonl, data.list, data.weight.

    One record per clip, with one speech_start/speech_end pair per `<S>...<E>` of its caption (design of the release:
    counts must match). Returns {records, hours}. Raises LedgerError if nothing is packed or a caption does not match,
    DamagedSampleError if a clip's bytes are not those that were packed.
    """
    if not run.dir.exists(MANIFEST):
        raise LedgerError(f"{run.dir.uri} has no shards yet.", remedy="Finish `nava-curate run` first.")
    media = out / "media"
    media.mkdir(parents=True, exist_ok=True)
    num_records, duration_s = 0, 0.0
    with open(out / "data.jsonl", "w", encoding="utf-8") as lines:
        for shard in read_manifest(run.dir).shards:
            if shard.split != split:
                continue
            index = read_index(run.dir, shard.index.removesuffix(".arrow"))
            with ShardReader(run.dir.open(f"shards/{shard.name}")) as reader:
                for row, place in zip(index_rows(index), locations(index, MEMBERS), strict=True):
                    members = reader.sample(place)
                    path = media / f"{row.clip_id}.mp4"
                    path.write_bytes(members["mp4"])
                    record = nava_record(json.loads(bytes(members["json"])), row, str(path.resolve()))
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                    num_records += 1
                    duration_s += row.duration_s
    key = "curated"
    (out / "data.list").write_text(f"0\t{key}\t{(out / 'data.jsonl').resolve()}\n")
    (out / "data.weight").write_text(f"{key}\t1.0\ttext_to_av\n")
    return {"records": num_records, "hours": duration_s / 3600}


def nava_record(note: dict[str, Any], row: IndexRow, path: str) -> dict[str, Any]:
    """One JSONL record of the official data contract (docs/shards.md lists its fields)."""
    spans = note["clip"]["spans"] or []
    text = (note.get("caption") or {}).get("text") or " ".join(f"<S>{span['text']}<E>" for span in spans)
    marks = len(SPEECH_MARK.findall(text))
    if marks != len(spans):
        raise LedgerError(f"{row.clip_id}: its caption has {marks} <S>...<E> for {len(spans)} speech spans.")
    return {
        "data_id": row.clip_id,
        "video_info": [
            {"data_path": path, "fps": row.fps, "duration": row.duration_s,
             "image_width": row.width_px, "image_height": row.height_px, "is_valid": True}
        ],
        "text_list": [
            {"text": text, "text_type": "caption", "is_valid": True,
             "speech_start": [span["start_s"] for span in spans], "speech_end": [span["end_s"] for span in spans]}
        ],
    }  # fmt: skip
