"""Curated shards of clips with known content: every frame's grey level is its number, the sound's pitch tells the second."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile

from schemas import budget
from schemas.arrow_file import table_bytes, with_facts
from schemas.shard import INDEX, MEMBERS, SOUND_RATE_HZ
from schemas.shard_file import ShardFacts, ShardWriter
from schemas.spans import SPEECH_RATE_HZ

BASE_LEVEL, LEVELS_PER_FRAME = 30, 1.5


@dataclass(frozen=True)
class KnownClip:
    """What a clip holds. `spans` are (text, start_s, end_s); `references` (span, asset_start_s, asset_end_s, is_same)."""

    clip_id: str
    duration_s: float = 2.0
    fps: int = 24
    width_px: int = 320
    height_px: int = 180
    has_video: bool = True
    has_audio: bool = True
    spans: tuple[tuple[str, float, float], ...] = ()
    references: tuple[tuple[int, float, float, bool], ...] = ()
    caption: str | None = None


def level_of(frame: int) -> float:
    """Grey level of a frame."""
    return BASE_LEVEL + LEVELS_PER_FRAME * frame


def pitch_hz(second: int) -> float:
    """Pitch of the sound in each second of a clip."""
    return 300.0 + 100.0 * second


def mp4_of(clip: KnownClip) -> bytes:
    """H.264, left half as said, right half 20 levels brighter."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clip.fps, options={"crf": "8", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = clip.width_px, clip.height_px, "yuv420p"
        stream.time_base = Fraction(1, clip.fps)
        for number in range(round(clip.duration_s * clip.fps)):
            picture = np.full((clip.height_px, clip.width_px, 3), level_of(number), np.uint8)
            picture[:, clip.width_px // 2 :] += 20
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def flac_of(clip: KnownClip) -> bytes:
    """Mono at 48 kHz."""
    time_s = np.arange(round(clip.duration_s * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    pitch = np.array([pitch_hz(int(second)) for second in range(int(clip.duration_s) + 1)])[time_s.astype(int)]
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * time_s), SOUND_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def annotation(clip: KnownClip) -> dict[str, Any]:
    """The .json member, as far as encoding reads it."""
    spans = []
    for text, start, end in clip.spans:
        words = text.split()
        step = (end - start) / len(words)
        timed = [
            {"text": word, "start_s": start + i * step, "end_s": start + (i + 1) * step} for i, word in enumerate(words)
        ]
        spans.append({"text": text, "start_s": start, "end_s": end, "speaker": "A", "language": "en", "words": timed})
    references = [
        {"span_index": i, "asset_start_s": start, "asset_end_s": end, "is_same_span": same}
        for i, start, end, same in clip.references
    ]
    lengths = [round((end - start) * SPEECH_RATE_HZ) for _, start, end, _ in clip.references]
    sounds = [
        {"span_index": reference[0], "first_sample": sum(lengths[:at]), "num_samples": lengths[at]}
        for at, reference in enumerate(clip.references)
    ]
    return {
        "clip_id": clip.clip_id,
        "clip": {"spans": spans},
        "caption": {"text": clip.caption} if clip.caption else None,
        "timbre": {"references": references},
        "cut": {"references": sounds},
    }


def refs_of(clip: KnownClip) -> bytes:
    """The sound of the references, end to end: one tone each, the pitch of the second it begins in."""
    pieces = [
        0.3
        * np.sin(2 * np.pi * pitch_hz(int(start)) * np.arange(round((end - start) * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ)
        for _, start, end, _ in clip.references
    ]
    file = io.BytesIO()
    sound = np.concatenate([np.zeros(0), *pieces])
    soundfile.write(file, sound, SPEECH_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_run(folder: Path, shards: list[list[KnownClip]]) -> None:
    """`shards/` and `index/` of a curated run."""
    (folder / "shards").mkdir(parents=True)
    (folder / "index").mkdir()
    for number, clips in enumerate(shards):
        path = folder / "shards" / f"{number:05d}.tar"
        with path.open("wb") as file, ShardWriter(file, path.name, MEMBERS) as shard:
            rows = [
                _facts(clip) | {"shard": path.name} | shard.add(clip.clip_id, _members(clip)).columns()
                for clip in clips
            ]
        facts = ShardFacts(shard.sha256, shard.num_bytes, "train", "unit", "", 0)
        table = pa.Table.from_pylist(rows, schema=with_facts(INDEX, facts.to_metadata()))
        (folder / "index" / f"{number:05d}.arrow").write_bytes(table_bytes(table))


def _members(clip: KnownClip) -> dict[str, bytes]:
    vectors = io.BytesIO()
    np.save(vectors, np.stack([np.full(192, i + 1, np.float32) for i in range(len(clip.spans))] or [np.zeros(0)]))
    return {
        "mp4": mp4_of(clip) if clip.has_video else b"",
        "flac": flac_of(clip) if clip.has_audio else b"",
        "refs.flac": refs_of(clip),
        "json": json.dumps(annotation(clip)).encode(),
        "npy": vectors.getvalue(),
    }


def _facts(clip: KnownClip) -> dict[str, Any]:
    size = {"height_px": clip.height_px, "width_px": clip.width_px} if clip.has_video else {}
    cost = budget.clip_budget(duration_s=clip.duration_s, has_audio=clip.has_audio, **size)
    return {
        "clip_id": clip.clip_id,
        "duration_s": clip.duration_s,
        "num_frames": round(clip.duration_s * clip.fps),
        "fps": float(clip.fps),
        "width_px": clip.width_px,
        "height_px": clip.height_px,
        "has_video": clip.has_video,
        "has_audio": clip.has_audio,
        "has_speech": bool(clip.spans),
        "num_speakers": 1 if clip.spans else 0,
        "source": "known",
        "split": "train",
        "video_tokens": cost.video_tokens,
        "audio_tokens": cost.audio_tokens,
        "text_tokens": 20,
        "train_flops": cost.train_flops,
    }
