"""Recordings that share a voice or a face never lie on both sides of the split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import Packing
from pipeline.splits import likenesses, split_assets


def recordings(casts: list[list[int]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Assets by id; the same number in two casts is one person, heard with some noise."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(1 + max(max(cast, default=0) for cast in casts), 64))

    def heard(person: int) -> list[float]:
        voice = people[person] + 0.3 * rng.normal(size=64)
        return [float(x) for x in voice / np.linalg.norm(voice)]

    return {
        f"a{number:04d}": {"diarize": {"speakers": [{"embedding": heard(person)} for person in cast]}}
        for number, cast in enumerate(casts)
    }


def split(assets: dict[str, dict[str, Any]], fraction: float, same_voice: float | None) -> dict[str, str]:
    pack = Packing(same_voice=same_voice, same_face=None)
    return split_assets(assets, fraction, likenesses(assets, [], pack))


def sides(assets: dict[str, Any], casts: list[list[int]], chosen: dict[str, str]) -> dict[int, set[str]]:
    """Person -> the splits that hear them."""
    found: dict[int, set[str]] = {}
    for name, cast in zip(assets, casts, strict=True):
        for person in cast:
            found.setdefault(person, set()).add(chosen[name])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_voice_is_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    casts = [[int(p) for p in rng.integers(0, 150, rng.integers(0, 3))] for _ in range(200)]
    assets = recordings(casts, seed)
    by_voice = split(assets, 0.2, 0.7)
    assert all(len(where) == 1 for where in sides(assets, casts, by_voice).values())
    assert 0 < sum(side == "validation" for side in by_voice.values()) < 100
    by_asset = split(assets, 0.2, None)
    assert any(len(where) == 2 for where in sides(assets, casts, by_asset).values()), "the case must be able to fail"


def test_other_recordings_keep_their_side_when_one_arrives() -> None:
    casts = [[number] for number in range(60)]
    before = split(recordings(casts), 0.3, 0.7)
    after = split(recordings([*casts, [7]]), 0.3, 0.7)
    assert {name: after[name] for name in before} == before


def test_a_voice_heard_everywhere_trains() -> None:
    assets = recordings([[0]] * 20 + [[number] for number in range(1, 21)])
    chosen = split(assets, 0.4, 0.7)
    assert {chosen[name] for name in list(assets)[:20]} == {"train"}
    assert "validation" in chosen.values()
    assert set(split(assets, 0.0, 0.7).values()) == {"train"}
    assert split({}, 0.5, 0.7) == {}


def test_a_face_keeps_recordings_together_where_voices_differ() -> None:
    """Forty recordings, each with its own voice; recordings n and n + 20 show one person, 21 shows nobody well."""
    assets = recordings([[number] for number in range(40)])
    rng = np.random.default_rng(3)
    people = rng.normal(scale=0.1, size=(20, 128))
    clips = [
        {
            "asset_id": name,
            "sync": {"faces": [{"embedding": (people[n % 20] + rng.normal(scale=0.01, size=128)).tolist()}]},
        }
        for n, name in enumerate(assets)
    ]
    clips[21]["sync"] = {"faces": [{"embedding": None}]}
    clips.append({"asset_id": "a0000", "sync": None})
    for same_face in (0.45, None):
        pack = Packing(same_voice=0.7, same_face=same_face)
        split_of = split_assets(assets, 0.3, likenesses(assets, clips, pack))
        chosen = [split_of[name] for name in sorted(assets)]
        apart = [n for n in range(20) if chosen[n] != chosen[n + 20]]
        assert "validation" in chosen
        assert bool(set(apart) - {1}) is (same_face is None), "the case must be able to fail"
