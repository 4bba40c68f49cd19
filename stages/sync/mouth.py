"""The embedded sync engine: the shape of the mouth against the sound, scanned over all offsets.

A linear model, fitted on other people's clips (`benchmarks/fit_sync.py`, 120 kB of coefficients beside this file), turns
the sound and the mouth each into the same few channels: ridge regressions from sound to opening, width, jaw and their
speed, and the leading canonical correlations between sound and lip shape. It hears twice: the spectrum, and the phones
a recogniser tells in it, which say when lips close or round whoever speaks, however quietly. At every offset the
channels are correlated; the right offset stands out. How far it stands out is the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.face_tracks import FaceTrack
from stages.engines.phones import PhoneRecogniser
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, TREND_S, Signal, correlate, lags_s, project
from stages.sync.heard import phone_features, sound_features
from stages.sync.peaks import SURE, Peak, find_peak

Array = NDArray[Any]

MODEL_PATH = Path(__file__).with_name("mouth.npz")
FULL_S = 2.0
"""Seconds of a mouth below which the same height says less, by the root of their share: 4.0 in 1.5 s is
about as good as 3.5 in 2 s."""
SURE_HEIGHT = 3.5
"""Height of a peak, in standard deviations of the rest of its curve, from which it is called sure. Chosen on stretches of
2 and 3 s of one corpus by models that never met the people, small faces and noise among them: all peaks as high lay within
80 ms of the truth, of those up to 0.25 lower 90 in 100. On other people's 3 s and more it holds for 98 in 100
(docs/quality.md)."""


@dataclass(frozen=True)
class MouthModel:
    """Linear maps from sound and mouth to common channels.

    `sound` [5 taps x 26 bands, J], `phones` [5 taps x 42 phones, K - J], `mouth` [5 taps x 142 features, K], `weights`
    [K] summing to one. The first J channels are those of the spectrum.
    """

    sound: Array
    phones: Array
    mouth: Array
    weights: Array

    @classmethod
    def load(cls, path: Path = MODEL_PATH) -> MouthModel:
        """The shipped model, or another one fitted by `benchmarks.fit_sync`."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{part.name: np.asarray(stored[part.name], np.float64) for part in fields(cls)})

    def save(self, path: Path) -> None:
        """Writes the coefficients; the file holds arrays only and is read without pickle."""
        np.savez_compressed(path, **{part.name: getattr(self, part.name).astype(np.float32) for part in fields(self)})

    def hear(self, sound: Signal, phones: Signal) -> Signal:
        """The channels [n, K] of what is heard, from features of one stretch."""
        spectral, phonetic = project(sound, self.sound), project(phones, self.phones)
        return replace(spectral, values=np.concatenate([spectral.values, phonetic.values], axis=1))


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

    def distances_told(self) -> None:
        """None: what is held against each other here has no distance."""


class MouthEngine:
    """The embedded engine. Works offline; 0.02 s of one core per second of face, beyond the mesh itself.

    On clips of people it was not fitted on: see docs/quality.md. Weak on faces turned away by more than about 50
    degrees, on hands before the mouth, below about 10 frames a second, and on less than 2 s of speech.
    """

    name = "mouth"
    crop_px = 0

    def __init__(
        self, max_offset_s: float, model: MouthModel | None = None, phones: PhoneRecogniser | None = None
    ) -> None:
        self.model = model or MouthModel.load()
        self.phones = phones or PhoneRecogniser()
        self.lags_s = lags_s(max_offset_s)
        self._last: tuple[Waveform, float, float, Signal] | None = None

    def evidence(self, track: FaceTrack, features: Signal, sound: Waveform) -> MouthEvidence:
        """Channels of one mouth, whose `features` come from `track`, and of the sound around it."""
        times = features.times_s
        margin = float(self.lags_s[-1]) + TREND_S
        heard = self._hear(sound, float(times[0]) - margin, float(times[-1]) + margin)
        return MouthEvidence(heard, project(features, self.model.mouth), self.model.weights, self.lags_s)

    def _hear(self, sound: Waveform, start_s: float, end_s: float) -> Signal:
        """The channels of a stretch of sound; the last answer is kept, for all faces of a clip ask the same."""
        if self._last is None or self._last[0] is not sound or self._last[1:3] != (start_s, end_s):
            phones = phone_features(sound, start_s, end_s, self.phones)
            heard = self.model.hear(sound_features(sound, start_s, end_s), phones)
            self._last = (sound, start_s, end_s, heard)
        return self._last[3]

    def peak(self, curve: Array, lags: Array, seen_s: float) -> Peak:
        """Offset, height as a confidence (see `SURE`), spread."""
        found, scale = find_peak(curve, lags), SURE / SURE_HEIGHT * min(1.0, seen_s / FULL_S) ** 0.5
        return replace(found, height=found.height * scale, at_zero=found.at_zero * scale)
