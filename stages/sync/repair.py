"""Repairing sync while a clip is cut: which clips, by how much, what is said where afterwards, and whether it helped.

Only the sound is moved; picture and clip bounds stay. What the move pushes over the clip's ends is no longer heard, so
spans, caption and timbre references follow. The written file is measured again by the recipe's own sync stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import ItemError
from schemas.records import Row, Struct, span_of
from schemas.spans import Reference, SpeechSpan
from schemas.stretches import Stretch, Timed
from schemas.timing import Span
from stages.base import Context, StageConfig
from stages.caption.stage import Caption, CaptionConfig
from stages.clip import ClipConfig, Talk, spans_within, spoken_fields
from stages.faces import faces_of
from stages.sync.config import SyncConfig, SyncRepair
from stages.sync.measure import measure
from stages.sync.peaks import IN_SYNC_S
from stages.sync.result import ActiveFace, Figures
from stages.sync.stage import Sync
from stages.timbre import reference_fields, references_of

T = TypeVar("T", bound=Timed)

REPAIRABLE = ("in_sync", "shifted", "drifting")
"""Findings that name an offset. `no_match` and `unclear` do not: moving strangers' sound makes nothing fit."""
CERTAIN_STD = 2.0
"""Standard deviations by which an offset or a drift must differ from none. Without it clips in sync would be moved by
the error of their measurement (20 ms and more), and drifts of up to 5 ms/s taken out of clips that have none."""
REPAIRED_WITHIN_MS = 1000 * IN_SYNC_S
"""Largest offset of a repaired clip: what `sync` itself calls in sync."""


@dataclass(frozen=True)
class Repair:
    """What is to be taken out of a clip's sound."""

    shift_ms: float
    """How late the sound is at the middle of the clip."""
    drift_ms_per_s: float
    """How much later it gets per second."""

    def heard_at(self, asset_s: float, span: Span) -> float:
        """Where on the asset clock a sound of `asset_s` is heard in the repaired clip `span`."""
        middle = float(span.start + span.end) / 2
        return middle + (asset_s - self.shift_ms / 1000 - middle) / (1 + self.drift_ms_per_s / 1000)

    def applied(self, said: T, span: Span) -> T:
        """`said` where it is heard in the repaired clip `span`; both on the asset clock."""
        return replace(said, start_s=self.heard_at(said.start_s, span), end_s=self.heard_at(said.end_s, span))


def repair_of(found: Figures | None, rule: SyncRepair) -> Repair | None:
    """What to take out of the sound of a clip of which sync found this; None where it is to stay as it is.

    Only lips are acted on: the offset of sound events is a hint (stages.sync.onset).
    """
    if not rule.enabled or found is None or found.kind != "speech" or found.finding not in REPAIRABLE:
        return None
    if found.offset_ms is None or found.offset_std_ms is None or (found.confidence or 0.0) < rule.min_confidence:
        return None
    drift, drift_std = found.drift_ms_per_s or 0.0, found.drift_std_ms_per_s or 0.0
    if abs(drift) < CERTAIN_STD * drift_std:
        drift = 0.0
    if not drift and abs(found.offset_ms) < max(rule.min_offset_ms, CERTAIN_STD * found.offset_std_ms):
        return None
    return Repair(found.offset_ms, drift)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a clip's stages say that hangs on its sound, by index of the span."""

    spans: Sequence[SpeechSpan]
    active: Sequence[ActiveFace] = ()
    references: Sequence[Reference] = ()

    @classmethod
    def of(cls, row: Row) -> Told:
        """What is told in a clip's row; stages that were not run tell nothing."""
        return cls(
            spans=SpeechSpan.all_of(row["clip"]["spans"]),
            active=[ActiveFace(**face) for face in (row.get("sync") or {}).get("active") or ()],
            references=references_of(row),
        )

    def after(self, repair: Repair, talk: Talk, span: Span) -> Told:
        """What holds once the sound of the clip `span` is repaired, of `talk`, the asset's.

        A word belongs to the clip if its middle does. Words that come in at an end are added; of whom nobody saw a face.
        """
        spans: list[SpeechSpan] = []
        new_index: dict[int, int] = {}
        num_before = 0
        overlaps = [repair.applied(overlap, span) for overlap in talk.overlaps]
        for utterance in talk.utterances:
            before = spans_within(span, [utterance], talk.overlaps)
            heard = [repair.applied(word, span) for word in utterance]
            after = spans_within(span, [heard], overlaps)
            if before and after:
                new_index[num_before] = len(spans)
            spans += after
            num_before += len(before)
        kept = {new_index[face.span_index]: face for face in self.active if face.span_index in new_index}
        return Told(
            spans=spans,
            active=[replace(kept.get(index, ActiveFace(index)), span_index=index) for index in range(len(spans))],
            references=[
                replace(reference, span_index=new_index[reference.span_index])
                for reference in self.references
                if reference.span_index in new_index
            ],
        )


