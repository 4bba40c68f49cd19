"""Shards in the forms other programs read: what `nava-curate export` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.ask.queries import Run
from pipeline.pack import read_index
from schemas.errors import LedgerError

SPEECH_MARK = re.compile(r"<S>.*?<E>", re.DOTALL)


def export_nava(run: Run, out: Path, split: str = "train") -> dict[str, Any]:
    """Writes the official NAVA trainer's input: media/*.mp4, data.jsonl, data.list, data.weight.

    One record per clip, with one speech_start/speech_end pair per `<S>...<E>` of its caption (design of the release:
    counts must match). Returns {records, hours}. Raises LedgerError if nothing is packed or a caption does not match.
    """
    if not run.dir.exists("index/manifest.json"):
        raise LedgerError(f"{run.dir.uri} has no shards yet.", remedy="Finish `nava-curate run` first.")
    manifest = json.loads(run.dir.read("index/manifest.json"))
    media = out / "media"
    media.mkdir(parents=True, exist_ok=True)
    num_records, duration_s = 0, 0.0
    with open(out / "data.jsonl", "w", encoding="utf-8") as lines:
        for shard in manifest["shards"]:
            if shard["split"] != split:
                continue
            with run.dir.open(f"shards/{shard['name']}") as tar:
                for row in read_index(run.dir, shard["name"].removesuffix(".tar")).to_pylist():
                    tar.seek(row["json_offset"])
                    note = json.loads(tar.read(row["json_bytes"]))
                    tar.seek(row["mp4_offset"])
                    path = media / f"{row['clip_id']}.mp4"
                    path.write_bytes(tar.read(row["mp4_bytes"]))
                    lines.write(json.dumps(nava_record(note, row, str(path.resolve())), ensure_ascii=False) + "\n")
                    num_records += 1
                    duration_s += row["duration_s"]
    key = "curated"
    (out / "data.list").write_text(f"0\t{key}\t{(out / 'data.jsonl').resolve()}\n")
    (out / "data.weight").write_text(f"{key}\t1.0\ttext_to_av\n")
    return {"records": num_records, "hours": duration_s / 3600}


def nava_record(note: dict[str, Any], row: dict[str, Any], path: str) -> dict[str, Any]:
    """One JSONL record of the official data contract (docs/shards.md lists its fields)."""
    spans = note["clip"]["spans"] or []
    text = (note.get("caption") or {}).get("text") or " ".join(f"<S>{span['text']}<E>" for span in spans)
    marks = len(SPEECH_MARK.findall(text))
    if marks != len(spans):
        raise LedgerError(f"{row['clip_id']}: its caption has {marks} <S>...<E> for {len(spans)} speech spans.")
    return {
        "data_id": row["clip_id"],
        "video_info": [
            {"data_path": path, "fps": row["fps"], "duration": row["duration_s"],
             "image_width": row["width_px"], "image_height": row["height_px"], "is_valid": True}
        ],
        "text_list": [
            {"text": text, "text_type": "caption", "is_valid": True,
             "speech_start": [span["start_s"] for span in spans], "speech_end": [span["end_s"] for span in spans]}
        ],
    }  # fmt: skip
