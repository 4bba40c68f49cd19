"""Speech with exactly known words and mouth shapes, from eSpeak NG (package espeakng-loader; its voices are in the wheel).

Times come from the synthesiser's own word and phoneme events, so they are exact to its 22.05 kHz sample. The mouth track
is what a mouth would do to say those phonemes; nothing in it is measured from the sound, so it can serve as truth for
engines that measure.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.child import Child, ChildError

SAMPLE_RATE_HZ = 48_000
"""Rate of every sound made here: all frame rates we use divide into it or its 1001-multiples."""

SPEECH_RMS = 0.08
"""Loudness of speech, full scale 1.0: about -22 dBFS, usual for dialogue."""

LIP_SMOOTHING_S = 0.025
"""Standard deviation of the lips' inertia. Lips open and close within 50 to 100 ms in fluent speech."""

MEMORY_GB = 0.5
TIMEOUT_S = 60.0
"""Limits of one utterance: a long sentence takes 0.16 GB of address space and 0.1 s."""

# Opening (0 closed, 1 jaw fully down) and rounding (0 spread, 1 pursed) by IPA symbol; grouped as viseme charts group them.
_VISEMES = {
    "aæɑɒʌɐ": (1.0, 0.0),
    "ɛeəɜɚɝ": (0.62, 0.0),
    "ɔo": (0.72, 0.6),
    "iɪ": (0.38, 0.0),
    "uʊw": (0.28, 1.0),
    "pbm": (0.0, 0.0),
    "fv": (0.06, 0.0),
    "ʃʒɹr": (0.25, 0.5),
    "tdnszlkɡgŋhθðjɾʔ": (0.22, 0.0),
}
_VISEME_OF = {symbol: shape for symbols, shape in _VISEMES.items() for symbol in symbols}


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: an eSpeak NG voice with its usual rate and pitch (0 to 99, 50 is the voice's own)."""

    espeak_name: str
    rate_wpm: int
    pitch: int


VOICES = {
    "ann": Voice("en-us+f2", 150, 55),
    "ben": Voice("en-us+benjamin", 145, 40),
    "cat": Voice("en-us+f3", 155, 50),
    "dan": Voice("en-us+m1", 150, 45),
}
"""Chosen among 25 variants as the most different for a speaker encoder (Resemblyzer: 0.51 to 0.74 between two of them, 0.85
to 0.90 within one) that an English recogniser still understands best (pocketsphinx: 32 to 57 % word error)."""

FOREIGN = {
    "ana": Voice("es+f2", 140, 50),
    "dieter": Voice("de+m3", 135, 45),
    "mei": Voice("cmn+Alicia", 130, 50),
    "uma": Voice("hi+f5", 130, 50),
}
"""Speakers of Spanish, German, Mandarin and Hindi, of those tried the ones that Whisper base understands best. Of Hindi it
understands none."""


@dataclass(frozen=True)
class SpokenWord:
    """One spoken word; seconds from the first sample of its SpokenText."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SpokenText:
    """One spoken text. `samples`, `opening` and `rounding` are float32 of equal length at SAMPLE_RATE_HZ."""

    text: str
    voice: str
    words: tuple[SpokenWord, ...]
    samples: NDArray[np.float32]
    opening: NDArray[np.float32]
    rounding: NDArray[np.float32]

    @property
    def duration_s(self) -> float:
        """Length of the sound in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


@lru_cache(maxsize=256)
def synthesise(
    text: str, voice: str = "ann", rate_wpm: int | None = None, pitch: int | None = None, seed: int = 0
) -> SpokenText:
    """Speech of `text` by one of VOICES (ASCII English) or FOREIGN, beginning and ending with its first and last phoneme.

    `rate_wpm` and `pitch` default to the voice's own; the seed varies both by a few percent, as takes of one speaker differ.
    Same arguments, same samples, in any process. Costs one child process of about 50 ms. Raises ValueError for other text.
    """
    if voice not in FOREIGN and not text.isascii():
        raise ValueError(f"text to speak must be ASCII English, got {text!r}: spell it with plain letters")
    character = (VOICES | FOREIGN)[voice]
    vary = np.random.default_rng(seed)
    rate = round((rate_wpm or character.rate_wpm) * vary.uniform(0.97, 1.03))
    height = int(np.clip((character.pitch if pitch is None else pitch) + vary.integers(-3, 4), 0, 99))
    reply, pcm = _run_espeak(text, character.espeak_name, rate, height)
    rate_hz = int(reply["sample_rate_hz"])
    words, shapes = _timed(text, reply["events"], len(pcm) / rate_hz, rate_hz)
    samples = _resample(pcm, rate_hz)
    start, stop = (round(at_s * SAMPLE_RATE_HZ) for at_s in (words[0].start_s, words[-1].end_s))
    shift_s = start / SAMPLE_RATE_HZ
    samples = samples[start:stop] * np.float32(SPEECH_RMS / np.sqrt(np.mean(samples[start:stop] ** 2)))
    opening, rounding = _mouth(shapes, shift_s, len(samples))
    moved = tuple(SpokenWord(w.text, w.start_s - shift_s, w.end_s - shift_s) for w in words)
    return SpokenText(text, voice, moved, np.clip(samples, -0.98, 0.98), opening, rounding)


def _run_espeak(text: str, name: str, rate_wpm: int, pitch: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """(rate and events, samples in -1..1) from a child process of its own. RuntimeError with its message when it fails."""
    import espeakng_loader

    request = {
        "library": str(espeakng_loader.get_library_path()),
        "data": str(espeakng_loader.get_data_path()),
        "text": text,
        "voice": name,
        "rate_wpm": rate_wpm,
        "pitch": pitch,
        "pitch_range": 55,
        "seed": 1,
    }
    child = Child("pipeline.espeak_child", memory_gb=MEMORY_GB, retire_gb=MEMORY_GB)
    try:
        reply = child.ask("speak", request, TIMEOUT_S)
    except ChildError as error:
        raise RuntimeError(f"speech synthesis of {text!r} failed: it {error}") from None
    finally:
        child.kill()
    sound = base64.b64decode(reply.pop("pcm"))
    return reply, np.frombuffer(sound, "<i2").astype(np.float32) / np.float32(32768)


def _timed(
    text: str, events: list[list[Any]], end_s: float, rate_hz: int
) -> tuple[list[SpokenWord], list[tuple[float, float, str]]]:
    """Words and phonemes (start_s, end_s, ipa) from espeak's events, which give only where each one begins."""
    phonemes = [(position, sample / rate_hz, ipa) for kind, position, _, sample, ipa in events if kind == 7]
    ends = [start for _, start, _ in phonemes[1:]] + [end_s]
    shapes = [(start, end, ipa) for (_, start, ipa), end in zip(phonemes, ends, strict=True)]
    words = []
    for kind, position, length, _, _ in events:
        spoken = [
            (start, end)
            for (at, start, ipa), end in zip(phonemes, ends, strict=True)
            if at == position and ipa.strip("\0")
        ]
        if kind == 1 and spoken:
            word = text[position - 1 : position - 1 + length].strip(' .,;:!?"')
            words.append(SpokenWord(word, spoken[0][0], spoken[-1][1]))
    return words, shapes


def _resample(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """The samples at SAMPLE_RATE_HZ, zero phase: sample n stays at n / rate."""
    from scipy.signal import resample_poly

    divisor = int(np.gcd(SAMPLE_RATE_HZ, rate_hz))
    return np.asarray(resample_poly(samples, SAMPLE_RATE_HZ // divisor, rate_hz // divisor), np.float32)


def _mouth(
    shapes: list[tuple[float, float, str]], shift_s: float, num_samples: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(opening, rounding) float32 (num_samples,): viseme targets over the phonemes, smoothed by the lips' inertia."""
    from scipy.ndimage import gaussian_filter1d

    step = 48  # targets on a 1 ms grid: lips move at 10 Hz
    grid = np.zeros((2, num_samples // step + 2), np.float64)
    for start_s, end_s, ipa in shapes:
        targets = [_VISEME_OF[symbol] for symbol in ipa if symbol in _VISEME_OF]
        for index, target in enumerate(targets):
            length_s = (end_s - start_s) / len(targets)
            first = round(1000 * (start_s - shift_s + index * length_s))
            grid[:, max(first, 0) : max(first + round(1000 * length_s), 0)] = np.asarray(target)[:, None]
    smooth = gaussian_filter1d(grid, 1000 * LIP_SMOOTHING_S, axis=1, mode="constant")
    at = np.arange(num_samples) / step
    opening, rounding = (np.interp(at, np.arange(smooth.shape[1]), row).astype(np.float32) for row in smooth)
    return opening, rounding
