"""The shard contract: what a curated shard holds, so that any WebDataset reader and our own trainer agree.

    shards/NAME.tar       samples laid end to end, members of one sample adjacent and in this order
        {clip_id}.mp4       picture and sound of exactly the clip; empty where the source has no picture
        {clip_id}.flac      the same sound, 48 kHz, lossless
        {clip_id}.refs.flac the sound of every timbre reference, end to end, 16 kHz mono; `cut.references` says which is where
        {clip_id}.json      what was measured on the clip (see docs/shards.md)
        {clip_id}.npy       float32 [num_spans, dim]: timbre reference embeddings, zero rows where there is none
    index/NAME.arrow      one row per sample (`INDEX`), Arrow IPC
    index/manifest.json   every shard with sha256, sizes and the contract version

A name is `{split}-{bucket}-{unit}`: what is in the shard is told by its name, and another plan's shard never has it.

`schemas.shard_file` writes and reads these files.

Offsets point at the member's payload inside the uncompressed tar, so one `pread` fetches it without a tar library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import pyarrow as pa

from schemas.fields import f

CONTRACT_VERSION = 2
PAYLOAD = ("mp4", "flac", "refs.flac")
"""The members that are cut out of the source; the others are written down when a shard is packed."""
MEMBERS = (*PAYLOAD, "json", "npy")
"""Member extensions in the order they are written."""
LATENT_MEMBER = "safetensors"
"""The only member of a latent shard, written by `nava-train encode` under the same keys and index."""
SOUND_RATE_HZ = 48_000
"""Rate of the flac member and of the mp4's sound: covers every source rate, and NAVA's codecs resample from it."""


def _offsets(member: str) -> list[pa.Field]:
    return [
        f(f"{member}_offset", pa.int64(), unit="bytes", doc=f"payload of the .{member} member in the tar"),
        f(f"{member}_bytes", pa.int64(), unit="bytes", doc=f"size of the .{member} member"),
    ]


CUT_MEASURES = (
    f("mode", pa.string(), doc="copy or encode: how the picture was cut; sound where there is none"),
    f("start_error_us", pa.int64(), unit="us", doc="measured: first frame's time against the plan"),
    f("sound_error_samples", pa.int64(), unit="count", doc="measured: first sound sample against the plan"),
    f("duration_error_us", pa.int64(), unit="us", doc="measured: length against the plan"),
    f("applied_shift_ms", pa.float64(), unit="ms", doc="sync repair: how far the sound was moved; 0 if untouched"),
    f("applied_drift_ms_per_s", pa.float64(), unit="ms/s", doc="sync repair: drift taken out; 0 if none"),
    f("repaired_offset_ms", pa.float64(), unit="ms", doc="offset of the repaired clip, measured anew; else null"),
    f("repaired_offset_std_ms", pa.float64(), unit="ms", doc="standard deviation of repaired_offset_ms"),
    f("repaired_drift_ms_per_s", pa.float64(), unit="ms/s", doc="drift measured anew; null under 8 s"),
    f("repaired_confidence", pa.float64(), doc="confidence of the new measurement"),
)
"""What was measured on the written clip: fields of the ledger's struct (`schemas.cut_file.CUT`), columns of the index."""


def written_name(attribute: str) -> str:
    """How an attribute of a record is called where it is written: in a struct, an index or a manifest."""
    return "bytes" if attribute == "num_bytes" else attribute


def cut_column(measure: str) -> str:
    """The index column of one of `CUT_MEASURES`."""
    return measure if measure.startswith(("applied_", "repaired_")) else f"cut_{measure}"


INDEX: pa.Schema = pa.schema(
    [
        f("clip_id", pa.string(), doc="sample key"),
        f("shard", pa.string(), doc="shard file name"),
        f("duration_s", pa.float64(), unit="s", doc="length of the clip"),
        f("num_frames", pa.int32(), unit="count", doc="frames in the clip"),
        f("fps", pa.float64(), unit="1/s", doc="mean frame rate of the clip"),
        f("width_px", pa.int32(), unit="px", doc="display width"),
        f("height_px", pa.int32(), unit="px", doc="display height"),
        f("has_video", pa.bool_(), doc="the sample has a picture"),
        f("has_audio", pa.bool_(), doc="the sample has sound"),
        f("has_speech", pa.bool_(), doc="at least one speech span"),
        f("num_speakers", pa.int32(), unit="count", doc="distinct speakers"),
        f("source", pa.string(), doc="source id, for mixing by source"),
        f("language", pa.string(), doc="language of the first span; null without speech"),
        f("split", pa.string(), doc="train or validation; recordings that share a voice lie on one side"),
        f("video_tokens", pa.int32(), unit="tokens", doc="NAVA video tokens of the whole clip"),
        f("audio_tokens", pa.int32(), unit="tokens", doc="NAVA audio tokens of the whole clip"),
        f("text_tokens", pa.int32(), unit="tokens", doc="estimated caption tokens, at most 512"),
        f("train_flops", pa.float64(), unit="flop", doc="training cost of the clip under the 6.3B preset"),
        *_offsets("mp4"),
        *_offsets("flac"),
        *_offsets("refs.flac"),
        *_offsets("json"),
        *_offsets("npy"),
        f("sample_offset", pa.int64(), unit="bytes", doc="first tar header of the sample"),
        f("sample_bytes", pa.int64(), unit="bytes", doc="all members with headers and padding"),
        f("crc32", pa.int64(), doc="CRC-32 of those sample_bytes"),
        f(
            "cut_hash",
            pa.string(),
            doc="what cut the clip: stage, version and settings, and those of the stages it read",
        ),
        f("cut_sha256", pa.string(), doc="SHA-256 over the payloads of mp4, flac and refs.flac, in this order"),
        *(field.with_name(cut_column(field.name)) for field in CUT_MEASURES),
    ],
    metadata={"contract_version": str(CONTRACT_VERSION)},
)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What the index says of a sample itself; its fields are columns of `INDEX` and mean what they say there.

    Where the bytes are is a `schemas.shard_file.SampleLocation`, how the clip was cut is in the columns of `CUT_MEASURES`.
    """

    clip_id: str
    shard: str
    duration_s: float
    num_frames: int
    fps: float
    width_px: int
    height_px: int
    has_video: bool
    has_audio: bool
    has_speech: bool
    num_speakers: int
    source: str
    language: str | None
    split: str
    video_tokens: int
    audio_tokens: int
    text_tokens: int
    train_flops: float


def index_rows(index: pa.Table) -> Iterator[IndexRow]:
    """The rows of a curated shard's index."""
    for row in index.select([field.name for field in fields(IndexRow)]).to_pylist():
        yield IndexRow(**row)
