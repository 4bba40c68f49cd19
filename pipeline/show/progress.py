"""The live display of a run: a table per stage on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.execute.monitor import Snapshot
from schemas.records import Verdict

PLAIN_EVERY_S = 10.0


class Progress:
    """Counts, rates and time left, per source and per stage. Writes to stderr; stdout stays machine-readable."""

    def __init__(self, num_sources: int, num_before: int, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._num_sources, self._done, self._before = num_sources, num_before, num_before
        self._started = self._last_line = time.monotonic()
        self._statuses: Counter[str] = Counter()
        self._shards: tuple[int, int] | None = None
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._snapshot = Snapshot()

    def __enter__(self) -> Progress:
        if self._before:
            self._console.print(f"resuming: {self._before} of {self._num_sources} sources are already settled")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._console.print(self._headline(), soft_wrap=True)

    def unit_done(self, verdict: Verdict) -> None:
        """A source settled with `verdict` and was committed."""
        self._done += 1
        self._statuses[verdict.status] += 1
        if verdict.status == "error":
            self._console.print(f"[red]error[/] {verdict.message}", soft_wrap=True, highlight=False)

    def collecting(self, stage: str) -> None:
        """A stage looks at all rows of the run."""
        self._console.print(f"{stage} looks at the whole run", highlight=False)

    def unit_replaced(self, before: Verdict, after: Verdict) -> None:
        """A later pass carried a source on that had settled as `before`."""
        self._statuses[before.status] -= 1
        self._statuses[after.status] += 1

    def packing(self, total: int, done: int) -> None:
        """Packing begins, `done` shards being there already."""
        self._shards = (done, total)

    def shard_done(self, name: str, num_clips: int) -> None:
        """A shard was published and committed."""
        assert self._shards is not None
        self._shards = (self._shards[0] + 1, self._shards[1])
        self._console.print(f"packed shard {name} ({num_clips} clips)", highlight=False)

    def show(self, snapshot: Snapshot) -> None:
        """Refreshes the display from the monitor's snapshot."""
        self._snapshot = snapshot
        if self._live.is_started:
            self._live.update(self._table())
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            busy = ", ".join(f"{stage} {seconds:.0f} s" for _, stage, seconds in snapshot.in_flight)
            self._console.print(f"{self._headline()}{'; now ' + busy if busy else ''}", soft_wrap=True, highlight=False)

    def _headline(self) -> str:
        elapsed = time.monotonic() - self._started
        fresh = self._done - self._before
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self._statuses.items()) if count > 0)
        text = f"{self._done}/{self._num_sources} sources in {elapsed:.0f} s"
        if fresh and self._done < self._num_sources:
            text += f", about {(self._num_sources - self._done) * elapsed / fresh:.0f} s left"
        if counts:
            text += f" ({counts})"
        if self._shards is not None:
            text += f"; {self._shards[0]}/{self._shards[1]} shards"
        return text

    def _table(self) -> Table:
        table = Table(title=self._headline(), title_justify="left", box=None, pad_edge=False)
        for name in ("stage", "rows", "rejected", "errors", "rows/s", "busy", "s/row", "left"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        elapsed = max(time.monotonic() - self._started, 1e-3)
        fresh = max(self._done - self._before, 1)
        workers = max(sum(self._snapshot.nodes.values()), 1)
        remaining = self._num_sources - self._done
        for stage, tally in self._snapshot.stages.items():
            per_row = tally.wall_s / max(tally.rows, 1)
            left = tally.wall_s / fresh * remaining / workers
            table.add_row(
                stage, str(tally.rows), str(tally.rejects), str(tally.errors),
                f"{tally.rows / elapsed:.2f}", f"{tally.wall_s:.0f} s", f"{per_row:.2f}", f"{left:.0f} s",
            )  # fmt: skip
        for unit, stage, seconds in self._snapshot.in_flight:
            if seconds > PLAIN_EVERY_S:
                table.add_row(f"[dim]{stage} on {unit} for {seconds:.0f} s[/]")
        return table
