"""Speech to text with pocketsphinx, whose English acoustic model, language model and dictionary lie in its wheel."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import EngineError
from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch, merge, pad
from stages.transcribe.words import Heard

FRAME_S = 0.01
"""pocketsphinx's frame step."""


@dataclass
class Recogniser:
    """A child process that runs pocketsphinx on one sound; a crash or a hang costs one job, and the child is replaced."""

    mode: str
    samples_path: Path
    timeout_s: float

    def __post_init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to `job`, or None when the child crashed or took longer than `timeout_s`."""
        if self._child is None:
            root = str(Path(__file__).resolve().parents[2])
            search = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "stages.transcribe.child", self.mode, str(self.samples_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": search},
                start_new_session=True,
            )
        assert self._child.stdin
        assert self._child.stdout
        try:
            self._child.stdin.write(json.dumps(job).encode() + b"\n")
            self._child.stdin.flush()
            is_ready, _, _ = select.select([self._child.stdout], [], [], self.timeout_s)
            line = self._child.stdout.readline() if is_ready else b""
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


@contextmanager
def recogniser(
    mode: str, samples: NDArray[np.float32], scratch_dir: Path, timeout_s: float = 600.0
) -> Iterator[Recogniser]:
    """A `Recogniser` over mono `samples` at 16 kHz, which lie in `scratch_dir` for as long as it lives."""
    path = scratch_dir / f"speech-{os.getpid()}-{mode}.npy"
    np.save(path, samples)
    worker = Recogniser(mode, path, timeout_s)
    try:
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
        words: list[Word] = []
        num_failed = 0
        duration_s = len(samples) / SPEECH_RATE_HZ
        with recogniser("decode", samples, self.scratch_dir) as worker:
            for utterance in pad(merge(speech, self.min_gap_s), 0.15, duration_s):
                start_s = utterance.start_s
                low, high = round(start_s * SPEECH_RATE_HZ), round(utterance.end_s * SPEECH_RATE_HZ)
                answer = worker.ask({"low": low, "high": high, "states": self.states})
                if answer is None:
                    num_failed += 1
                    continue
                words += [
                    Word(text, start_s + first * FRAME_S, start_s + end * FRAME_S, probability)
                    for text, first, end, probability in answer["words"] or []
                ]
        if num_failed and not words:
            raise EngineError(
                f"pocketsphinx failed on all {num_failed} utterances.",
                reason="recogniser_crashed",
                remedy="Use engine: whisperx with local weights for this source.",
            )
        return Heard(words, "en", None, num_failed)
