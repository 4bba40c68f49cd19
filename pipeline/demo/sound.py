"""Soundtracks of known content: lines of speech at chosen times, noise at a chosen ratio, music, impacts, shifts and drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.voice import SAMPLE_RATE_HZ, SPEECH_RMS, SpokenText, synthesise

Sound = NDArray[np.float32]

SENTENCES = (
    "The children walked home from school in the rain.",
    "My brother has a small white house near the river.",
    "Please open the window before you leave the room.",
    "We had bread and butter for breakfast this morning.",
    "The old man told me about his life at sea.",
    "She wants to buy a new car next year.",
    "I found your letter under the kitchen table.",
    "The train to the city leaves in half an hour.",
    "Many people came to hear the music last night.",
    "He put the money back into his pocket.",
    "They painted the front door a bright blue.",
    "A big brown dog was asleep by the fire.",
    "You should call your mother about the party.",
    "The farmer brought apples and eggs to market.",
    "It was a warm day and the water was clear.",
    "Nobody knows who opened the back gate.",
    "We can meet at the office on Monday.",
    "The moon is bright over the mountain.",
    "Your paper is due at the end of the week.",
    "I have never been to that part of town.",
    "How far is it to the next village?",
    "The baby began to move about.",
    "Open the box with care.",
    "What a beautiful morning.",
)

SECONDS_PER_LETTER = 0.05
"""A little less than every voice here needs (0.052 to 0.065 measured): spares speaking what cannot fit."""


@dataclass(frozen=True)
class Line:
    """One utterance: who says it, from when on (sound and mouth alike, before any shift), and whether the face is seen."""

    start_s: float
    who: str
    speech: SpokenText
    on_screen: bool = True

    @property
    def end_s(self) -> float:
        """End of the last phoneme."""
        return self.start_s + self.speech.duration_s


@dataclass(frozen=True)
class Shift:
    """When sound of scene time t is heard: t * (1 + drift) + offset. Positive = late. Only the sound is shifted."""

    offset_ms: float = 0.0
    drift_ms_per_s: float = 0.0

    def heard_s(self, scene_s: float) -> float:
        """Container time at which the sound of `scene_s` is heard."""
        return scene_s * (1 + self.drift_ms_per_s / 1000) + self.offset_ms / 1000

    def apply(self, sound: Sound) -> Sound:
        """The sound as heard, same length; what moves in from outside is silence. Exact for whole samples without drift."""
        heard = np.arange(len(sound)) / SAMPLE_RATE_HZ
        scene = (heard - self.offset_ms / 1000) / (1 + self.drift_ms_per_s / 1000)
        return np.interp(scene * SAMPLE_RATE_HZ, np.arange(len(sound)), sound, left=0.0, right=0.0).astype(np.float32)


IN_SYNC = Shift()


def lines_in(who: str, start_s: float, end_s: float, seed: int = 0, on_screen: bool = True) -> list[Line]:
    """Utterances of one speaker filling start_s..end_s with pauses of 0.3 to 0.7 s. ValueError if not even one fits."""
    random = np.random.default_rng([seed, 77])
    lines: list[Line] = []
    at_s = start_s
    for index in random.permutation(len(SENTENCES)):
        if len(SENTENCES[index]) * SECONDS_PER_LETTER > end_s - at_s:
            continue
        speech = synthesise(SENTENCES[index], who, seed=seed)
        if at_s + speech.duration_s <= end_s:
            lines.append(Line(at_s, who, speech, on_screen))
            at_s += speech.duration_s + random.uniform(0.3, 0.7)
    if not lines:
        raise ValueError(f"no sentence fits into {end_s - start_s:.2f} s from {start_s:.2f} s: give at least 2 s")
    return lines


def mix(lines: Sequence[Line], duration_s: float) -> Sound:
    """All lines at their times in silence, (round(duration_s * SAMPLE_RATE_HZ),) float32."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)
    for line in lines:
        add(track, line.speech.samples, line.start_s)
    return track


def add(track: Sound, sound: Sound, start_s: float) -> None:
    """Adds `sound` into `track` from `start_s`; what sticks out at either end is cut off."""
    first = round(start_s * SAMPLE_RATE_HZ)
    sound = sound[max(-first, 0) : max(len(track) - first, 0)]
    track[max(first, 0) : max(first, 0) + len(sound)] += sound


def mouth_at(lines: Sequence[Line], who: str, time_s: float) -> tuple[float, float]:
    """(opening, rounding) of `who`'s mouth at scene time `time_s`; closed when nothing is being said on screen."""
    for line in lines:
        index = round((time_s - line.start_s) * SAMPLE_RATE_HZ)
        if line.who == who and line.on_screen and 0 <= index < len(line.speech.opening):
            return float(line.speech.opening[index]), float(line.speech.rounding[index])
    return 0.0, 0.0


def room_noise(duration_s: float, snr_db: float, seed: int = 0) -> Sound:
    """Pink-like noise whose power is `snr_db` below speech of SPEECH_RMS."""
    from scipy.signal import lfilter

    white = np.random.default_rng([seed, 5]).standard_normal(round(duration_s * SAMPLE_RATE_HZ))
    soft = lfilter([0.1], [1.0, -0.9], white)
    return np.asarray(soft * (SPEECH_RMS * 10 ** (-snr_db / 20) / np.sqrt(np.mean(soft**2))), np.float32)


def music(duration_s: float, rms: float = 0.05, seed: int = 0) -> Sound:
    """A bed of slow chords of plucked harmonics, two chords a second; no voice in it."""
    random = np.random.default_rng([seed, 9])
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    decay = np.exp(-3.5 * time_s) * np.minimum(time_s / 0.01, 1)
    for beat in range(int(duration_s * 2) + 1):
        root = 130.8 * 2 ** (random.choice([0, 3, 5, 7, 10]) / 12)
        notes = [root, root * 2 ** (4 / 12), root * 2 ** (7 / 12)]
        tone = sum(
            np.sin(2 * np.pi * note * harmonic * time_s) / harmonic**2 for note in notes for harmonic in (1, 2, 3)
        )
        add(track, (decay * tone).astype(np.float32), beat / 2)
    return track * np.float32(rms / np.sqrt(np.mean(track**2)))


def impact(seed: int = 0, peak: float = 0.5) -> Sound:
    """A 0.15 s knock: its first sample is the loud onset."""
    time_s = np.arange(round(0.15 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    noise = np.random.default_rng([seed, 3]).standard_normal(len(time_s))
    knock = np.exp(-time_s / 0.02) * (np.cos(2 * np.pi * 180 * time_s) + 0.3 * noise)
    return np.asarray(peak * knock / np.max(np.abs(knock)), np.float32)
