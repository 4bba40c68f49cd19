"""What is known about a made file, in the form of the media manifest: one dictionary per file, times on the container clock."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.demo.sound import IN_SYNC, Line, Shift

LICENCE = "CC0-1.0"
ORIGIN = {
    "repo": "generated",
    "path": "pipeline.demo",
    "licence": LICENCE,
    "rights": "clear: content is open by its own licence, public domain, or the repository owner's own media",
    "note": "portrait: NASA photograph of Eileen Collins, public domain; textures: CC0; speech: eSpeak NG",
}
CONVENTIONS = (
    "frame numbers 0-based in decode/display order; times in seconds from container time zero; "
    "cut number = first frame of the new shot; sync lag positive = sound late"
)


class Made(NamedTuple):
    """A file and what is true of it (an entry of the manifest's `items`)."""

    path: Path
    item: dict[str, Any]


def describe(path: Path, category: str, seen_and_heard: str, ground_truth: dict[str, Any], derived: str = "") -> Made:
    """The file with its manifest entry: hash and container facts are read from the file, the truth is as given."""
    content = path.read_bytes()
    return Made(
        path,
        {
            "path": path.name,
            "category": category,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "origin": [dict(ORIGIN)],
            "derived": derived or "generated",
            "seen_and_heard": seen_and_heard,
            "probe": probe(path),
            "ground_truth": ground_truth,
            "verification": "true by construction",
        },
    )


def spoken_truth(lines: Sequence[Line], shift: Shift = IN_SYNC) -> dict[str, Any]:
    """`speaker_turns`, `words`, `transcript` and `sync` of lines heard through `shift`."""
    ordered = sorted(lines, key=lambda line: line.start_s)
    turns: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    for line in ordered:
        turns.append(
            {
                "speaker": line.who,
                "start": _ms(shift.heard_s(line.start_s)),
                "end": _ms(shift.heard_s(line.end_s)),
                "text": line.speech.text,
                "on_screen": line.on_screen,
            }
        )
        for word in line.speech.words:
            start_s, end_s = (_ms(shift.heard_s(line.start_s + at_s)) for at_s in (word.start_s, word.end_s))
            words.append({"word": word.text, "speaker": line.who, "start": start_s, "end": end_s})
    is_exact = shift == IN_SYNC
    return {
        "language": "en",
        "transcript": " ".join(line.speech.text for line in ordered),
        "speaker_turns": turns,
        "words": words,
        "speech_interval_s": [turns[0]["start"], max(turn["end"] for turn in turns)],
        "sync": "exact by construction" if is_exact else "shifted by construction",
        "audio_lag_ms": shift.offset_ms,
        "audio_drift_ms_per_s": shift.drift_ms_per_s,
    }


def _ms(time_s: float) -> float:
    return round(time_s, 6)


def probe(path: Path) -> dict[str, Any]:
    """Container facts as PyAV reads them, in the manifest's form; `readable_by_ffprobe` is false when it cannot open."""
    import av

    try:
        with av.open(str(path)) as container:
            streams = [_stream(stream) for stream in container.streams]
            return {
                "readable_by_ffprobe": True,
                "container": container.format.name,
                "duration_s": round((container.duration or 0) / 1e6, 6),
                "start_s": round((container.start_time or 0) / 1e6, 6),
                "streams": streams,
            }
    except av.error.FFmpegError as error:
        return {"readable_by_ffprobe": False, "error": str(error.strerror)}


def _stream(stream: Any) -> dict[str, Any]:
    start_s = None if stream.start_time is None else round(float(stream.start_time * stream.time_base), 6)
    facts = {"index": stream.index, "type": stream.type, "codec": stream.codec_context.name, "start_s": start_s}
    if stream.type == "video":
        context = stream.codec_context
        facts |= {"width": context.width, "height": context.height, "pix_fmt": context.pix_fmt}
        facts |= {"avg_frame_rate": str(stream.average_rate), "fps": round(float(stream.average_rate or 0), 3)}
    elif stream.type == "audio":
        facts |= {"sample_rate": stream.codec_context.sample_rate, "channels": stream.codec_context.channels}
    return facts
