"""Whether sound is told from sound that belongs elsewhere: `python -m benchmarks.quality_match DIR --json FILE`.

Drawn events (`benchmarks.match_events`) are seen by stage `match` with the sound made for them, with the sounds of other films
and with their own moved by 1 s and more; pieces of DIR's real clips without speech, and of talking ones, likewise, with the
sounds of other files. The half `choose` has other photographs, strikes and seeds than the half `publish`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.halves import parser_of_halves
from benchmarks.intervals import bootstrap_interval
from benchmarks.match_events import F64, FPS, HEIGHT_PX, KINDS, SOUNDS_MADE, WIDTH_PX, Half, happenings
from benchmarks.quality_sound import to_16k
from pipeline.demo.write import Encoding, encode
from schemas.spans import SPEECH_RATE_HZ
from schemas.timing import Span
from stages.base import Context
from stages.match.evidence import EventWatch, SeenMotion, evidence_of
from stages.media.waveform import Waveform

MOVES_S = (1.0, -1.3, 1.7, 2.3)
"""By how much a film's own sound is moved, what leaves one end coming in at the other."""
NUM_FOREIGN = 6
"""Sounds of other films that each is seen with: one of its own kind, the others of the next ones."""
AS_IT_IS, *HARDER = SOUNDS_MADE
MOST_STRANGERS = 8
"""Pieces of other files whose sound each piece of a real clip is seen with."""
REAL = (
    "nonspeech/dog_barks_720p.mp4",
    "nonspeech/tennis_serves_indoor.mp4",
    "nonspeech/gopro_walk_with_telemetry_tracks.mp4",
    "nonspeech/ukulele_duet_60fps.mp4",
    "nonspeech/big_buck_bunny_5s_5.1_audio.mp4",
)


@dataclass(frozen=True)
class Seen:
    """One film or piece: how it moves, and what is heard around it."""

    name: str
    kind: str
    motion: SeenMotion
    sounds: Mapping[str, Waveform]
    """As it is, or made harder -> sound."""


@dataclass(frozen=True)
class Told:
    """What the stage says of one film: under its own sound, and under each that belongs elsewhere; NaN where it says nothing."""

    name: str
    kind: str
    own: float
    foreign: F64
    moved: F64


def drawn(half: Half, rounds: int) -> Iterator[Seen]:
    """Films of drawn events, encoded and decoded."""
    with tempfile.TemporaryDirectory() as folder:
        context, path = Context(Path(folder)), Path(folder) / "film.mp4"
        for film in happenings(half, rounds):
            encoding = Encoding(WIDTH_PX, HEIGHT_PX, Fraction(FPS), quality=(22, 28, 34)[film.number % 3])
            encode(path, iter(film.pictures), None, encoding)
            watch, whole = context.asset_pass.look(path, EventWatch), context.asset_pass.seen(path)
            motion = watch.of(Span(int(whole.pts[0]), whole.end_pts, whole.num, whole.den))
            sounds = {name: Waveform(to_16k(each), SPEECH_RATE_HZ, Fraction(0)) for name, each in film.sounds.items()}
            yield Seen(str(film.number), film.kind, motion, sounds)
        context.media.close()


