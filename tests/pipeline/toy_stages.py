"""Small real stages for tests of the machinery around them: they obey the contract, or break it where a row says so.

A source's metadata names its length in frames (25 a second), its shot and clip lengths, and its faults:
`{"frames": 500, "shot": 100, "clip": 40, "faults": {"audio:1": "crash"}}` makes the audio stage misbehave on clip 1.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import ids
from schemas.errors import EngineError, ItemError, MediaError
from schemas.fields import f, struct
from schemas.records import CLIP, SHOT, Row, span_fields
from schemas.timing import Span
from stages.base import Collect, Context, Measure, Resources, Split, StageConfig


def fault(row: Row, stage: str, index: int | str = "") -> str | None:
    """The fault the row's source asks of `stage` at child `index`."""
    found: str | None = json.loads(row["metadata"]).get("faults", {}).get(f"{stage}:{index}".rstrip(":"))
    return found


def misbehave(kind: str | None) -> Any:
    """Breaks the contract in the given way; returns None where the row should be measured."""
    if kind == "item":
        raise EngineError("the engine refuses this row.", remedy="Leave it.")
    if kind == "bug":
        raise ZeroDivisionError("a bug")
    if kind == "hang":
        time.sleep(60)
    if kind == "crash":
        os._exit(1)
    if kind == "memory":
        np.ones(1 << 33, np.uint8)
    if kind and kind.startswith("once "):
        if not Path(kind.removeprefix("once ")).exists():
            Path(kind.removeprefix("once ")).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return None
    if kind and kind.startswith("until "):
        began = time.monotonic()
        while not Path(kind.removeprefix("until ")).exists() and time.monotonic() - began < 60:
            time.sleep(0.05)
        return None
    if kind and kind.startswith("meet "):
        folder, began = Path(kind.removeprefix("meet ")), time.monotonic()
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2 and time.monotonic() - began < 60:
            time.sleep(0.05)
        return None
    if kind and kind.startswith("sleep"):
        time.sleep(float(kind.removeprefix("sleep")))
        return None
    if kind == "returned":
        return EngineError("refused in its place.")
    return {"keys": {"other": 1}, "nan": {"value": float("nan")}, "type": {"value": "text"}}.get(kind or "")


class Download(Measure[StageConfig]):
    """Pretends the metadata are the bytes."""

    name, version, level, reads = "download", "1", "asset", ("uri", "metadata")
    adds = struct(
        f("asset_id", pa.string(), doc="id"), f("path", pa.string(), doc="path"), f("bytes", pa.int64(), doc="size")
    )
    Config = StageConfig

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """One struct per row."""
        misbehave(fault(batch[0], "download"))
        return [{"asset_id": ids.asset_id(ids.digest(row["metadata"])), "path": "", "bytes": 1} for row in batch]


class Probe(Measure[StageConfig]):
    """Reads the length out of the metadata."""

    name, version, level, reads = "probe", "1", "asset", ("metadata",)
    adds = struct(
        f("duration_us", pa.int64(), unit="us", doc="length"), f("has_video", pa.bool_(), doc="has a picture")
    )
    Config = StageConfig

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """One struct per row."""
        kind = fault(batch[0], "probe")
        if kind == "media":
            raise MediaError("no picture in here.")
        misbehave(kind)
        facts = [json.loads(row["metadata"]) for row in batch]
        return [{"duration_us": fact["frames"] * 40_000, "has_video": fact.get("video", True)} for fact in facts]


class ShotSplit(Split[StageConfig]):
    """Equal shots."""

    name, version, level, children = "shot_split", "1", "asset", "shot"
    reads = ("metadata", "download.asset_id")
    adds = SHOT
    Config = StageConfig

    def split(self, row: Row) -> list[dict[str, Any]]:
        """The shots of one asset."""
        misbehave(fault(row, "shot_split"))
        fact, asset = json.loads(row["metadata"]), row["download"]["asset_id"]
        starts = range(0, fact["frames"], fact["shot"])
        spans = [Span(at, min(at + fact["shot"], fact["frames"]), 1, 25) for at in starts]
        common = dict.fromkeys(field.name for field in SHOT) | {"parent_id": asset}
        return [
            common | {"shot_id": ids.shot_id(asset, span), "index": at, **span_fields(span)}
            for at, span in enumerate(spans)
        ]


