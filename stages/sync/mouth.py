"""The embedded sync engine: the shape of the mouth against the sound, scanned over all offsets.

A linear model, fitted on other people's clips (`benchmarks/fit_sync.py`, 60 kB of coefficients beside this file), turns
the sound and the mouth each into the same few channels: ridge regressions from sound to opening, width, jaw and their
speed, and the leading canonical correlations between sound and lip shape. At every offset the channels are correlated;
the right offset stands out. How far it stands out is the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.engines.face_tracks import CHIN, INNER_LIP, OUTER_LIP, STEADY, FaceTrack, at
from stages.media.decoder import Waveform

Array = NDArray[Any]

MODEL_PATH = Path(__file__).with_name("mouth.npz")
GRID_HZ = 100
"""Both signals live on one grid of 10 ms: finer than any frame rate, so that offsets between frames can be seen."""
NUM_BANDS = 26
SOUND_WINDOW = 400
"""Samples per spectrum: 25 ms, as is usual for speech."""
DYNAMIC_RANGE = 5.0
"""Natural-log power below each band's 95th percentile at which sound counts as silence, so that room noise is flat."""
TREND_S = 1.0
"""Half width of the Hann window whose local mean is taken off: posture and level change slower than speech."""
TAPS = (-10, -5, 0, 5, 10)
"""Neighbouring grid points, in steps of 10 ms, that each channel looks at: +-0.1 s, about one syllable."""
MAX_GAP_S = 0.25
"""Frames without a face are bridged up to this long; longer gaps count for nothing."""
MIN_COMMON_S = 0.6
"""Least stretch that mouth and sound must share at an offset."""
PEAK_HALF_WIDTH_S = 0.2
"""Half width of the peak: the correlation length of speech. What lies further off is what a peak is held against."""

NUM_SHAPES = 7


