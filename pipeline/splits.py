"""Train and validation without a person in both: recordings that share a voice or a face stay together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import Plan
from schemas.fields import Meaning, values_at
from schemas.ids import fraction_of
from schemas.records import Asset, Clip

F32 = NDArray[np.float32]

BLOCK = 4096
"""Embeddings compared at a time: 4096 x 4096 distances are 64 MB."""


class Likeness(NamedTuple):
    """One way to recognise people: embeddings [n, d], whose they are, and the distance up to which two are one person."""

    owners: list[str]
    """Asset id of each embedding."""
    embeddings: F32
    reach: float


def likenesses(plan: Plan, assets: Iterable[Asset], clips: Iterable[Clip]) -> list[Likeness]:
    """The voices and faces on assets and clips, whoever measured them, as far as the recipe compares them."""
    pack = plan.recipe.pack
    owned = [(str(asset.asset_id), asset.structs) for asset in assets]
    owned += [(str(clip.asset.asset_id), clip.structs) for clip in clips]
    reaches: dict[Meaning, float | None] = {
        "voice": None if pack.same_voice is None else float(np.sqrt(2 - 2 * pack.same_voice)),
        "face": pack.same_face,
    }
    return [
        _likeness(
            [
                (owner, e)
                for _, path in plan.meaning(whose)
                for owner, structs in owned
                for e in values_at(structs, path)
            ],
            reach,
        )
        for whose, reach in reaches.items()
        if reach is not None
    ]


def _likeness(found: Sequence[tuple[str, Sequence[float] | None]], reach: float) -> Likeness:
    known = [(owner, embedding) for owner, embedding in found if embedding]
    return Likeness([owner for owner, _ in known], np.array([e for _, e in known], np.float32), reach)


def split_assets(assets: Iterable[str], validation_fraction: float, likenesses: Iterable[Likeness]) -> dict[str, str]:
    """asset id -> "train" or "validation"; about `validation_fraction` of the groups of assets.

    A group is what is connected by anyone met in two. Whether a group is for validation follows from its ids alone,
    except that one with more than that share of all assets trains: a presenter met everywhere must not take the training
    set along. Costs n^2 / 2 distances: a minute and a half for 100,000 voices on one core, less than one for faces.
    """
    names = sorted(assets)
    if validation_fraction <= 0:
        return dict.fromkeys(names, "train")
    groups = list(range(len(names)))
    place = {name: number for number, name in enumerate(names)}
    for likeness in likenesses:
        _join(groups, [place[owner] for owner in likeness.owners], likeness.embeddings, likeness.reach)
    members: dict[int, list[str]] = {}
    for number, name in enumerate(names):
        members.setdefault(_root(groups, number), []).append(name)
    splits = {}
    for group in members.values():
        is_chosen = fraction_of("split" + group[0]) < validation_fraction
        fits = len(group) == 1 or len(group) <= validation_fraction * len(names)
        splits.update(dict.fromkeys(group, "validation" if is_chosen and fits else "train"))
    return splits


def _join(groups: list[int], owners: Sequence[int], table: F32, reach: float) -> None:
    """Unites the groups of the owners of any two rows of `table` [n, d] that lie within `reach` of each other."""
    squares = np.square(table).sum(axis=-1)
    for low in range(0, len(table), BLOCK):
        for right in range(low, len(table), BLOCK):
            one, other = slice(low, low + BLOCK), slice(right, right + BLOCK)
            apart = squares[one, None] + squares[other] - 2 * table[one] @ table[other].T
            for a, b in np.argwhere(apart <= reach**2).tolist():
                first, second = _root(groups, owners[low + a]), _root(groups, owners[right + b])
                groups[max(first, second)] = min(first, second)


def _root(groups: list[int], number: int) -> int:
    """The group's first member; shortens the path to it."""
    while groups[number] != number:
        groups[number] = groups[groups[number]]
        number = groups[number]
    return number
