"""Fits the embedded sync engine's coefficients on talking clips whose sound is known to be the original one.

    python -m benchmarks.fit_sync MEDIA_DIR [--out stages/sync/mouth.npz]

MEDIA_DIR holds manifest.json in the form of the project's test media; used are the items with one talking face,
`sync: original` and a `measured_audio_lag_ms`. The shipped file was made this way from 15 clips of 14 people, 99 s in all.
`benchmarks.quality_sync` refits without the clip it judges.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.base import Context
from stages.engines.face_identity import FaceEncoder
from stages.engines.face_tracks import Tracks
from stages.engines.phones import PhoneRecogniser
from stages.faces import FaceWatch, watched_faces
from stages.media.waveform import Waveform
from stages.sync.channels import GRID_HZ, TAPS, Signal, correlate, lags_s, project, with_neighbours
from stages.sync.heard import phone_features, sound_features
from stages.sync.lip_shapes import NUM_SHAPES, mouth_features
from stages.sync.mouth import MODEL_PATH, MouthModel

Array = NDArray[Any]

RIDGE_SHAPES = (0, 1, 2, 3, 4, 6)
"""Opening, width, height, lower lip, chin, protrusion. The upper lip (5) tells nothing on left-out clips."""
RIDGE_PENALTY = 1000.0
NUM_LIP_COMPONENTS = 12
"""Principal components of lip shape that enter the canonical correlation; 8 to 12 perform alike on left-out clips."""
NUM_SOUND_COMPONENTS = 60
NUM_CANONICAL = 6
CANONICAL_PENALTY = 0.2
"""Share of the mean variance added to every component before whitening."""
ALIGN_FOLDS = 4
ALIGN_REACH_S = 0.15
ALIGN_SHARE = 0.8
"""Clips said to be in sync still differ by up to +-80 ms; each is moved by this share of what a model of the other
clips measures on it, so that the fit is not blurred. The median move is held at zero."""
SOUND_MARGIN_S = 2.5
SPREAD_REACH_S = 1.3
NOISE_DB = 5.0
"""Every example is heard once more through noise this far below its loud stretches: fitted on clean sound alone, bands are
led astray by noise."""


@dataclass(frozen=True)
class Hearing:
    """One sound by both features, row for row."""

    sound: Signal
    phones: Signal

    @classmethod
    def of(cls, sound: Waveform, start_s: float, end_s: float, phones: PhoneRecogniser) -> Hearing:
        """What is heard between two instants."""
        return cls(sound_features(sound, start_s, end_s), phone_features(sound, start_s, end_s, phones))


@dataclass(frozen=True)
class Example:
    """One talking face and its sound."""

    name: str
    people: frozenset[str]
    """Origins and speaker names; two examples that share one are never on both sides of a split."""
    mouth: Signal
    clean: Hearing
    noisy: Hearing

    @classmethod
    def of(cls, name: str, people: frozenset[str], seen: Tracks, sound: Waveform, phones: PhoneRecogniser) -> Example:
        """The longest-seen face of a file, with its sound."""
        start_s = float(seen.times_s[0])
        mouth = mouth_features(seen.faces[0], start_s, seen.end_s)
        around = (start_s - SOUND_MARGIN_S, seen.end_s + SOUND_MARGIN_S)
        clean, noisy = (Hearing.of(each, *around, phones) for each in (sound, through_noise(sound, NOISE_DB)))
        return cls(name, people, mouth, clean, noisy)


def through_noise(sound: Waveform, below_db: float, tilt: float = 0.5, seed: int = 1) -> Waveform:
    """`sound` with noise so far below the level that one 20 ms stretch in ten exceeds; its amplitude falls as f^-tilt."""
    size = len(sound.samples)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(size))
    noise = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(size, 1 / sound.rate_hz), 50.0) ** tilt, size)
    step = sound.rate_hz // 50
    levels = np.sqrt(np.mean(sound.samples[: size // step * step].reshape(-1, step).astype(np.float64) ** 2, axis=1))
    noise *= np.percentile(levels, 90) / noise.std() * 10 ** (-below_db / 20)
    return Waveform((sound.samples + noise).astype(np.float32), sound.rate_hz, sound.start)


def fit_model(examples: Sequence[Example], moves: Mapping[str, float] | None = None) -> MouthModel:
    """A model of all `examples`; 3 s for 100 s of speech, 1 s where `moves_of` these and others was asked before."""
    return _fit(examples, moves_of(examples) if moves is None else moves)


def moves_of(examples: Sequence[Example]) -> dict[str, float]:
    """Name -> by how many seconds its sound is taken to be late, as models of others measure it (`ALIGN_SHARE`)."""
    still = dict.fromkeys((e.name for e in examples), 0.0)
    folds = _folds(examples)
    measured: dict[str, float] = {}
    for fold in set(folds.values()):
        others = [e for e in examples if folds[e.name] != fold]
        if not others:
            continue
        model = _fit(others, still)
        for e in examples:
            if folds[e.name] == fold:
                curve = _curve(model, e, ALIGN_REACH_S)
                measured[e.name] = float(lags_s(ALIGN_REACH_S)[int(np.argmax(curve))])
    if not measured:
        return still
    middle = float(np.median(list(measured.values())))
    return still | {name: ALIGN_SHARE * (lag - middle) for name, lag in measured.items()}


def _curve(model: MouthModel, e: Example, reach_s: float) -> Array:
    heard = model.hear(e.clean.sound, e.clean.phones)
    return correlate(heard, project(e.mouth, model.mouth), model.weights, reach_s)


def _folds(examples: Sequence[Example]) -> dict[str, int]:
    """Fold of each example; people stay together."""
    folds: dict[str, int] = {}
    of_person: dict[str, int] = {}
    for e in sorted(examples, key=lambda e: e.name):
        known = [of_person[p] for p in e.people if p in of_person]
        counts = [list(folds.values()).count(k) for k in range(ALIGN_FOLDS)]
        folds[e.name] = known[0] if known else int(np.argmin(counts))
        of_person |= dict.fromkeys(e.people, folds[e.name])
    return folds


def _fit(examples: Sequence[Example], moves: Mapping[str, float]) -> MouthModel:
    """Channels of the spectrum and of the phones, weighted so that all four kinds vary alike over offsets."""
    heard = [(e, hearing) for e in examples for hearing in (e.clean, e.noisy)]
    spectral = _maps([_paired(hearing.sound, e.mouth, moves[e.name]) for e, hearing in heard])
    phonetic = _maps([_paired(hearing.phones, e.mouth, moves[e.name]) for e, hearing in heard])
    mouth = np.concatenate([spectral.mouth, phonetic.mouth], axis=1)
    weights = np.concatenate([spectral.weights, phonetic.weights])
    model = MouthModel(spectral.heard, phonetic.heard, mouth, weights)
    kinds = np.concatenate([spectral.is_canonical, 2 + phonetic.is_canonical])
    return _balanced(model, examples, kinds)


@dataclass(frozen=True)
class _Maps:
    """One way of hearing: maps to K channels from what is heard and from the mouth, and what each is worth among its kind."""

    heard: Array
    mouth: Array
    weights: Array
    is_canonical: Array


def _maps(pairs: Sequence[tuple[Array, Array]]) -> _Maps:
    """Ridge and canonical channels. An example of n points counts sqrt(n): long clips are one person's."""
    lips = np.concatenate([m[:, NUM_SHAPES:] / (m[:, NUM_SHAPES:].std() + 1e-4) / np.sqrt(len(m)) for _, m in pairs])
    components = np.linalg.eigh(lips.T @ lips)[1][:, ::-1][:, :NUM_LIP_COMPONENTS]
    count = np.concatenate([np.full(len(m), 1 / np.sqrt(len(m))) for _, m in pairs])[:, None]
    count /= count.mean()
    x = np.concatenate([with_neighbours(s) / 3.0 for s, _ in pairs])
    shapes = _shape_maps()
    targets = [with_neighbours(m) @ shapes for _, m in pairs]
    ridge = _ridge(x, np.concatenate([t / (t.std(0) + 1e-3) for t in targets]), count)
    y = np.concatenate([_lip_rows(m, components) for _, m in pairs])
    heard, mouth, strength = _canonical(x, y, count)
    even, strength = np.full(shapes.shape[1], 1 / shapes.shape[1]), strength / (1 - strength**2)
    return _Maps(
        np.concatenate([ridge, heard], axis=1) / 3.0,
        np.concatenate([shapes, _lip_maps(components, mouth)], axis=1),
        np.concatenate([even, strength / strength.sum()]),
        np.repeat([False, True], [shapes.shape[1], len(strength)]),
    )


