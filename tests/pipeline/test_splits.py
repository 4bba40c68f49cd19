"""Recordings that share a voice or a face never lie on both sides of the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline.config import Packing, load_recipe
from pipeline.ledger import ledger_schema
from pipeline.plan import make_plan
from pipeline.splits import likenesses, split_assets
from schemas.fields import values_at
from schemas.records import Asset, Clip, Level
from tests import rows

PLAN = make_plan(load_recipe("quickstart"))
SCHEMA = ledger_schema(PLAN)
((_, VOICES),) = PLAN.meaning("voice")
((_, FACES),) = PLAN.meaning("face")
Kept = dict[str, Any]


def measured(path: str, embeddings: list[list[float] | None]) -> Kept:
    """Structs that hold `embeddings` at a path like `diarize.speakers[].embedding`."""
    column, items, leaf = path.replace("[]", "").split(".")
    return {column: {items: [{leaf: embedding} for embedding in embeddings]}}


def recordings(casts: list[list[int]], seed: int = 0) -> dict[str, Asset]:
    """Assets by id; the same number in two casts is one person, heard with some noise."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(1 + max(max(cast, default=0) for cast in casts), 64))

    def heard(person: int) -> list[float]:
        voice = people[person] + 0.3 * rng.normal(size=64)
        return [float(x) for x in voice / np.linalg.norm(voice)]

    names = [f"a{number:04d}" for number in range(len(casts))]
    return {
        name: rows.asset(measured(VOICES, [heard(person) for person in cast]), name=name)
        for name, cast in zip(names, casts, strict=True)
    }


def split(
    assets: dict[str, Asset],
    fraction: float,
    same_voice: float | None,
    same_face: float | None = None,
    clips: list[Clip] | None = None,
) -> dict[str, str]:
    pack = Packing(same_voice=same_voice, same_face=same_face)
    plan = replace(PLAN, recipe=PLAN.recipe.model_copy(update={"pack": pack}))
    found = {
        Level.ASSET: leaves([(str(each.asset_id), each.structs) for each in assets.values()]),
        Level.CLIP: leaves([(str(each.asset.asset_id), each.structs) for each in clips or []]),
    }
    return split_assets(assets, fraction, likenesses(plan, found.__getitem__))


def leaves(rows: list[tuple[str, Mapping[str, Any]]]) -> pl.LazyFrame:
    """Rows of (asset id, structs) as a ledger holds them: a column for each path that tells who somebody is."""
    columns: dict[str, Any] = {"asset_id": pa.array([owner for owner, _ in rows], pa.string())}
    for path in (VOICES, FACES):
        head = path.partition("[]")[0]
        values = [values_at(structs, head)[0] if structs.get(head.split(".")[0]) else None for _, structs in rows]
        columns[head] = pa.array(values, SCHEMA.field(head).type)
    return pl.DataFrame(pa.table(columns)).lazy()


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
    faces: list[list[float] | None] = [
        (people[n % 20] + rng.normal(scale=0.01, size=128)).tolist() for n in range(len(assets))
    ]
    faces[21] = None
    shown = [measured(FACES, [face]) for face in faces] + [{FACES.split(".")[0]: None}]
    clips = [
        rows.clip(clip_id=f"c{n}", asset=of, structs=structs)
        for n, (of, structs) in enumerate(zip([*assets.values(), assets["a0000"]], shown, strict=True))
    ]
    for same_face in (0.45, None):
        split_of = split(assets, 0.3, 0.7, same_face, clips)
        chosen = [split_of[name] for name in sorted(assets)]
        apart = [n for n in range(20) if chosen[n] != chosen[n + 20]]
        assert "validation" in chosen
        assert bool(set(apart) - {1}) is (same_face is None), "the case must be able to fail"