@dataclass(frozen=True)
class MouthModel:
    """Linear maps from sound and mouth to common channels.

    `sound` [5 taps x 26 bands, K], `mouth` [5 taps x 142 features, K], `weights` [K] summing to one.
    """

    sound: Array
    mouth: Array
    weights: Array

    @classmethod
    def load(cls, path: Path = MODEL_PATH) -> MouthModel:
        """The shipped model, or another one fitted by `benchmarks.fit_sync`."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(*(np.asarray(stored[name], np.float64) for name in ("sound", "mouth", "weights")))

    def save(self, path: Path) -> None:
        """Writes the coefficients; the file holds arrays only and is read without pickle."""
        single = [np.asarray(part, np.float32) for part in (self.sound, self.mouth, self.weights)]
        np.savez_compressed(path, sound=single[0], mouth=single[1], weights=single[2])


@dataclass(frozen=True)
class Signal:
    """Channels or features on the grid: row i belongs to the instant (first + i) / GRID_HZ on the asset clock."""

    first: int
    values: Array
    """float64 [n, k]."""
    weights: Array
    """float64 [n]: 1 where the signal was observed, 0 where it was not."""

    @property
    def times_s(self) -> Array:
        """float64 [n]: the instant of each row on the asset clock."""
        return (self.first + np.arange(len(self.values))) / GRID_HZ

    def cut(self, start_s: float, end_s: float) -> Signal:
        """The part between two instants."""
        low, high = np.clip(np.ceil(np.array([start_s, end_s]) * GRID_HZ).astype(int) - self.first, 0, len(self.values))
        return Signal(self.first + int(low), self.values[low:high], self.weights[low:high])


def lags_s(max_offset_s: float) -> Array:
    """float64 [2m + 1]: the offsets scanned, in steps of the grid. Positive: sound late."""
    reach = round(max_offset_s * GRID_HZ)
    return np.arange(-reach, reach + 1) / GRID_HZ


def mouth_features(track: FaceTrack, start_s: float, end_s: float) -> Signal:
    """Lip shapes between two instants: [n, 142] = opening, width, height, lower lip, chin, upper lip, protrusion, lips.

    Unit: distance of the outer eye corners. The head's pose is taken out, then the local mean (`TREND_S`).
    """
    aligned = align(track.points.astype(np.float64))
    lips = aligned[:, at(*INNER_LIP, *OUTER_LIP, *CHIN)].reshape(len(aligned), -1)
    values = np.concatenate([mouth_shapes(aligned), lips], axis=1)
    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    grid = np.arange(first, last) / GRID_HZ
    values = np.stack([np.interp(grid, track.times_s, column) for column in values.T], axis=1)
    after = np.clip(np.searchsorted(track.times_s, grid), 1, max(len(track.times_s) - 1, 1))
    gap = np.diff(track.times_s, append=track.times_s[-1:])[after - 1]
    inside = (grid >= track.times_s[0]) & (grid <= track.times_s[-1] + 1.5 / GRID_HZ + MAX_GAP_S / 5)
    return Signal(first, without_trend(values), (inside & (gap <= MAX_GAP_S)).astype(np.float64))


def mouth_shapes(aligned: Array) -> Array:
    """float64 [n, 7] of aligned points [n, 69, 3]: opening, width, height, lower lip, chin, upper lip, protrusion."""
    upper = aligned[:, at(82, 13, 312)].mean(1)
    lower = aligned[:, at(87, 14, 317)].mean(1)
    left, right, above, below, chin = aligned[:, at(61, 291, 0, 17, 152)].transpose(1, 0, 2)
    opening = np.linalg.norm(upper - lower, axis=1)
    width = np.linalg.norm(left - right, axis=1)
    height = np.linalg.norm(above - below, axis=1)
    protrusion = aligned[:, at(0, 17), 2].mean(1)
    return np.stack([opening, width, height, below[:, 1], chin[:, 1], above[:, 1], protrusion], axis=1)


def align(points: Array) -> Array:
    """Points [n, 69, 3] turned, moved and scaled so that the steady points coincide and the mean face looks ahead.

    Least-squares similarity per frame (Umeyama 1991) onto the mean of the clip, twice, for the mean itself sharpens.
    """
    steady = at(*STEADY)
    mean = points.mean(0)
    aligned = points
    for _ in range(2):
        target = mean[steady] - mean[steady].mean(0)
        source = points[:, steady]
        centre = source.mean(1, keepdims=True)
        source = source - centre
        left, scale, right = np.linalg.svd(source.transpose(0, 2, 1) @ target)
        mirror = np.ones_like(scale)
        mirror[:, 2] = np.sign(np.linalg.det(left @ right))
        turn = (left * mirror[:, None]) @ right
        size = (scale * mirror).sum(1) / np.maximum((source**2).sum((1, 2)), 1e-9)
        aligned = size[:, None, None] * ((points - centre) @ turn)
        mean = aligned.mean(0)
    left_eye, right_eye, chin, forehead = mean[at(263, 33, 152, 10)]
    across = left_eye - right_eye
    unit = float(np.linalg.norm(across))
    across = across / unit
    down = chin - forehead
    down = down - across * (down @ across)
    down = down / np.linalg.norm(down)
    return np.asarray(aligned @ np.stack([across, down, np.cross(across, down)], axis=1) / unit)


def without_trend(values: Array) -> Array:
    """`values` [n, k] minus their mean over a Hann window of `TREND_S` to either side, edges mirrored."""
    from scipy.ndimage import convolve1d

    reach = round(TREND_S * GRID_HZ)
    window = np.hanning(2 * reach + 1)
    return np.asarray(values - convolve1d(values, window / window.sum(), axis=0, mode="reflect"))


def sound_features(sound: Waveform, start_s: float, end_s: float) -> Signal:
    """Log mel spectrum [n, 26] of 16 kHz sound between two instants, level and slow changes taken out.

    Where the file has no sound the weight is 0: nothing known is not silence.
    """
    first, last = int(np.ceil(start_s * GRID_HZ)), int(np.ceil(end_s * GRID_HZ))
    half = Fraction(SOUND_WINDOW // 2, SPEECH_RATE_HZ)
    begin, end = Fraction(first, GRID_HZ) - half, Fraction(last - 1, GRID_HZ) + half
    mel = log_mel(sound.cut(begin, end), last - first)
    grid = np.arange(first, last) / GRID_HZ
    known = (grid >= float(sound.start)) & (grid < float(sound.end))
    level = mel[known] if known.any() else mel
    top = np.percentile(level, 95, axis=0)
    mel = np.maximum(mel, top - DYNAMIC_RANGE)
    return Signal(first, without_trend(mel), known.astype(np.float64))


def log_mel(samples: Array, num_rows: int) -> Array:
    """float64 [num_rows, 26]: natural log of mel band power, one row per 10 ms, 60 to 7600 Hz, pre-emphasis 0.97."""
    hop = SPEECH_RATE_HZ // GRID_HZ
    samples = np.pad(samples.astype(np.float64), (0, max(0, (num_rows - 1) * hop + SOUND_WINDOW - len(samples))))
    samples = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(samples, SOUND_WINDOW)[::hop][:num_rows]
    power = np.abs(np.fft.rfft(frames * np.hanning(SOUND_WINDOW), 512)) ** 2
    return np.asarray(np.log(power @ _mel_bands().T + 1e-8))


def _mel_bands() -> Array:
    """Triangular filters [26, 257]."""
    low, high = 1127 * np.log(1 + 60 / 700), 1127 * np.log(1 + 7600 / 700)
    edges = 700 * (np.exp(np.linspace(low, high, NUM_BANDS + 2) / 1127) - 1)
    hz = np.arange(257) * SPEECH_RATE_HZ / 512
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def with_neighbours(values: Array) -> Array:
    """[n, k] -> [n, 5 k]: every row beside its neighbours at `TAPS`, edges repeated."""
    reach = max(TAPS)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[reach + tap : reach + tap + len(values)] for tap in TAPS], axis=1)


def project(signal: Signal, maps: Array) -> Signal:
    """The channels [n, K] of a signal's features."""
    return Signal(signal.first, with_neighbours(signal.values) @ maps, signal.weights)


