"""A run opened for reading, and the balance of its hours. One function per question; text and pages only show the answers.

Durations are added up as integer microseconds and become hours at the very end, so the balance is exact. Every question
is a lazy query over the leaves it needs, so that its cost does not grow with what else was measured. It asks whatever gives
the rows of a level, a `Ledger` or its `Facts`: both give the same answers.

Hours of shots and clips count where their source was kept. The same bytes count once: where no gate turned the others away
(because the recipe has none for it, or because the run is not that far yet), the source with the smallest id stands for all
that were kept, and the others count as rejected `duplicate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.ask.facts import Facts
from pipeline.config import Recipe, parse_recipe
from pipeline.ledger import Ledger, hash_column
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.arrow_file import read_table
from schemas.errors import LedgerError
from schemas.files import cache_folder
from schemas.recipe import parsed
from schemas.records import Level
from schemas.verdict import Check

if TYPE_CHECKING:
    import polars as pl

US_PER_HOUR = 3_600_000_000
DUPLICATE = "duplicate"
"""Reason of a source that was kept although another one with its bytes was."""
STATUS, REASON = "verdict.status", "verdict.reason"


class Scannable(Protocol):
    """What gives the rows of a run."""

    def scan(self, kind: str) -> pl.LazyFrame:
        """The rows of a level, lazily, in columns named by dotted paths."""
        ...


class Run:
    """A run directory opened for reading; its plan is made once.

    `cache` is the folder of `facts` if it is not the usual one, and `report` is told what takes long.
    """

    def __init__(self, uri: str, cache: Path | None = None, report: Callable[[str], None] = lambda line: None) -> None:
        self.dir = RunDir(uri)
        self.cache, self.report = cache or cache_folder(), report
        self.raw_recipe: dict[str, Any] = parsed(self.dir.read("recipe.yaml"))
        self.ledger = Ledger(self.dir.url("ledger"))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe the run was last given."""
        return parse_recipe(self.raw_recipe, self.dir.url("recipe.yaml"))

    @cached_property
    def plan(self) -> Plan:
        """The plan of its recipe."""
        return make_plan(self.recipe)

    @cached_property
    def facts(self) -> Facts:
        """The scalars of its ledger, from the cache where that is faster."""
        return Facts(self.ledger, self.plan, self.cache, report=self.report)

    @property
    def num_sources(self) -> int:
        """Sources the run was given."""
        return int(read_table(self.dir.read("sources.arrow")).num_rows)


def counted_assets(rows: Scannable) -> pl.LazyFrame:
    """`source_id`, `asset_id`, `duration_us`, `status` and `reason` of every source, as it counts in questions about hours."""
    import polars as pl

    is_kept = pl.col(STATUS) == "keep"
    first = pl.col("source_id").filter(is_kept).min().over("asset_id")
    is_again = is_kept & pl.col("asset_id").is_not_null() & (pl.col("source_id") != first)
    return rows.scan(Level.ASSET).select(
        "source_id",
        "asset_id",
        pl.col("duration_us").fill_null(0),
        status=pl.when(is_again).then(pl.lit("reject")).otherwise(STATUS),
        reason=pl.when(is_again).then(pl.lit(DUPLICATE)).otherwise(REASON),
    )


def status_below(above: str) -> pl.Expr:
    """The status of a row below a source whose own is in column `above`: nothing counts as kept of one that does not."""
    import polars as pl

    is_lost = (pl.col("status") == "keep") & (pl.col(above) != "keep")
    return pl.when(is_lost).then(pl.lit("reject")).otherwise("status")


def kept_sources(rows: Scannable) -> pl.LazyFrame:
    """`source_id` of every source whose shots and clips count in hours."""
    import polars as pl

    return counted_assets(rows).filter(pl.col("status") == "keep").select("source_id")


def leaves_of(checks: Iterable[Check]) -> list[str]:
    """The flat columns that `checks` look at, those that say whether a stage was reached included."""
    paths = [path for check in checks for path in (check.path, *check.gate.when)]
    heads = [path.partition(".")[0] for path in paths]
    hashes = [hash_column(head) for head in heads if head not in set(Level)]
    return list(dict.fromkeys([*paths, *hashes]))


