"""The recogniser's child process, see `stages.child`: pocketsphinx on its own, because it is C code that can crash.

Started as `python -P -m stages.transcribe.child MEMORY_BYTES RETIRE_BYTES SAMPLES`, a file of raw float32 at 16 kHz.
Imports no more of the project than its records.

    decode  low, high, states           {"words": [[text, first_frame, end_frame, probability], ...]}
    align   low, high, text, extra      the same with the given words and no probability; {"words": null} when the text
                                        does not fit; "extra" maps unknown words to phones
    known   words                       {"unknown": [...]}: words that are not in the dictionary
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from schemas.spans import SPEECH_RATE_HZ
from stages.child import Message, contain, serve

WIDE = {"beam": 1e-100, "pbeam": 1e-100, "wbeam": 1e-80}
"""Beams for alignment. With the usual 1e-48 it gives up where two people talk at once; wider costs twice the time."""

NOISE = 1e-4
"""Added to what is aligned, at -80 dBFS: in digital silence, which no microphone records, nothing fits."""


class Recognisers:
    """pocketsphinx over one sound: a decoder with the language model, one without for given words, made when asked."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        self._made: dict[str, Any] = {}

    def answer(self, operation: str, arguments: Message) -> Message:
        """The answer to one request."""
        if operation == "decode":
            decoder = self._decoder("decode", maxhmmpf=arguments["states"])
            return {"words": self._heard(decoder, arguments)}
        decoder = self._decoder("align", lm=None, **WIDE)
        if operation == "known":
            return {"unknown": [word for word in arguments["words"] if decoder.lookup_word(word) is None]}
        for word, phones in arguments["extra"].items():
            if decoder.lookup_word(word) is None:
                decoder.add_word(word, phones, True)
        decoder.set_align_text(arguments["text"])
        return {"words": self._heard(decoder, arguments, NOISE)}

    def _decoder(self, kind: str, **settings: Any) -> Any:
        from pocketsphinx import Decoder

        if kind not in self._made:
            self._made[kind] = Decoder(samprate=SPEECH_RATE_HZ, loglevel="FATAL", **settings)
        return self._made[kind]

    def _heard(self, decoder: Any, window: Message, noise: float = 0.0) -> list[list[Any]] | None:
        sound = np.array(self.samples[window["low"] : window["high"]])
        sound += noise * np.random.default_rng(0).standard_normal(len(sound), np.float32)
        pcm = (np.clip(sound, -1.0, 1.0) * 32767).astype("<i2")
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.seg()
        if found is None:
            return None
        words = []
        for segment in found:
            text = segment.word.partition("(")[0]
            if text and text[0] not in "<[+":
                words.append([text, segment.start_frame, segment.end_frame + 1, min(1.0, segment.prob)])
        return words


def main() -> None:
    """Serves requests until stdin closes."""
    answers = contain()
    serve(answers, Recognisers(np.memmap(sys.argv[4], np.float32, "r")).answer)


if __name__ == "__main__":
    main()
