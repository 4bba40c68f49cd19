"""`probe`: what an asset holds, measured by reading all of it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.fields import f, struct
from schemas.records import Row
from stages.base import Measure, Resources, StageConfig

ADDS = struct(
    f("container", pa.string(), doc="container format, told from the content, not from the file name"),
    f(
        "duration_us",
        pa.int64(),
        unit="us",
        doc="length of the picture's timeline, or of the sound where there is no picture; by packets, not by header",
    ),
    f("has_video", pa.bool_(), doc="at least one frame of a moving picture can be decoded"),
    f("has_audio", pa.bool_(), doc="at least one sample of sound can be decoded"),
    f("video_stream", pa.int32(), doc="stream used: largest picture that is not a cover, then the default one"),
    f(
        "audio_stream",
        pa.int32(),
        doc="stream used, the first of several; of the picture's program (see stages.media.choose)",
    ),
    f("audio_streams", pa.list_(pa.int32()), doc="streams heard as one: mono tracks of one recording are mixed"),
    f("audio_language", pa.string(), doc="language the stream is tagged with; null if it is not"),
    f("audio_title", pa.string(), doc="title of the stream"),
    f(
        "audio_ignored",
        pa.list_(pa.string()),
        doc="sound in the file that is not used: stream, language, title, codec, channels",
    ),
    f("video_codec", pa.string(), doc="codec of the picture"),
    f("width_px", pa.int32(), unit="px", doc="width as shown: turned, with square pixels"),
    f("height_px", pa.int32(), unit="px", doc="height as shown"),
    f("coded_width_px", pa.int32(), unit="px", doc="width as stored"),
    f("coded_height_px", pa.int32(), unit="px", doc="height as stored"),
    f("sar", pa.float64(), unit="ratio", doc="width of a stored pixel over its height"),
    f("rotation_deg", pa.int32(), unit="deg", doc="clockwise turn that makes the stored picture upright"),
    f("fps", pa.float64(), unit="1/s", doc="mean frame rate over the timeline"),
    f("is_vfr", pa.bool_(), doc="frame lengths vary by more than clock rounding, dropped frames included"),
    f("num_frames", pa.int32(), unit="count", doc="frames shown, those hidden by edit lists not counted"),
    f("video_start_pts", pa.int64(), unit="time base", doc="pts of the first frame"),
    f("video_end_pts", pa.int64(), unit="time base", doc="pts after the last frame"),
    f("tb_num", pa.int64(), unit="s", doc="time base of the picture, numerator"),
    f("tb_den", pa.int64(), unit="1/s", doc="time base of the picture, denominator"),
    f("video_start_s", pa.float64(), unit="s", doc="first frame on the asset clock"),
    f("audio_start_s", pa.float64(), unit="s", doc="first audible sample on the asset clock, codec priming removed"),
    f("audio_end_s", pa.float64(), unit="s", doc="end of the last sample on the asset clock"),
    f("audio_codec", pa.string(), doc="codec of the sound"),
    f("audio_rate_hz", pa.int32(), unit="hz", doc="sampling rate as stored"),
    f("audio_channels", pa.int32(), unit="count", doc="channels as stored"),
    f("audio_layout", pa.string(), doc="channel layout: mono, stereo, 5.1, ..."),
    f("audio_gap_s", pa.float64(), unit="s", doc="holes between packets, filled with silence by timestamp"),
    f(
        "reshaped_pts",
        pa.list_(pa.int64()),
        unit="time base",
        doc="pts from which on the picture has another size, turn or pixel aspect; shots end there",
    ),
    f(
        "clock_restarts",
        pa.int32(),
        unit="count",
        doc="places where the file's clock begins anew, and time was let go on",
    ),
    f("is_interlaced", pa.bool_(), doc="most frames hold two fields"),
    f("is_hdr", pa.bool_(), doc="tagged with an HDR curve (PQ or HLG); not tone-mapped by anything here"),
    f("color_transfer", pa.string(), doc="transfer curve the picture is tagged with; null if untagged"),
    f("num_video_streams", pa.int32(), unit="count", doc="video streams, cover pictures included"),
    f("num_audio_streams", pa.int32(), unit="count", doc="sound streams"),
    f(
        "damaged_packets",
        pa.int32(),
        unit="count",
        doc="packets unreadable, undecodable, flagged corrupt, out of time order or before the first whole frame",
    ),
)


class ProbeConfig(StageConfig):
    """How thoroughly an asset is read."""

    decode: bool = True
    """Decode everything once, so that damage is found and frames are counted by what is shown. False reads packets only:
    some ten times cheaper, blind to damage inside them."""


class Probe(Measure[ProbeConfig]):
    """Streams, exact timelines, geometry and damage of an asset. A file nobody can decode raises MediaError."""

    name = "probe"
    version = "2"
    level = "asset"
    reads = ("download.path",)
    adds = ADDS
    Config = ProbeConfig
    resources = Resources(cpus=1.0, memory_gb=0.1)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one asset. Raises the MediaError it runs into.

        The asset pass decodes for it, so that all look on who come later; what will be turned away is not shown to them.
        """
        path, media = self.ctx.asset_path(row), self.ctx.media
        told = media.probe(path, decode=False)
        if not self.config.decode:
            return told
        if not self.ctx.admits(self.name, told):
            return media.probe(path)
        return media.probe(path, picture=self.ctx.asset_pass.seen(path).picture, keeps_sound=True)