@dataclass(frozen=True)
class Repaired:
    """A clip whose sound is to be moved."""

    restated: Mapping[str, Struct | None]
    """What other stages' columns say of what is heard afterwards: spans, active faces, references, caption. Null where the
    stage has not looked, or where what it said still holds."""
    repair: Repair
    spans: Sequence[SpeechSpan]
    """What is heard then, on the clip clock."""
    references: Sequence[Reference]
    speech: Sequence[Stretch] | None
    """Where anybody is heard then, on the clip clock; None if nobody looked."""


def repaired_clip(row: Row, rule: SyncRepair, configs: Mapping[str, StageConfig]) -> Repaired | None:
    """What repair makes of a clip; None where it is to stay as it is.

    `row` is the clip's with its asset's columns as far as their stages were run, `configs` are the recipe's stages.
    """
    measured = row.get("sync")
    repair = repair_of(None if measured is None else Figures.of(measured), rule)
    return None if repair is None else with_moved_sound(row, repair, configs)


def with_moved_sound(row: Row, repair: Repair, configs: Mapping[str, StageConfig]) -> Repaired:
    """The clip as it is after `repair`."""
    span, config = span_of(row["clip"]), configs.get("clip")
    talk = Talk.of(row, config.pause_s if isinstance(config, ClipConfig) else ClipConfig().pause_s)
    before = Told.of(row)
    after = before.after(repair, talk, span)
    spoken = spoken_fields(after.spans)
    active = [asdict(face) for face in after.active]
    is_quoted = [span.text for span in before.spans] == [span.text for span in after.spans]
    restated: dict[str, Struct | None] = {
        "clip": spoken,
        "sync": None if row.get("sync") is None else {"active": active},
        "timbre": None if row.get("timbre") is None else reference_fields(after.references, len(after.spans)),
        "caption": None,
    }
    if row.get("caption") is not None and not is_quoted:
        now = {**row, "clip": {**row["clip"], **spoken}, "sync": {**(row.get("sync") or {}), "active": active}}
        restated["caption"] = _new_caption(now, configs["caption"])
    told, origin_s = (row.get("transcribe") or {}).get("speech"), float(span.start)
    speech = None if told is None else [repair.applied(s, span).moved(-origin_s) for s in Stretch.all_of(told)]
    return Repaired(restated, repair, after.spans, after.references, speech)


def _new_caption(clip: Row, config: StageConfig) -> dict[str, Any]:
    """A caption from the measures, whatever engine wrote the one that quotes what is no longer heard."""
    template = config.model_copy(update={"engine": "template"})
    assert isinstance(template, CaptionConfig)
    return Caption(template).measure({name: clip.get(name) for name in ("clip", "picture", "audio", "sync")})


class Remeasure:
    """Measures written clips as the recipe's sync stage does; its models are loaded when first needed."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def _stage(self) -> Sync:
        config = self._context.configs["sync"].model_copy(update={"device": "cpu"})  # cutting asks for no GPU
        assert isinstance(config, SyncConfig)
        stage = Sync(config)
        stage.setup(self._context)
        return stage

    def __call__(self, path: Path, clip: Repaired) -> Figures:
        """What sync finds of the repaired clip written to `path`. Raises ItemError if it is still not in sync."""
        media, stage = self._context.media, self._stage
        probe = media.probe(path, picture=self._context.asset_pass.seen(path).picture)
        written = Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"])
        seen = faces_of(self._context, path, written, crop_px=stage.engine.crop_px)
        sound = media.audio(path, is_kept=False) if probe["has_audio"] else None  # the asset's stays for the next clip
        found = measure(seen, sound, clip.speech, clip.spans, stage.engine, stage.config).figures
        offset = math.inf if found.offset_ms is None else abs(found.offset_ms)
        if offset > REPAIRED_WITHIN_MS or found.finding in ("no_match", "drifting"):
            raise ItemError(
                f"{path.stem}: after moving its sound by {-clip.repair.shift_ms:+.0f} ms sync measures "
                f"{found.finding or found.status}, {found.offset_ms} ms; expected within +-{REPAIRED_WITHIN_MS:g} ms.",
                reason="sync_not_repaired",
                remedy="Raise stages.cut.sync_repair.min_confidence, or set stages.cut.sync_repair.enabled=false.",
            )
        return found
