"""Own evidence that sound belongs to picture: sounds set in where something changes its motion, and hardly where it does not.

A ball that bounces, a hammer that strikes, a mouth that barks turn from one motion to another, or light up, in one part of the
picture, at the moment a sound begins. For every part of the picture the jerks of its motion, less those of the whole picture,
are correlated with the onsets of the sound at every offset; the parts that agree best count. The agreement at no offset is
then measured in standard deviations of what the same picture and sound reach moved against each other: 0 is chance, however
many onsets and however much motion there are.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.timing import Span
from stages.base import Context
from stages.media.decoder import Frames, Look
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, Signal, correlate, lags_s, without_trend
from stages.sync.measure import MIN_FPS, MIN_FRAMES, SILENT_RMS, STATIC_CHANGE, STATIC_SHARE
from stages.sync.onset import onsets, smooth
from stages.sync.peaks import IN_SYNC_S

F64 = NDArray[np.float64]
Status = Literal["measured", "no_sound", "no_picture", "too_short", "too_few_frames", "static_picture", "no_onset"]

LONG_SIDE_PX = 192
LEAST_SIDE_PX = 48
"""Narrower pictures are widened by their edges: of 28 rows of 192 px or fewer OpenCV 4.14 has no flow or crashes; 32 are safe."""
MOST_SEEN_S = 60
"""Longer clips are looked at up to there."""
CELLS = (8, 5)
"""Parts of the picture, across and down."""
LEAST_JERK_PX = 0.2
"""Change of motion within a 25th of a second that noise of coding makes as well."""
MOST_REACH_S = 2.5
"""Largest offset that chance is taken from; at most half of the clip."""
LEAST_S = 2.0
APART_S = 0.35
"""Offset from which on nothing is left of an agreement at none: a jerk and an onset last 0.1 s each."""
ONSET = 0.2
"""Rise of the mean band within 20 ms, natural-log power, from which it is an onset: noise rises by up to 0.13, of drawn strikes
99 in 100 by more, the softest steps on gravel by as much."""
ONSET_GAP_S = 0.1
SHARPNESS = 8.0
"""How much more the parts count that agree best: the logarithm of the mean of exp(8 r). Chosen, as jerks less those of the whole
picture were, on half `choose` of `benchmarks.quality_match`."""


@dataclass(frozen=True)
class SeenMotion:
    """How parts of a clip's picture move."""

    times_s: F64
    """[n] on the asset clock."""
    end_s: float
    flow: F64
    """[n, parts, 2]: by how many px each part moved since the picture before."""
    change: F64
    """[n]: grey levels by which a pixel changed since then, mean."""


@dataclass(frozen=True)
class OnsetEvidence:
    """What sound and motion say of each other."""

    status: Status
    onset_agreement: float | None = None
    num_onsets: int | None = None


class EventWatch:
    """Follows motion in 40 parts of grey pictures: 0.3 kB for each of up to 30 a second. About 0.3 ms a picture."""

    look = Look(long_side_px=LONG_SIDE_PX, max_fps=30.0, format="gray")

    def __init__(self, ctx: Context | None = None) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._follow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._last: NDArray[np.uint8] | None = None
        self._pts: list[int] = []
        self._flow: list[NDArray[np.float16]] = []
        self._change: list[float] = []

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w]."""
        import cv2

        for shown in run.images:
            picture = widened(shown)
            before = self._last if self._last is not None and self._last.shape == picture.shape else picture
            flow = self._follow.calc(before, picture, None)
            parts = cv2.resize(flow, CELLS, interpolation=cv2.INTER_AREA)
            self._flow.append(parts.reshape(-1, 2).astype(np.float16))
            self._change.append(float(cv2.absdiff(before, picture).mean()))
            self._last = picture
        self._pts += run.pts.tolist()
        self._last = picture.copy()

    def of(self, span: Span) -> SeenMotion:
        """What was seen of the clip `span`."""
        end_pts = min(span.end_pts, span.start_pts + round(MOST_SEEN_S / span.time_base))
        low, high = (bisect_left(self._pts, pts) for pts in (span.start_pts, end_pts))
        times_s = np.array(self._pts[low:high], np.float64) * float(span.time_base)
        flow = np.array(self._flow[low:high], np.float64).reshape(high - low, CELLS[0] * CELLS[1], 2)
        return SeenMotion(times_s, float(end_pts * span.time_base), flow, np.array(self._change[low:high]))


def widened(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[h, w] with `LEAST_SIDE_PX` rows and columns at least."""
    import cv2

    down, across = (max(0, LEAST_SIDE_PX - side) for side in picture.shape)
    if not down and not across:
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, down, 0, across, cv2.BORDER_REPLICATE), np.uint8)


