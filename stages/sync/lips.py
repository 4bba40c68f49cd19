"""The lips of a clip against its sound: the offset they agree on, who speaks when, windows, drift and the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.sync.active import Mouth, assign
from stages.sync.engine import SyncEngine
from stages.sync.peaks import IN_SYNC_S, SURE, Peak, find_drift
from stages.sync.result import ActiveFace, Finding, Offset, SyncResult, SyncWindow, nobody_known

Array = NDArray[Any]

STILL_MOUTH = 0.003
"""Standard deviation of the mouth opening over a clip, in eye distances, that no speaker stays below."""
DRIFT_FROM_S = 8.0
"""Shortest clip whose drift is measured: 5 ms/s makes 40 ms in it, one frame."""
NO_MATCH = 2.8
"""Confidence below which a moving mouth and audible speech of `NO_MATCH_FROM_S` are called strangers."""
NO_MATCH_FROM_S = 5.0
TURN_PAD_S = 0.25
"""Taken in around the spans of a dialog, so that short ones have a curve."""
LEAST_PART_S = 0.5
"""Least of a window that a face must speak to be counted in it."""


@dataclass(frozen=True)
class MouthPart:
    """A stretch of the asset clock in which one face is held against the sound."""

    mouth: Mouth
    start_s: float
    end_s: float


def judge_lips(
    mouths: Sequence[Mouth],
    spans: Sequence[SpeechSpan],
    engine: SyncEngine,
    window_s: float,
    clip: Stretch,
    seen_s: Mapping[int, Array],
) -> SyncResult:
    """What the mouths of a spoken clip, a stretch of the asset clock, say about its sound; `seen_s` as for `assign`."""
    if not mouths:
        return SyncResult(status="no_face", kind="speech", active=nobody_known(len(spans)))
    moving = [mouth for mouth in mouths if mouth.stir(clip.start_s, clip.end_s) >= STILL_MOUTH]
    if not moving:
        return SyncResult(status="still_mouth", kind="speech", active=assign(spans, mouths, clip.start_s, 0.0, seen_s))
    lags = moving[0].evidence.lags_s
    peaks = [
        engine.peak(mouth.evidence.curve(clip.start_s, clip.end_s), lags, mouth.evidence.seen_s) for mouth in moving
    ]
    best = int(np.argmax([peak.height for peak in peaks]))
    sure_offset_s = peaks[best].offset_s if peaks[best].height > SURE else 0.0
    active = assign(spans, mouths, clip.start_s, sure_offset_s, seen_s)
    parts = _speaking(active, spans, mouths, moving[best], clip)
    curve = _joined(parts)
    heard_s = _heard_s(parts)
    found = engine.peak(curve, lags, heard_s)
    if found.height <= 0:
        return SyncResult(status="no_face", kind="speech", active=active)
    windows = _windows(parts, engine, lags, window_s, clip)
    drift = _drift(windows, lags, found, clip)
    return SyncResult(
        status="measured",
        kind="speech",
        engine=engine.name,
        finding=_finding(found, drift, heard_s),
        offset=Offset(found, curve, lags),
        drift=drift,
        windows=[window for window, _ in windows],
        active=active,
    )


def _speaking(
    active: Sequence[ActiveFace], spans: Sequence[SpeechSpan], mouths: Sequence[Mouth], best: Mouth, clip: Stretch
) -> list[MouthPart]:
    """Which face to hold against the sound when: the speaking one of each span, or one throughout."""
    of_track = {mouth.track: mouth for mouth in mouths}
    speaking = {face.track for face in active if face.track is not None}
    if len(speaking) < 2:
        return [MouthPart(of_track[speaking.pop()] if speaking else best, clip.start_s, clip.end_s)]
    parts = []
    for face, span in zip(active, spans, strict=True):
        if face.track is not None:
            low_s = max(clip.start_s, clip.start_s + span.start_s - TURN_PAD_S)
            high_s = min(clip.end_s, clip.start_s + span.end_s + TURN_PAD_S)
            parts.append(MouthPart(of_track[face.track], low_s, high_s))
    return parts


def _heard_s(parts: Sequence[MouthPart]) -> float:
    """How long speaking faces are seen in all."""
    return sum(min(part.mouth.evidence.seen_s, part.end_s - part.start_s) for part in parts)


def _joined(parts: Sequence[MouthPart]) -> Array:
    """Mean curve [lags] of the parts, each by its length."""
    lengths = np.array([part.end_s - part.start_s for part in parts])
    curves = np.stack([part.mouth.evidence.curve(part.start_s, part.end_s) for part in parts])
    return np.asarray((curves * lengths[:, None]).sum(0) / lengths.sum())


def _windows(
    parts: Sequence[MouthPart], engine: SyncEngine, lags: Array, window_s: float, clip: Stretch
) -> list[tuple[SyncWindow, Array]]:
    """The measurement repeated in half-overlapping windows, each with its curve [lags]."""
    start_s, end_s = clip.start_s, clip.end_s
    count = max(1, int(np.ceil((end_s - start_s) / window_s * 2 - 1 - 1e-6)))
    length = (end_s - start_s) if count == 1 else window_s
    out = []
    for low in np.linspace(start_s, end_s - length, count):
        high = low + length
        inside = [MouthPart(part.mouth, max(part.start_s, low), min(part.end_s, high)) for part in parts]
        inside = [part for part in inside if part.end_s - part.start_s > LEAST_PART_S]
        if not inside:
            continue
        curve = _joined(inside)
        found = engine.peak(curve, lags, _heard_s(inside))
        if found.height > 0:
            window = SyncWindow(float(low - start_s), float(high - start_s), 1000 * found.offset_s, found.height)
            out.append((window, curve))
    return out


def _drift(
    windows: Sequence[tuple[SyncWindow, Array]], lags: Array, found: Peak, clip: Stretch
) -> tuple[float, float] | None:
    """(seconds per second, standard deviation); None for short clips and those with too few windows."""
    if clip.duration_s < DRIFT_FROM_S or len(windows) < 3:
        return None
    centres = np.array([clip.start_s + (window.start_s + window.end_s) / 2 for window, _ in windows])
    return find_drift(np.stack([curve for _, curve in windows]), centres, lags, found.offset_s)


def _finding(found: Peak, drift: tuple[float, float] | None, heard_s: float) -> Finding:
    """The evidence in a word."""
    if found.height < SURE:
        return "no_match" if found.height < NO_MATCH and heard_s >= NO_MATCH_FROM_S else "unclear"
    if drift is not None and abs(drift[0]) > max(0.002, 3 * drift[1]):
        return "drifting"
    return "in_sync" if abs(found.offset_s) <= IN_SYNC_S + found.std_s else "shifted"
