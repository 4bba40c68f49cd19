"""Meetings mixed from single voices, with exact turns: who speaks, how many at once, in which room, is known to the sample.

Voices are those of media files in which one person speaks, of two media folders, and for fitting three of the speech
synthesiser flite where it is installed. `FIT` and `PUBLISHED` share no voice, and no voice of `FIT` is heard in any file
that docs/quality.md publishes turns of.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.sounds import Sounds
from schemas.spans import SPEECH_RATE_HZ, Turn
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig

F32 = NDArray[np.float32]
Voices = dict[str, list[F32]]
"""Stretches of speech by voice."""

FIT = {
    "media2/speech/librivox_reader_260.wav": "reader 260",
    "media2/speech/librivox_reader_5142.wav": "reader 5142",
    "media/talking/talking_woman_blue_backdrop.mp4": "woman in blue",
    "media/talking/portrait_hevc_man_curtain_30fps.mp4": "man at curtain",
    "media/speech/jfk_inaugural_11s.flac": "president",
    "media/speech/narration_chemicals_67s.opus": "narrator",
    "media/talking/talking_man_world_map.mp4": "man at map",
}
"""File, below the folder that holds both media folders, and whose voice it is: settings are chosen on these."""
FLITE = ("awb", "rms", "slt")
"""Voices of flite that join them."""
PUBLISHED = {
    **{f"media/speech/librispeech_1688-142285-000{n}.flac": "reader 1688" for n in range(3)},
    **{f"media/speech/librispeech_2412-153948-000{n}.flac": "reader 2412" for n in range(2)},
    **{f"media/speech/harvard_spk1_snt{n}.wav": "speaker 1" for n in (1, 4, 5, 6)},
    **{f"media/speech/harvard_spk2_snt{n}.wav": "speaker 2" for n in (2, 3, 4, 5, 6)},
    "media2/speech/librivox_reader_6829.wav": "reader 6829",
    "media2/speech/librivox_reader_7176.wav": "reader 7176",
    "media/talking/portrait_hevc_woman_garden.mp4": "woman in garden",
    "media/talking/portrait_hevc_man_kitchen.mp4": "man in kitchen",
    "media/talking/talking_woman_red_jacket_glasses.mp4": "woman in red",
}
"""The same of the voices whose meetings are published; the first four are heard in `four_readers_with_overlaps` too."""

SAID = (
    "It was already late when we came to the old bridge and found that nobody was waiting there.",
    "Could you please send me the numbers before noon, I would like to have another look at them.",
    "The weather has been so strange this year that the apples are ripe in the middle of July.",
    "I do not think that he will come, but we should keep a chair for him anyway.",
    "Well, first of all, thank you very much for the invitation and for the wonderful dinner.",
)
LENGTH_S = 48.0
"""From here on nobody begins who has had two turns."""
LEVEL = 0.05
"""Root mean square of a voice of middling loudness, full scale 1."""


@dataclass(frozen=True)
class Meeting:
    """A conversation [n] at 16 kHz and who speaks when in it."""

    samples: F32
    turns: list[Turn]


def voices_of(root: Path, files: dict[str, str], voice: VoiceActivity) -> Voices:
    """Stretches of speech, 0.8 s and longer, of each voice in `files` below `root`."""
    found: Voices = {}
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        sounds = Sounds(root, context)
        for path, name in files.items():
            samples, _ = sounds.of({"path": path})
            found.setdefault(name, []).extend(speech_in(samples, voice))
        context.media.close()
    return found


def speech_in(samples: F32, voice: VoiceActivity) -> list[F32]:
    """The stretches of speech in mono `samples` at 16 kHz that last 0.8 s and longer."""
    said = (s for s in voice.stretches(samples, VoiceConfig()) if s.duration_s > 0.8)
    return [samples[int(s.start_s * SPEECH_RATE_HZ) : int(s.end_s * SPEECH_RATE_HZ)] for s in said]


def flite_voices() -> Voices:
    """What flite's voices say; none where it is not installed (Debian: flite)."""
    import soundfile

    found: Voices = {}
    if shutil.which("flite") is None:
        return found
    with tempfile.TemporaryDirectory() as scratch:
        for name in FLITE:
            for text in SAID:
                path = Path(scratch) / "said.wav"
                subprocess.run(["flite", "-voice", name, "-t", text, "-o", str(path)], check=True, timeout=60)
                samples, rate_hz = soundfile.read(path, dtype="float32")
                assert rate_hz == SPEECH_RATE_HZ, f"flite's {name} speaks at {rate_hz} Hz"
                loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
                found.setdefault(f"flite {name}", []).append(samples[loud[0] : loud[-1]])
    return found


