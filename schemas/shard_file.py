"""Shards as files: the one place that knows how samples lie in a tar, how they are found again and how damage is seen.

    ShardWriter       samples into an uncompressed tar; offsets, CRC-32, SHA-256 and size are known when they are written
    ShardReader       samples out of it by their place, and every checksum in one pass; neither needs a tar library
    SampleLocation    where one sample is: what the writer returns, the index holds and readers are given
    ShardFacts        what the index of a shard says of its tar; Manifest, ShardEntry: what index/manifest.json says of all

Nothing here holds a whole shard in memory: one sample at most, when writing or reading it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from schemas.arrow_file import facts_of, read_table
from schemas.errors import DamagedSampleError, ShardError
from schemas.shard import CONTRACT_VERSION, written_name

CHUNK_BYTES = 1 << 20
"""Bytes held at a time by a pass over a whole shard."""
TAR_END_BYTES = 2 * tarfile.BLOCKSIZE
"""Zeros that end a tar; then it is filled up to a multiple of `tarfile.RECORDSIZE`."""
KEY = re.compile(r"(?!__)[\w-]{1,80}", re.ASCII)
"""WebDataset ends a key at its first dot and passes over names that begin with two underscores; a USTAR name has 100 bytes."""
PACK_AGAIN = "Give the same `nava-curate run` again: it makes anew what is missing or damaged."
Checksum = Callable[[Any], int]


class SampleLocation(NamedTuple):
    """Where the bytes of one sample are. `members` maps an extension to (offset, size) of its payload inside the shard.

    `num_bytes` and `crc32` cover all members with their headers and padding.
    """

    clip_id: str
    shard: str
    offset: int
    num_bytes: int
    crc32: int
    members: dict[str, tuple[int, int]]

    def columns(self) -> dict[str, int]:
        """The index columns that say this."""
        places = {f"{name}_offset": offset for name, (offset, _) in self.members.items()}
        sizes = {f"{name}_bytes": size for name, (_, size) in self.members.items()}
        return {**places, **sizes, "sample_offset": self.offset, "sample_bytes": self.num_bytes, "crc32": self.crc32}


def locations(index: pa.Table, members: Sequence[str]) -> list[SampleLocation]:
    """Where the samples of an index are, in its order, with these members."""
    ends = [f"{name}_{end}" for name in members for end in ("offset", "bytes")]
    table = index.select(["clip_id", "shard", "sample_offset", "sample_bytes", "crc32", *ends])
    return [
        SampleLocation(
            row["clip_id"],
            row["shard"],
            row["sample_offset"],
            row["sample_bytes"],
            row["crc32"],
            {name: (row[f"{name}_offset"], row[f"{name}_bytes"]) for name in members},
        )
        for row in table.to_pylist()
    ]


def payloads_at(file: BinaryIO, offset: int, sizes: Mapping[str, int]) -> bytes:
    """The payloads of a sample's first members, end to end, without their headers; fewer bytes where the file ends.

    `sizes` are those of the members that lie first in the sample, in their order.
    """
    parts = []
    for size in sizes.values():
        file.seek(offset + tarfile.BLOCKSIZE)
        parts.append(file.read(size))
        offset += tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE
    return b"".join(parts)


def samples_in(file: BinaryIO) -> Iterator[tuple[str, int, dict[str, int]]]:
    """(clip id, offset, sizes of its members) of the samples of a tar by its own headers, up to the first that is none."""
    offset, key, begin = 0, "", 0
    sizes: dict[str, int] = {}
    while True:
        file.seek(offset)
        try:
            info = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            break
        name, _, member = info.name.partition(".")
        if name != key:
            if key:
                yield key, begin, sizes
            key, begin, sizes = name, offset, {}
        sizes[member] = info.size
        offset += tarfile.BLOCKSIZE + info.size + -info.size % tarfile.BLOCKSIZE
    if key:
        yield key, begin, sizes


def members_of(place: SampleLocation, data: bytes | memoryview, checksum: Checksum | None) -> dict[str, memoryview]:
    """The members of one sample as slices of its bytes, not copied.

    `checksum` computes CRC-32; None trusts the bytes. Raises DamagedSampleError when they are too few, fail the checksum
    or do not hold a member.
    """
    if len(data) != place.num_bytes:
        raise _damaged(place, f"expected {place.num_bytes} bytes, got {len(data)}.")
    if checksum is not None and (crc := checksum(data)) != place.crc32:
        raise _damaged(place, f"expected CRC-32 {place.crc32:08x}, got {crc:08x}.")
    view, members = memoryview(data), {}
    for name, (offset, size) in place.members.items():
        start = offset - place.offset
        if start < 0 or start + size > place.num_bytes:
            raise _damaged(place, f"member {name} lies outside the sample.")
        members[name] = view[start : start + size]
    return members


def _damaged(place: SampleLocation, what: str) -> DamagedSampleError:
    return DamagedSampleError(f"{place.clip_id} in {place.shard} at byte {place.offset}: {what}")


class ShardWriter:
    """Appends samples to an open file; a context, at whose end the tar is complete and `sha256`, `num_bytes` are final.

    Every sample has exactly `members`, written in that order. The same samples give the same bytes.
    """

    def __init__(self, file: BinaryIO, shard: str, members: Sequence[str]) -> None:
        self._file, self._shard, self._members = file, shard, tuple(members)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self.num_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            end = self.num_bytes + TAR_END_BYTES
            self._write(bytes(TAR_END_BYTES + -end % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        """SHA-256 of what has been written."""
        return self._sha256.hexdigest()

    def add(self, clip_id: str, payloads: Mapping[str, bytes]) -> SampleLocation:
        """Appends one sample; returns where it is. Raises ShardError for a key or members that readers would not find."""
        if KEY.fullmatch(clip_id) is None or payloads.keys() != set(self._members):
            raise ShardError(
                f"sample '{clip_id}' of {self._shard} has the members {', '.join(payloads) or 'none'}; expected a key "
                f"of at most 80 letters, digits, _ and -, and the members {', '.join(self._members)}."
            )
        offset, self._crc32 = self.num_bytes, 0
        members = {}
        for name in self._members:
            payload = payloads[name]
            info = tarfile.TarInfo(f"{clip_id}.{name}")
            info.size = len(payload)
            self._write(info.tobuf(tarfile.USTAR_FORMAT))
            members[name] = self.num_bytes, len(payload)
            self._write(payload)
            self._write(bytes(-len(payload) % tarfile.BLOCKSIZE))
        return SampleLocation(clip_id, self._shard, offset, self.num_bytes - offset, self._crc32, members)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self.num_bytes += len(data)


@dataclass(frozen=True, slots=True)
class ShardScan:
    """What one pass over a shard found."""

    sha256: str
    num_bytes: int
    damaged: tuple[SampleLocation, ...]
    """Samples whose bytes are missing or fail their CRC-32, in the order of their places."""


class ShardReader:
    """Samples of one shard by their place. A context; closes the file, whether opened here from a path or given open."""

    def __init__(self, file: BinaryIO | str | Path) -> None:
        self._file = open(file, "rb") if isinstance(file, (str, Path)) else file  # noqa: SIM115 (closed by this context)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def sample(self, place: SampleLocation) -> dict[str, memoryview]:
        """The members of one sample. Raises DamagedSampleError when its bytes are not those that were written."""
        self._file.seek(place.offset)
        return members_of(place, self._file.read(place.num_bytes), zlib.crc32)

    def scan(self, places: Iterable[SampleLocation] = ()) -> ShardScan:
        """SHA-256 of the file and the CRC-32 of the samples at `places`, in one pass of `CHUNK_BYTES` at a time."""
        waiting = deque(sorted(places, key=lambda place: place.offset))
        under_way: list[tuple[SampleLocation, int]] = []
        damaged: list[SampleLocation] = []
        sha256, begin = hashlib.sha256(), 0
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            sha256.update(chunk)
            end = begin + len(chunk)
            while waiting and waiting[0].offset < end:
                under_way.append((waiting.popleft(), 0))
            still = []
            for place, crc in under_way:
                last = place.offset + place.num_bytes
                crc = zlib.crc32(memoryview(chunk)[max(place.offset - begin, 0) : max(last - begin, 0)], crc)  # noqa: PLW2901
                if last > end:
                    still.append((place, crc))
                elif crc != place.crc32:
                    damaged.append(place)
            under_way, begin = still, end
        damaged += [place for place, _ in under_way] + list(waiting)
        return ShardScan(sha256.hexdigest(), begin, tuple(damaged))


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the index of a curated shard says of its tar and of what made it, in the schema's metadata."""

    sha256: str
    num_bytes: int
    split: str
    unit: str
    """Digest of the contract, of all settings, and of the clips with their identities."""
    embedder: str
    """Network of the vectors in the npy member; empty without any."""
    embedding_dim: int
    """Their width; 0 without any."""

    def to_metadata(self) -> dict[str, str]:
        """As text, for `schemas.arrow_file.with_facts`."""
        return {written_name(key): str(value) for key, value in asdict(self).items()}

    @classmethod
    def of(cls, index: pa.Table, name: str) -> ShardFacts:
        """Those of an index, `name` being what an error calls it. Raises ShardError when it has none."""
        facts = facts_of(index.schema)
        check_contract(facts, name)
        try:
            return cls(
                facts["sha256"],
                int(facts["bytes"]),
                facts["split"],
                facts["unit"],
                facts["embedder"],
                int(facts["embedding_dim"]),
            )
        except (KeyError, ValueError) as error:
            raise ShardError(f"{name} does not say which tar it describes ({error}).", remedy=PACK_AGAIN) from error


