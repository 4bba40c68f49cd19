"""Voice activity: where anybody speaks. One pass, shared by every engine that transcribes.

The network is Silero VAD (MIT), whose ONNX file lies in the `silero-vad` wheel. It is asked for a probability per 32 ms and
the stretches are drawn here, with a hysteresis, so that both ends can be tuned and tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch, merge, pad
from stages.base import StageConfig
from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

_HOP = 512
_CONTEXT = 64
HOP_S = _HOP / SPEECH_RATE_HZ
"""32 ms: Silero's step at 16 kHz. Each step also sees the 64 samples before it (silero_vad/sequence_vad.py)."""

_BLOCK = 4096
"""Steps per call of the network (131 s): bounds memory on long assets, the state is carried over."""


class VoiceConfig(StageConfig):
    """How a probability of speech becomes stretches of speech."""

    onset: float = 0.5
    """Probability at which speech begins (Silero's own default)."""
    offset: float = 0.35
    """Probability below which speech ends: onset - 0.15, Silero's own default."""
    min_speech_s: float = 0.15
    """Shorter stretches are clicks and coughs and are dropped."""
    min_silence_s: float = 0.2
    """Shorter pauses are bridged: stop consonants are silent for up to 0.15 s."""
    pad_s: float = 0.06
    """Widening of each stretch at both ends, within the sound and never into the next stretch."""


@dataclass(frozen=True)
class VoiceActivity:
    """Silero VAD in onnxruntime, one thread; ~300 times real time on one core, 2 MB of weights from the wheel."""

    session: Any

    @classmethod
    def load(cls) -> VoiceActivity:
        """The network, ready. Raises RecipeError where its weights are missing or others."""
        return cls(one_thread_session(packaged("silero_vad")))

    def probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of speech [ceil(n / 512)] of mono `samples` [n] at 16 kHz."""
        num_steps = -(-len(samples) // _HOP)
        if not num_steps:
            return np.zeros(0, np.float32)
        padded = np.zeros(_CONTEXT + num_steps * _HOP, np.float32)
        padded[_CONTEXT : _CONTEXT + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + _HOP)[::_HOP]
        h, c = np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
        parts: list[NDArray[np.float32]] = []
        for first in range(0, num_steps, _BLOCK):
            block = np.ascontiguousarray(frames[first : first + _BLOCK])
            part, h, c = self.session.run(None, {"input": block, "h": h, "c": c})
            parts.append(part)
        return np.concatenate(parts)

    def stretches(self, samples: NDArray[np.float32], config: VoiceConfig) -> list[Stretch]:
        """Speech in mono `samples` at 16 kHz, in seconds from their start."""
        return draw_stretches(self.probabilities(samples), config, len(samples) / SPEECH_RATE_HZ)


def draw_stretches(probabilities: NDArray[np.float32], config: VoiceConfig, duration_s: float) -> list[Stretch]:
    """Stretches of speech from a probability per 32 ms step, by hysteresis, bridging, dropping and padding in that order."""
    raw: list[list[float]] = []
    is_speech = False
    for step, probability in enumerate(probabilities):
        if not is_speech and probability >= config.onset:
            is_speech = True
            raw.append([step * HOP_S, (step + 1) * HOP_S])
        elif is_speech and probability < config.offset:
            is_speech = False
        if is_speech:
            raw[-1][1] = (step + 1) * HOP_S
    bridged = merge((Stretch(start, end) for start, end in raw), config.min_silence_s)
    kept = [stretch for stretch in bridged if stretch.duration_s >= config.min_speech_s]
    return pad(kept, config.pad_s, duration_s)