def evidence_of(seen: SeenMotion, sound: Waveform) -> OnsetEvidence:
    """What the sound of an asset says of the motion of one of its clips, or why nothing."""
    if not len(seen.times_s):
        return OnsetEvidence("no_picture")
    start_s, length_s = float(seen.times_s[0]), seen.end_s - float(seen.times_s[0])
    samples = sound.cut(*(Fraction(at).limit_denominator(1_000_000) for at in (start_s, seen.end_s)))
    if not len(samples) or float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) < SILENT_RMS:
        return OnsetEvidence("no_sound")
    if length_s < LEAST_S:
        return OnsetEvidence("too_short")
    if len(seen.times_s) < MIN_FRAMES or len(seen.times_s) / length_s < MIN_FPS:
        return OnsetEvidence("too_few_frames")
    reach_s = min(MOST_REACH_S, length_s / 2)
    heard = rises(sound, start_s - reach_s - 1.0, seen.end_s + reach_s + 1.0)
    num_onsets = count_onsets(heard.cut(start_s, seen.end_s))
    if not num_onsets:
        return OnsetEvidence("no_onset", num_onsets=0)
    if (seen.change[1:] < STATIC_CHANGE).mean() >= STATIC_SHARE:
        return OnsetEvidence("static_picture", num_onsets=num_onsets)
    curve = agreement_curve(jerks(seen), heard, reach_s)
    return OnsetEvidence("measured", over_chance(curve, lags_s(reach_s)), num_onsets)


def rises(sound: Waveform, start_s: float, end_s: float) -> Signal:
    """[n, 1]: how much the sound rises, on the grid. Where the file's sound itself begins or ends nothing is known."""
    from scipy.ndimage import minimum_filter1d

    heard = onsets(sound, start_s, end_s)
    known = minimum_filter1d(heard.weights, 2 * round(ONSET_GAP_S * GRID_HZ) + 1, mode="nearest")
    return Signal(heard.first, heard.values[:, 1:], known)


def count_onsets(heard: Signal) -> int:
    """How many onsets the rise [n, 1] of a sound has."""
    from scipy.signal import find_peaks

    rise = np.where(heard.weights > 0, heard.values[:, 0], 0.0)
    return len(find_peaks(rise, height=ONSET, distance=round(ONSET_GAP_S * GRID_HZ))[0])


def jerks(seen: SeenMotion) -> Signal:
    """[n, parts]: how much each part changes its motion, less what the middle one of all does, on the grid."""
    step_s = np.diff(seen.times_s, prepend=2 * seen.times_s[0] - seen.times_s[1])
    speed = seen.flow / np.maximum(25.0 * step_s, 1e-3)[:, None, None]
    speed[0] = speed[1]  # what came before is no part of the clip
    turned = np.linalg.norm(np.diff(speed, axis=0, prepend=speed[:1]), axis=2)
    turned = np.log1p(turned / LEAST_JERK_PX)
    turned -= np.median(turned, axis=1, keepdims=True)
    first, last = int(np.ceil(seen.times_s[0] * GRID_HZ)), int(np.ceil(seen.end_s * GRID_HZ))
    at_s = seen.times_s - step_s  # motion into a picture and motion out of it meet at that picture
    grid = np.arange(first, last) / GRID_HZ
    values = np.stack([np.interp(grid, at_s, part) for part in turned.T], axis=1)
    return Signal(first, without_trend(smooth(values)), np.ones(last - first))


def agreement_curve(moved: Signal, heard: Signal, reach_s: float) -> F64:
    """[lags]: how well the parts [n, parts] that do best go with the onsets [m, 1] at every offset."""
    num = moved.values.shape[1]
    of_parts = correlate(
        Signal(heard.first, np.repeat(heard.values, num, axis=1), heard.weights), moved, np.eye(num), reach_s
    )
    return np.asarray(np.log(np.exp(SHARPNESS * of_parts).mean(1)) / SHARPNESS)


def over_chance(curve: F64, lags: F64) -> float:
    """How far a curve [lags] near no offset lies over what it reaches near others, in their standard deviations."""
    from scipy.ndimage import maximum_filter1d

    near = maximum_filter1d(curve, 2 * round(IN_SYNC_S * GRID_HZ) + 1, mode="nearest")
    rest = near[np.abs(lags) >= APART_S]
    return float((near[len(near) // 2] - rest.mean()) / max(float(rest.std()), 1e-9))
