"""`match`: whether a clip's sound belongs to its picture, be it speech or not: onsets against motion, and what networks say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.spans import SPEECH_RATE_HZ
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources
from stages.match.asked import AskedNetworks, Judged
from stages.match.config import MatchConfig
from stages.match.evidence import EventWatch, OnsetEvidence, evidence_of

MATCH = struct(
    f("status", pa.string(), doc="measured, or why onset_agreement is null: no_sound, no_picture, too_short, too_few_frames, "
      "static_picture, no_onset", show="label"),
    f("onset_agreement", pa.float64(), doc="how far sounds set in where the picture moves, in standard deviations over what the "
      "same sound does moved elsewhere; 0 is chance", show="histogram"),
    f("num_onsets", pa.int32(), unit="count", doc="onsets of sounds heard"),
    f("imagebind", pa.float64(), unit="cosine", doc="ImageBind: picture against sound; null without its weights",
      show="histogram"),
    f("synchformer_offset_ms", pa.float64(), unit="ms", doc="Synchformer's likeliest offset, in steps of 200 ms, positive = "
      "sound late; null without its weights and under 4.8 s", show="histogram"),
    f("synchformer_in_sync", pa.float64(), unit="ratio", doc="its probability of 200 ms and less", show="histogram"),
    f("clap", pa.float64(), unit="cosine", doc="CLAP: sound against clap_text; null without its weights or a text",
      show="histogram"),
    f("clap_text", pa.string(), doc="what the sound was held against: caption.sound, else the kinds of sound.heard"),
)  # fmt: skip


class Match(Measure[MatchConfig]):
    """Whether a clip's sound belongs to its picture.

    Its own evidence needs no weights: events that are seen and heard, docs/quality.md says of which it tells. Whether a hum or
    music belongs to a picture only networks can say, which are asked where the recipe has paths for them.
    """

    name = "match"
    version = "1"
    level = "clip"
    reads = ("clip", "download.path", "probe.has_audio", "probe.has_video", "probe.width_px", "probe.height_px")
    adds = MATCH
    Config = MatchConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.2, timeout_s=600.0)

    @classmethod
    def may_read(cls, config: MatchConfig) -> tuple[str, ...]:
        """What the sound is said to be, where CLAP is asked."""
        return ("caption.sound", "sound.heard") if config.clap_path else ()

    @classmethod
    def watches(cls, config: MatchConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return (EventWatch,)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.networks = AskedNetworks(self.config, ctx)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        probe, path, span = row["probe"], self.ctx.asset_path(row), span_of(row["clip"])
        if not probe["has_audio"]:
            return asdict(OnsetEvidence("no_sound")) | asdict(Judged())
        if not probe["has_video"]:
            return asdict(OnsetEvidence("no_picture")) | asdict(Judged())
        seen = self.ctx.asset_pass.look(path, EventWatch).of(span)
        found = evidence_of(seen, self.ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ))
        if found.status in ("no_sound", "no_picture"):
            return asdict(found) | asdict(Judged())
        sides = probe["width_px"], probe["height_px"]
        return asdict(found) | asdict(self.networks.judge(path, span, max(sides) / min(sides), told_of_sound(row)))


def told_of_sound(row: Mapping[str, Any]) -> str | None:
    """What the sound of a clip is said to be: by its caption, else the kinds that were heard; None where nobody says."""
    if written := (row.get("caption") or {}).get("sound"):
        return str(written)
    kinds = dict.fromkeys(one["kind"] for one in (row.get("sound") or {}).get("heard") or () if one["kind"] != "other")
    return " and ".join(kinds) or None
