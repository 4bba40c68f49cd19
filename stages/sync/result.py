"""What sync measures of a clip, as typed values, and the one place where they become the `sync` struct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.sync.peaks import PEAK_HALF_WIDTH_S, Peak

Array = NDArray[Any]
Kind = Literal["speech", "event", "none"]
Status = Literal["measured", "too_short", "no_face", "no_sound", "too_few_frames", "static_picture", "still_mouth"]
Finding = Literal["in_sync", "shifted", "drifting", "no_match", "unclear"]
Presence = Literal["on_screen", "off_screen", "overlap", "unknown"]
FINE_CURVE = 40
"""Lags from which a curve has points beyond the width of its peak to be held against: SyncNet's 31 have too few."""


@dataclass(frozen=True)
class ActiveFace:
    """Who speaks one span of the clip."""

    span_index: int
    status: Presence = "unknown"
    track: int | None = None
    """Number of the speaking face among `faces.tracks`; None unless on screen."""
    score: float | None = None
    """How well the best face fits the span; None where no face was seen."""


@dataclass(frozen=True)
class SyncWindow:
    """The measurement repeated in a part of the clip."""

    start_s: float
    end_s: float
    offset_ms: float
    confidence: float


@dataclass(frozen=True)
class FaceDistances:
    """SyncNet's raw distances of one face, from which LSE-C and LSE-D are computed."""

    track: int
    num_windows: int
    means: Sequence[float]
    """At -15 to +15 frames; positive = sound late."""


@dataclass(frozen=True)
class Offset:
    """A curve [lags] over offsets and where it peaks."""

    peak: Peak
    curve: Array
    lags_s: Array

    def standardised(self) -> list[float]:
        """The curve in standard deviations over the mean of what lies outside the peak."""
        is_rest = np.abs(self.lags_s - self.peak.offset_s) > PEAK_HALF_WIDTH_S
        rest = self.curve[is_rest] if len(self.lags_s) > FINE_CURVE else self.curve
        return [float(x) for x in (self.curve - rest.mean()) / max(float(rest.std()), 1e-9)]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The plain columns of the `sync` struct, by the names and units they have there."""

    kind: Kind
    engine: str | None = None
    status: Status
    finding: Finding | None = None
    offset_ms: float | None = None
    offset_std_ms: float | None = None
    confidence: float | None = None
    agreement: float | None = None
    drift_ms_per_s: float | None = None
    drift_std_ms_per_s: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Figures:
        """Those of a stored `sync` struct."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """What was measured on one clip; all but `status` and `active` is left out where nothing could be."""

    status: Status
    active: Sequence[ActiveFace]
    kind: Kind = "none"
    engine: str | None = None
    finding: Finding | None = None
    offset: Offset | None = None
    drift: tuple[float, float] | None = None
    """Seconds per second and their standard deviation."""
    windows: Sequence[SyncWindow] = ()
    distances: Sequence[FaceDistances] = ()

    @property
    def figures(self) -> Figures:
        """What was found, without curves and spans."""
        peak = None if self.offset is None else self.offset.peak
        return Figures(
            kind=self.kind,
            engine=self.engine,
            status=self.status,
            finding=self.finding,
            offset_ms=None if peak is None else 1000 * peak.offset_s,
            offset_std_ms=None if peak is None else 1000 * peak.std_s,
            confidence=None if peak is None else peak.height,
            agreement=None if peak is None else peak.at_zero,
            drift_ms_per_s=None if self.drift is None else 1000 * self.drift[0],
            drift_std_ms_per_s=None if self.drift is None else 1000 * self.drift[1],
        )

    def struct(self) -> dict[str, Any]:
        """The fields that stage `sync` adds to a clip."""
        lags_s = np.zeros(0) if self.offset is None else self.offset.lags_s
        return {
            **asdict(self.figures),
            "active": [asdict(face) for face in self.active],
            "windows": [asdict(window) for window in self.windows],
            "distances": [asdict(face) for face in self.distances],
            "curve_lags_ms": [float(x) for x in np.round(1000 * lags_s, 3)],
            "curve": [] if self.offset is None else self.offset.standardised(),
        }


def nobody_known(num_spans: int) -> list[ActiveFace]:
    """One `ActiveFace` per span that says nothing."""
    return [ActiveFace(index) for index in range(num_spans)]
