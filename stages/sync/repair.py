"""Repairing sync while packing: which clips, by how much, what is said where afterwards, and whether it helped.

Only the sound is moved; picture and clip bounds stay. What the move pushes over the clip's ends is no longer heard, so
spans, caption and timbre references follow. The written file is measured again by the recipe's own sync stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import Recipe, SyncRepair
from schemas.errors import ItemError
from schemas.records import span_of
from schemas.spans import SpeechSpan
from schemas.stretches import Stretch, Timed
from schemas.timing import Span
from stages.base import Context
from stages.sync.config import SyncConfig
from stages.sync.measure import measure
from stages.sync.stage import Sync

T = TypeVar("T", bound=Timed)

REPAIRABLE = ("in_sync", "shifted", "drifting")
"""Findings that name an offset. `no_match` and `unclear` do not: moving strangers' sound makes nothing fit."""
CERTAIN_STD = 2.0
"""Standard deviations by which an offset or a drift must differ from none. Without it clips in sync would be moved by
the error of their measurement (20 ms and more), and drifts of up to 5 ms/s taken out of clips that have none."""
REPAIRED_WITHIN_MS = 80.0
"""Largest offset of a repaired clip: what `sync` itself calls in sync (stages.sync.mouth.IN_SYNC_S)."""


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
        """`said` on the asset clock where it is heard in the repaired clip `span`."""
        return replace(said, start_s=self.heard_at(said.start_s, span), end_s=self.heard_at(said.end_s, span))


def repair_of(sync: Mapping[str, Any] | None, rule: SyncRepair) -> Repair | None:
    """What to take out of the sound of a clip that measured `sync`; None where it is to stay as it is.

    Only lips are acted on: the offset of sound events is a hint (stages.sync.onset).
    """
    if not rule.enabled or sync is None or sync["kind"] != "speech" or sync["finding"] not in REPAIRABLE:
        return None
    if sync["confidence"] < rule.min_confidence:
        return None
    drift, drift_std = sync["drift_ms_per_s"], sync["drift_std_ms_per_s"]
    if drift is None or abs(drift) < CERTAIN_STD * drift_std:
        drift = 0.0
    if not drift and abs(sync["offset_ms"]) < max(rule.min_offset_ms, CERTAIN_STD * sync["offset_std_ms"]):
        return None
    return Repair(float(sync["offset_ms"]), float(drift))


def with_moved_sound(clip: dict[str, Any], repair: Repair, recipe: Recipe) -> dict[str, Any]:
    """The row of `clip` as it is after `repair`: spans, active faces, references and caption of what is heard then.

    A word belongs to the clip if its middle does. Words that come in at an end are added, from the asset's transcript.
    """
    spans, came_from = _moved_spans(clip, repair, recipe)
    own = clip["clip"] | {
        "spans": spans,
        "has_speech": bool(spans),
        "num_speakers": len({span["speaker"] for span in spans} - {None}),
    }
    moved = clip | {"clip": own}
    new_index = {old: new for new, old in enumerate(came_from) if old is not None}
    if clip.get("sync") is not None:
        unknown = {"status": "unknown", "track": None, "score": None}
        known = {
            new_index[item["span_index"]]: item
            for item in clip["sync"]["active"] or ()
            if item["span_index"] in new_index
        }
        active = [known.get(index, unknown) | {"span_index": index} for index in range(len(spans))]
        moved["sync"] = clip["sync"] | {"active": active}
    if clip.get("timbre") is not None:
        moved["timbre"] = _moved_references(clip["timbre"], new_index, len(spans))
    said = [span["text"] for span in clip["clip"]["spans"] or ()]
    if clip.get("caption") is not None and said != [span["text"] for span in spans]:
        moved["caption"] = _new_caption(moved, recipe)
    return moved


