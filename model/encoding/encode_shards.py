"""Shards -> latent shards: one shard is one unit of work, published whole, skipped when it is there already.

    OUT/shards/00000.tar      {key}.safetensors per sample (model/encoding/latents.py), same order as the curated shard
    OUT/index/00000.arrow     one row per sample (`LATENT_INDEX`): the curated columns with tokens and FLOPs counted anew
    OUT/index/manifest.json   totals, and every clip that was left out with its reason

A clip that cannot be encoded is left out and named; it never becomes zeros.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.data.index import open_curated
from model.data.reader import SampleReader, open_shards
from model.encoding.config import EncodeConfig
from model.encoding.encode import ClipEncoder, EncodedWindow
from model.encoding.latents import num_tokens, write_latents
from model.network.config import NavaConfig
from schemas.arrow_file import read_facts, with_facts, write_table
from schemas.budget import FRAME_RATE_HZ, ModelShape, training_flops
from schemas.errors import DamagedSampleError, ItemError, ModelError
from schemas.fields import f
from schemas.files import open_whole, write_whole
from schemas.shard import CONTRACT_VERSION, INDEX, LATENT_MEMBER, MEMBERS
from schemas.shard_file import ShardWriter

SAY_EVERY_S = 5.0
"""Own choice: often enough to see that it lives, seldom enough to leave the lines of finished shards in sight."""
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


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """One shard as far as it has become latents. `left_out`: clip id -> why it is not there."""

    shard: str
    num_clips: int
    num_samples: int
    left_out: dict[str, str]
    is_reused: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class LatentManifest:
    """index/manifest.json of latent shards: totals, what was left out and why, and the settings that made them."""

    contract_version: int
    num_clips: int
    num_samples: int
    num_left_out_by_reason: dict[str, int]
    left_out: dict[str, str]
    shards: list[dict[str, str | int]]
    encode: dict[str, Any]
    network: dict[str, Any]

    @classmethod
    def over(cls, done: Sequence[EncodedShard], config: EncodeConfig, network: NavaConfig) -> LatentManifest:
        """That of these shards, in their order."""
        left_out = {clip_id: reason for result in done for clip_id, reason in result.left_out.items()}
        return cls(
            contract_version=CONTRACT_VERSION,
            num_clips=sum(result.num_clips for result in done),
            num_samples=sum(result.num_samples for result in done),
            num_left_out_by_reason=dict(Counter(reason.partition(":")[0] for reason in left_out.values())),
            left_out=left_out,
            shards=[{"name": result.shard, "num_samples": result.num_samples} for result in done],
            encode=config.model_dump(mode="json"),
            network=network.model_dump(mode="json"),
        )

    def to_json(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self), indent=1).encode()


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `ShardEncoder` is made of; `shards` and `index` are folders or fsspec URLs of the curated run."""

    shards: str
    index: str
    out: Path
    config: EncodeConfig
    network: NavaConfig


