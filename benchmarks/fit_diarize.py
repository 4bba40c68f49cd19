"""Chooses the embedded diarizer's threshold on conversations mixed from single voices, none of which it is judged on.

    python -m benchmarks.fit_diarize MEDIA_DIR [--mixes 60] [--json FILE]

MEDIA_DIR holds manifest.json in the form of the project's test media; used are the items in which one person speaks, with at
least four seconds of speech per voice. Their stretches of speech become conversations of half a minute: two to four
people, turns of 0.8 to 5 s at different levels, every fifth begun while the last one still lasts, pauses of 0.1 to 0.7 s,
a third of them in a room, all in noise. Prints DER (collar 0.25) and how often the number of people is right.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_speech import compare_turns, only_speaker
from benchmarks.sounds import Sounds
from schemas.spans import SPEECH_RATE_HZ, Turn
from stages.base import Context
from stages.diarize.embedded import PAUSES, EmbeddedConfig, EmbeddedDiarizer, draw_turns, group
from stages.engines.voice import VoiceActivity, VoiceConfig

F32 = NDArray[np.float32]

THRESHOLDS = (0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.82, 0.84, 0.86, 0.88)
MIN_VOICE_S = 4.0
"""Less speech of one voice would come back in every turn, and be easy to recognise."""
MIX_S = 28.0


@dataclass(frozen=True)
class Mix:
    """A conversation [n] at 16 kHz and who speaks when in it."""

    samples: F32
    turns: list[Turn]


def single_voices(media_dir: Path, voice: VoiceActivity) -> dict[str, list[F32]]:
    """Stretches of speech of each person who speaks alone in some item of the manifest."""
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    voices: dict[str, list[F32]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        sounds = Sounds(media_dir, context)
        for item in items:
            name = only_speaker(item)
            if name is None:
                continue
            samples, _ = sounds.of(item)
            for said in voice.stretches(samples, VoiceConfig()):
                if said.duration_s > 0.8:
                    voices.setdefault(name, []).append(
                        samples[int(said.start_s * SPEECH_RATE_HZ) : int(said.end_s * SPEECH_RATE_HZ)]
                    )
        context.media.close()
    return {name: p for name, p in voices.items() if sum(map(len, p)) >= MIN_VOICE_S * SPEECH_RATE_HZ}


def make_mix(voices: dict[str, list[F32]], number: int) -> Mix:
    """The `number`-th conversation, always the same from the same voices."""
    rng = np.random.default_rng([5, number])
    people = rng.choice(sorted(voices), int(rng.integers(2, min(4, len(voices)) + 1)), replace=False)
    level = {name: 0.05 * 10 ** (rng.uniform(-6, 6) / 20) for name in people}
    samples = np.zeros(int(2 * MIX_S * SPEECH_RATE_HZ), np.float32)
    turns: list[Turn] = []
    at_s = 0.5
    while at_s < MIX_S:
        name = str(rng.choice([p for p in people if not turns or p != turns[-1].speaker]))
        said = _said(voices[name], rng) * level[name]
        if turns and rng.random() < 0.2:
            at_s -= rng.uniform(0.3, min(1.2, turns[-1].end_s - turns[-1].start_s))
        low = int(max(0.2, at_s) * SPEECH_RATE_HZ)
        samples[low : low + len(said)] += said
        turns.append(Turn(name, low / SPEECH_RATE_HZ, (low + len(said)) / SPEECH_RATE_HZ, None))
        at_s = turns[-1].end_s + rng.uniform(0.1, 0.7)
    samples = samples[: int(at_s * SPEECH_RATE_HZ)]
    if number % 3 == 1:
        samples = _in_room(samples, rng)
    noise = rng.normal(size=len(samples)) * 10 ** (-rng.uniform(45, 60) / 20)
    return Mix(np.asarray(samples + noise, np.float32), turns)


def _said(pieces: list[F32], rng: np.random.Generator) -> F32:
    """0.8 to 5 s of one stretch of speech at unit level, faded over 10 ms."""
    piece = pieces[rng.integers(len(pieces))]
    size = min(len(piece), int(rng.uniform(0.8, 5) * SPEECH_RATE_HZ))
    start = int(rng.integers(len(piece) - size + 1))
    said = piece[start : start + size] / np.sqrt(np.mean(piece[start : start + size] ** 2) + 1e-9)
    fade = np.minimum(1, np.arange(size) / (0.01 * SPEECH_RATE_HZ))
    return np.asarray(said * fade * fade[::-1], np.float32)


def _in_room(samples: F32, rng: np.random.Generator) -> F32:
    """`samples` with 0.3 s of exponential reverberation, as loud as before."""
    from scipy.signal import fftconvolve

    times_s = np.arange(int(0.3 * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    response = rng.normal(size=len(times_s)) * np.exp(-times_s / 0.08)
    response[0] = 4
    wet = fftconvolve(samples, response)[: len(samples)]
    return np.asarray(wet * np.sqrt(np.mean(samples**2) / np.mean(wet**2)), np.float32)


def sweep(mixes: Sequence[Mix], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """DER and right numbers of people over all mixes, one row per threshold."""
    engine = EmbeddedDiarizer.load(EmbeddedConfig(), Context(Path()))
    scores: dict[float, list[dict[str, Any]]] = {threshold: [] for threshold in thresholds}
    for mix in mixes:
        voices = engine.listen(mix.samples, engine.voice.stretches(mix.samples, PAUSES))
        for threshold in thresholds:
            config = EmbeddedConfig(threshold=threshold)
            found = draw_turns(group(voices, config)[0], config)
            scores[threshold].append(compare_turns(mix.turns, found, (0.0, len(mix.samples) / SPEECH_RATE_HZ)))
    return [
        {
            "threshold": threshold,
            "der_collar_0.25": sum(s["errors_0.25"] for s in rows) / sum(s["total_0.25"] for s in rows),
            "overlap_recall": sum(s["overlap_found_s"] for s in rows) / sum(s["overlap_s"] for s in rows),
            "right_number_of_speakers": sum(s["speakers"] == s["speakers_found"] for s in rows),
            "mixes": len(rows),
        }
        for threshold, rows in scores.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder with manifest.json")
    parser.add_argument("--mixes", type=int, default=60, help="conversations to make (default 60, about 3 minutes)")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    options = parser.parse_args(arguments)
    voices = single_voices(options.media, VoiceActivity.load())
    if len(voices) < 2:
        parser.error(f"{options.media} holds {len(voices)} voices of {MIN_VOICE_S:g} s and more; two are needed.")
    rows = sweep([make_mix(voices, number) for number in range(options.mixes)], THRESHOLDS)
    print(
        f"{len(voices)} voices, {options.mixes} mixes\n\n| threshold | DER | right number | overlap recall |\n|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['threshold']:.2f} | {100 * row['der_collar_0.25']:.1f} % "
            f"| {row['right_number_of_speakers']} of {row['mixes']} | {100 * row['overlap_recall']:.0f} % |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
