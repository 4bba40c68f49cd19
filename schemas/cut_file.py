"""What a clip's cutting leaves for the shards: one file of its media under its identity, and the struct that describes it.

The file holds the payloads of `schemas.shard.PAYLOAD` end to end and nothing else: their sizes and the SHA-256 over all of
them stand in the ledger, so that the bytes can be told right wherever they lie, here or in a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from typing import Self

import pyarrow as pa

from schemas.errors import DamagedSampleError
from schemas.fields import f, struct
from schemas.records import Struct
from schemas.shard import CUT_MEASURES, PAYLOAD, written_name

REFERENCE_SOUND = struct(
    f("span_index", pa.int32(), doc="index into clip.spans of the span this sound may voice"),
    f("first_sample", pa.int64(), unit="count", doc="where its sound begins in the refs.flac member"),
    f("num_samples", pa.int64(), unit="count", doc="how long it is, at 16 kHz"),
)

CROPPED = struct(
    f("x_px", pa.int32(), unit="px", doc="left edge"),
    f("y_px", pa.int32(), unit="px", doc="top edge"),
    f("width_px", pa.int32(), unit="px", doc="width"),
    f("height_px", pa.int32(), unit="px", doc="height"),
)

CUT = (
    *CUT_MEASURES,
    f("crop", CROPPED, doc="the part of the upright picture that was written, in its pixels; null for all of it"),
    f(
        "num_faces_blurred",
        pa.int32(),
        unit="count",
        doc="faces made unrecognisable in the written picture; null unless asked",
    ),
    f("width_px", pa.int32(), unit="px", doc="width of the written picture"),
    f("height_px", pa.int32(), unit="px", doc="height of the written picture"),
    f("num_frames", pa.int32(), unit="count", doc="frames written"),
    f("references", pa.list_(REFERENCE_SOUND), doc="the sound of each timbre reference, in the refs.flac member"),
    f("sha256", pa.string(), doc="SHA-256 over the media members' bytes", in_shard=False, means="payload"),
    f("bytes", pa.int64(), unit="bytes", doc="size of all media members", in_shard=False),
    f("mp4_bytes", pa.int64(), unit="bytes", doc="size of the mp4 member", in_shard=False),
    f("flac_bytes", pa.int64(), unit="bytes", doc="size of the flac member", in_shard=False),
    f("refs_bytes", pa.int64(), unit="bytes", doc="size of the refs.flac member", in_shard=False),
)
"""Fields of any stage that cuts. It may add `restated`: one item where what other stages said of the clip no longer holds in
what was written, a struct of their columns with the fields that are to stand in the shard instead."""
RESTATED = "restated"


@dataclass(frozen=True, slots=True)
class CutMedia:
    """Which bytes a clip's media are; fields of `CUT`."""

    sha256: str
    num_bytes: int
    mp4_bytes: int
    flac_bytes: int
    refs_bytes: int

    @classmethod
    def of(cls, cut: Struct) -> Self:
        """Those of a stored struct."""
        return cls(**{each.name: cut[written_name(each.name)] for each in fields(cls)})

    def row(self) -> dict[str, str | int]:
        """The fields of `CUT` that say this."""
        return {written_name(name): value for name, value in asdict(self).items()}

    @classmethod
    def over(cls, members: Mapping[str, bytes]) -> Self:
        """Those of these members."""
        payload = payload_of(members)
        sizes = (len(members[name]) for name in PAYLOAD)
        return cls(hashlib.sha256(payload).hexdigest(), len(payload), *sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """Member -> its size, in their order."""
        return dict(zip(PAYLOAD, (self.mp4_bytes, self.flac_bytes, self.refs_bytes), strict=True))

    def members(self, payload: bytes) -> dict[str, bytes]:
        """The members in the bytes of a cut file. Raises DamagedSampleError when they are not those that were cut."""
        if len(payload) != self.num_bytes or hashlib.sha256(payload).hexdigest() != self.sha256:
            raise DamagedSampleError(f"the media of a clip have changed since they were cut: {len(payload)} bytes.")
        ends = list(accumulate(self.sizes.values()))
        starts = [0, *ends[:-1]]
        return {name: payload[a:b] for name, a, b in zip(PAYLOAD, starts, ends, strict=True)}


def payload_of(members: Mapping[str, bytes]) -> bytes:
    """The bytes of a cut file."""
    return b"".join(members[name] for name in PAYLOAD)


def cut_file(clip_id: str, cut_hash: str) -> str:
    """Name of a clip's cut file below the run's `cuts`; spread over 256 folders."""
    return f"{clip_id[1:3]}/{clip_id}-{cut_hash}.cut"
