"""Generated films are what their truth says, and the same whenever they are made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fit_shots import Measured, fit, labels, measure
from benchmarks.quality_shots_camera import SingleShot
from benchmarks.quality_shots_kinds import KINDS, KnownFilm, make_film


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, SingleShot]:
    """Three soft pictures that drift, and films less than half as long as usual."""
    import cv2

    monkeypatch.setattr("benchmarks.quality_shots_kinds.FILM_S", 3.5)
    rng = np.random.default_rng(1)
    made = {}
    for name in "abc":
        wide = cv2.resize(rng.integers(0, 255, (9, 32, 3), dtype=np.uint8), (640, 180), interpolation=cv2.INTER_CUBIC)
        made[name] = SingleShot(np.stack([wide[:, t : t + 320] for t in range(120)]), 25.0)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_of_the_truth_is_one(kind: str, sources: dict[str, SingleShot]) -> None:
    film = make_film(kind, sources, 3)
    assert film.frames.dtype == np.uint8
    assert film.frames.shape[1:] == (144, 256, 3)
    assert film.hard or film.gradual
    assert film.hard == sorted(set(film.hard))
    assert all(0 < at < len(film) for at in film.hard)
    assert all(0 <= first < end <= len(film) for first, end in [*film.gradual, *film.ignored])
    steps = np.abs(np.diff(film.frames[:, ::4, ::4].astype(np.int16), axis=0)).mean((1, 2, 3))
    assert all(steps[at - 1] > 1.0 for at in film.hard)


def test_a_seed_makes_one_film(sources: dict[str, SingleShot]) -> None:
    one, same, other = (make_film("trailer", sources, seed) for seed in (5, 5, 6))
    assert one.hard == same.hard != other.hard
    assert np.array_equal(one.frames, same.frames)


def test_a_fit_learns_from_the_candidate_nearest_to_a_cut() -> None:
    film = KnownFilm(25.0, np.zeros((100, 1, 1, 3), np.uint8), hard=[20, 60], ignored=[(40, 45)])
    assert labels([10, 20, 21, 38, 47, 48, 61], film).tolist() == [0, 1, -1, -1, -1, 0, 1]


class Unsure:
    """A network that never knows."""

    def look(self, thumbs: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(100, 0.5), np.full(100, 0.5)


def test_what_is_measured_of_a_film_is_its_candidates(sources: dict[str, SingleShot]) -> None:
    film = make_film("reframed", sources, 3)
    measured = measure(film, Unsure())  # type: ignore[arg-type]
    assert measured.features.shape == (len(measured.is_cut), 4)
    assert (measured.is_cut == 1).sum() == len(film.hard)
    asked = ~np.isnan(measured.network)
    assert measured.network[asked].tolist() == [0.0] * asked.sum()


def test_the_fit_gives_each_measurement_the_sign_it_has() -> None:
    rng = np.random.default_rng(0)
    films = {}
    for name in "abcdefgh":
        is_cut = rng.integers(0, 2, 200)
        features = rng.normal(0, 1, (200, 4)) + is_cut[:, None] * [1.0, 1.0, -1.0, 0.0]
        films[name] = Measured(features, is_cut, rng.normal(0, 1, 200) + 4.0 * is_cut)
    found = fit(films)
    change, contrast, staying, news, network = found["FUSED_WEIGHTS"]
    assert change > 0.5
    assert contrast > 0.5
    assert staying < -0.5
    assert abs(news) < 0.5
    assert network > 1.0
    assert found["wrong_by_both_where_asked"] < found["wrong_by_content_where_asked"]