class ShardEncoder:
    """Encodes one shard after another; the frozen networks are opened with the first that needs work."""

    say: Callable[[str], None] | None = None
    """Told every few seconds how far a shard is."""

    def __init__(self, settings: Settings) -> None:
        self._index = open_curated(settings.index)
        self._reader = SampleReader(self._index, open_shards(settings.shards))
        self._out, self._config, self._network = settings.out, settings.config, settings.network
        self._encoder: ClipEncoder | None = None

    def __call__(self, shard: str) -> EncodedShard:
        """Makes the latent shard of this name, unless it is there and depends on the same bytes and settings."""
        began = time.perf_counter()
        rows = self._rows_of(shard)
        identity = self._identity(rows)
        path = self._out / "index" / f"{Path(shard).stem}.arrow"
        facts = read_facts(path) if path.is_file() else {}
        is_reused = facts.get("identity") == identity and (self._out / "shards" / shard).is_file()
        if not is_reused:
            facts = self._encode(shard, rows, path, identity)
        left_out = json.loads(facts["left_out"])
        return EncodedShard(
            shard, len(rows), int(facts["num_samples"]), left_out, is_reused, time.perf_counter() - began
        )

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
        self._encoder = self._encoder or ClipEncoder(
            self._config,
            self._network,
            has_video=bool(self._index.has_video.any()),
            has_audio=bool(self._index.has_audio.any()),
        )
        shape = ModelShape.from_config(self._network)
        entries: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        began = said = time.perf_counter()
        with open_whole(self._out / "shards" / shard) as file, ShardWriter(file, shard, (LATENT_MEMBER,)) as out:
            for num_done, row in enumerate(rows):
                if self.say is not None and time.perf_counter() - said > SAY_EVERY_S:
                    said = time.perf_counter()
                    left_s = (said - began) / max(1, num_done) * (len(rows) - num_done)
                    self.say(f"{shard}: {num_done} of {len(rows)} clips, {left_s:.0f} s left of this shard")
                values = self._index.values(row)
                try:
                    for encoded in self._encoder.encode(self._reader.read(row), values):
                        place = out.add(encoded.sample.clip_id, {LATENT_MEMBER: write_latents(encoded.sample)})
                        entries.append(_entry(values, encoded, self._network, shape) | place.columns())
                except (ItemError, ModelError, DamagedSampleError) as error:
                    left_out[values["clip_id"]] = f"{getattr(error, 'reason', 'unusable')}: {error}"
        facts = {"identity": identity, "num_samples": str(len(entries)), "left_out": json.dumps(left_out)}
        with open_whole(index_path) as file:
            write_table(file, pa.Table.from_pylist(entries, schema=with_facts(LATENT_INDEX, facts)))
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
) -> LatentManifest:
    """The manifest of all latent shards under `out`, made from the curated shards under `run` (folder or fsspec URL).

    `num_actors` > 0 spreads shards over that many Ray actors; 0 works in this process. Shards that are there already
    and depend on the same bytes and settings are not made again. Raises ShardError without an index of this contract.
    """
    settings = Settings(f"{run.rstrip('/')}/shards", f"{run.rstrip('/')}/index", out, config, network)
    names = open_curated(settings.index).shards[0]
    results: Iterator[EncodedShard]
    if num_actors:
        results = _on_ray(names, settings, num_actors, num_gpus_per_actor)
    else:
        encoder = ShardEncoder(settings)
        encoder.say = say
        results = map(encoder, names)
    done: list[EncodedShard] = []
    began = time.perf_counter()
    for result in results:
        done.append(result)
        left_s = (time.perf_counter() - began) / len(done) * (len(names) - len(done))
        how = "there already" if result.is_reused else f"{result.seconds:.1f} s"
        say(
            f"{len(done)}/{len(names)}  {result.shard}: {result.num_clips} clips -> {result.num_samples} samples, "
            f"{len(result.left_out)} left out ({how}), {left_s:.0f} s left"
        )
    manifest = LatentManifest.over(sorted(done, key=lambda result: result.shard), config, network)
    write_whole(out / "index" / "manifest.json", manifest.to_json())
    _remove_others(out, {Path(name).stem for name in names})
    if not manifest.num_samples:
        clip_id, reason = next(iter(manifest.left_out.items()), ("", "there are no clips"))
        raise ModelError(f"none of {manifest.num_clips} clips could be encoded; {clip_id}: {reason}")
    return manifest


class RayShardEncoder:
    """A `ShardEncoder` in a Ray actor, between rows {shard} and {result: JSON of an `EncodedShard`}."""

    def __init__(self, settings: Settings) -> None:
        self._encoder = ShardEncoder(settings)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """The result of the shard that the row names."""
        return {"result": json.dumps(asdict(self._encoder(row["shard"])))}


def _on_ray(names: Sequence[str], settings: Settings, num_actors: int, num_gpus: float) -> Iterator[EncodedShard]:
    """Results as actors finish them."""
    import ray.data

    local = [path if "://" in path else str(Path(path).resolve()) for path in (settings.shards, settings.index)]
    elsewhere = replace(settings, shards=local[0], index=local[1], out=settings.out.resolve())
    dataset = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=len(names)).map(
        RayShardEncoder,
        fn_constructor_args=(elsewhere,),
        concurrency=min(num_actors, len(names)),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    for row in dataset.iter_rows():
        yield EncodedShard(**json.loads(row["result"]))


def _remove_others(out: Path, names: set[str]) -> None:
    """Removes shards that the run has no more, and what a killed encoder left half written."""
    for folder, suffix in (("index", ".arrow"), ("shards", ".tar")):
        for path in (out / folder).glob("*"):
            if path.suffix == ".partial" or (path.suffix == suffix and path.stem not in names):
                path.unlink()


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
