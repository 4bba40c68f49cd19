"""Train and validation without a person in both: recordings that share a voice or a face stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import Plan
from schemas.fields import Meaning
from schemas.ids import fraction_of
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl

F32 = NDArray[np.float32]

SPLITS = ("train", "validation")
"""What `split_assets` tells apart: the names in shards, the index and the manifest."""
BLOCK = 4096
"""Embeddings compared at a time: 4096 x 4096 distances are 64 MB."""


class Likeness(NamedTuple):
    """One way to recognise people: embeddings [n, d], whose they are, and the distance up to which two are one person."""

    owners: list[str]
    """Asset id of each embedding."""
    embeddings: F32
    reach: float


def likenesses(plan: Plan, scan: Callable[[Level], pl.LazyFrame]) -> Iterator[Likeness]:
    """The voices and faces on the rows that `scan` gives of a level, whoever measured them, as far as the recipe compares
    them. Each is read when it is asked for, and nothing but asset ids and embeddings is."""
    pack = plan.recipe.pack
    reaches: dict[Meaning, float | None] = {
        "voice": None if pack.same_voice is None else float(np.sqrt(2 - 2 * pack.same_voice)),
        "face": pack.same_face,
    }
    for whose, reach in reaches.items():
        found = [embeddings_at(scan(level), path) for level, path in plan.meaning(whose)]
        if reach is not None and found:
            owners = [owner for names, _ in found for owner in names]
            known = [table for _, table in found if len(table)]
            yield Likeness(owners, np.concatenate(known) if known else np.zeros((0, 0), np.float32), reach)


def embeddings_at(rows: pl.LazyFrame, path: str) -> tuple[list[str], F32]:
    """Asset ids and embeddings [n, d] at a path such as `speakers.items[].embedding`, where there is one."""
    import polars as pl

    head, *inside = path.split("[]")
    value = pl.col(head).alias("value")
    found = rows.select("asset_id", value).drop_nulls()
    for part in inside:
        found = found.explode("value").drop_nulls()
        for name in part.strip(".").split("."):
            found = found.with_columns(pl.col("value").struct.field(name).alias("value")) if name else found
    known = found.drop_nulls().filter(pl.col("value").list.len() > 0).collect(engine="streaming")
    if not len(known):
        return [], np.zeros((0, 0), np.float32)
    values = known["value"].explode().to_numpy().astype(np.float32, copy=False)
    return known["asset_id"].to_list(), values.reshape(len(known), -1)


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
