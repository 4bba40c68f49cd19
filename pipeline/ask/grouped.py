"""Clips and hours by the values of one field: by language, by source, by what is heard."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ask.clips import ClipLists
from pipeline.ask.stats import NOT_MEASURED
from schemas.errors import LedgerError
from schemas.fields import roles_of
from schemas.recipe import nearest
from schemas.records import Level


@dataclass(frozen=True)
class Group:
    """Clips that have one value in common."""

    value: str
    num_kept: int
    num_clips: int
    kept_us: int
    us: int


@dataclass(frozen=True)
class Grouped:
    """All groups, those of most time first."""

    path: str
    groups: tuple[Group, ...]


def grouped(lists: ClipLists, name: str) -> Grouped:
    """The clips of a run by a field, which may be called by its last part: `language`.

    Raises LedgerError for a field that no clip has, that several have, or whose values are measures.
    """
    import polars as pl

    path = path_of_field(lists, name)
    if lists.known[path].is_float():
        raise LedgerError(f"{path} is a measure, which has no groups.", remedy="`stats --full` draws its histogram.")
    us, is_kept = pl.col("us"), pl.col("status") == "keep"
    spine = lists.spine.select("status", us="duration_us", value=lists.column(path).cast(pl.String))
    sums = spine.group_by("value").agg(
        num_kept=is_kept.sum(), num_clips=pl.len(), kept_us=us.filter(is_kept).sum(), all_us=us.sum()
    )
    ordered = sums.with_columns(pl.col("value").fill_null(NOT_MEASURED)).sort(
        "all_us", "value", descending=[True, False]
    )
    return Grouped(path, tuple(Group(*row) for row in ordered.iter_rows()))


def path_of_field(lists: ClipLists, name: str) -> str:
    """The field that `name` stands for, its last part being enough where no other ends so. Raises LedgerError."""
    if name in lists.known:
        return name
    near = [path for path in lists.known if path.rpartition(".")[2] == name]
    shown = {path for path, field in lists.run.plan.fields(Level.CLIP) if roles_of(field).get("show") == "label"}
    near = [path for path in near if path in shown] or near
    if len(near) > 1:
        raise LedgerError(f"'{name}' may be any of {', '.join(near)}.", remedy="Give the whole name.")
    if not near:
        raise LedgerError(f"no clip has a field '{name}'.", remedy=nearest(name, lists.known))
    return near[0]
