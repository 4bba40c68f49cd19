"""How far a run is, read from its ledger alone: what `nava-curate status` prints."""

from __future__ import annotations

import time

from pipeline.ask.queries import Run, balance, hours_of
from pipeline.pack import MANIFEST, read_manifest
from pipeline.show.text import balance_lines

STALL_S = 120.0
"""A run that committed nothing for this long is called out; most sources take seconds to minutes."""


def status_text(run: Run) -> tuple[str, bool]:
    """The screen, and whether every source is settled and packed."""
    sheet = balance(run.ledger)
    settled, total = sum(sheet.assets.values()), run.num_sources
    times = run.ledger.commit_times()
    lines = [
        f"{run.dir.uri}: {settled} of {total} sources settled ({', '.join(f'{n} {s}' for s, n in sheet.assets.items())})"
    ]
    is_packed = run.dir.exists(MANIFEST) and settled == total
    if settled < total and len(times) > 1:
        rate = (len(times) - 1) / max(times[-1] - times[0], 1e-3)
        lines.append(f"{rate * 60:.1f} units a minute, about {(total - settled) / rate / 60:.1f} minutes left")
        quiet = time.time() - times[-1]
        if quiet > STALL_S:
            lines.append(f"nothing was committed for {quiet:.0f} s: the run has stopped, or is busy with a long source")
    if is_packed:
        manifest = read_manifest(run.dir)
        lines.append(f"packed: {manifest.num_samples} clips in {len(manifest.shards)} shards")
    lines += ["", *balance_lines(hours_of(sheet))]
    return "\n".join(lines), is_packed
