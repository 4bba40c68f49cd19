"""The recogniser's child process: pocketsphinx in a process of its own, because it is C code that can crash.

Started by `stages.transcribe.pocketsphinx` as `python -P -m stages.transcribe.child MODE SAMPLES.npy`. Reads one JSON job per
line from stdin, answers each with one JSON line on stdout. Imports no more of the project than its records.

    decode  {"low", "high", "states"}           -> {"words": [[text, first_frame, end_frame, probability], ...]}
    align   {"low", "high", "text", "extra"}    -> the same with the given words and no probability; {"words": null}
                                                   when the text does not fit; "extra" maps unknown words to phones
    known   {"words": [...]}                    -> {"unknown": [...]}: words that are not in the dictionary
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from schemas.spans import SPEECH_RATE_HZ

WIDE = {"beam": 1e-100, "pbeam": 1e-100, "wbeam": 1e-80}
"""Beams for alignment. With the usual 1e-48 it gives up where two people talk at once; wider costs twice the time."""


def main(mode: str, samples_path: str) -> None:
    """Serves jobs until stdin ends."""
    from pocketsphinx import Decoder

    samples = np.load(samples_path, mmap_mode="r")
    decoder: Any = None
    for line in sys.stdin:
        job = json.loads(line)
        if decoder is None:
            settings = {"samprate": SPEECH_RATE_HZ, "loglevel": "FATAL"}
            settings |= {"maxhmmpf": job["states"]} if mode == "decode" else {"lm": None, **WIDE}
            decoder = Decoder(**settings)
        print(json.dumps(_answer(decoder, mode, job, samples)), flush=True)


def _answer(decoder: Any, mode: str, job: dict[str, Any], samples: Any) -> dict[str, Any]:
    if mode == "known":
        return {"unknown": [word for word in job["words"] if decoder.lookup_word(word) is None]}
    if mode == "align":
        for word, phones in job["extra"].items():
            if decoder.lookup_word(word) is None:
                decoder.add_word(word, phones, True)
        decoder.set_align_text(job["text"])
    pcm = (np.clip(samples[job["low"] : job["high"]], -1.0, 1.0) * 32767).astype("<i2")
    decoder.start_utt()
    decoder.process_raw(pcm.tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.seg()
    if found is None:
        return {"words": None}
    words = []
    for segment in found:
        text = segment.word.partition("(")[0]
        if text and text[0] not in "<[+":
            words.append([text, segment.start_frame, segment.end_frame + 1, min(1.0, segment.prob)])
    return {"words": words}


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    main(sys.argv[1], str(Path(sys.argv[2])))
