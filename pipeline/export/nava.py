"""The form that the official NAVA trainer reads: JSON lines, a list of them, and weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.export.clips import ExportedClip
from schemas.errors import LedgerError
from schemas.lines import caption_or_lines, lines_in
from schemas.shard import IndexRow
from schemas.spans import SpeechSpan

KEY = "curated"


def write_nava(clips: Iterable[ExportedClip], out: Path) -> None:
    """data.jsonl, data.list and data.weight beside media/*.mp4.

    One record per clip, with one speech_start/speech_end pair per `<S>...<E>` of its caption (design of the release:
    counts must match). Raises LedgerError where a caption does not match.
    """
    with open(out / "data.jsonl", "w", encoding="utf-8") as lines:
        for clip in clips:
            record = nava_record(clip.spans, clip.caption, clip.row, str(clip.picture or clip.sound))
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    (out / "data.list").write_text(f"0\t{KEY}\t{(out / 'data.jsonl').resolve()}\n")
    (out / "data.weight").write_text(f"{KEY}\t1.0\ttext_to_av\n")


def nava_record(spans: Sequence[SpeechSpan], caption: str | None, row: IndexRow, path: str) -> dict[str, Any]:
    """One JSONL record of the official data contract (docs/export.md lists its fields), as JSON."""
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
