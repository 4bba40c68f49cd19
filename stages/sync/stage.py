"""`sync`: how late the sound is, how sure that is, and which of the faces seen speaks each span.

Offsets are measured on real timestamps and stored; nothing is judged or repaired here. Positive = sound late. What
cannot be measured is null, with the reason in `status`: a still photograph never passes for somebody talking in sync.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.fields import f, struct
from schemas.records import ACTIVE_FACE, SYNC_DISTANCES, SYNC_WINDOW, Row, span_of
from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources
from stages.faces import faces_of, load_networks, watched_faces
from stages.sync.config import SyncConfig
from stages.sync.engine import SyncEngine
from stages.sync.measure import measure
from stages.sync.mouth import MouthEngine


class Sync(Measure[SyncConfig]):
    """Offset of sound against picture per clip, and the speaking face per span."""

    name = "sync"
    version = "7"
    level = "clip"
    reads = ("clip", "download.path", "probe.has_audio", "transcribe.speech", "faces.tracks")
    adds = struct(
        f("kind", pa.string(), doc="what the offset rests on: speech (lips), event (motion against onsets) or none"),
        f("engine", pa.string(), doc="mouth, syncnet or onset; null where nothing was measured"),
        f(
            "status",
            pa.string(),
            doc="measured, or why not: too_short, no_face, no_sound, too_few_frames, static_picture, still_mouth",
            show="label",
        ),
        f("finding", pa.string(), doc="in_sync, shifted, drifting, no_match (not this face or sound) or unclear"),
        f(
            "offset_ms",
            pa.float64(),
            unit="ms",
            doc="positive = sound late; null if it could not be measured",
            show="histogram",
        ),
        f("offset_std_ms", pa.float64(), unit="ms", doc="standard deviation of offset_ms"),
        f(
            "confidence",
            pa.float64(),
            doc="how far the offset stands out; of 100 lips with 4 and more 95 are right within 80 ms",
            show="histogram",
        ),
        f("agreement", pa.float64(), doc="the same within 80 ms of no offset: high only if in sync as it is"),
        f("drift_ms_per_s", pa.float64(), unit="ms/s", doc="change of the offset; null for clips under 8 s"),
        f("drift_std_ms_per_s", pa.float64(), unit="ms/s", doc="standard deviation of the drift"),
        f("active", pa.list_(ACTIVE_FACE), doc="one per clip.spans: who speaks it", show="span"),
        f("windows", pa.list_(SYNC_WINDOW), doc="the same measurement in windows of the clip"),
        f(
            "distances",
            pa.list_(SYNC_DISTANCES),
            doc="under engine syncnet its raw distances, one per face that is seen while somebody speaks",
            in_shard=False,
        ),
        f("curve_lags_ms", pa.list_(pa.float32()), unit="ms", doc="offsets of the curve"),
        f(
            "curve",
            pa.list_(pa.float32()),
            doc="agreement at each offset, in standard deviations over the mean",
            show="curve",
            over="curve_lags_ms",
        ),
    )
    Config = SyncConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.3, timeout_s=900.0)

    @classmethod
    def watches(cls, config: SyncConfig, ctx: Context) -> Wish:
        """The watch of stage `faces`."""
        return watched_faces(ctx)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        load_networks(ctx)
        self.engine = ctx.model(make_engine, self.config)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        path, told = self.ctx.asset_path(row), (row.get("transcribe") or {}).get("speech")
        seen = faces_of(self.ctx, path, span_of(row["clip"]), crop_px=self.engine.crop_px)
        sound = self.ctx.media.audio(path) if row["probe"]["has_audio"] else None
        speech = None if told is None else Stretch.all_of(told)
        spans = SpeechSpan.all_of(row["clip"]["spans"])
        return measure(seen, sound, speech, spans, self.engine, self.config).struct()


def make_engine(config: SyncConfig) -> SyncEngine:
    """The engine a recipe asks for, with its weights."""
    if config.engine == "syncnet":
        from stages.sync.syncnet import SyncNetEngine

        return SyncNetEngine(config.weights_path, config.device)
    return MouthEngine(config.max_offset_s)
