"""Where a plan stands after a step, as plain numbers for JSON, and one position out of those of all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from schemas.errors import PlanError


class TeamPosition(TypedDict):
    """Where one team stands."""

    epoch: int
    drawn: list[int]
    """Samples drawn of each part in this epoch."""
    serial: int
    random: int
    """Random numbers that its packer has used."""
    buffer: list[int]
    """(serial, part, epoch, row) of every sample drawn and not yet packed, one after the other."""
    ahead: NotRequired[list[list[int]]]
    """Packs planned ahead, each like `buffer`; only where the plan evens out what packs cost to make ready."""
    debt: NotRequired[float]
    """What its packs cost to make ready so far beyond the mean; likewise."""


class PlanPosition(TypedDict):
    """Where some or all teams of a plan stand."""

    plan: str
    """Digest of the plan."""
    step: int
    teams: dict[str, TeamPosition]


def merge_positions(positions: Iterable[PlanPosition]) -> PlanPosition:
    """One position out of those of all ranks, at least one, to resume at any world size. Raises PlanError if they differ."""
    first, *others = positions
    merged: PlanPosition = {**first, "teams": dict(first["teams"])}
    for other in others:
        if (merged["plan"], merged["step"]) != (other["plan"], other["step"]):
            raise PlanError(
                f"the ranks' positions differ: step {merged['step']} and step {other['step']}, "
                f"plan {merged['plan'][:8]} and plan {other['plan'][:8]}.",
                remedy="Save the position of all ranks after the same step.",
            )
        merged["teams"] |= other["teams"]
    return merged
