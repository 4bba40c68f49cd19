"""Speech to text with pocketsphinx, whose English acoustic model, language model and dictionary lie in its wheel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import EngineError, MachineError
from schemas.spans import SPEECH_RATE_HZ, Hearing, Word
from schemas.stretches import Stretch, merge, pad
from stages.child import Child, ChildError
from stages.transcribe.words import Heard

FRAME_S = 0.01
"""pocketsphinx's frame step."""
MEMORY_GB = 4.0
RETIRE_GB = 1.0
"""Address space of the child, and memory after which another takes over, besides the sound.

Half a minute spoken without a pause takes 0.35 GB of the one and 0.2 GB of the other."""

ENGLISH = Hearing(language="en", language_from="engine", words_from="pocketsphinx")
"""How it hears everything."""


class Recogniser:
    """pocketsphinx on one sound in a child process; a crash or a hang costs one job, and the child is replaced."""

    def __init__(self, samples_path: Path, timeout_s: float) -> None:
        self.samples_path, self.timeout_s = samples_path, timeout_s
        self.failure = ""
        """How the last job that failed did."""
        self._child: Child | None = None

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any] | None:
        """The answer to one job of `stages.transcribe.child`, or None when the child died or was too slow or too large.

        Where it was killed from outside another is asked, once. Raises MachineError where that one is killed as well.
        """
        try:
            return self._once(operation, arguments)
        except MachineError:
            self._child = None
            return self._once(operation, arguments)

    def _once(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        if self._child is None:
            room_gb = self.samples_path.stat().st_size / 2**30
            self._child = Child(
                "stages.transcribe.child",
                str(self.samples_path),
                memory_gb=MEMORY_GB + room_gb,
                retire_gb=RETIRE_GB + room_gb,
            )
        try:
            answer: dict[str, Any] = self._child.ask(operation, arguments, self.timeout_s)
        except ChildError as error:
            self.failure = str(error)
            self._child = None
            return None
        if self._child.has_grown:
            self.close()
        return answer

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None


@contextmanager
def recogniser(samples: NDArray[np.float32], scratch_dir: Path, timeout_s: float = 600.0) -> Iterator[Recogniser]:
    """A `Recogniser` over mono `samples` at 16 kHz, which lie in `scratch_dir` for as long as it lives."""
    path = scratch_dir / f"speech-{os.getpid()}.f32"
    worker = Recogniser(path, timeout_s)
    try:
        path.write_bytes(np.ascontiguousarray(samples, np.float32).data)
        yield worker
    finally:
        worker.close()
        path.unlink(missing_ok=True)


@dataclass
class PocketsphinxEngine:
    """Works at once and everywhere, and mishears about every third word: good for drafts, not for training captions.

    English only, whatever is spoken: it would hear English words in any language, so its language is a statement, not a
    measurement. Needs no download; one to three times real time on one core. Confidence is the word's posterior
    probability among the hypotheses considered.
    """

    scratch_dir: Path
    states: int
    """Largest number of states searched per frame: 6000 halves the time of the default 30000 at equal word error."""
    min_gap_s: float = 0.8
    """Pauses shorter than this do not end an utterance: the language model needs neighbours."""

    def hear(self, samples: NDArray[np.float32], speech: list[Stretch]) -> Heard:
        """Words in the `speech` parts of mono `samples` at 16 kHz, in seconds from their start."""
        heard = Heard([], [])
        duration_s = len(samples) / SPEECH_RATE_HZ
        with recogniser(samples, self.scratch_dir) as worker:
            for utterance in pad(merge(speech, self.min_gap_s), 0.15, duration_s):
                start_s = utterance.start_s
                low, high = round(start_s * SPEECH_RATE_HZ), round(utterance.end_s * SPEECH_RATE_HZ)
                answer = worker.ask("decode", low=low, high=high, states=self.states)
                if answer is None:
                    heard.num_failed += 1
                    continue
                words = [
                    Word(text, start_s + first * FRAME_S, start_s + end * FRAME_S, probability)
                    for text, first, end, probability in answer["words"] or []
                ]
                heard.add(words, ENGLISH)
        if heard.num_failed and not heard.words:
            raise EngineError(
                f"pocketsphinx failed on all {heard.num_failed} utterances; the last time it {worker.failure}.",
                reason="recogniser_crashed",
                remedy="Use engine: whisperx for this source.",
            )
        return heard
