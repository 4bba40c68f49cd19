"""How far a run is, read from its ledger alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ask.queries import STATUS, Run, counted_assets, status_below
from pipeline.execute.heartbeat import Heartbeat, heartbeat
from pipeline.pack import MANIFEST, read_manifest
from schemas.records import Level


@dataclass(frozen=True)
class RunStatus:
    """What `nava-curate status` shows."""

    uri: str
    num_sources: int
    assets: dict[str, int]
    """Settled sources by status."""
    clips: dict[str, int]
    in_us: int
    """Length of the settled sources."""
    kept_us: int
    """Time in clips kept so far."""
    num_provisional: int
    """Settled sources that a later stage still has to look at."""
    num_outdated: int
    """Those among them that went through the passes of another recipe, or of other versions of its stages."""
    num_left: int
    """Sources that have not been through a pass, added up over all passes."""
    units_per_s: float | None
    """Sources that go through a pass in a second, by the newest commits; None before the second one."""
    quiet_s: float | None
    """Time since the last commit; None before the first one."""
    now: Heartbeat | None
    """What the run itself says it is at; None where it says nothing, as when it does not run."""
    packed: tuple[int, int] | None
    """(clips, shards) of a run that is through with every source; None before."""

    @property
    def num_settled(self) -> int:
        """Sources in the ledger."""
        return sum(self.assets.values())


def status(run: Run) -> RunStatus:
    """The state of `run`: two group-bys over keys and verdicts, and the newest commits."""
    import polars as pl

    plan, us = run.plan, pl.col("duration_us").fill_null(0)
    done = {plan.identity(number): number + 1 for number in range(len(plan.passes))}
    passed = run.ledger.scan(Level.ASSET).select(
        "source_id",
        num_passes=pl.col("passed").replace_strict(done, default=0, return_dtype=pl.Int64),
        is_outdated=(~pl.col("passed").is_in(list(done))).fill_null(False),
    )
    counted = counted_assets(run.ledger)
    sums = [pl.len().alias("rows"), us.sum().alias("us")]
    assets = counted.join(passed, on="source_id").group_by("status", "num_passes", "is_outdated").agg(sums)
    assets = assets.sort("status")
    clips = run.ledger.scan(Level.CLIP).select("source_id", "duration_us", status=STATUS)
    clips = clips.join(counted.select("source_id", above="status"), on="source_id").select(
        "duration_us", status=status_below("above")
    )
    of_assets, of_clips = pl.collect_all(
        [assets, clips.group_by("status").agg(sums).sort("status")], engine="streaming"
    )
    settled = of_assets.group_by("status", maintain_order=True).agg(pl.col("rows").sum())
    num_sources, last = run.num_sources, len(plan.passes)
    num_left = num_sources * last - int((of_assets["rows"] * of_assets["num_passes"]).sum())
    units_per_s, quiet_s = _pace(run.ledger.commits())
    packed = None
    if not num_left and run.dir.exists(MANIFEST):
        manifest = read_manifest(run.dir)
        packed = (manifest.num_samples, len(manifest.shards))
    return RunStatus(
        uri=run.dir.uri,
        num_sources=num_sources,
        assets=dict(settled.iter_rows()),
        clips=dict(of_clips.select("status", "rows").iter_rows()),
        in_us=int(of_assets["us"].sum()),
        kept_us=int(of_clips.filter(pl.col("status") == "keep")["us"].sum()),
        num_provisional=int(of_assets.filter(pl.col("num_passes") < last)["rows"].sum()),
        num_outdated=int(of_assets.filter("is_outdated")["rows"].sum()),
        num_left=num_left,
        units_per_s=units_per_s,
        quiet_s=quiet_s,
        now=heartbeat(run.dir),
        packed=packed,
    )


def _pace(commits: Sequence[tuple[float, int]]) -> tuple[float | None, float | None]:
    """(units a second, seconds since the last commit) by (time, units) of the newest commits, oldest first."""
    if not commits:
        return None, None
    first_s, last_s = commits[0][0], commits[-1][0]
    num_units = sum(number for _, number in commits[1:])
    return num_units / max(last_s - first_s, 1e-3) if num_units else None, time.time() - last_s