def seen(rows: Scannable, plan: Plan, level: Level, leaves: Iterable[str], own: Sequence[str] = ()) -> pl.LazyFrame:
    """The rows of a level with keys, verdict, other columns of their `own`, and `leaves` of theirs or of the rows above."""
    import polars as pl

    levels = {spec.column: spec.adds_to for spec in plan.stages}
    wanted: dict[Level, list[str]] = {each: [] for each in Level}
    for leaf in dict.fromkeys(leaves):
        wanted[levels[leaf.partition(".")[0]]].append(leaf)
    keys = ["row_id", "source_id", "parent_id", "duration_us", "failed_by"]
    keys += [STATUS, REASON, "verdict.stage", "verdict.is_audit"]
    found = rows.scan(level).select(*keys, *own, *wanted[level])
    for above in list(Level)[: list(Level).index(level)]:
        if wanted[above]:
            on = ["source_id"] if above is Level.ASSET else ["source_id", "parent_id"]
            parents = rows.scan(above).select("source_id", pl.col("row_id").alias("parent_id"), *wanted[above])
            found = found.join(parents.select(*on, *wanted[above]), on=on, how="left")
    return found


@dataclass
class Balance:
    """Where the hours went, in microseconds: in == kept + cut_away + sum(rejected) + sum(errors) in every sound ledger."""

    in_us: int = 0
    kept_us: int = 0
    cut_away_us: int = 0
    rejected_us: dict[str, int] = field(default_factory=dict)
    errors_us: dict[str, int] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)

    @property
    def difference_us(self) -> int:
        """What does not add up; 0 in every sound ledger."""
        booked = self.kept_us + sum(self.rejected_us.values()) + sum(self.errors_us.values())
        return self.in_us - self.cut_away_us - booked


def balance(rows: Scannable) -> Balance:
    """The balance sheet.

    What was measured is booked by the lengths and verdicts of rows: of a source that was not kept, its whole length; of a
    kept one, those of its shots that were not kept (transitions, shots without a clip) and of its clips. What was cut away
    is measured apart from that, by the exact spans: of a kept source, its length less the stretches that its shots cover;
    of each kept shot of it, its span less the stretches that its clips cover. Shots partition the picture, so the first
    part is 0 unless frames lie outside of them. The sheet fails to add up where shots or clips overlap, lie in none that
    was kept, are there twice, or have another length than their span.

    Raises LedgerError where the children of a source or of a shot cover more than there is of it, and where a source is
    there twice.
    """
    import polars as pl

    assets = counted_assets(rows).with_row_index("asset_at").collect(engine="streaming")
    if assets["source_id"].n_unique() != len(assets):
        again = assets.filter(pl.col("source_id").is_duplicated())["source_id"].sort()[0]
        raise LedgerError(f"source {again} is in the ledger twice.", remedy="Take the ledger back from a copy.")
    of_asset = assets.lazy().select("source_id", "asset_at", above=pl.col("status"))
    shots = _placed(rows, Level.SHOT).join(of_asset, on="source_id", how="left", maintain_order="none")
    shots = shots.with_row_index("shot_at").collect(engine="streaming").lazy()
    of_shot = shots.select("source_id", "shot_at", "asset_at", "above", parent_id=pl.col("row_id"))
    clips = _placed(rows, Level.CLIP).join(of_shot, on=["source_id", "parent_id"], how="left", maintain_order="none")
    clips = clips.drop("asset_at", "above").join(of_asset, on="source_id", how="left", maintain_order="none")
    clips = clips.select("shot_at", "above", "status", "reason", "duration_us", "start_us", "end_us")
    clips = clips.collect(engine="streaming").lazy()
    sheet = Balance(in_us=int(assets["duration_us"].sum()))
    sheet.assets = _counts(assets.lazy())
    sheet.shots, sheet.clips = (_counts(each.with_columns(status=status_below("above"))) for each in (shots, clips))
    is_kept, counts = pl.col("status") == "keep", pl.col("above") == "keep"
    booked = pl.concat(
        each.select("status", "reason", "duration_us")
        for each in (assets.lazy().filter(~is_kept), shots.filter(counts & ~is_kept), clips.filter(counts))
    )
    _book(sheet, booked)
    rest = _rest(shots.filter(counts & is_kept), clips, "shot_at")
    lengths = assets.lazy().filter(is_kept).select("asset_at", start_us=0, end_us="duration_us")
    gaps = _rest(lengths, shots.filter(counts), "asset_at")
    _check(rest, gaps, shots, assets)
    sheet.cut_away_us = int(rest["rest_us"].sum()) + int(gaps["rest_us"].sum())
    return sheet