def correlate(sound: Signal, mouth: Signal, weights: Array, max_offset_s: float) -> Array:
    """float64 [lags]: weighted mean correlation of the channels at every offset, 0 where too little is shared.

    Offset d pairs the mouth at t with the sound at t + d. A correlation over fewer points is worth less: each is
    scaled by the root of the share of the mouth signal that had sound to go with it.
    """
    reach = round(max_offset_s * GRID_HZ)
    count = len(mouth.values)
    if not count:
        return np.zeros(2 * reach + 1)
    padded = np.zeros((count + 2 * reach, sound.values.shape[1]))
    known = np.zeros(len(padded))
    at = sound.first - (mouth.first - reach)
    low, high = max(at, 0), min(at + len(sound.values), len(padded))
    if high > low:
        padded[low:high] = sound.values[low - at : high - at]
        known[low:high] = sound.weights[low - at : high - at]
    padded *= known[:, None]
    view = np.lib.stride_tricks.sliding_window_view
    heard = view(known, count)
    values = view(padded, count, axis=0)
    squares = view(padded**2, count, axis=0)
    w, v = mouth.weights, mouth.values
    total = heard @ w
    share = np.maximum(total, 1e-9)[:, None]
    sum_s, sum_m = values @ w, heard @ (w[:, None] * v)
    power_s, power_m = squares @ w - sum_s**2 / share, heard @ (w[:, None] * v**2) - sum_m**2 / share
    common = np.einsum("lkn,nk->lk", values, w[:, None] * v) - sum_s * sum_m / share
    r = common / np.sqrt(np.maximum(power_s, 1e-9) * np.maximum(power_m, 1e-9))
    r *= np.sqrt(total / max(w.sum(), 1e-9))[:, None]
    r[total < MIN_COMMON_S * GRID_HZ] = 0.0
    return np.asarray(r @ weights)


@dataclass(frozen=True)
class Peak:
    """Where a curve over offsets stands out, and how far."""

    offset_s: float
    """Between grid points, by a parabola."""
    height: float
    """Of the peak above the mean of the remaining offsets, in their standard deviations."""
    at_zero: float
    """The same for the highest point within 80 ms of no offset."""
    std_s: float
    """Spread of what the curve leaves possible."""


IN_SYNC_S = 0.08
"""Offsets this small pass for in sync: the detectability threshold of ITU-R BT.1359 lies at 45 ms early, 125 ms late."""
SOFTNESS = 0.3
"""Standard deviations of the curve by which an offset becomes e times less likely. Chosen on clips left out of the fit so that
two thirds of the errors lie within the stated spread."""
LEAST_STD_S = 0.02
"""Half a frame: the lips of two people in perfect sync differ by as much."""