class Clip(Split[StageConfig]):
    """As many equal clips as fit into a shot."""

    name, version, level, children = "clip", "1", "shot", "clip"
    reads = ("metadata", "shot", "download.asset_id")
    adds = CLIP
    Config = StageConfig

    def split(self, row: Row) -> list[dict[str, Any]]:
        """The clips of one shot."""
        misbehave(fault(row, "clip", row["shot"]["index"]))
        length, shot = json.loads(row["metadata"])["clip"], row["shot"]
        starts = range(shot["start_pts"], shot["end_pts"] - length + 1, length)
        common = dict.fromkeys(field.name for field in CLIP) | {
            "parent_id": shot["shot_id"], "asset_id": row["download"]["asset_id"], "has_speech": False, "spans": [],
        }  # fmt: skip
        spans = [Span(at, at + length, 1, 25) for at in starts]
        return [
            common | {"clip_id": ids.clip_id(row["download"]["asset_id"], span, "1"), "index": at, **span_fields(span)}
            for at, span in enumerate(spans)
        ]


class Audio(Measure[StageConfig]):
    """A score per clip: 1 for even clips, 0 for odd ones."""

    name, version, level, reads = "audio", "1", "clip", ("metadata", "clip")
    adds = struct(f("value", pa.float64(), doc="score"))
    Config = StageConfig
    resources = Resources(batch=3, timeout_s=0.2, timeout_per_s=0.0)

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any] | ItemError]:
        """One struct or error per row."""
        out = []
        for row in batch:
            out.append(
                misbehave(fault(row, "audio", row["clip"]["index"])) or {"value": 1.0 - row["clip"]["index"] % 2}
            )
        return out


class Sync(Measure[StageConfig]):
    """A second score, which some clips have not."""

    name, version, level, reads = "sync", "1", "clip", ("metadata", "clip", "audio.value")
    adds = struct(f("offset_ms", pa.float64(), unit="ms", doc="offset"))
    Config = StageConfig

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """One struct per row; nothing measured on the fault `unmeasured`."""
        misbehave(fault(batch[0], "sync", batch[0]["clip"]["index"]))
        return [
            {"offset_ms": None if fault(row, "sync", row["clip"]["index"]) == "unmeasured" else 10.0} for row in batch
        ]


class Duplicates(Collect[StageConfig]):
    """Sources whose metadata are the same."""

    name, version, level, reads = "duplicates", "1", "asset", ("download.asset_id",)
    adds = struct(
        f("first", pa.string(), doc="smallest source id with this asset"), f("is_first", pa.bool_(), doc="it")
    )
    Config = StageConfig

    def collect(self, rows: Any) -> Any:
        """One group-by."""
        import polars as pl

        known = rows.filter(pl.col("download.asset_id").is_not_null())
        first = pl.col("source_id").min().over("download.asset_id")
        return known.select("row_id", first=first, is_first=pl.col("source_id") == first)


class Late(Measure[StageConfig]):
    """A stage behind the Collect: how often it ran on a clip cannot be seen, that it ran can."""

    name, version, level, reads = "late", "1", "clip", ("metadata", "clip", "duplicates.first")
    adds = struct(f("of", pa.string(), doc="what the Collect said"))
    Config = StageConfig

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """One struct per row."""
        misbehave(fault(batch[0], "late", batch[0]["clip"]["index"]))
        return [{"of": row["duplicates"]["first"]} for row in batch]


class Shut(Measure[StageConfig]):
    """A stage that cannot start."""

    name, version, level, reads = "shut", "1", "clip", ("clip",)
    adds = struct(f("value", pa.float64(), doc="nothing"))
    Config = StageConfig

    def setup(self, ctx: Context) -> None:
        """Refuses."""
        raise EngineError("no key.")

    def process(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        """Never called."""
        raise NotImplementedError


CATALOG = {
    "download": "tests.pipeline.toy_stages:Download",
    "probe": "tests.pipeline.toy_stages:Probe",
    "shot_split": "tests.pipeline.toy_stages:ShotSplit",
    "clip": "tests.pipeline.toy_stages:Clip",
    "audio": "tests.pipeline.toy_stages:Audio",
    "sync": "tests.pipeline.toy_stages:Sync",
    "duplicates": "tests.pipeline.toy_stages:Duplicates",
    "late": "tests.pipeline.toy_stages:Late",
    "shut": "tests.pipeline.toy_stages:Shut",
}
RECIPE = {
    "name": "toy",
    "audit_fraction": 0.0,
    "stages": {name: {} for name in CATALOG if name != "shut"},
    "gates": {
        "probe": {"has_video": {"equals": True}},
        "audio": {"value": {"min": 0.5}},
        "sync": {"offset_ms": {"abs_max": 80}},
        "duplicates": {"is_first": {"equals": True}},
    },
}
