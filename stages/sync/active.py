"""Whose mouth speaks each span: every span against every face, with explicit answers where there is none.

A face earns a span by moving its mouth as the sound of the span demands, at the offset the whole clip agreed on, and
by moving it at all: a listener's mouth rests. The faces of one speaker's spans support each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SpeechSpan
from stages.sync.channels import GRID_HZ, Signal
from stages.sync.engine import SyncEvidence
from stages.sync.peaks import PEAK_HALF_WIDTH_S
from stages.sync.result import ActiveFace, Presence

Array = NDArray[Any]

PAD_S = 0.15
"""Taken in around a span: lips part before the sound begins and word times are off by about 0.1 s."""
NEAR_S = 0.12
"""How far from the clip's offset a span's own best agreement may lie."""
RESTING_MOUTH = 0.008
"""Standard deviation of the mouth opening, in eye distances, of a mouth at rest: listeners and idling faces of our media
have 0.001 to 0.006, of spans spoken in view nine in ten have more."""
SPEAKING_MOUTH = 0.03
"""Opening deviation of plain speaking: the median over spans spoken in view."""
ON_SCREEN = 1.8
"""Score from which a face is taken to speak. With models that never met the people, of 1.6 s stretches spoken in view
four in five reach it, and of plainly talking faces under somebody else's words one in six."""
OFF_SCREEN = 0.5
"""Score below which it is taken not to: one in fourteen of the former, two in five of the latter, and listeners."""
MOTION_SHARE = 1.5
"""What a mouth loses for resting; one that moves even less loses more."""
SAME_SPEAKER_SHARE = 0.3
"""Weight of the same speaker's other spans in a face's score."""
MIN_SEEN = 0.5
"""Share of a span for which a face must be seen to be judged."""
MIN_SPAN_S = 0.3


@dataclass(frozen=True)
class Mouth:
    """One face of the clip and what its mouth says about the sound."""

    track: int
    """Its number among `faces.tracks`."""
    features: Signal
    evidence: SyncEvidence

    def stir(self, start_s: float, end_s: float) -> float:
        """Standard deviation of the opening over a stretch, in eye distances; 0 where the mouth was not seen."""
        part = self.features.cut(start_s, end_s)
        seen = part.weights > 0
        return float(part.values[seen, 0].std()) if seen.sum() > 0.2 * GRID_HZ else 0.0


def span_score(mouth: Mouth, start_s: float, end_s: float, offset_s: float) -> float | None:
    """How well one face fits one span; about 0 for somebody else's face, 3 for the speaker's. None if it was not seen.

    Height of the span's curve near the clip's offset over the rest of the curve, in its standard deviations, plus the
    logarithm of the mouth's motion between resting and speaking.
    """
    seen = mouth.features.cut(start_s, end_s).weights
    if seen.sum() < MIN_SEEN * (end_s - start_s) * GRID_HZ:
        return None
    curve, lags = mouth.evidence.curve(start_s - PAD_S, end_s + PAD_S), mouth.evidence.lags_s
    near = np.abs(lags - offset_s) <= NEAR_S
    rest = curve[np.abs(lags - offset_s) > NEAR_S + PEAK_HALF_WIDTH_S]
    if not near.any() or len(rest) < 3 or rest.std() < 1e-9:
        return None
    height = (curve[near].max() - rest.mean()) / rest.std()
    stir = np.log(max(mouth.stir(start_s, end_s), 1e-4) / SPEAKING_MOUTH)
    return float(height + min(stir / np.log(SPEAKING_MOUTH / RESTING_MOUTH), 0.0) * MOTION_SHARE)


def assign(
    spans: Sequence[SpeechSpan], mouths: Sequence[Mouth], start_s: float, offset_s: float, seen_s: Mapping[int, Array]
) -> list[ActiveFace]:
    """Who speaks each span: on_screen with its track, off_screen, overlap or unknown.

    off_screen means that nobody in view speaks: there is nobody, or all of them were judged and none fits. `spans` are on
    the clip clock, which begins at `start_s` on the asset clock; `seen_s` has for every track, with a mouth to judge or
    without, the instants [n] on the asset clock at which its face is seen.
    """
    scores = np.full((len(spans), len(mouths)), np.nan)
    for i, span in enumerate(spans):
        if span.duration_s >= MIN_SPAN_S:
            for k, mouth in enumerate(mouths):
                found = span_score(mouth, start_s + span.start_s, start_s + span.end_s, offset_s)
                scores[i, k] = np.nan if found is None else found
    total = scores + SAME_SPEAKER_SHARE * _support(scores, [span.speaker for span in spans])
    in_view = [_in_view(span, start_s, seen_s) for span in spans]
    return [_answer(i, span, total[i], [mouth.track for mouth in mouths], in_view[i]) for i, span in enumerate(spans)]


def _in_view(span: SpeechSpan, start_s: float, seen_s: Mapping[int, Array]) -> set[int]:
    """The tracks whose faces are seen on any frame of the span."""
    low, high = start_s + span.start_s, start_s + span.end_s
    return {track for track, times in seen_s.items() if ((times >= low) & (times < high)).any()}


def _support(scores: Array, speakers: Sequence[str | None]) -> Array:
    """Mean score of each face over the other spans of the same speaker, 0 where there are none."""
    out = np.zeros_like(scores)
    for i, speaker in enumerate(speakers):
        others = [j for j, other in enumerate(speakers) if j != i and speaker is not None and other == speaker]
        if others:
            known = scores[others]
            count = (~np.isnan(known)).sum(0)
            out[i] = np.where(count > 0, np.nansum(known, axis=0) / np.maximum(count, 1), 0.0)
    return out


def _answer(index: int, span: SpeechSpan, scores: Array, tracks: Sequence[int], in_view: set[int]) -> ActiveFace:
    judged = {track for track, each in zip(tracks, scores, strict=True) if not np.isnan(each)}
    best = int(np.nanargmax(scores)) if judged else None
    score = None if best is None else round(float(scores[best]), 3)
    status: Presence = "unknown"
    if span.is_overlap:
        status = "overlap"
    elif not in_view:
        status = "off_screen"
    elif score is not None and score >= ON_SCREEN:
        status = "on_screen"
    elif score is not None and score <= OFF_SCREEN and in_view <= judged:
        status = "off_screen"
    track = None if best is None or status != "on_screen" else tracks[best]
    return ActiveFace(index, status, track, score)
