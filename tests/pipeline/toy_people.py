"""Toy stages of people and of media, so that a whole run with shards, voices and faces costs no decoding.

A source's metadata names who is heard and seen: `{"voices": {"A": 3}, "faces": [5]}` is person 3 speaking as A, and face 5
in every clip. Person n has the same vector everywhere, but for noise that the source decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.cut_file import CUT, CutMedia, cut_file, payload_of
from schemas.fields import f, struct
from schemas.files import write_whole
from schemas.ids import digest, source_id
from schemas.lines import marked, plain_line
from schemas.records import Row, Source
from schemas.spans import Hearing, SpeechSpan, Word
from stages.base import Collect, Measure, StageConfig
from stages.cut import flac_of
from tests.pipeline import toy_stages

NUM = 16
EMBEDDING = pa.list_(pa.float32())
LANGUAGES = ("en", "zh", "en", "de")


def vector_of(person: int, salt: str, noise: float = 0.02) -> list[float]:
    """float [16], unit length."""
    own, other = np.random.default_rng(person), np.random.default_rng(int(digest(salt, person), 16) % 2**32)
    vector = own.normal(size=NUM)
    vector = vector / np.linalg.norm(vector) + other.normal(scale=noise, size=NUM)
    told: list[float] = (vector / np.linalg.norm(vector)).astype(np.float32).tolist()
    return told


def person_source(name: str, *, voices: dict[str, int], faces: Sequence[int], **facts: Any) -> Source:
    """A source of 4 s in two shots of two clips each."""
    told = {"frames": 100, "shot": 50, "clip": 25, "voices": voices, "faces": list(faces), "name": name} | facts
    return Source(source_id=source_id(name), uri=name, metadata=json.dumps(told), licence=facts.get("licence"))


class PeopleProbe(Measure[StageConfig]):
    """Reads the length out of the metadata; everything has picture and sound unless it says `sound_only`."""

    name, version, level, reads = "probe", "1", "asset", ("metadata",)
    adds = struct(
        f("duration_us", pa.int64(), unit="us", doc="length"),
        f("has_video", pa.bool_(), doc="has a picture"),
        f("has_audio", pa.bool_(), doc="has sound"),
        f("width_px", pa.int32(), unit="px", doc="width"),
    )
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one source."""
        fact = json.loads(row["metadata"])
        has_video = not fact.get("sound_only", False)
        return {"duration_us": fact["frames"] * 40_000, "has_video": has_video, "has_audio": True, "width_px": 64}


