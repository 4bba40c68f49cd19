"""A decoded clip whose sound can be moved or exchanged, to ask how far a sync engine can be trusted.

Moving decoded sound is what muxing it late would give. Picture is kept only where there is sound, and sound beyond the
picture only as far as there is some on both sides, so that neither padding nor an edge gives the answer away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np

from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.engines.face_tracks import FaceTrack, Tracks
from stages.media.waveform import Waveform
from stages.sync.config import SyncConfig
from stages.sync.engine import SyncEngine
from stages.sync.measure import measure
from stages.sync.result import SyncResult

SHIFTS_S = (-1.0, -0.8, -0.6, -0.4, -0.2, 0.2, 0.4, 0.6, 0.8, 1.0)
"""By how much sound is moved. The least is beyond what people put up with (ITU-R BT.1359: 90 ms early, 185 ms late)."""
CONTEXT_S = 2.5
"""Sound kept beyond the picture: the largest usual offset and the half window of the engine's trend."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Sound and what is known of its words, all on one clock."""

    sound: Waveform
    stretches: Sequence[Stretch] | None = None
    """Where anybody speaks; None if nobody looked."""
    spans: Sequence[SpeechSpan] = ()

    def later(self, late_s: float) -> Speech:
        """All of it, `late_s` later."""
        moved = self.sound.start + _exact(late_s)
        stretches = None if self.stretches is None else [stretch.moved(late_s) for stretch in self.stretches]
        sound = Waveform(self.sound.samples, self.sound.rate_hz, moved)
        return Speech(sound=sound, stretches=stretches, spans=[span.moved(late_s) for span in self.spans])

    def cut(self, low_s: float, high_s: float) -> Speech:
        """The sound between two instants, as far as there is any."""
        low, high = max(_exact(low_s), self.sound.start), min(_exact(high_s), self.sound.end)
        samples = self.sound.cut(low, high) if high > low else self.sound.samples[:0]
        return replace(self, sound=Waveform(samples, self.sound.rate_hz, low))


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is seen and heard in a clip, on the asset clock."""

    name: str
    seen: Tracks
    heard: Speech

    @property
    def start_s(self) -> float:
        """First frame."""
        return float(self.seen.times_s[0])

    @property
    def end_s(self) -> float:
        """End of the last frame."""
        return self.seen.end_s

    @property
    def duration_s(self) -> float:
        """Length of the picture."""
        return self.end_s - self.start_s

    def part(self, low_s: float, high_s: float) -> Self:
        """The stretch [low_s, high_s) as if it were a file of its own: nothing is heard outside it."""
        return replace(self._seen_in(low_s, high_s), heard=self.heard.cut(low_s, high_s))

    def under(self, heard: Speech, late_s: float) -> Self:
        """This picture under `heard` moved `late_s` later."""
        moved = heard.later(late_s)
        first, last = float(moved.sound.start), float(moved.sound.end)
        low, high = max(self.start_s, first), min(self.end_s, last)
        beyond = max(0.0, min(CONTEXT_S, low - first, last - high))
        return replace(self._seen_in(low, high), heard=moved.cut(low - beyond, high + beyond))

    def sync(self, engine: SyncEngine, config: SyncConfig) -> SyncResult:
        """What the sync stage says of this film."""
        spans = [
            span.moved(-self.start_s).within(0.0, self.duration_s)
            for span in self.heard.spans
            if span.end_s > self.start_s and span.start_s < self.end_s
        ]
        return measure(self.seen, self.heard.sound, self.heard.stretches, spans, engine, config)

    def _seen_in(self, low_s: float, high_s: float) -> Self:
        keep = (self.seen.times_s >= low_s - 1e-6) & (self.seen.times_s < high_s - 1e-6)
        faces = [face for face in (_cut_track(f, low_s, high_s) for f in self.seen.faces) if len(face.times_s)]
        seen = replace(
            self.seen, faces=faces, times_s=self.seen.times_s[keep], end_s=high_s, change=self.seen.change[keep]
        )
        return replace(self, seen=seen)


def _cut_track(track: FaceTrack, low_s: float, high_s: float) -> FaceTrack:
    keep = (track.times_s >= low_s - 1e-6) & (track.times_s < high_s - 1e-6)
    cropped = (track.crop_times_s >= low_s - 1e-6) & (track.crop_times_s < high_s - 1e-6)
    return replace(
        track,
        times_s=track.times_s[keep],
        points=track.points[keep],
        boxes=track.boxes[keep],
        squares=np.zeros((0, 3)),
        crop_times_s=track.crop_times_s[cropped],
        crops=track.crops[cropped],
    )


def _exact(seconds: float) -> Fraction:
    return Fraction(seconds).limit_denominator(100_000)
