"""Forms that are one table: CSV, Parquet with the media inside, and a folder that Hugging Face's `datasets` loads.

`datasets` reads which columns are media from its own note in the schema of a Parquet file, and of a folder from the column
`file_name` of its metadata (huggingface.co/docs/hub/datasets-video).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.export.clips import MEDIA, ExportedClip
from schemas.files import write_whole
from schemas.shard import SOUND_RATE_HZ

FILE_BYTES = 400_000_000
"""Media in one Parquet file, about: the Hub shows files of up to some 500 MB."""
COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "caption": pa.string(),
    "duration_s": pa.float64(),
    "num_frames": pa.int32(),
    "fps": pa.float64(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "audio_present": pa.bool_(),
    "language": pa.string(),
    "num_speakers": pa.int32(),
    "source": pa.string(),
    "uri": pa.string(),
    "licence": pa.string(),
}
SPEECH = pa.list_(
    pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("speaker", pa.string()), ("text", pa.string())])
)
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""What `datasets` calls a Video or an Audio, in Arrow."""


def table_row(clip: ExportedClip) -> dict[str, Any]:
    """The `COLUMNS` of a clip."""
    own = {name: getattr(clip.row, name) for name in COLUMNS if hasattr(clip.row, name)}
    own["caption"], own["audio_present"] = clip.plain_text, clip.row.has_audio
    return own | {"uri": clip.uri, "licence": clip.licence}


def speech_of(clip: ExportedClip) -> list[dict[str, Any]]:
    """Who says what when, as `SPEECH`."""
    return [
        {"start_s": span.start_s, "end_s": span.end_s, "speaker": span.speaker, "text": span.text}
        for span in clip.spans
    ]


def write_csv(clips: Iterable[ExportedClip], out: Path) -> None:
    """clips.csv: a row per clip, `path` relative to it."""
    with open(out / "clips.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", *COLUMNS])
        writer.writeheader()
        for clip in clips:
            writer.writerow({"path": _inside(clip), **table_row(clip)})


def write_hf(clips: Iterable[ExportedClip], out: Path) -> None:
    """metadata.parquet beside media/*.mp4: `load_dataset("videofolder", data_dir=OUT)`."""
    import pyarrow.parquet as pq

    rows = [{"file_name": _inside(clip), **table_row(clip), "speech": speech_of(clip)} for clip in clips]
    schema = pa.schema([("file_name", pa.string()), *COLUMNS.items(), ("speech", SPEECH)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "metadata.parquet")


def write_parquet(clips: Iterable[ExportedClip], out: Path) -> None:
    """data/train-00000-of-0000N.parquet with pictures and sound as bytes: `load_dataset("parquet", data_dir=OUT)`.

    The media files are removed again as they go in.
    """
    import pyarrow.parquet as pq

    schema = pa.schema([("video", FILE), ("audio", FILE), *COLUMNS.items(), ("speech", SPEECH)])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("train-*.parquet"):
        old.unlink()
    parts: list[Path] = []
    for rows in _in_parts(clips):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, row_group_size=64)
        parts.append(folder / f"train-{len(parts):05d}.parquet")
        write_whole(parts[-1], sink.getvalue().to_pybytes())
    for number, path in enumerate(parts):
        path.rename(folder / f"train-{number:05d}-of-{len(parts):05d}.parquet")
    (out / MEDIA).rmdir()


def _in_parts(clips: Iterable[ExportedClip]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    for clip in clips:
        media = {name: _taken(path) for name, path in (("video", clip.picture), ("audio", clip.sound))}
        num_bytes += sum(len(each["bytes"]) for each in media.values() if each)
        rows.append({**media, **table_row(clip), "speech": speech_of(clip)})
        if num_bytes >= FILE_BYTES:
            yield rows
            rows, num_bytes = [], 0
    if rows:
        yield rows


def _taken(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    data = path.read_bytes()
    path.unlink()
    return {"bytes": data, "path": path.name}


def _inside(clip: ExportedClip) -> str:
    path = clip.picture or clip.sound
    return "" if path is None else f"{MEDIA}/{path.name}"


def _features() -> dict[str, Any]:
    """The columns as `datasets` writes them down."""

    def value(kind: pa.DataType) -> dict[str, str]:
        names = {pa.float64(): "float64", pa.int32(): "int32", pa.bool_(): "bool", pa.string(): "string"}
        return {"dtype": names[kind], "_type": "Value"}

    speech = {field.name: value(field.type) for field in SPEECH.value_type}
    return {
        "video": {"_type": "Video"},
        "audio": {"sampling_rate": SOUND_RATE_HZ, "_type": "Audio"},
        **{name: value(kind) for name, kind in COLUMNS.items()},
        "speech": [speech],
    }