def _moved_spans(clip: dict[str, Any], repair: Repair, recipe: Recipe) -> tuple[list[dict[str, Any]], list[int | None]]:
    """(spans heard in the repaired clip, for each the index of the span it was before or None)."""
    from stages.clip import ClipConfig, Talk, spans_within

    span = span_of(clip["clip"])
    config = recipe.stage_configs().get("clip")
    pause_s = config.pause_s if isinstance(config, ClipConfig) else ClipConfig().pause_s
    talk = Talk.of(clip["asset"], pause_s)
    moved_overlaps = [_heard(overlap, repair, span) for overlap in talk.overlaps]
    spans: list[dict[str, Any]] = []
    came_from: list[int | None] = []
    num_before = 0
    for utterance in talk.utterances:
        before = spans_within(span, [utterance], talk.overlaps, talk.language)
        heard = [_heard(word, repair, span) for word in utterance]
        after = spans_within(span, [heard], moved_overlaps, talk.language)
        if after:
            spans += [found.row() for found in after]
            came_from.append(num_before if before else None)
        num_before += len(before)
    return spans, came_from


def _heard(said: T, repair: Repair, span: Span) -> T:
    """`said` where it is heard in the repaired clip, on the asset clock."""
    return replace(said, start_s=repair.heard_at(said.start_s, span), end_s=repair.heard_at(said.end_s, span))


def _moved_references(timbre: Mapping[str, Any], new_index: Mapping[int, int], num_spans: int) -> dict[str, Any]:
    references = [
        item | {"span_index": new_index[item["span_index"]]}
        for item in timbre["references"] or ()
        if item["span_index"] in new_index
    ]
    crossed = [item for item in references if not item["is_same_span"]]
    return {
        **timbre,
        "references": references,
        "num_cross_utterance": len(crossed),
        "num_same_span": len(references) - len(crossed),
        "num_missing": num_spans - len(references),
    }


def _new_caption(clip: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A caption from the measures, whatever engine wrote the one that quotes what is no longer heard."""
    from stages.caption.stage import Caption, CaptionConfig

    config = recipe.stage_configs()["caption"].model_copy(update={"engine": "template"})
    assert isinstance(config, CaptionConfig)
    row = {name: clip.get(name) for name in ("clip", "picture", "audio", "sync")}
    (written,) = Caption(config).process([row])
    if isinstance(written, ItemError):
        raise written
    return written


class Remeasure:
    """Measures written clips with the recipe's own sync stage, which is loaded when first needed."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        self._recipe, self._context = recipe, context

    @cached_property
    def _stage(self) -> Sync:
        config = self._recipe.stage_configs()["sync"].model_copy(update={"device": "cpu"})  # packing asks for no GPU
        assert isinstance(config, SyncConfig)
        stage = Sync(config)
        stage.setup(self._context)
        return stage

    def __call__(self, path: Path, clip: dict[str, Any], repair: Repair) -> dict[str, Any]:
        """The `sync` struct of the repaired clip written to `path`. Raises ItemError if it is still not in sync."""
        probe, span = self._context.media.probe(path), span_of(clip["clip"])
        told = (clip["asset"].get("transcribe") or {}).get("speech")
        origin = float(span.start)
        speech = None if told is None else [repair.applied(s, span).moved(-origin) for s in Stretch.all_of(told)]
        written = Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"])
        stage = self._stage
        seen = stage.watch.look(path, written, crop_px=stage.engine.crop_px)
        sound = self._context.media.audio(path) if probe["has_audio"] else None
        spans = SpeechSpan.all_of(clip["clip"]["spans"])
        found = measure(seen, sound, speech, spans, stage.engine, stage.config).struct()
        offset = math.inf if found["offset_ms"] is None else abs(found["offset_ms"])
        if offset > REPAIRED_WITHIN_MS or found["finding"] in ("no_match", "drifting"):
            raise ItemError(
                f"clip {clip['row_id']}: after moving its sound by {-repair.shift_ms:+.0f} ms sync measures "
                f"{found['finding'] or found['status']}, {found['offset_ms']} ms; expected within +-{REPAIRED_WITHIN_MS:g} ms.",
                reason="sync_not_repaired",
                remedy="Raise sync_repair.min_confidence, or set sync_repair.enabled=false.",
            )
        return found
