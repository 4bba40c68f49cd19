"""Whether speech, singing and music are heard where they are: `python -m benchmarks.quality_sound DIR ... --json FILE`.

Scenes of 14 s are mixed from recorded and synthetic voices, sung phrases, generated and played music, barks, steps, strokes
and noise, alone and over one another at known levels; where what is heard is known to the sample. Voices, sung phrases,
noises and music of the half `choose` are not those of `publish`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import bootstrap_interval
from pipeline.demo.sound import SENTENCES, music, room_noise
from pipeline.demo.voice import SAMPLE_RATE_HZ, synthesise
from schemas.errors import ItemError
from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch, bridged, runs
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.sound.events import EVENTS, HOP_S, Event, EventNetwork
from stages.sound.stage import heard_in

Half = Literal["choose", "publish"]
F32 = NDArray[np.float32]
SCENE_S = 14.0
LOUD = 0.07
"""Root mean square of what stands in front."""
PAUSE_S = 0.5
FIRST_SEED: dict[Half, int] = {"choose": 0, "publish": 1000}
VOICES: dict[Half, tuple[str, ...]] = {
    "choose": (
        "speech/librispeech_1688-142285-0001.flac",
        "speech/harvard_spk1_snt1.wav",
        "speech/harvard_spk1_snt4.wav",
        "speech/jfk_inaugural_11s.flac",
    ),
    "publish": (
        "speech/librispeech_2412-153948-0000.flac",
        "speech/librispeech_2412-153948-0001.flac",
        "speech/harvard_spk2_snt2.wav",
        "speech/harvard_spk2_snt4.wav",
        "speech/librivox_reader_260.wav",
        "speech/librivox_reader_5142.wav",
        "speech/librivox_reader_6829.wav",
    ),
}
SPOKEN: dict[Half, tuple[str, ...]] = {"choose": ("ann", "ben"), "publish": ("cat", "dan")}
SUNG: dict[Half, tuple[str, float, float]] = {
    "choose": ("nonspeech/singing_female_english_9s.wav", 2.0, 8.0),
    "publish": ("nonspeech/singing_male_mandarin_10s.wav", 1.0, 5.0),
}
"""One sung phrase each, and the part of it in which notes are held: `stages.audio.held_tones` of 2 s is above 0.1, which of
speech it rarely is. The rest is half spoken, and nobody has marked it."""
NOISES: dict[Half, tuple[str, ...]] = {
    "choose": ("nonspeech/dog_barks_720p.mp4",),
    "publish": ("nonspeech/tennis_serves_indoor.mp4", "nonspeech/gopro_walk_with_telemetry_tracks.mp4"),
}
PLAYED = "nonspeech/ukulele_duet_60fps.mp4"
"""Music of which the first half is for choosing and the second for publishing."""
LEVELS_DB = (-3.0, -6.0, -10.0, -15.0, -20.0)
"""Of music under speech."""
KINDS = ("speech", "speech over music", "music", "singing", "singing over music", "noise")


class Material:
    """Sounds at 16 kHz, level `LOUD`."""

    def __init__(self, half: Half, folders: Sequence[Path], context: Context) -> None:
        self._folders, self._context = folders, context
        self.voices = [self._file(name) for name in VOICES[half]]
        self.voices += [self._spoken(who, line) for who in SPOKEN[half] for line in range(3)]
        name, start_s, end_s = SUNG[half]
        self.sung = [self._file(name)[round(start_s * SPEECH_RATE_HZ) : round(end_s * SPEECH_RATE_HZ)]]
        self.noises = [self._file(name) for name in NOISES[half]] + [to_16k(room_noise(10, 0, FIRST_SEED[half]))]
        played = self._file(PLAYED)
        middle = len(played) // 2
        self.music = [played[:middle] if half == "choose" else played[middle:]]
        self.music += [leveled(to_16k(music(12, seed=FIRST_SEED[half] + seed))) for seed in range(2)]
        self.music += [leveled(band(12, FIRST_SEED[half] + seed)) for seed in range(3)]

    def _file(self, name: str) -> F32:
        path = next(folder / name for folder in self._folders if (folder / name).is_file())
        return leveled(np.array(self._context.media.audio(path, rate_hz=SPEECH_RATE_HZ).samples))

    def _spoken(self, who: str, line: int) -> F32:
        return leveled(to_16k(synthesise(SENTENCES[line], who).samples))


def to_16k(samples: F32) -> F32:
    """From the demo's 48 kHz."""
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(samples, 1, SAMPLE_RATE_HZ // SPEECH_RATE_HZ), np.float32)


def leveled(samples: F32) -> F32:
    """At `LOUD`, counting what is not silent."""
    loud = samples[np.abs(samples) > 0.01 * np.abs(samples).max()]
    return np.asarray(samples * (LOUD / np.sqrt(np.square(loud, dtype=np.float64).mean())), np.float32)


def band(length_s: float, seed: int) -> F32:
    """Drums, a bass and a tune, none of them a voice, at 16 kHz."""
    rng = np.random.default_rng((seed, 11))
    beat_s = 60 / rng.uniform(80, 150)
    track = np.zeros(round(length_s * SPEECH_RATE_HZ) + SPEECH_RATE_HZ, np.float32)
    t = np.arange(SPEECH_RATE_HZ // 2) / SPEECH_RATE_HZ
    scale = 220 * 2 ** (np.array([0, 2, 3, 5, 7, 8, 10, 12]) / 12) * rng.uniform(0.8, 1.5)
    shape = rng.uniform(0.3, 1.0, 6) / np.arange(1, 7)
    for beat in range(int(length_s / beat_s)):
        at = round(beat * beat_s * SPEECH_RATE_HZ)
        kick = np.sin(2 * np.pi * 60 * t * np.exp(-6 * t)) * np.exp(-12 * t)
        snare = rng.normal(0, 0.4, len(t)) * np.exp(-25 * t) * (beat % 2)
        bass = np.sign(np.sin(2 * np.pi * scale[beat // 4 % 4] / 4 * t)) * 0.25 * np.exp(-3 * t)
        note = scale[int(rng.integers(len(scale)))] * rng.choice([1, 2])
        tune = sum(size * np.sin(2 * np.pi * note * (n + 1) * t) for n, size in enumerate(shape)) * np.exp(-4 * t)
        track[at : at + len(t)] += (kick + snare + bass + 0.4 * tune).astype(np.float32)
    return track[: round(length_s * SPEECH_RATE_HZ)]


@dataclass
class Scene:
    """A mix and what is heard in it."""

    samples: F32
    truth: dict[Event, list[Stretch]] = field(default_factory=lambda: {event: [] for event in EVENTS})
    level_db: dict[float, float] = field(default_factory=dict)
    """Start of speech over music -> level of the music."""

    def add(self, event: Event | None, sound: F32, at_s: float, gain: float = 1.0) -> float:
        """Lays `sound` in and notes it; when it ends."""
        first = round(at_s * SPEECH_RATE_HZ)
        part = sound[: max(0, len(self.samples) - first)]
        self.samples[first : first + len(part)] += gain * part
        if event is not None:
            self.truth[event] += [stretch.moved(at_s) for stretch in sounding(part)]
        return at_s + len(part) / SPEECH_RATE_HZ


def sounding(sound: F32) -> list[Stretch]:
    """Where a clean recording is within 25 dB of its loudest, pauses under `PAUSE_S` bridged."""
    frame = SPEECH_RATE_HZ // 50
    levels = np.square(sound[: len(sound) // frame * frame].reshape(-1, frame)).mean(1)
    if not len(levels):
        return []
    found = bridged(runs(levels > 10**-2.5 * np.quantile(levels, 0.98)), PAUSE_S * 50)
    return [Stretch(first / 50, end / 50) for first, end in found.tolist() if end - first >= 10]


def scenes(half: Half, material: Material, num: int) -> Iterator[Scene]:
    """Scenes of parts of 2.5 to 4.5 s with half a second between them."""
    for seed in range(FIRST_SEED[half], FIRST_SEED[half] + num):
        rng = np.random.default_rng(seed)
        scene = Scene(rng.normal(0, 3e-4, round(SCENE_S * SPEECH_RATE_HZ)).astype(np.float32))
        at_s = 0.5
        while at_s < SCENE_S - 2.5:
            at_s = _lay(scene, str(rng.choice(KINDS)), at_s, material, rng) + 0.5
        yield scene


def _lay(scene: Scene, kind: str, at_s: float, material: Material, rng: np.random.Generator) -> float:
    num = round(rng.uniform(2.5, 4.5) * SPEECH_RATE_HZ)

    def piece(sounds: Sequence[F32]) -> F32:
        sound = sounds[int(rng.integers(len(sounds)))]
        start = int(rng.integers(0, max(1, len(sound) - num)))
        return sound[start : start + num]

    if kind == "noise":
        return scene.add(None, piece(material.noises), at_s)
    if kind == "music":
        return scene.add("music", piece(material.music), at_s)
    front = piece(material.voices if kind.startswith("speech") else material.sung)
    end_s = scene.add("speech" if kind.startswith("speech") else "singing", front, at_s)
    if kind.endswith("music"):
        level_db = float(rng.choice(LEVELS_DB))
        scene.level_db[at_s] = level_db
        scene.add("music", piece(material.music)[: len(front)], at_s, 10 ** (level_db / 20))
    return end_s


def marked(stretches: Sequence[Stretch], num: int) -> NDArray[np.bool_]:
    """Which of `num` frames of 10 ms lie in one of `stretches`."""
    is_in = np.zeros(num, bool)
    for stretch in stretches:
        is_in[round(stretch.start_s / HOP_S) : round(stretch.end_s / HOP_S)] = True
    return is_in


def masks_of(
    scene: Scene, heard: dict[Event, list[Stretch]], event: Event
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Frames in which an event is, and in which it was found. Whether a band plays under sung phrases nobody has marked."""
    num = round(SCENE_S / HOP_S)
    true, told = marked(scene.truth[event], num), marked(heard[event], num)
    if event == "music":
        told &= true | ~marked(scene.truth["singing"], num)
    return true, told


def score_events(told: Sequence[tuple[Scene, dict[Event, list[Stretch]]]]) -> dict[str, Any]:
    """F1 of time for each event, over scenes, and how much of music is found under speech by its level."""
    num = round(SCENE_S / HOP_S)
    figures: dict[str, Any] = {}
    for event in EVENTS:
        masks = [masks_of(scene, heard, event) for scene, heard in told]
        counts = np.array([((a & b).sum(), a.sum(), b.sum()) for a, b in masks], float)

        def f1(at: Any, counts: NDArray[np.float64] = counts) -> float:
            both, true, said = counts[at].sum(0)
            return float(2 * both / max(true + said, 1))

        both, true, said = counts.sum(0)
        figures[event] = {
            "f1": f1(range(len(counts))),
            "interval": bootstrap_interval(f1, len(counts)),
            "precision": both / max(said, 1),
            "recall": both / max(true, 1),
        }
    under: dict[float, list[float]] = {level: [] for level in LEVELS_DB}
    for scene, heard in told:
        is_heard = marked(heard["music"], num)
        for at_s, level_db in scene.level_db.items():
            part = slice(round((at_s + 0.3) / HOP_S), round((at_s + 2.2) / HOP_S))
            under[level_db].append(float(is_heard[part].mean()))
    figures["music_under_voice_db"] = {
        str(level): float(np.mean(found)) if found else None for level, found in under.items()
    }
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="+", help="folders that hold the files named above")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--half", choices=("choose", "publish"), default="publish")
    parser.add_argument("--scenes", type=int, default=40)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder))
        try:
            material = Material(given.half, given.media, context)
        except ItemError as error:
            raise SystemExit(f"{error}; the folders given are {given.media}") from error
        finally:
            context.media.close()
    network, voice = EventNetwork.load(), VoiceActivity.load()
    told = [
        (scene, heard_in(network.probabilities(scene.samples), voice.stretches(scene.samples, VoiceConfig())))
        for scene in scenes(given.half, material, given.scenes)
    ]
    figures = {"events": score_events(told), "scenes": len(told)}
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
