"""Cuts of lhotse: the sound of each clip with who says what when, to the word. Its manifests are JSON lines, gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.export.clips import ExportedClip
from schemas.spans import SpeechSpan


def write_lhotse(clips: Iterable[ExportedClip], out: Path) -> None:
    """cuts.jsonl.gz: a cut per clip that has sound, over its .flac; `custom` has its text and where its picture lies."""
    with gzip.open(out / "cuts.jsonl.gz", "wt", encoding="utf-8") as file:
        for clip in clips:
            if clip.sound is not None:
                file.write(json.dumps(cut_of_clip(clip, clip.sound), ensure_ascii=False) + "\n")


def cut_of_clip(clip: ExportedClip, sound: Path) -> dict[str, Any]:
    """One cut as lhotse writes it."""
    import soundfile

    told = soundfile.info(str(sound))
    name, duration_s = clip.row.clip_id, told.frames / told.samplerate
    channels = list(range(told.channels))
    is_mono = told.channels == 1
    return {
        "id": name,
        "start": 0.0,
        "duration": duration_s,
        "channel": 0 if is_mono else channels,
        "supervisions": [
            _supervision(name, at, span, 0 if is_mono else channels, duration_s) for at, span in enumerate(clip.spans)
        ],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": channels, "source": str(sound)}],
            "sampling_rate": told.samplerate,
            "num_samples": told.frames,
            "duration": duration_s,
            "channel_ids": channels,
        },
        "custom": {
            "caption": clip.plain_text,
            "video": None if clip.picture is None else str(clip.picture),
            "source": clip.uri,
            "licence": clip.licence,
        },
        "type": "MonoCut" if is_mono else "MultiCut",
    }


def _supervision(name: str, at: int, span: SpeechSpan, channel: int | list[int], duration_s: float) -> dict[str, Any]:
    """A speech span; words are (symbol, start, duration, score), times on the clip's clock."""
    end_s = min(span.end_s, duration_s)
    words = [
        [word.text, round(word.start_s, 6), round(max(word.end_s - word.start_s, 0.0), 6), word.confidence]
        for word in span.words
    ]
    return {
        "id": f"{name}-{at}",
        "recording_id": name,
        "start": span.start_s,
        "duration": max(end_s - span.start_s, 0.0),
        "channel": channel,
        "text": span.text,
        "language": span.hearing.language,
        "speaker": span.speaker,
        "alignment": {"word": words} if words else None,
    }