def check_contract(facts: Mapping[str, object], name: str, *, remedy: str = "Curate again with this version.") -> None:
    """Raises ShardError where a file with these facts, `name` being what an error calls it, follows another contract."""
    if str(found := facts.get("contract_version")) != str(CONTRACT_VERSION):
        raise ShardError(
            f"{name} follows contract {found or 'unknown'}; this program reads contract {CONTRACT_VERSION}.",
            remedy=remedy,
        )


def parse_index(data: bytes, name: str) -> pa.Table:
    """The index of one shard, `name` being what an error calls it. Raises ShardError when it is no Arrow file."""
    try:
        return read_table(data)
    except pa.ArrowInvalid as error:
        raise ShardError(f"{name} is not an Arrow IPC file: {error}.", remedy=PACK_AGAIN) from error


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of a manifest: names of the tar and of its index, what the tar is, and how much is in it."""

    name: str
    index: str
    sha256: str
    num_bytes: int
    split: str
    num_samples: int
    duration_s: float
    unit: str
    """See `ShardFacts.unit`."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """index/manifest.json: every shard of a run, and what made them."""

    contract_version: int
    recipe: str
    measure_hash: str
    num_samples: int
    bits: int
    """Clips whose id hashes share this many first bits share a shard (and a split)."""
    target_shard_mb: float
    embedder: str
    embedding_dim: int
    """Network and width of the timbre embeddings in the npy members; empty and 0 without any."""
    shards: tuple[ShardEntry, ...]

    def to_json(self) -> bytes:
        """As it is written."""
        content = asdict(self)
        content["shards"] = [{written_name(key): value for key, value in shard.items()} for shard in content["shards"]]
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """As it was written. Raises ShardError when it is no manifest, or one of another contract."""
        try:
            content = json.loads(data)
            check_contract({"contract_version": content["contract_version"]}, "the manifest of the shards")
            shards = tuple(
                ShardEntry(**{f.name: shard[written_name(f.name)] for f in fields(ShardEntry)})
                for shard in content["shards"]
            )
            return cls(**{f.name: content[f.name] for f in fields(cls)} | {"shards": shards})
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"the manifest of the shards cannot be read ({error!r}).", remedy=PACK_AGAIN) from error
