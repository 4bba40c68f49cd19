"""Shards -> latent shards: one shard is one unit of work, published whole, skipped when it is there already.

    OUT/shards/00000.tar      {key}.safetensors per sample (model/encoding/latents.py), same order as the curated shard
    OUT/index/00000.arrow     one row per sample (`LATENT_INDEX`): the curated columns with tokens and FLOPs counted anew
    OUT/index/manifest.json   totals, and every clip that was left out with its reason

A clip that cannot be encoded is left out and named; it never becomes zeros.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from model.data.index import ShardIndex
from model.data.reader import DamagedSampleError, SampleReader, open_shards
from model.encoding.config import EncodeConfig
from model.encoding.encode import ClipEncoder, EncodedWindow
from model.encoding.latents import num_tokens, write_latents
from model.network.config import NavaConfig
from schemas.budget import FRAME_RATE_HZ, ModelShape, training_flops
from schemas.errors import ItemError, ModelError
from schemas.fields import f
from schemas.shard import CONTRACT_VERSION, INDEX, LATENT_MEMBER, MEMBERS

SAY_EVERY_S = 5.0
_CURATED_MEMBERS = {f"{member}_{end}" for member in MEMBERS for end in ("offset", "bytes")}
LATENT_INDEX: pa.Schema = pa.schema(
    [
        *(field for field in INDEX if field.name not in _CURATED_MEMBERS),
        f(
            f"{LATENT_MEMBER}_offset",
            pa.int64(),
            unit="bytes",
            doc=f"payload of the .{LATENT_MEMBER} member in the tar",
        ),
        f(f"{LATENT_MEMBER}_bytes", pa.int64(), unit="bytes", doc=f"size of the .{LATENT_MEMBER} member"),
        f(
            "source_clip_id",
            pa.string(),
            doc="clip the window was taken of: the key in the curated shards and the ledger",
        ),
        f("window_start_s", pa.float64(), unit="s", doc="start of the window on the clip clock"),
        f("num_voices", pa.int32(), unit="count", doc="spoken lines with a voice reference"),
    ],
    metadata={"contract_version": str(CONTRACT_VERSION)},
)


class ShardEncoder:
    """Encodes one shard after another; the frozen networks are opened with the first that needs work."""

    say: Callable[[str], None] | None = None
    """Told every few seconds how far a shard is."""

    def __init__(self, shards: str, index: str, out: Path, config: EncodeConfig, network: NavaConfig) -> None:
        self._index = ShardIndex.open(index)
        self._reader = SampleReader(self._index, open_shards(shards))
        self._out, self._config, self._network = out, config, network
        self._encoder: ClipEncoder | None = None

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """{shard, num_clips, num_samples, left_out (JSON), seconds, is_reused} of the shard named in the task."""
        began, shard = time.perf_counter(), str(task["shard"])
        rows = self._rows_of(shard)
        identity = self._identity(rows)
        path = self._out / "index" / f"{Path(shard).stem}.arrow"
        facts = read_facts(path)
        is_reused = facts.get("identity") == identity and (self._out / "shards" / shard).is_file()
        if not is_reused:
            facts = self._encode(shard, rows, path, identity)
        return {
            "shard": shard,
            "num_clips": len(rows),
            "num_samples": int(facts["num_samples"]),
            "left_out": facts["left_out"],
            "is_reused": is_reused,
            "seconds": time.perf_counter() - began,
        }

    def _rows_of(self, shard: str) -> list[int]:
        names, codes = self._index.shards
        return [int(row) for row in np.flatnonzero(codes == names.index(shard))]

    def _identity(self, rows: list[int]) -> str:
        """What a latent shard depends on: the bytes of its clips, the settings and the network."""
        places = [self._index.location(row) for row in rows]
        settings = f"{self._config.model_dump_json(exclude={'device'})} {self._network.model_dump_json()}"
        content = " ".join(f"{place.clip_id}:{place.crc32}" for place in places)
        return hashlib.sha256(f"{CONTRACT_VERSION} {settings} {content}".encode()).hexdigest()

    def _encode(self, shard: str, rows: list[int], index_path: Path, identity: str) -> dict[str, str]:
        self._encoder = self._encoder or ClipEncoder(self._config, self._network)
        shape = ModelShape.from_config(self._network)
        entries: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        path = self._out / "shards" / shard
        said = time.perf_counter()
        with _whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for num_done, row in enumerate(rows):
                if self.say is not None and time.perf_counter() - said > SAY_EVERY_S:
                    self.say(f"{shard}: {num_done} of {len(rows)} clips")
                    said = time.perf_counter()
                values = self._index.values(row)
                try:
                    for encoded in self._encoder.encode(self._reader.read(row), values):
                        placed = _append(tar, encoded.sample.clip_id, write_latents(encoded.sample))
                        entries.append({**_entry(values, encoded, self._network, shape), **placed})
                except (ItemError, ModelError, DamagedSampleError) as error:
                    left_out[values["clip_id"]] = f"{getattr(error, 'reason', 'unusable')}: {error}"
        facts = {"identity": identity, "num_samples": str(len(entries)), "left_out": json.dumps(left_out)}
        table = pa.Table.from_pylist(entries, schema=LATENT_INDEX.with_metadata({**LATENT_INDEX.metadata, **facts}))
        with _whole(index_path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return facts


def encode_shards(
    run: str,
    out: Path,
    config: EncodeConfig,
    network: NavaConfig,
    *,
    num_actors: int = 0,
    num_gpus_per_actor: float = 0.0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The manifest of all latent shards under `out`, made from the curated shards under `run` (folder or fsspec URL).

    `num_actors` > 0 spreads shards over that many Ray actors; 0 works in this process. Shards that are there already
    and depend on the same bytes and settings are not made again. Raises ShardError without an index.
    """
    shards, index_path = f"{run.rstrip('/')}/shards", f"{run.rstrip('/')}/index"
    index = ShardIndex.open(index_path)
    names = index.shards[0]
    for folder in ("shards", "index"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    arguments = (shards, index_path, out, config, network)
    tasks = [{"shard": name} for name in names]
    results: Iterator[dict[str, Any]]
    if num_actors:
        results = _on_ray(tasks, arguments, num_actors, num_gpus_per_actor)
    else:
        encoder = ShardEncoder(*arguments)
        encoder.say = say
        results = map(encoder, tasks)
    done: list[dict[str, Any]] = []
    began = time.perf_counter()
    for result in results:
        done.append(result)
        left_s = (time.perf_counter() - began) / len(done) * (len(names) - len(done))
        how = "there already" if result["is_reused"] else f"{result['seconds']:.1f} s"
        say(
            f"{len(done)}/{len(names)}  {result['shard']}: {result['num_clips']} clips -> {result['num_samples']} samples, "
            f"{len(json.loads(result['left_out']))} left out ({how}), {left_s:.0f} s left"
        )
    manifest = _write_manifest(out, sorted(done, key=lambda result: str(result["shard"])), config, network)
    if not manifest["num_samples"]:
        clip_id, reason = next(iter(manifest["left_out"].items()), ("", "there are no clips"))
        raise ModelError(f"none of {manifest['num_clips']} clips could be encoded; {clip_id}: {reason}")
    return manifest


def _on_ray(
    tasks: list[dict[str, Any]], arguments: tuple[Any, ...], num_actors: int, num_gpus: float
) -> Iterator[dict[str, Any]]:
    """Results as actors finish them."""
    import ray.data

    shards, index, out, *rest = arguments
    local = [path if "://" in path else str(Path(path).resolve()) for path in (shards, index)]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        ShardEncoder,
        fn_constructor_args=(*local, out.resolve(), *rest),
        concurrency=min(num_actors, len(tasks)),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    yield from dataset.iter_rows()


def _write_manifest(out: Path, done: list[dict[str, Any]], config: EncodeConfig, network: NavaConfig) -> dict[str, Any]:
    left_out = {clip_id: reason for result in done for clip_id, reason in json.loads(result["left_out"]).items()}
    manifest = {
        "contract_version": CONTRACT_VERSION,
        "num_clips": sum(result["num_clips"] for result in done),
        "num_samples": sum(result["num_samples"] for result in done),
        "num_left_out_by_reason": Counter(reason.partition(":")[0] for reason in left_out.values()),
        "left_out": left_out,
        "shards": [{"name": r["shard"], "num_samples": r["num_samples"]} for r in done],
        "encode": config.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
    }
    with _whole(out / "index" / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())
    names = {Path(result["shard"]).stem for result in done}
    for stale in [*(out / "index").glob("*.arrow"), *(out / "shards").glob("*.tar")]:
        if stale.stem not in names:
            stale.unlink()
    return manifest


def read_facts(path: Path) -> dict[str, str]:
    """Metadata of a latent shard's index: identity, num_samples, left_out; empty when it is not there."""
    if not path.is_file():
        return {}
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _entry(values: dict[str, Any], encoded: EncodedWindow, network: NavaConfig, shape: ModelShape) -> dict[str, Any]:
    sample, window = encoded.sample, encoded.window
    _, height, width = network.patch_size
    video, audio, text = num_tokens(sample, (height, width))
    return {
        **{name: value for name, value in values.items() if name in LATENT_INDEX.names},
        "clip_id": sample.clip_id,
        "source_clip_id": encoded.clip_id,
        "window_start_s": window.start_s,
        "duration_s": window.end_s - window.start_s,
        "num_frames": window.num_frames if video else 0,
        "fps": float(FRAME_RATE_HZ) if video else 0.0,
        "height_px": encoded.height_px,
        "width_px": encoded.width_px,
        "has_video": sample.video is not None,
        "has_audio": sample.audio is not None,
        "has_speech": bool(sample.placeholders),
        "num_voices": sum(voice is not None for voice in sample.speakers or ()),
        "video_tokens": video,
        "audio_tokens": audio,
        "text_tokens": text,
        "train_flops": float(training_flops(shape, video, audio, text)),
    }


def _append(tar: tarfile.TarFile, key: str, data: bytes) -> dict[str, Any]:
    """Appends one sample; returns its place and the CRC-32 of its bytes with header and padding."""
    info = tarfile.TarInfo(f"{key}.{LATENT_MEMBER}")
    info.size, info.mode = len(data), 0o644
    header, padding, start = info.tobuf(tarfile.USTAR_FORMAT), bytes(-len(data) % tarfile.BLOCKSIZE), tar.offset
    tar.addfile(info, io.BytesIO(data))
    return {
        "sample_offset": start,
        "sample_bytes": tar.offset - start,
        f"{LATENT_MEMBER}_offset": start + len(header),
        f"{LATENT_MEMBER}_bytes": len(data),
        "crc32": zlib.crc32(padding, zlib.crc32(data, zlib.crc32(header))),
    }


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when everything has been written."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
