"""How far a run is, read from its ledger alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.ask.queries import Balance, Run, balance
from pipeline.pack import MANIFEST, read_manifest


@dataclass(frozen=True)
class RunStatus:
    """What `nava-curate status` shows."""

    uri: str
    num_sources: int
    num_settled: int
    sheet: Balance
    units_per_s: float | None
    """Rate of commits so far; None before the second one."""
    quiet_s: float | None
    """Time since the last commit; None before the first one."""
    packed: tuple[int, int] | None
    """(clips, shards) of a finished run."""


def status(run: Run) -> RunStatus:
    """The state of `run`. Costs a look at the whole ledger."""
    sheet = balance(run.ledger)
    settled, total = sum(sheet.assets.values()), run.num_sources
    times = run.ledger.commit_times()
    packed = None
    if run.dir.exists(MANIFEST) and settled == total:
        manifest = read_manifest(run.dir)
        packed = (manifest.num_samples, len(manifest.shards))
    return RunStatus(
        uri=run.dir.uri,
        num_sources=total,
        num_settled=settled,
        sheet=sheet,
        units_per_s=(len(times) - 1) / max(times[-1] - times[0], 1e-3) if len(times) > 1 else None,
        quiet_s=time.time() - times[-1] if times else None,
        packed=packed,
    )
