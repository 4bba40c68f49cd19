"""Forms of other trainers: LTX-2, musubi-tuner and diffusion-pipe. Each is a caption per file; they differ in where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.export.clips import MEDIA, ExportedClip


def write_ltx(clips: Iterable[ExportedClip], out: Path) -> None:
    """dataset.json of LTX-2's trainer: an array of `caption` and `media_path`, relative to the file.

    `audio_present` says of each whether there is sound to learn; its `process_dataset.py` reads the two columns it is told.
    """
    rows = [
        {
            "caption": clip.plain_text,
            "media_path": f"{MEDIA}/{clip.picture.name}",
            "audio_present": clip.row.has_audio,
            "clip_id": clip.row.clip_id,
        }
        for clip in clips
        if clip.picture is not None
    ]
    (out / "dataset.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def write_musubi(clips: Iterable[ExportedClip], out: Path) -> None:
    """metadata.jsonl of musubi-tuner, for `video_jsonl_file`: `video_path`, absolute, and `caption`; `audio_path` where there
    is sound, for its networks that learn it."""
    with open(out / "metadata.jsonl", "w", encoding="utf-8") as file:
        for clip in clips:
            if clip.picture is None:
                continue
            row = {"video_path": str(clip.picture), "caption": clip.plain_text}
            if clip.sound is not None:
                row["audio_path"] = str(clip.sound)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_diffusion_pipe(clips: Iterable[ExportedClip], out: Path) -> None:
    """media/NAME.txt beside every media/NAME.mp4, and a dataset.toml that names the folder."""
    for clip in clips:
        if clip.picture is not None:
            clip.picture.with_suffix(".txt").write_text(clip.plain_text, encoding="utf-8")
    path = json.dumps(str((out / MEDIA).resolve()), ensure_ascii=False)
    buckets = "resolutions = [512]\nenable_ar_bucket = true\nframe_buckets = [1, 33]"
    (out / "dataset.toml").write_text(f"{buckets}\n\n[[directory]]\npath = {path}\nnum_repeats = 1\n", encoding="utf-8")
