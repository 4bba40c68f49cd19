"""Opens samples of a shard the way readers without our index do, and decodes them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from pipeline.store import RunDir
from schemas.errors import DamagedSampleError
from schemas.records import Level
from schemas.shard import MEMBERS, SOUND_RATE_HZ, IndexRow
from schemas.shard_file import SampleLocation, ShardReader
from schemas.spans import SPEECH_RATE_HZ


def opening_problems(run: RunDir, name: str, place: SampleLocation, reader: ShardReader) -> Iterator[str]:
    """Whether webdataset finds the first sample of a shard, and the same one as our index."""
    try:
        with run.open(name) as file:
            sample = _first_by_webdataset(file, name)
    except (tarfile.TarError, ValueError) as error:
        yield f"{place.shard}: webdataset cannot read the first sample: {error.args[0] if error.args else error}"
        return
    members = {key: value for key, value in sample.items() if not key.startswith("__")}
    if set(members) != set(MEMBERS):
        yield f"{place.shard}: first sample has members {sorted(members)}, expected {sorted(MEMBERS)}"
        return
    try:
        if reader.sample(place) != members:
            yield f"{place.shard}: the index gives other bytes of {place.clip_id} than webdataset"
    except DamagedSampleError:
        return  # whoever scans the shard says so


def sample_problems(row: IndexRow, members: Mapping[str, memoryview]) -> Iterator[str]:
    """What does not decode of a sample, or not to what the index and its own annotation say."""
    import av
    import soundfile

    where = f"{row.shard}: {row.clip_id}"
    try:
        note = json.loads(bytes(members["json"]))
        vectors = np.load(io.BytesIO(members["npy"]), allow_pickle=False)
        frames = 0
        if row.has_video or members["mp4"]:
            with av.open(io.BytesIO(members["mp4"])) as container:
                frames = sum(1 for _ in container.decode(video=0)) if container.streams.video else 0
        heard = {name: soundfile.read(io.BytesIO(members[name])) for name in ("flac", "refs.flac") if members[name]}
    except (ValueError, EOFError, av.FFmpegError, soundfile.LibsndfileError) as error:
        yield f"{where} cannot be decoded: {error}"
        return
    if frames != row.num_frames:
        yield f"{where}.mp4 decodes to {frames} frames, the index says {row.num_frames}"
    num_spans = len((note.get(Level.CLIP) or {}).get("spans") or ())
    if vectors.shape[:1] != (num_spans,):
        yield f"{where}.npy has {vectors.shape} numbers for {num_spans} spans"
    samples, rate_hz = heard.get("flac", (np.zeros(0), SOUND_RATE_HZ))
    if row.has_audio and abs(len(samples) - row.duration_s * rate_hz) > 1:
        yield f"{where}.flac has {len(samples)} samples at {rate_hz} Hz for {row.duration_s:.6f} s"
    references, rate_hz = heard.get("refs.flac", (np.zeros(0), SPEECH_RATE_HZ))
    if rate_hz != SPEECH_RATE_HZ or references.ndim != 1:
        yield f"{where}.refs.flac is not mono at {SPEECH_RATE_HZ} Hz"


def _first_by_webdataset(file: BinaryIO, name: str) -> Mapping[str, bytes]:
    """The first sample that webdataset finds in an open tar, local or not; empty if there is none."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    samples: Iterator[Mapping[str, bytes]] = group_by_keys(tar_file_expander([{"url": name, "stream": file}]))
    return next(samples, {})
