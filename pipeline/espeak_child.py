"""Speaks one text with eSpeak NG. The child process of `pipeline.demo.voice`, see `stages.child`.

A child process per utterance, because the library carries oscillator state from one utterance to the next and seeds its
noise from the clock: only a fresh process with a given seed repeats its samples. It also keeps the GPL-licensed library out
of ours. It lies beside the demo's package and not in it, because running a module imports its package first, and that one
costs five times what an utterance does. Constants are those of eSpeak NG's speak_lib.h.

    speak  library, data, text, voice, rate_wpm, pitch, pitch_range, seed
           {sample_rate_hz, events: [[kind, text_position, text_length, sample, ipa]], pcm: int16 in base64}
"""

from __future__ import annotations

import base64
import ctypes
import os
import sys
from typing import Any

from stages.child import Message, contain, serve

AUDIO_OUTPUT_SYNCHRONOUS = 2
PHONEME_EVENTS_IN_IPA = 1 | 2
RATE, PITCH, PITCH_RANGE = 1, 3, 4
CHARS_UTF8, POS_CHARACTER = 1, 1
EVENT_WORD, EVENT_PHONEME = 1, 7


class Identity(ctypes.Union):
    """The event's word number or phoneme text."""

    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Identity),
    ]


def speak(operation: str, request: Message) -> Message:
    """The answer to one request. SystemExit when the voice or library refuses."""
    lib = ctypes.CDLL(request["library"])
    rate_hz = lib.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS, 0, os.path.dirname(request["data"]).encode(), PHONEME_EVENTS_IN_IPA
    )
    if rate_hz <= 0:
        sys.exit(f"eSpeak NG did not start with data {request['data']}")
    lib.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    pcm = bytearray()
    events: list[list[Any]] = []

    def receive(wav: int | None, num_samples: int, event: Any) -> int:
        index = 0
        while event[index].type != 0:
            item = event[index]
            if item.type in (EVENT_WORD, EVENT_PHONEME):
                ipa = item.id.string.decode("utf-8", "ignore") if item.type == EVENT_PHONEME else ""
                events.append([item.type, item.text_position, item.length, item.sample, ipa])
            index += 1
        if wav and num_samples > 0:
            pcm.extend(ctypes.string_at(wav, 2 * num_samples))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(Event))(receive)
    lib.espeak_SetSynthCallback(callback)
    if lib.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        sys.exit(f"eSpeak NG has no voice {request['voice']!r}")
    lib.espeak_SetParameter(RATE, request["rate_wpm"], 0)
    lib.espeak_SetParameter(PITCH, request["pitch"], 0)
    lib.espeak_SetParameter(PITCH_RANGE, request["pitch_range"], 0)
    text = request["text"].encode() + b"\0"
    lib.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
    return {"sample_rate_hz": rate_hz, "events": events, "pcm": base64.b64encode(pcm).decode()}


def main() -> None:
    """Serves requests until stdin closes."""
    serve(contain(), speak)


if __name__ == "__main__":
    main()
