"""Fits how the shot engines add up their evidence, on the half of the generated films that is there for choosing.

    python -m benchmarks.fit_shots MEDIA_DIR [--films 12] [--cache DIR]

Prints `CONTENT_WEIGHTS`, `CONTENT_BIAS` (stages/shot_split/evidence.py) and `FUSED_WEIGHTS`, `FUSED_BIAS`
(stages/shot_split/transnet.py), and how many candidates of films left out of the fit they judge wrongly. What was
measured of a film stays in DIR, so that trying another fit costs seconds; begin a new one when the measurements change.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_shots import FIRST_SEED, FITTING, TOLERANCE_FRAMES, sources_of
from benchmarks.quality_shots_camera import SingleShot, resized
from benchmarks.quality_shots_kinds import KINDS, KnownFilm, make_film
from stages.base import Context
from stages.shot_split.content import survey
from stages.shot_split.evidence import cut_candidates, examine
from stages.shot_split.thumbs import HEIGHT, WIDTH
from stages.shot_split.transnet import DOUBT, Looks, TransNet, around, log_odds_of

ASKED = DOUBT + 1.0
"""Log-odds up to which the network is asked here: fitted anew, content may doubt a little more than it did."""
REGULAR = 10.0
"""Inverse strength of the regularisation: weak, for there are thousands of candidates and five weights."""
FOLDS = 6
MARGIN_FRAMES = 2
"""Candidates this near to a range where a report counts neither way teach nothing."""


@dataclass(frozen=True)
class Measured:
    """The candidates of one film."""

    features: NDArray[np.float64]
    """[n, 4]: `Evidence.features`."""
    is_cut: NDArray[np.int64]
    """[n]: 1 for a cut, 0 for none, -1 where it counts neither way."""
    network: NDArray[np.float64]
    """[n]: the network's log-odds, nan where it was not asked."""


def labels(candidates: Sequence[int], film: KnownFilm) -> NDArray[np.int64]:
    """`Measured.is_cut` of frames `candidates`: of those near a cut, the nearest is it, the others count neither way."""
    ranges = [*film.ignored, *film.gradual]
    known = {at: -1 if any(a - MARGIN_FRAMES <= at <= b + MARGIN_FRAMES for a, b in ranges) else 0 for at in candidates}
    for cut in film.hard:
        near = sorted((abs(at - cut), at) for at in candidates if abs(at - cut) <= TOLERANCE_FRAMES)
        known |= {at: 1 if (distance, at) == near[0] else -1 for distance, at in near}
    return np.array([known[at] for at in candidates], np.int64)


def measure(film: KnownFilm, net: TransNet) -> Measured:
    """What the engines would measure of `film`."""
    thumbs = resized(film.frames, (WIDTH, HEIGHT))
    seen = survey(thumbs, film.fps)
    at = cut_candidates(seen.changes, seen.levelled_changes)
    found = [examine(thumbs, frame, film.fps) for frame in at]
    asked = [frame for frame, close in zip(at, found, strict=True) if abs(close.log_odds) < ASKED]
    looks = Looks(net, thumbs, map(around, asked))
    network = {frame: log_odds_of(looks.at(*around(frame))[0].max()) for frame in asked}
    return Measured(
        np.array([close.features() for close in found]).reshape(-1, 4),
        labels(at, film),
        np.array([network.get(frame, np.nan) for frame in at]),
    )


def all_measured(sources: Mapping[str, SingleShot], num_films: int, cache: Path) -> dict[str, Measured]:
    """By film, "kind seed"; those that lie in `cache` are not made again."""
    films, net = {}, TransNet()
    for seed in range(FIRST_SEED[FITTING], FIRST_SEED[FITTING] + num_films):
        for kind in KINDS:
            path = cache / f"{kind}_{seed}.npz"
            if not path.exists():
                measured = measure(make_film(kind, sources, seed), net)
                np.savez(path, features=measured.features, is_cut=measured.is_cut, network=measured.network)
            with np.load(path) as stored:
                films[f"{kind} {seed}"] = Measured(stored["features"], stored["is_cut"], stored["network"])
    return films


def fit(films: Mapping[str, Measured]) -> dict[str, Any]:
    """Weights and biases, and wrong decisions on films left out: of content, and of content and network where asked."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    features, is_cut, network = (
        np.concatenate([getattr(film, name) for film in films.values()]) for name in ("features", "is_cut", "network")
    )
    group = np.concatenate([np.full(len(film.is_cut), zlib.crc32(name.encode())) for name, film in films.items()])
    counts = is_cut >= 0
    features, is_cut, network, group = features[counts], is_cut[counts], network[counts], group[counts]

    def fitted(inputs: NDArray[np.float64], picked: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float64]]:
        model = LogisticRegression(C=REGULAR, max_iter=1000)
        left_out = cross_val_predict(
            model,
            inputs[picked],
            is_cut[picked],
            groups=group[picked],
            cv=GroupKFold(FOLDS),
            method="decision_function",
        )
        return model.fit(inputs[picked], is_cut[picked]), left_out

    content, content_odds = fitted(features, np.ones(len(is_cut), bool))
    asked = (np.abs(content_odds) < DOUBT) & ~np.isnan(network)
    both, both_odds = fitted(np.column_stack([features, network]), asked)
    return {
        "films": len(films),
        "candidates": len(is_cut),
        "CONTENT_WEIGHTS": np.round(content.coef_[0], 2).tolist(),
        "CONTENT_BIAS": round(float(content.intercept_[0]), 2),
        "FUSED_WEIGHTS": np.round(both.coef_[0], 2).tolist(),
        "FUSED_BIAS": round(float(both.intercept_[0]), 2),
        "wrong_by_content": int(((content_odds > 0) != is_cut).sum()),
        "asked": int(asked.sum()),
        "wrong_by_content_where_asked": int(((content_odds > 0) != is_cut)[asked].sum()),
        "wrong_by_network_where_asked": int(((network > 0) != is_cut)[asked].sum()),
        "wrong_by_both_where_asked": int(((both_odds > 0) != is_cut[asked]).sum()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media_dir", type=Path)
    parser.add_argument("--films", type=int, default=12, help="of each kind")
    parser.add_argument("--cache", type=Path, help="default: nothing is kept")
    options = parser.parse_args()
    items = json.loads((options.media_dir / "manifest.json").read_text())["items"]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        sources = sources_of(context, options.media_dir, items, FITTING)
        context.media.close()
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        print(json.dumps(fit(all_measured(sources, options.films, cache)), indent=1))


if __name__ == "__main__":
    main()
