"""Train and validation without a voice in both: recordings that share a voice stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.ids import fraction_of

BLOCK = 4096
"""Voices compared at a time: 4096 x 4096 similarities are 64 MB."""


def split_assets(
    assets: Mapping[str, Mapping[str, Any]], validation_fraction: float, same_voice: float | None
) -> dict[str, str]:
    """asset id -> "train" or "validation", from settled asset rows; about `validation_fraction` of the groups of assets.

    A group is what is connected by voices whose similarity reaches `same_voice` (None: each asset alone). Whether a group
    is for validation follows from its ids alone, except that one with more than that share of all assets trains: a
    presenter met everywhere must not take the training set along. Faces are not compared; a face goes where the voices
    of its recording go. Costs n^2 / 2 dot products for n voices: a minute for 100,000 on one core.
    """
    names = sorted(assets)
    if validation_fraction <= 0:
        return dict.fromkeys(names, "train")
    groups = list(range(len(names)))
    if same_voice is not None:
        _join_by_voice(groups, [_voices(assets[name]) for name in names], same_voice)
    members: dict[int, list[str]] = {}
    for number, name in enumerate(names):
        members.setdefault(_root(groups, number), []).append(name)
    splits = {}
    for group in members.values():
        is_chosen = fraction_of("split" + group[0]) < validation_fraction
        fits = len(group) == 1 or len(group) <= validation_fraction * len(names)
        splits.update(dict.fromkeys(group, "validation" if is_chosen and fits else "train"))
    return splits


def _voices(asset: Mapping[str, Any]) -> NDArray[np.float32]:
    """[n, d] unit-length voices heard in the recording."""
    speakers = (asset.get("diarize") or {}).get("speakers") or []
    return np.array([speaker["embedding"] for speaker in speakers if speaker["embedding"]], np.float32)


def _join_by_voice(groups: list[int], voices: Sequence[NDArray[np.float32]], same_voice: float) -> None:
    owners = np.concatenate([np.full(len(found), number) for number, found in enumerate(voices)] or [np.empty(0)])
    heard = [found for found in voices if len(found)]
    if not heard:
        return
    table = np.concatenate(heard)
    for low in range(0, len(table), BLOCK):
        for right in range(low, len(table), BLOCK):
            alike = np.argwhere(table[low : low + BLOCK] @ table[right : right + BLOCK].T >= same_voice)
            for a, b in alike.tolist():
                one, other = _root(groups, int(owners[low + a])), _root(groups, int(owners[right + b]))
                groups[max(one, other)] = min(one, other)


def _root(groups: list[int], number: int) -> int:
    """The group's first member; shortens the path to it."""
    while groups[number] != number:
        groups[number] = groups[groups[number]]
        number = groups[number]
    return number