def _placed(rows: Scannable, level: Level) -> pl.LazyFrame:
    """The rows of a level with where they lie on the asset clock, in microseconds as `schemas.timing` rounds them.

    A recipe that ends before a level has none of it.
    """
    import polars as pl

    found = rows.scan(level)
    is_made = f"{level}.start_pts" in found.collect_schema()

    def microseconds(pts: str) -> pl.Expr:
        if not is_made:
            return pl.lit(None, pl.Int64)
        den, ticks = pl.col(f"{level}.tb_den"), pl.col(f"{level}.{pts}") * pl.col(f"{level}.tb_num")
        return ticks // den * 1_000_000 + (2_000_000 * (ticks % den) + den) // (2 * den)

    keys = ["source_id", "row_id", "parent_id", "duration_us"]
    return found.select(
        *(keys if level is Level.CLIP else keys[:2] + keys[3:]),
        start_us=microseconds("start_pts"),
        end_us=microseconds("end_pts"),
        status=STATUS,
        reason=REASON,
    )


def _counts(rows: pl.LazyFrame) -> dict[str, int]:
    import polars as pl

    found = rows.group_by("status").agg(pl.len()).collect()
    return {status: int(number) for status, number in sorted(found.iter_rows())}


def _book(sheet: Balance, booked: pl.LazyFrame) -> None:
    import polars as pl

    sums = booked.group_by("status", "reason").agg(pl.col("duration_us").sum()).sort("status", "reason")
    for status, reason, duration_us in sums.collect(engine="streaming").iter_rows():
        if status == "keep":
            sheet.kept_us += duration_us
        else:
            book = sheet.rejected_us if status == "reject" else sheet.errors_us
            book[reason] = book.get(reason, 0) + duration_us


def _rest(parents: pl.LazyFrame, children: pl.LazyFrame, key: str) -> pl.DataFrame:
    """`key` and `rest_us` of every parent: its length less what its children cover, overlaps once.

    Spans are sorted and pushed apart, the children of each parent behind those of the one before, so that one running
    maximum over all of them finds the overlaps.
    """
    import polars as pl

    spans = children.filter(pl.col(key).is_not_null()).select(key, "start_us", "end_us").sort(key, "start_us")
    width = pl.col("end_us").max() - pl.col("start_us").min() + 1
    shift = pl.col(key).rle_id().cast(pl.Int64) * width - pl.col("start_us").min()
    apart = spans.select(key, start=pl.col("start_us") + shift, end=pl.col("end_us") + shift)
    begins = pl.max_horizontal("start", pl.col("end").cum_max().shift())
    covered = (
        apart.select(key, covered_us=(pl.col("end") - begins).clip(0)).group_by(key).agg(pl.col("covered_us").sum())
    )
    rest = pl.col("end_us") - pl.col("start_us") - pl.col("covered_us").fill_null(0)
    return parents.join(covered, on=key, how="left").select(key, rest_us=rest).collect()


def _check(rest: pl.DataFrame, gaps: pl.DataFrame, shots: pl.LazyFrame, assets: pl.DataFrame) -> None:
    """Raises LedgerError for the first parent that is shorter than what was made out of it."""
    import polars as pl

    per_asset = rest.lazy().join(shots.select("shot_at", "asset_at"), on="shot_at").select("asset_at", "rest_us")
    total = pl.concat([per_asset, gaps.lazy()]).group_by("asset_at").agg(pl.col("rest_us").sum()).collect()
    too_long = total.filter(pl.col("rest_us") < 0).join(assets, on="asset_at")
    if len(too_long):
        source = too_long["source_id"].sort()[0]
        raise LedgerError(f"clips and shots of source {source} are longer than the source itself.")
    too_long = rest.filter(pl.col("rest_us") < 0).join(shots.collect(), on="shot_at")
    if len(too_long):
        raise LedgerError(f"clips of shot {too_long['row_id'].sort()[0]} are longer than the shot itself.")