def real(media_dir: Path, names: Sequence[str], piece_s: int) -> Iterator[Seen]:
    """Pieces of real clips, each with the whole sound of its file."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder))
        for name in names:
            watch = context.asset_pass.look(media_dir / name, EventWatch)
            whole, sound = context.asset_pass.seen(media_dir / name), context.media.audio(media_dir / name)
            piece = round(piece_s * whole.den / whole.num)
            first, end = int(whole.pts[0]), whole.end_pts
            for number in range((end - first) // piece):
                span = Span(first + number * piece, first + (number + 1) * piece, whole.num, whole.den)
                yield Seen(f"{Path(name).stem} {number}", Path(name).stem, watch.of(span), {AS_IT_IS: sound})
        context.media.close()


def agreement(seen: Seen, sound: Waveform) -> float:
    """What the stage says; NaN where it says nothing."""
    found = evidence_of(seen.motion, sound).onset_agreement
    return float("nan") if found is None else found


def rolled(sound: Waveform, by_s: float) -> Waveform:
    """The sound `by_s` later."""
    return Waveform(np.roll(sound.samples, round(by_s * sound.rate_hz)), sound.rate_hz, sound.start)


def laid_under(sound: Waveform, from_s: float, at_s: float) -> Waveform:
    """The sound with its instant `from_s` at `at_s`."""
    moved = Fraction(at_s - from_s).limit_denominator(1_000_000)
    return Waveform(sound.samples, sound.rate_hz, sound.start + moved)


def told_of(films: Sequence[Seen], strangers: Sequence[Sequence[Seen]], made: str = AS_IT_IS) -> list[Told]:
    """Every film under its own sound, under that of its strangers, and under its own moved; sounds made as `made` says."""
    told = []
    for seen, others in zip(films, strangers, strict=True):
        at_s = float(seen.motion.times_s[0])
        foreign = [agreement(seen, laid_under(o.sounds[made], float(o.motion.times_s[0]), at_s)) for o in others]
        moved = [agreement(seen, rolled(seen.sounds[made], by_s)) for by_s in MOVES_S]
        own = agreement(seen, seen.sounds[made])
        told.append(Told(seen.name, seen.kind, own, np.array(foreign), np.array(moved)))
    return told


def told_of_pieces(pieces: Sequence[Seen]) -> list[Told]:
    """Every piece of a real clip, its strangers of other files."""
    strangers = []
    for piece in pieces:
        others = [other for other in pieces if other.kind != piece.kind]
        strangers.append(others[:: max(1, len(others) // MOST_STRANGERS)])
    return told_of(pieces, strangers)


def auc_of(told: Sequence[Told], what: str) -> float:
    """How often a film under its own sound is above one under another; what was not measured has no part in it."""
    own = np.array([each.own for each in told])
    other = np.concatenate([getattr(each, what) for each in told])
    own, other = own[~np.isnan(own)], other[~np.isnan(other)]
    if not len(own) or not len(other):
        return float("nan")
    return float((own[:, None] > other).mean() + 0.5 * (own[:, None] == other).mean())


def score(told: Sequence[Told]) -> dict[str, Any]:
    """AUC with intervals over films, and how chance looks."""
    other = np.concatenate([np.concatenate([each.foreign, each.moved]) for each in told])
    other = other[~np.isnan(other)]
    own = np.array([each.own for each in told])
    figures: dict[str, Any] = {
        "films": len(told),
        "not_measured": int(np.isnan(own).sum()),
        "own": {each.name: each.own for each in told},
        "own_median": float(np.nanmedian(own)),
        "elsewhere_mean": float(other.mean()),
        "elsewhere_std": float(other.std()),
        "elsewhere_at_3_and_more": float((other >= 3).mean()),
        "own_at_3_and_more": float((own >= 3).mean()),
    }
    for what in ("foreign", "moved"):
        interval = bootstrap_interval(lambda at, what=what: auc_of([told[i] for i in at], what), len(told))  # type: ignore[misc]
        figures[f"auc_{what}"] = {"value": auc_of(told, what), "interval": interval}
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints the tables and writes them."""
    parser = parser_of_halves(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(arguments)
    films = list(drawn(given.half, given.rounds))
    steps = (len(KINDS), *range(1, NUM_FOREIGN))
    others = [[films[(number + step) % len(films)] for step in steps] for number in range(len(films))]
    told = told_of(films, others)
    told_real = told_of_pieces(list(real(given.media, REAL, 5)))
    talking = sorted(path.relative_to(given.media).as_posix() for path in (given.media / "talking").iterdir())
    told_talking = told_of_pieces(list(real(given.media, talking, 3)))
    names = [Path(name).stem for name in REAL]
    figures = {"drawn": score(told), "real": score(told_real), "talking": score(told_talking)}
    figures |= {made: score(told_of(films, others, made)) for made in HARDER}
    figures |= {kind: score([each for each in told if each.kind == kind]) for kind in KINDS}
    figures |= {name: score([each for each in told_real if each.kind == name]) for name in names}
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    for name, each in figures.items():
        print(
            f"{name:<34} {each['films']:>3}  AUC foreign {each['auc_foreign']['value']:.3f} {each['auc_foreign']['interval']}  "
            f"moved {each['auc_moved']['value']:.3f} {each['auc_moved']['interval']}  median {each['own_median']:.1f}, elsewhere "
            f"{each['elsewhere_mean']:.2f} +- {each['elsewhere_std']:.2f}; 3 and more: {each['own_at_3_and_more']:.2f}, "
            f"elsewhere {each['elsewhere_at_3_and_more']:.3f}"
        )


if __name__ == "__main__":
    main()
