"""Whether ratings of speech fall as it gets worse: `python -m benchmarks.quality_sound_ladders DIR ... --json FILE`.

Recorded voices along ladders of noise, missing treble, clipping and lost pieces, rated by all that stage `sound` has. Voices
of the half `choose` are not those of `publish`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import bootstrap_interval
from benchmarks.quality_sound import LOUD, Half, leveled
from schemas.errors import ItemError
from schemas.spans import SPEECH_RATE_HZ
from stages.base import Context
from stages.sound.mos import Rating, SpeechRater

F32 = NDArray[np.float32]
Worse = Callable[[F32, float], F32]
VOICES: dict[Half, dict[str, tuple[str, ...]]] = {
    "choose": {
        "reader 1688": ("librispeech_1688-142285-0001.flac",),
        "Harvard 1": ("harvard_spk1_snt1.wav", "harvard_spk1_snt4.wav"),
        "Kennedy": ("jfk_inaugural_11s.flac",),
    },
    "publish": {
        "reader 2412": ("librispeech_2412-153948-0000.flac", "librispeech_2412-153948-0001.flac"),
        "Harvard 2": ("harvard_spk2_snt2.wav", "harvard_spk2_snt4.wav"),
        "LJ": ("ljspeech_LJ002-0020.wav", "ljspeech_LJ002-0035.wav"),
        "reader 260": ("librivox_reader_260.wav",),
        "reader 5142": ("librivox_reader_5142.wav",),
        "reader 6829": ("librivox_reader_6829.wav",),
        "reader 7176": ("librivox_reader_7176.wav",),
    },
}
"""Who speaks -> recordings, in a folder `speech`."""
RATINGS = (*Rating._fields, "mean")


def with_noise(speech: F32, snr_db: float) -> F32:
    """White noise under speech."""
    noise = np.random.default_rng(2).normal(0, LOUD * 10 ** (-snr_db / 20), len(speech))
    return np.asarray(speech + noise, np.float32)


def cut_off(speech: F32, top_hz: float) -> F32:
    """Nothing above a frequency."""
    from scipy.signal import butter, sosfiltfilt

    return np.asarray(sosfiltfilt(butter(6, top_hz, fs=SPEECH_RATE_HZ, output="sos"), speech), np.float32)


def clipped(speech: F32, share: float) -> F32:
    """So many of the largest samples cut off, and the whole as loud as before: DNSMOS P.835 also hears how loud it is."""
    level = float(np.quantile(np.abs(speech), 1 - share))
    flat = speech.clip(-level, level)
    return np.asarray(flat * np.sqrt(np.square(speech).sum() / np.square(flat).sum()), np.float32)


def with_holes(speech: F32, share: float) -> F32:
    """Pieces of 40 ms lost."""
    size = SPEECH_RATE_HZ // 25
    is_lost = np.repeat(np.random.default_rng(3).random(len(speech) // size + 1) < share, size)[: len(speech)]
    return np.where(is_lost, 0, speech).astype(np.float32)


LADDERS: Mapping[str, tuple[Worse, tuple[float, ...]]] = {
    "noise, dB": (with_noise, (40, 25, 15, 5)),
    "cut off, Hz": (cut_off, (7500, 3000, 1500, 800)),
    "clipped share": (clipped, (0.0, 0.05, 0.2, 0.5)),
    "lost share": (with_holes, (0.0, 0.05, 0.15, 0.3)),
}


def distortion_db(speech: F32, changed: F32) -> float:
    """Level of `speech` [n] over what `changed` has beside it, in dB."""
    one, other = speech.astype(np.float64), changed.astype(np.float64)
    likeness = float((one @ other) ** 2 / ((one @ one) * (other @ other)))
    return float(10 * np.log10(likeness / max(1 - likeness, 1e-12)))


def rated(voices: Mapping[str, Sequence[F32]], rater: SpeechRater) -> dict[str, NDArray[np.float64]]:
    """Ladder -> [speakers, rungs, ratings]; of several recordings of one speaker the mean. Sounds last 0.5 s or more."""

    def of_speaker(worse: Worse, rung: float, recordings: Sequence[F32]) -> NDArray[np.float64]:
        told = [rating for each in recordings if (rating := rater.rate(worse(each, rung)))]
        return np.array([np.mean([getattr(rating, name) for rating in told]) for name in RATINGS])

    return {
        name: np.array([[of_speaker(worse, rung, each) for rung in rungs] for each in voices.values()])
        for name, (worse, rungs) in LADDERS.items()
    }


def falls(ratings: NDArray[np.float64]) -> dict[str, Any]:
    """One rating [speakers, rungs] down a ladder: means, and how far it falls at each step, with intervals over speakers."""
    drops = -np.diff(ratings, axis=1)

    def interval(drop: NDArray[np.float64]) -> list[float] | None:
        return bootstrap_interval(lambda at: float(drop[at].mean()), len(drop))

    intervals = [interval(drop) for drop in drops.T]
    return {
        "mean": ratings.mean(0).tolist(),
        "drop": drops.mean(0).tolist(),
        "drop_interval": intervals,
        "falls_in_the_mean": bool((drops.mean(0) > 0).all()),
        "falls_beyond_doubt": all(ends is not None and ends[0] > 0 for ends in intervals),
        "steps_that_fall": float((drops > 0).mean()),
    }


def score(voices: Mapping[str, Sequence[F32]], rater: SpeechRater) -> dict[str, Any]:
    """Rating -> ladder -> what it does there, and how much clipping distorts."""
    found = rated(voices, rater)
    flat = [
        [distortion_db(each, clipped(each, share)) for share in LADDERS["clipped share"][1] if share]
        for recordings in voices.values()
        for each in recordings
    ]
    return {
        "speakers": len(voices),
        "rungs": {name: list(rungs) for name, (_, rungs) in LADDERS.items()},
        "speech_over_distortion_of_clipping_db": np.mean(flat, axis=0).tolist(),
        "ratings": {
            rating: {name: falls(ratings[:, :, at]) for name, ratings in found.items()}
            for at, rating in enumerate(RATINGS)
        },
    }


def read(half: Half, folders: Sequence[Path]) -> dict[str, list[F32]]:
    """Who speaks -> recordings at 16 kHz, level `LOUD`. Raises ItemError for a file that is no sound."""

    def recording(name: str) -> F32:
        path = next((at for folder in folders if (at := folder / "speech" / name).is_file()), None)
        if path is None:
            raise SystemExit(f"None of the folders given has speech/{name}.")
        return leveled(np.array(context.media.audio(path, rate_hz=SPEECH_RATE_HZ).samples))

    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder))
        try:
            return {who: [recording(name) for name in names] for who, names in VOICES[half].items()}
        finally:
            context.media.close()


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "media", type=Path, nargs="+", help="folders that hold a folder `speech` with the files named above"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--half", choices=("choose", "publish"), default="publish")
    given = parser.parse_args(arguments)
    try:
        figures = score(read(given.half, given.media), SpeechRater.load())
    except ItemError as error:
        raise SystemExit(f"{error}; the folders given are {given.media}") from error
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