def _paired(heard: Signal, mouth: Signal, move_s: float) -> tuple[Array, Array]:
    """Rows of sound and mouth that belong together if the sound is `move_s` late."""
    at = np.arange(len(mouth.values)) + mouth.first - heard.first + round(move_s * GRID_HZ)
    known = (at >= 0) & (at < len(heard.values))
    known[known] &= heard.weights[at[known]] > 0
    known &= mouth.weights > 0
    return heard.values[at[known]], mouth.values[known]


def _shape_maps() -> Array:
    """[5 x 142, 12]: picks the named shapes and their change over +-50 ms."""
    features = NUM_SHAPES + 135
    maps = np.zeros((len(TAPS) * features, 2 * len(RIDGE_SHAPES)))
    before, now, after = TAPS.index(-5), TAPS.index(0), TAPS.index(5)
    for k, shape in enumerate(RIDGE_SHAPES):
        maps[now * features + shape, k] = 1.0
        maps[after * features + shape, len(RIDGE_SHAPES) + k] = 1.0
        maps[before * features + shape, len(RIDGE_SHAPES) + k] = -1.0
    return maps


def _lip_rows(mouth: Array, components: Array) -> Array:
    lips = mouth[:, NUM_SHAPES:] @ components
    return with_neighbours(lips / (lips.std() + 1e-4))


