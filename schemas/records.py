"""Row types of a run: documented Arrow structs, and frozen typed views of finished rows.

A run's unit of work is one source. Its rows, all in one ledger table and told apart by `kind`:

    asset   the bytes of a source and what was measured on the whole of them
    shot    an uninterrupted stretch of picture of one asset
    clip    a window inside one shot: what is kept or rejected, cut and packed

Times named `asset_*_s` are on the asset clock, all others on the clip clock (see `schemas.timing`).
A null struct means "not reached", a null field "reached, could not be measured".

The base contract: every recipe has a `download` that names bytes by content, a `probe` that knows their length and
streams, and stages that make shots and clips with at least the fields of `SHOT` and `CLIP`. The views rest on it; every
other stage is known to the rest of the house only by the roles of its fields (see `schemas.fields`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

import pyarrow as pa

from schemas.fields import f, struct
from schemas.timing import Span
from schemas.verdict import Status

Struct = Mapping[str, Any]
"""What one stage measured of one row, as plain data: the Arrow border."""
Row = Mapping[str, Any]
"""A row as a stage sees it: stage name -> struct (or None), ancestors' structs included; a source's columns lie bare."""


class Level(StrEnum):
    """The kinds of rows that are measured, each made out of the one before."""

    ASSET = "asset"
    SHOT = "shot"
    CLIP = "clip"

    @property
    def above(self) -> Level | None:
        """The level this one is made out of."""
        levels = list(Level)
        at = levels.index(self)
        return levels[at - 1] if at else None


EXACT_SPAN = (
    f("start_pts", pa.int64(), unit="time base", doc="pts of the first frame"),
    f("end_pts", pa.int64(), unit="time base", doc="pts at which the frame after the last one begins"),
    f("tb_num", pa.int64(), unit="s", doc="time base, numerator"),
    f("tb_den", pa.int64(), unit="1/s", doc="time base, denominator"),
    f("asset_start_s", pa.float64(), unit="s", doc="start on the asset clock, rounded for reading; the pts are exact"),
    f("asset_end_s", pa.float64(), unit="s", doc="end on the asset clock, rounded for reading"),
    f("duration_us", pa.int64(), unit="us", doc="length; adjoining spans add up exactly", show="histogram"),
)


def span_fields(span: Span) -> dict[str, int | float]:
    """The `EXACT_SPAN` columns of `span`."""
    return {
        "start_pts": span.start_pts,
        "end_pts": span.end_pts,
        "tb_num": span.num,
        "tb_den": span.den,
        "asset_start_s": float(span.start),
        "asset_end_s": float(span.end),
        "duration_us": span.duration_us,
    }


def span_of(row: Row) -> Span:
    """The exact span held in the `EXACT_SPAN` columns of `row`."""
    return Span(row["start_pts"], row["end_pts"], row["tb_num"], row["tb_den"])


SOURCE = struct(
    f("source_id", pa.string(), doc="id derived from the whole address", nullable=False),
    f("uri", pa.string(), doc="where the source lies, without what lets anybody in", nullable=False),
    f("licence", pa.string(), doc="licence as stated by the manifest"),
    f("metadata", pa.string(), doc="all other manifest columns, as a JSON object"),
)

FETCH_URI = f("fetch_uri", pa.string(), doc="where to fetch from if not `uri`: may hold credentials, is never stored")
"""Travels with a source through the workers, and stays out of the ledger, of sources.arrow and of shards."""

WORD = struct(
    f("text", pa.string(), doc="the word as spoken, punctuation attached"),
    f("start_s", pa.float64(), unit="s", doc="onset"),
    f("end_s", pa.float64(), unit="s", doc="end"),
    f("confidence", pa.float64(), unit="ratio", doc="engine's probability of the word; null where it gives none"),
)

STRETCH = struct(
    f("start_s", pa.float64(), unit="s", doc="start"),
    f("end_s", pa.float64(), unit="s", doc="end"),
)

TURN = struct(
    f("speaker", pa.string(), doc="speaker label, unique within the asset: A, B, ..."),
    f("start_s", pa.float64(), unit="s", doc="start"),
    f("end_s", pa.float64(), unit="s", doc="end"),
    f("confidence", pa.float64(), unit="ratio", doc="mean activation of the speaker over the turn"),
)

SPEAKER = struct(
    f("speaker", pa.string(), doc="speaker label, unique within the asset"),
    f("speech_s", pa.float64(), unit="s", doc="speech of this speaker, overlaps included"),
    f(
        "embedding",
        pa.list_(pa.float32()),
        doc="mean speaker embedding over clean speech, unit length",
        private=True,
        means="voice",
    ),
)

HEARING = (
    f("language", pa.string(), doc="ISO 639-1 code; null where nobody knows", show="label"),
    f("language_confidence", pa.float64(), unit="ratio", doc="probability of the language; null where not measured"),
    f("language_from", pa.string(), doc="detected in the sound, stated, or engine: the only one the engine knows"),
    f(
        "words_from",
        pa.string(),
        doc="what timed the words: pocketsphinx, wav2vec2, attention, peaks, or letters: their length",
    ),
    f("no_speech_prob", pa.float64(), unit="ratio", doc="whisper's probability that nobody speaks"),
    f("avg_logprob", pa.float64(), doc="whisper's mean log-probability of its text; near 0 is sure"),
    f("compression_ratio", pa.float64(), unit="ratio", doc="how much the text can be packed; loops pack well"),
)
"""How something was heard: in what language, and how well."""

PASSAGE = struct(
    f("start_s", pa.float64(), unit="s", doc="start"),
    f("end_s", pa.float64(), unit="s", doc="end"),
    *HEARING,
)

SPEECH_SPAN = struct(
    f("text", pa.string(), doc="what is said; words joined by spaces where their script has them"),
    f("speaker", pa.string(), doc="speaker label within the asset; null where nobody could be named"),
    f("start_s", pa.float64(), unit="s", doc="start on the clip clock"),
    f("end_s", pa.float64(), unit="s", doc="end on the clip clock, never past the clip"),
    f("is_overlap", pa.bool_(), doc="somebody else speaks at the same time"),
    f("confidence", pa.float64(), unit="ratio", doc="mean word confidence"),
    f("words", pa.list_(WORD), doc="the words, on the clip clock"),
    *HEARING,
)

FACE_TRACK = struct(
    f("track", pa.int32(), doc="track number within the clip, from 0"),
    f("start_s", pa.float64(), unit="s", doc="first frame of the track on the clip clock"),
    f("end_s", pa.float64(), unit="s", doc="end of the last frame of the track"),
    f("x", pa.float64(), unit="ratio", doc="median left edge, share of the picture width"),
    f("y", pa.float64(), unit="ratio", doc="median top edge, share of the picture height"),
    f("width", pa.float64(), unit="ratio", doc="median width, share of the picture width"),
    f("height", pa.float64(), unit="ratio", doc="median height, share of the picture height"),
    f("confidence", pa.float64(), unit="ratio", doc="mean detector score"),
    f(
        "embedding",
        pa.list_(pa.float32()),
        doc="who it is, for Euclidean distances; null where not seen well",
        private=True,
        means="face",
    ),
)

ACTIVE_FACE = struct(
    f("span_index", pa.int32(), doc="index into clip.spans"),
    f("status", pa.string(), doc="on_screen, off_screen, overlap or unknown"),
    f("track", pa.int32(), doc="the speaking face; null unless on_screen"),
    f("score", pa.float64(), doc="agreement of this face's mouth with the sound; null where no face"),
)

SYNC_WINDOW = struct(
    f("start_s", pa.float64(), unit="s", doc="window start on the clip clock"),
    f("end_s", pa.float64(), unit="s", doc="window end on the clip clock"),
    f("offset_ms", pa.float64(), unit="ms", doc="offset in this window; positive = sound late"),
    f("confidence", pa.float64(), doc="confidence of this window alone"),
)

SYNC_DISTANCES = struct(
    f("track", pa.int32(), doc="the face, its number among faces.tracks"),
    f("num_windows", pa.int32(), unit="count", doc="windows of 5 frames the means are of"),
    f("means", pa.list_(pa.float32()), doc="mean SyncNet distance at -15 to +15 frames; positive = sound late"),
)

TIMBRE = struct(
    f("span_index", pa.int32(), doc="index into clip.spans of the span this reference may voice"),
    f("speaker", pa.string(), doc="speaker label within the asset"),
    f("origin", pa.string(), doc="same_clip, same_asset or same_span: where the reference was taken from"),
    f("is_same_span", pa.bool_(), doc="the reference contains the very span it will voice: a content leak"),
    f("asset_start_s", pa.float64(), unit="s", doc="reference start on the asset clock"),
    f("asset_end_s", pa.float64(), unit="s", doc="reference end on the asset clock"),
    f("similarity", pa.float64(), unit="cosine", doc="reference embedding against the span's own"),
    f("cleanliness", pa.float64(), unit="ratio", doc="share of the reference free of silence, overlap and clipping"),
    f(
        "embedding",
        pa.list_(pa.float32()),
        doc="speaker embedding of the reference, unit length",
        in_shard=False,
        means="reference",
    ),
)

SHOT = struct(
    f("shot_id", pa.string(), doc="id derived from asset and span", nullable=False),
    f("parent_id", pa.string(), doc="asset id", nullable=False),
    f("index", pa.int32(), doc="position within the asset, from 0"),
    *EXACT_SPAN,
    f("num_frames", pa.int32(), unit="count", doc="frames in the shot"),
    f("is_transition", pa.bool_(), doc="pictures between two shots (dissolve, fade, black); never cut into clips"),
    f("start_kind", pa.string(), doc="how it begins: start, hard or gradual; gradual next to a transition"),
    f("start_confidence", pa.float64(), unit="ratio", doc="confidence of that boundary; null at the asset's start"),
    f("end_kind", pa.string(), doc="how it ends: end, hard or gradual"),
    in_shard=False,
)

CLIP = struct(
    f("clip_id", pa.string(), doc="id derived from asset, span and cutting rules", nullable=False),
    f("parent_id", pa.string(), doc="shot id", nullable=False),
    f("asset_id", pa.string(), doc="asset id", nullable=False),
    f("index", pa.int32(), doc="position within the shot, from 0"),
    *EXACT_SPAN,
    f("num_frames", pa.int32(), unit="count", doc="frames in the clip"),
    f("is_mid_utterance", pa.bool_(), doc="an end lies inside an utterance because no pause allowed otherwise"),
    f("has_speech", pa.bool_(), doc="at least one speech span"),
    f("num_speakers", pa.int32(), unit="count", doc="distinct speakers of the spans", show="label"),
    f("language", pa.string(), doc="language of all spans; null without speech or where nobody knows, mul for several"),
    f(
        "language_confidence",
        pa.float64(),
        unit="ratio",
        doc="least probability of a span's language; null where none was measured",
        show="histogram",
    ),
    f("no_speech_prob", pa.float64(), unit="ratio", doc="largest of the spans'", show="histogram"),
    f("avg_logprob", pa.float64(), doc="least of the spans'", show="histogram"),
    f("compression_ratio", pa.float64(), unit="ratio", doc="largest of the spans'", show="histogram"),
    f("is_language_measured", pa.bool_(), doc="a span's language was detected, so that `language_confidence` is there"),
    f("is_text_scored", pa.bool_(), doc="whisper wrote a span, so that its figures are there"),
    f("spans", pa.list_(SPEECH_SPAN), doc="speech spans in speaking order, on the clip clock", show="lane"),
)

VERDICT = struct(
    f("status", pa.string(), doc="keep, reject or error"),
    f("reason", pa.string(), doc="gate path or error code that decided; null for keep"),
    f("message", pa.string(), doc="the reason in words, with the figures"),
    f("stage", pa.string(), doc="stage at which the row settled"),
    f("failed_gates", pa.list_(pa.string()), doc="every gate the row fails, not only the first"),
    f("is_audit", pa.bool_(), doc="measured to the end whatever the gates said; rejected ones never reach a shard"),
)

COST = struct(
    f("stage", pa.string(), doc="stage name"),
    f("wall_s", pa.float64(), unit="s", doc="elapsed time"),
    f("cpu_s", pa.float64(), unit="s", doc="processor time of the worker and its decoder child"),
    f("rows", pa.int32(), unit="count", doc="rows processed"),
    f(
        "frames_decoded",
        pa.int64(),
        unit="count",
        doc="pictures decoded for it, in whatever process; null where older versions did not count",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a run was given: one line of its input."""

    source_id: str
    uri: str
    licence: str | None = None
    metadata: str | None = None
    fetch_uri: str | None = None
    """Where to fetch from if not `uri`; never stored."""

    @classmethod
    def of(cls, row: Row) -> Self:
        """The source in a row that holds its columns."""
        return cls(
            source_id=row["source_id"],
            uri=row["uri"],
            licence=row.get("licence"),
            metadata=row.get("metadata"),
            fetch_uri=row.get("fetch_uri"),
        )

    def row(self) -> dict[str, Any]:
        """Its columns, those of `SOURCE` and `FETCH_URI`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a row settled, and why; the columns of `VERDICT`."""

    status: Status
    reason: str | None = None
    message: str | None = None
    stage: str | None = None
    failed_gates: tuple[str, ...] = ()
    is_audit: bool = False

    @classmethod
    def of(cls, row: Struct) -> Self:
        """The verdict in a `VERDICT` struct."""
        known = {each.name: row[each.name] for each in fields(cls)}
        return cls(**known | {"failed_gates": tuple(row["failed_gates"] or ())})

    def row(self) -> dict[str, Any]:
        """The `VERDICT` struct."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {
            "failed_gates": list(self.failed_gates)
        }


NO_CHILD = {
    Level.SHOT: Verdict("reject", "shot.no_clip", "no window of the wanted length fits into the shot"),
    Level.ASSET: Verdict("reject", "asset.no_clip", "no shot gave a clip"),
}
"""How a row settles that passed every gate and has no clip below it."""
UNFINISHED = Verdict("error", reason="unfinished", message="the source is long and still being worked on, part by part")
"""How a row stands while parts of its source are out; a run that ended has none."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage cost on one unit; the columns of `COST`."""

    stage: str
    wall_s: float
    cpu_s: float
    rows: int
    frames_decoded: int | None = 0

    @classmethod
    def of(cls, row: Struct) -> Self:
        """The cost in a `COST` struct; one that an older version wrote does not say how many pictures were decoded."""
        return cls(row["stage"], row["wall_s"], row["cpu_s"], row["rows"], row.get("frames_decoded"))

    def __add__(self, other: Cost) -> Cost:
        """What both of one stage cost together."""
        is_counted = self.frames_decoded is not None and other.frames_decoded is not None
        frames = (self.frames_decoded or 0) + (other.frames_decoded or 0) if is_counted else None
        wall_s, cpu_s = self.wall_s + other.wall_s, self.cpu_s + other.cpu_s
        return Cost(self.stage, wall_s, cpu_s, self.rows + other.rows, frames)

    def row(self) -> dict[str, Any]:
        """The `COST` struct."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A source's bytes, with what was measured on the whole of them."""

    source: Source
    asset_id: str | None
    duration_us: int | None
    verdict: Verdict
    structs: Mapping[str, Struct | None]
    """Column -> what its stage measured; null where it was not reached."""

    @property
    def source_id(self) -> str:
        """The unit of work it belongs to."""
        return self.source.source_id

    @property
    def path(self) -> str:
        """Local path or URL of its bytes."""
        return str(self._has("download")["path"])

    @property
    def num_bytes(self) -> int:
        """Size of its bytes."""
        return int(self._has("download")["bytes"])

    @property
    def probe(self) -> Struct:
        """Streams, timelines and geometry."""
        return self._has("probe")

    @property
    def has_audio(self) -> bool:
        """Whether it has sound."""
        return bool(self.probe["has_audio"])

    def _has(self, column: str) -> Struct:
        found = self.structs.get(column)
        if found is None:
            raise KeyError(f"{self.source.uri}: {column} was not reached")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """An uninterrupted stretch of picture."""

    shot_id: str
    source_id: str
    duration_us: int
    verdict: Verdict
    structs: Mapping[str, Struct | None]

    @property
    def own(self) -> Struct:
        """The columns of `SHOT`."""
        return _own(self.structs, Level.SHOT)

    @property
    def span(self) -> Span:
        """Where it lies, exactly."""
        return span_of(self.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A window inside a shot, with the asset it lies in."""

    clip_id: str
    shot_id: str
    asset: Asset
    duration_us: int
    verdict: Verdict
    structs: Mapping[str, Struct | None] = field(default_factory=dict)
    """Column -> what its stage measured; its own columns under `clip`."""

    @property
    def own(self) -> Struct:
        """The columns of `CLIP`."""
        return _own(self.structs, Level.CLIP)

    @property
    def span(self) -> Span:
        """Where it lies on the asset clock, exactly."""
        return span_of(self.own)


HAS_AUDIO = "probe.has_audio"
"""The ledger's column that says whether an asset has sound; `Asset.has_audio` of a row."""
NUM_FRAMES = "probe.num_frames"
"""The ledger's column that says how many frames an asset shows; null where they were not counted."""


def identity_of(structs: Mapping[str, Struct | None]) -> tuple[str | None, int | None]:
    """(asset id, length in microseconds) of a source from what was measured on it; null where it was not reached."""
    download, probe = structs.get("download"), structs.get("probe")
    return (download or {}).get("asset_id"), (probe or {}).get("duration_us")


def size_of(structs: Mapping[str, Struct | None]) -> int:
    """Bytes of a source; 0 where they could not be had."""
    return int((structs.get("download") or {}).get("bytes") or 0)


def _own(structs: Mapping[str, Struct | None], level: Level) -> Struct:
    found = structs[level]
    assert found is not None
    return found