def make_meeting(voices: Voices, number: int, seed: int, num_people: int | None = None) -> Meeting:
    """The `number`-th meeting of two to five people, always the same from the same voices.

    Everybody has two turns of 1.5 s and more at least. How much is said at once differs from meeting to meeting, from nothing
    to half of all turns begun before the last one ends and a word thrown in every third time. Three of five are in a room
    in which each stands elsewhere, one in seven comes over a telephone; levels differ by up to 10 dB, and noise lies 18 to
    50 dB below.
    """
    rng = np.random.default_rng([seed, number])
    people = [str(name) for name in rng.choice(sorted(voices), num_people or 2 + number % 4, replace=False)]
    level = {name: LEVEL * 10 ** (rng.uniform(-5, 5) / 20) for name in people}
    density, is_in_room, reverberation_s = rng.uniform(0, 0.55), rng.random() < 0.6, rng.uniform(0.15, 0.7)
    said = _converse(voices, people, density, rng)
    end = int((max(turn.end_s for turn, _ in said) + 0.5) * SPEECH_RATE_HZ)
    mixed = np.zeros(end, np.float32)
    for name in people:
        own = np.zeros(end, np.float32)
        for turn, sound in said:
            if turn.speaker == name:
                low = round(turn.start_s * SPEECH_RATE_HZ)
                own[low : low + len(sound)] += sound * np.float32(level[name])
        mixed += _in_room(own, reverberation_s, rng) if is_in_room else own
    mixed = _noisy(mixed, rng)
    if rng.random() < 0.15:
        mixed = _telephone(mixed)
    mixed *= min(1.0, 0.9 / float(np.abs(mixed).max()))
    return Meeting(mixed.astype(np.float32), sorted((turn for turn, _ in said), key=lambda t: (t.start_s, t.end_s)))


def _converse(voices: Voices, people: list[str], density: float, rng: np.random.Generator) -> list[tuple[Turn, F32]]:
    """Turns and what is said in them, at unit level."""
    said: list[tuple[Turn, F32]] = []
    free_s = dict.fromkeys(people, 0.0)

    def put(name: str, at_s: float, sound: F32) -> float:
        low = round(at_s * SPEECH_RATE_HZ)
        turn = Turn(name, low / SPEECH_RATE_HZ, (low + len(sound)) / SPEECH_RATE_HZ)
        said.append((turn, sound))
        free_s[name] = turn.end_s + 0.3
        return turn.end_s

    owed = [str(name) for _ in range(2) for name in rng.permutation(people)]
    end_s, last = 0.5, ""
    while end_s < LENGTH_S or owed:
        if owed and owed[0] != last and (rng.random() < 0.5 or end_s > LENGTH_S - 4 * len(owed)):
            name = owed.pop(0)
        else:
            name = str(rng.choice([one for one in people if one != last]))
        sound = _utterance(voices[name], 1.5, 6.0, rng)
        at_s = end_s + (-rng.uniform(0.3, 2.0) if last and rng.random() < density else rng.uniform(0.05, 0.8))
        at_s = max(at_s, 0.2, free_s[name])
        end_s, last = max(end_s, put(name, at_s, sound)), name
        for _ in range(2):
            if rng.random() < 0.6 * density and len(sound) > 2.5 * SPEECH_RATE_HZ:
                other = str(rng.choice([one for one in people if one != name]))
                word = _utterance(voices[other], 0.4, 2.0, rng)
                begin_s = at_s + rng.uniform(0.3, max(0.4, (len(sound) - len(word)) / SPEECH_RATE_HZ))
                if begin_s >= free_s[other]:
                    put(other, begin_s, word)
    return said


def _utterance(pieces: list[F32], least_s: float, most_s: float, rng: np.random.Generator) -> F32:
    """So many seconds of one stretch of speech at unit level, faded over 10 ms."""
    piece = pieces[rng.integers(len(pieces))]
    size = min(len(piece), int(rng.uniform(least_s, most_s) * SPEECH_RATE_HZ))
    start = int(rng.integers(len(piece) - size + 1))
    said = piece[start : start + size] / np.sqrt(np.mean(piece[start : start + size] ** 2) + 1e-9)
    fade = np.minimum(1, np.arange(size) / (0.01 * SPEECH_RATE_HZ))
    return np.asarray(said * fade * fade[::-1], np.float32)


def _in_room(samples: F32, reverberation_s: float, rng: np.random.Generator) -> F32:
    """`samples` as heard in a room: first the sound itself, a few echoes, then a tail that falls by 60 dB in its time."""
    from scipy.signal import fftconvolve

    times_s = np.arange(int(reverberation_s * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    tail = rng.normal(size=len(times_s)) * 10 ** (-3 * times_s / reverberation_s)
    tail[: int(0.002 * SPEECH_RATE_HZ)] = 0
    for echo_s in rng.uniform(0.002, 0.03, rng.integers(3, 9)):
        tail[int(echo_s * SPEECH_RATE_HZ)] += rng.choice([-1, 1]) * rng.uniform(1, 3)
    tail *= 10 ** (-rng.uniform(-2, 10) / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    return np.asarray(fftconvolve(samples, tail)[: len(samples)], np.float32)


def _noisy(samples: F32, rng: np.random.Generator) -> F32:
    from scipy.signal import lfilter

    noise = rng.normal(size=len(samples))
    if rng.random() < 0.6:
        noise = lfilter([1], [1, -0.95], noise)
    level = LEVEL * 10 ** (-rng.uniform(18, 50) / 20)
    return np.asarray(samples + noise * level / np.sqrt(np.mean(noise**2)), np.float32)


def _telephone(samples: F32) -> F32:
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(resample_poly(samples, 1, 2), 2, 1)[: len(samples)], np.float32)


def meetings(voices: Voices, numbers: Iterable[int], seed: int) -> list[Meeting]:
    """The meetings of these numbers."""
    return [make_meeting(voices, number, seed) for number in numbers]