def find_peak(curve: Array, lags: Array) -> Peak:
    """The peak of a curve [lags]; a flat curve has height 0."""
    top = int(np.argmax(curve))
    rest = curve[np.abs(lags - lags[top]) > PEAK_HALF_WIDTH_S]
    spread = float(rest.std()) if len(rest) else 0.0
    if spread < 1e-9:
        return Peak(float(lags[top]), 0.0, 0.0, float(np.ptp(lags) / np.sqrt(12)))
    offset = float(lags[top])
    if 0 < top < len(curve) - 1:
        before, here, after = curve[top - 1 : top + 2]
        bend = before - 2 * here + after
        offset += float(0.5 * (before - after) / bend / GRID_HZ) if bend < 0 else 0.0
    near = np.abs(lags) <= IN_SYNC_S + 0.5 / GRID_HZ
    others = curve[np.abs(lags) > IN_SYNC_S + PEAK_HALF_WIDTH_S]
    at_zero = (curve[near].max() - others.mean()) / max(float(others.std()), 1e-9)
    chance = np.exp((curve - curve[top]) / spread / SOFTNESS)
    std = float(np.sqrt((chance * (lags - offset) ** 2).sum() / chance.sum()))
    return Peak(offset, float((curve[top] - rest.mean()) / spread), float(at_zero), max(std, LEAST_STD_S))


def find_drift(curves: Array, centres_s: Array, lags: Array, offset_s: float) -> tuple[float, float]:
    """Drift in seconds per second and its standard deviation: the slope along which the windows' curves add up best.

    `curves` [windows, lags] belong to windows around `centres_s`. Slopes of -15 to +15 ms/s are tried about the middle of
    the clip; real clocks drift by less than 10. The spread comes from the same softness as that of an offset.
    """
    middle = centres_s.mean()
    slopes = np.arange(-30, 31) / 2000
    near = np.abs(lags - offset_s) <= 0.15
    rest = curves.mean(0)[np.abs(lags - offset_s) > PEAK_HALF_WIDTH_S]
    heights = []
    for slope in slopes:
        moved = [
            np.interp(lags + slope * (centre - middle), lags, curve)
            for curve, centre in zip(curves, centres_s, strict=True)
        ]
        heights.append(np.mean(moved, axis=0)[near].max())
    chance = np.exp((np.array(heights) - max(heights)) / max(float(rest.std()), 1e-9) / SOFTNESS)
    chance /= chance.sum()
    mean = float((chance * slopes).sum())
    return mean, float(np.sqrt((chance * (slopes - mean) ** 2).sum()))


@dataclass(frozen=True)
class MouthEvidence:
    """One face and the sound, as channels that can be held against each other anywhere in the clip."""

    sound: Signal
    mouth: Signal
    weights: Array
    lags_s: Array

    @property
    def seen_s(self) -> float:
        """How long the mouth was seen."""
        return float(self.mouth.weights.sum()) / GRID_HZ

    def curve(self, start_s: float, end_s: float) -> Array:
        """float64 [lags]: agreement at every offset over a stretch of the asset clock."""
        return correlate(self.sound, self.mouth.cut(start_s, end_s), self.weights, float(self.lags_s[-1]))


class MouthEngine:
    """The embedded engine. Works offline; 0.02 s of one core per second of face, beyond the mesh itself.

    On clips of people it was not fitted on: see docs/quality.md. Weak on faces turned away by more than about 50
    degrees, on hands before the mouth, below about 10 frames a second, and on less than 2 s of speech.
    """

    name = "mouth"
    crop_px = 0

    def __init__(self, max_offset_s: float, model: MouthModel | None = None) -> None:
        self.model = model or MouthModel.load()
        self.lags_s = lags_s(max_offset_s)

    def evidence(self, track: FaceTrack, features: Signal, sound: Waveform) -> MouthEvidence:
        """Channels of one mouth, whose `features` come from `track`, and of the sound around it."""
        times = features.times_s
        margin = float(self.lags_s[-1]) + TREND_S
        heard = sound_features(sound, float(times[0]) - margin, float(times[-1]) + margin)
        return MouthEvidence(
            project(heard, self.model.sound), project(features, self.model.mouth), self.model.weights, self.lags_s
        )

    def peak(self, curve: Array, lags: Array) -> Peak:
        """Offset, height in standard deviations of the remaining curve, spread."""
        return find_peak(curve, lags)
