"""What the voices of an asset sound like: each stretch of sound is embedded once, whichever stages ask.

`diarize` compares voices by stretches of up to three seconds in which one of them is alone. What a longer or another stretch
sounds like follows from those that lie in it: their embeddings, weighted by the time they share with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch
from stages.base import Context
from stages.engines.speakers import SpeakerEncoder, unit
from stages.media.waveform import Waveform

F32 = NDArray[np.float32]

MIN_INSIDE = 0.5
"""Share of a piece that has to lie in a stretch for it to speak for that."""
MIN_FILLED = 0.75
"""Share of a stretch that such pieces have to fill: the rest are pauses, or sound whose embedding may differ."""
MAX_EMBEDDED_S = 60.0
"""Speech that is embedded where no pieces are known; beyond a minute the embedding no longer changes."""


class VoiceMemory:
    """Embeddings of stretches of the sound that was asked about last. One per worker (`Context.model`).

    What is remembered is what would be found again, so that it makes no difference whether a stage runs in the worker that
    heard the pieces first.
    """

    def __init__(self, context: Context) -> None:
        self.encoder = context.model(SpeakerEncoder.load)
        self._sound: Waveform | None = None
        self._known: dict[tuple[Stretch, ...], F32 | None] = {}

    @classmethod
    def of(cls, context: Context) -> VoiceMemory:
        """The worker's memory."""
        return context.model(cls, context)

    def keep(self, sound: Waveform, heard: Mapping[Stretch, F32]) -> None:
        """Remembers the embeddings of stretches of `sound` on the asset clock."""
        self._turn_to(sound)
        self._known.update({(stretch,): embedding for stretch, embedding in heard.items()})

    def embed(self, sound: Waveform, wanted: Sequence[tuple[Stretch, ...]]) -> list[F32 | None]:
        """Unit-length embeddings, each of stretches of the asset clock laid end to end; None where they say too little."""
        self._turn_to(sound)
        new = [parts for parts in dict.fromkeys(wanted) if parts not in self._known]
        self._known.update(zip(new, self.encoder.embed_all([joined(sound, parts) for parts in new]), strict=True))
        return [self._known[parts] for parts in wanted]

    def voice(self, sound: Waveform, where: Sequence[Stretch], pieces: Sequence[Stretch]) -> F32 | None:
        """What is heard in the stretches `where`: by those of `pieces` that lie in it, else embedded by itself."""
        shared = [(piece, sum(piece.overlap_s(part) for part in where)) for piece in pieces]
        inside = [(piece, s) for piece, s in shared if s > 0 and s >= MIN_INSIDE * piece.duration_s]
        if not inside or sum(s for _, s in inside) < MIN_FILLED * sum(part.duration_s for part in where):
            return self.embed(sound, [tuple(where)])[0] if where else None
        embeddings = self.embed(sound, [(piece,) for piece, _ in inside])
        told = [np.float32(s) * e for e, (_, s) in zip(embeddings, inside, strict=True) if e is not None]
        return unit(np.sum(told, axis=0)) if told else None

    def _turn_to(self, sound: Waveform) -> None:
        if sound is not self._sound:
            self._sound, self._known = sound, {}


def joined(sound: Waveform, parts: Sequence[Stretch]) -> F32:
    """The samples of mono `sound` at 16 kHz in `parts` of the asset clock, end to end, at most `MAX_EMBEDDED_S`."""
    start_s = float(sound.start)
    edges = [[max(0, round((at - start_s) * SPEECH_RATE_HZ)) for at in (part.start_s, part.end_s)] for part in parts]
    samples = np.concatenate([sound.samples[low:high] for low, high in edges] or [np.zeros(0, np.float32)])
    return np.asarray(samples[: int(MAX_EMBEDDED_S * SPEECH_RATE_HZ)], np.float32)