def _lip_maps(components: Array, maps: Array) -> Array:
    """Maps on neighbouring components [5 x 12, K] as maps on neighbouring features [5 x 142, K]."""
    size, features = components.shape[1], NUM_SHAPES + len(components)
    out = np.zeros((len(TAPS) * features, maps.shape[1]))
    for tap in range(len(TAPS)):
        rows = slice(tap * features + NUM_SHAPES, (tap + 1) * features)
        out[rows] = components @ maps[tap * size : (tap + 1) * size]
    return out


def _ridge(x: Array, y: Array, count: Array) -> Array:
    return np.asarray(np.linalg.solve((x * count).T @ x + RIDGE_PENALTY * np.eye(x.shape[1]), (x * count).T @ y))


def _canonical(x: Array, y: Array, count: Array) -> tuple[Array, Array, Array]:
    """Maps of the leading canonical pairs of x and y, and their correlations."""
    x, y = x - (x * count).mean(0), y - (y * count).mean(0)
    size = len(x)
    values, vectors = np.linalg.eigh((x * count).T @ x / size)
    top = np.argsort(-values)[:NUM_SOUND_COMPONENTS]
    whiten_x = vectors[:, top] / np.sqrt(values[top] + 10 * CANONICAL_PENALTY * values.mean())
    values, vectors = np.linalg.eigh((y * count).T @ y / size)
    whiten_y = vectors / np.sqrt(np.maximum(values, 0) + CANONICAL_PENALTY * values.mean())
    left, _, right = np.linalg.svd(whiten_x.T @ ((x * count).T @ y / size) @ whiten_y)
    sound, mouth = whiten_x @ left[:, :NUM_CANONICAL], whiten_y @ right[:NUM_CANONICAL].T
    a, b = x @ sound, y @ mouth
    return (
        sound,
        mouth,
        (count * a * b).sum(0) / np.sqrt((count * a * a).sum(0) * (count * b * b).sum(0)),
    )


def _balanced(model: MouthModel, examples: Sequence[Example], kinds: Array) -> MouthModel:
    """`model` with weights under which the kinds [K] of its channels vary alike over offsets."""
    apart = replace(model, weights=model.weights[:, None] * np.eye(kinds.max() + 1)[kinds])
    spreads = np.mean([_curve(apart, e, SPREAD_REACH_S).std(axis=0) for e in examples], axis=0)
    weights = model.weights / spreads[kinds]
    return replace(model, weights=weights / weights.sum())


def people_of(item: Mapping[str, Any]) -> frozenset[str]:
    """Whom a file may show: the files it was made from, and its speakers by name."""
    origins = {f"{o.get('repo', '')}/{o.get('path', '')}" for o in item.get("origin") or [] if isinstance(o, Mapping)}
    turns = item["ground_truth"].get("speaker_turns") or []
    return frozenset(origins | {person_of(str(turn["speaker"])) for turn in turns})


def person_of(speaker: str) -> str:
    """Who a manifest's speaker is: `left: man_take2` and `man` are one."""
    return re.sub(r"_take\d+$", "", speaker.rsplit(": ", maxsplit=1)[-1])


class Reader:
    """Faces and sound of files, decoded once each."""

    def __init__(self, scratch: Path) -> None:
        self.context = Context(scratch)

    def sound(self, path: Path) -> Waveform:
        """The sound of a whole file, as stage `sync` hears it."""
        return self.context.media.audio(path)

    def seen(self, path: Path, encoder: FaceEncoder | None = None) -> Tracks:
        """The faces of a whole file, looked for as stage `faces` does by default."""
        watch: FaceWatch = self.context.asset_pass.look(path, *watched_faces(self.context))
        return watch.tracks(encoder=encoder)


def read_examples(media_dir: Path, reader: Reader) -> list[Example]:
    """All items of a manifest that are talking faces measured to be in sync."""
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    talking = [(media_dir / item["path"], people_of(item)) for item in items if is_in_sync_talk(item)]
    phones = PhoneRecogniser()
    return [Example.of(path.name, people, reader.seen(path), reader.sound(path), phones) for path, people in talking]


def is_in_sync_talk(item: Mapping[str, Any]) -> bool:
    """Whether a manifest's item is one talking face with its original sound, whose lag was measured."""
    truth = item["ground_truth"]
    return item.get("category") == "talking" and truth.get("sync") == "original" and "measured_audio_lag_ms" in truth


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("media_dir", type=Path)
    arguments.add_argument("--out", type=Path, default=MODEL_PATH)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        reader = Reader(Path(scratch))
        examples = read_examples(options.media_dir, reader)
        reader.context.media.close()
    fit_model(examples).save(options.out)
    seconds = sum(e.mouth.weights.sum() for e in examples) / GRID_HZ
    print(f"{len(examples)} clips, {seconds:.0f} s of faces -> {options.out} ({options.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