class Voices(Measure[StageConfig]):
    """Who speaks in a source."""

    name, version, level, reads = "voices", "1", "asset", ("uri", "metadata")
    adds = struct(
        f("speakers", pa.list_(struct(
            f("speaker", pa.string(), doc="label"),
            f("embedding", EMBEDDING, doc="voice", private=True, means="voice"),
        )), doc="who"),
    )  # fmt: skip
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one source."""
        told = json.loads(row["metadata"])["voices"]
        return {"speakers": [{"speaker": k, "embedding": vector_of(n, row["uri"])} for k, n in told.items()]}


class Faces(Measure[StageConfig]):
    """Who is seen in a clip, and what kind of clip it is."""

    name, version, level, reads = "faces", "1", "clip", ("uri", "metadata", "clip")
    adds = struct(
        f("tracks", pa.list_(struct(
            f("track", pa.int32(), doc="number"),
            f("embedding", EMBEDDING, doc="face", private=True, means="face"),
        )), doc="who"),
        f("kind", pa.string(), doc="class of the clip", show="label"),
        f("language", pa.string(), doc="language", show="label"),
        f("score", pa.float64(), doc="how good", show="histogram"),
    )  # fmt: skip
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        fact, name = json.loads(row["metadata"]), row["clip"]["clip_id"]
        tracks = [{"track": at, "embedding": vector_of(100 + n, name)} for at, n in enumerate(fact["faces"])]
        place = int(name[1:6], 16)
        return {
            "tracks": tracks,
            "kind": "music" if place % 3 == 0 else "speech",
            "language": fact.get("language", "en"),
            "score": place % 100 / 100,
        }


class TalkClip(toy_stages.Clip):
    """Equal clips in which somebody says two words, where the source says so."""

    def split(self, row: Row) -> list[dict[str, Any]]:
        """The clips of one shot."""
        said = json.loads(row["metadata"]).get("says")
        words = (Word("good", 0.1, 0.3, 0.9), Word(str(said), 0.4, 0.8, 0.5))
        span = SpeechSpan(
            start_s=0.1, end_s=0.8, text=f"good {said}", speaker="A", hearing=Hearing(language="en"), words=words
        )
        spoken = {"spans": [span.row()], "has_speech": True, "num_speakers": 1, "language": "en"} if said else {}
        return [clip | spoken for clip in super().split(row)]


class Written(Measure[StageConfig]):
    """What the clip is trained with."""

    name, version, level, reads = "written", "1", "clip", ("clip",)
    adds = struct(f("text", pa.string(), doc="caption", means="text"))
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        lines = [marked(plain_line(span["text"])) for span in row["clip"]["spans"]]
        return {"text": " ".join(["Somebody says:", *lines]) if lines else None}


class Prints(Measure[StageConfig]):
    """What clips are recognised by: those of sources that show the same have the same."""

    name, version, level, reads = "prints", "1", "clip", ("metadata", "clip")
    adds = struct(
        f("at", EMBEDDING, unit="s", doc="times", means="picture_times"),
        f("seen", pa.list_(pa.int64()), doc="pictures", means="picture_prints"),
        f("heard", pa.list_(pa.int32()), doc="sound", means="sound_prints"),
        in_shard=False,
        private=True,
    )
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip: four seconds of it, for a second is too short to tell anything by."""
        fact, place = json.loads(row["metadata"]), row["clip"]["asset_start_s"]
        seen, heard = (
            np.random.default_rng(int(digest(what, fact.get(what, fact["name"]), place), 16) % 2**32)
            for what in ("shows", "sounds")
        )
        return {
            "at": [0.25 * at for at in range(16)],
            "seen": np.repeat(seen.integers(0, 2**63, 16), 6).tolist(),
            "heard": heard.integers(1, 2**31, 90).tolist(),
        }


class Alike(Collect[StageConfig]):
    """Clips of sources that say they are alike: the smallest id stands for all, and others name it."""

    name, version, level, reads = "alike", "1", "clip", ("probe.duration_us",)
    adds = struct(f("group", pa.string(), doc="clip that stands for all"))
    Config = StageConfig

    def collect(self, rows: Any) -> Any:
        """Every clip names the first one of all."""
        import polars as pl

        return rows.select("row_id").unique().with_columns(group=pl.col("row_id").min())


class Cutting(Measure[StageConfig]):
    """Leaves bytes that the clip's id decides, as if they were media."""

    name, version, level, reads = "cut", "1", "clip", ("clip",)
    adds = struct(*CUT)
    Config = StageConfig
    skips_rejected = True

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        name = row["clip"]["clip_id"]
        noise = np.random.default_rng(int(name[1:9], 16))
        sound = np.zeros((48_000, 2), np.float32)
        sound[int(name[1:5], 16) % 48_000] = 0.5
        members = {"mp4": noise.bytes(900), "flac": flac_of(sound), "refs.flac": noise.bytes(40)}
        cuts = Path(self.ctx.cuts_dir)
        write_whole(cuts / cut_file(name, self.ctx.hashes[self.name]), payload_of(members))
        facts = {"mode": "copy", "width_px": 64, "height_px": 64, "num_frames": 25, "references": []}
        return dict.fromkeys(field.name for field in CUT) | facts | CutMedia.over(members).row()


CATALOG = {
    **{name: toy_stages.CATALOG[name] for name in ("download", "shot_split")},
    "clip": "tests.pipeline.toy_people:TalkClip",
    "probe": "tests.pipeline.toy_people:PeopleProbe",
    "voices": "tests.pipeline.toy_people:Voices",
    "faces": "tests.pipeline.toy_people:Faces",
    "alike": "tests.pipeline.toy_people:Alike",
    "prints": "tests.pipeline.toy_people:Prints",
    "written": "tests.pipeline.toy_people:Written",
    "cut": "tests.pipeline.toy_people:Cutting",
}
RECIPE: dict[str, Any] = {
    "name": "people",
    "audit_fraction": 0.0,
    "stages": {
        name: {}
        for name in ("download", "probe", "shot_split", "clip", "voices", "faces", "prints", "written", "alike", "cut")
    },
    "gates": {"faces": {"score": {"min": 0.1}}},
    "pack": {"target_shard_mb": 0.004},
}
