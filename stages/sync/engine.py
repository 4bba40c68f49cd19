"""What a sync engine is: it holds the mouth of one face against the sound and finds where a curve over offsets peaks."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from stages.engines.face_tracks import FaceTrack
from stages.media.waveform import Waveform
from stages.sync.channels import Signal
from stages.sync.peaks import Peak

Array = NDArray[Any]


class SyncEvidence(Protocol):
    """What an engine knows about one face and the sound."""

    @property
    def lags_s(self) -> Array:
        """float64 [lags]: the offsets looked at; positive = sound late."""
        ...

    @property
    def seen_s(self) -> float:
        """How long the face was seen."""
        ...

    def curve(self, start_s: float, end_s: float) -> Array:
        """float64 [lags]: agreement at every offset over a stretch of the asset clock; all zero if nothing was seen."""
        ...

    def distances_told(self) -> tuple[int, list[float]] | None:
        """(windows, mean distance at each offset) as SyncNet's owners publish them; None for an engine without such."""
        ...


class SyncEngine(Protocol):
    """Holds one face against the sound."""

    name: str
    crop_px: int
    """Side of the face crops it wants, 0 for none."""

    def evidence(self, track: FaceTrack, features: Signal, sound: Waveform) -> SyncEvidence | None:
        """What face and sound have to do with each other; None if too little of the face is seen."""
        ...

    def peak(self, curve: Array, lags: Array, seen_s: float) -> Peak:
        """Where a curve [lags] over so many seconds of a face stands out, and how far."""
        ...
