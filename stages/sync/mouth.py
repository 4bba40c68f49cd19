"""The embedded sync engine: the shape of the mouth against the sound, scanned over all offsets.

A linear model, fitted on other people's clips (`benchmarks/fit_sync.py`, 60 kB of coefficients beside this file), turns
the sound and the mouth each into the same few channels: ridge regressions from sound to opening, width, jaw and their
speed, and the leading canonical correlations between sound and lip shape. At every offset the channels are correlated;
the right offset stands out. How far it stands out is the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.face_tracks import FaceTrack
from stages.media.decoder import Waveform
from stages.sync.channels import GRID_HZ, TREND_S, Signal, correlate, lags_s, project
from stages.sync.heard import sound_features
from stages.sync.peaks import Peak, find_peak

Array = NDArray[Any]

MODEL_PATH = Path(__file__).with_name("mouth.npz")


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
