"""The live display of a run: a table per stage on a terminal, one line every ten seconds elsewhere.

Whatever comes from outside (names, messages) is printed as it is, never read as markup.
"""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.execute.lease import Settled
from pipeline.execute.monitor import AtWork, Snapshot
from schemas.printable import printable
from schemas.records import Verdict

PLAIN_EVERY_S = 10.0
ERRORS_PER_REASON = 3
"""Errors of one reason that are printed; the ledger has them all."""
FORETOLD_AFTER_S = 5.0
"""Neither rate nor time left is told earlier than this after the first settled source: it would promise too much."""
AT_WORK_SHOWN = 4


class Forecast:
    """How long the rest takes, by media time: from the first settled source or part on, because before it models load.

    What is told never climbs: a source that turns out long makes it stand still, not jump.
    """

    def __init__(self, num_sources: int, num_before: int) -> None:
        self.num_left = num_sources - num_before
        self.num_done = 0
        self.done_us = 0
        self.in_hand: dict[str, int] = {}
        """Source -> its length as far as it is known, of those being worked on as a whole."""
        self.in_parts: dict[str, int] = {}
        """Source id -> what is left of it, of those that are in parts."""
        self._first: tuple[float, int] | None = None
        self._told_s: float | None = None

    @property
    def known_us(self) -> int:
        """Media time known so far: of what is settled, and of what is being worked on."""
        return self.done_us + sum(self.in_hand.values()) + sum(self.in_parts.values())

    def settled(self, settled: Settled, now: float) -> None:
        """A source is done, or a part of one, or it goes on in parts."""
        if settled.is_head:
            self.in_parts[settled.source_id] = settled.duration_us
            return
        self.done_us += settled.duration_us
        if self._first is None:
            self._first = (now, settled.duration_us)
        if settled.is_done:
            self.num_left -= 1
            self.num_done += 1
            self.in_parts.pop(settled.source_id, None)
        elif settled.source_id in self.in_parts:
            self.in_parts[settled.source_id] -= settled.duration_us

    def rate(self, now: float) -> float | None:
        """Media seconds per second since the first settled source; None while there is nothing to go by."""
        if self._first is None or now - self._first[0] < FORETOLD_AFTER_S or self.done_us <= self._first[1]:
            return None
        return (self.done_us - self._first[1]) / 1e6 / (now - self._first[0])

    def left_s(self, now: float) -> float | None:
        """Seconds to the end, None while nothing can be said."""
        if not self.num_left:
            return None
        left, rate = None, self.rate(now)
        if rate is not None:
            known = [length for length in (*self.in_hand.values(), *self.in_parts.values()) if length]
            mean_us = (self.done_us + sum(known)) / (self.num_done + len(known))
            unseen = max(self.num_left - len(known), 0)
            left = (sum(known) + unseen * mean_us) / 1e6 / rate
        elif self._first is not None and self.num_done > 1 and now - self._first[0] >= FORETOLD_AFTER_S:
            left = self.num_left * (now - self._first[0]) / (self.num_done - 1)
        told = [each for each in (left, self._told_s) if each is not None]
        self._told_s = min(told, default=None)
        return self._told_s


class Progress:
    """Sources, media time, rate and time left. Writes to stderr; stdout stays machine-readable."""

    def __init__(self, num_sources: int, num_before: int, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, markup=False, highlight=False)
        self._num_sources, self._before = num_sources, num_before
        self._forecast = Forecast(num_sources, num_before)
        self._started = self._last_line = time.monotonic()
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._shards: tuple[int, int] | None = None
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._snapshot = Snapshot()

    def __enter__(self) -> Progress:
        if self._before:
            self._print(f"resuming: {self._before} of {self._num_sources} sources are already settled")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._print(self.headline())

    def unit_done(self, settled: Settled) -> None:
        """A source settled, or is a part nearer to that."""
        self._forecast.settled(settled, time.monotonic())
        if not settled.is_done:
            return
        verdict = settled.verdict
        self._statuses[verdict.status] += 1
        if verdict.status == "error":
            reason = verdict.reason or "error"
            self._reasons[reason] += 1
            if self._reasons[reason] <= ERRORS_PER_REASON:
                self._print(f"error {verdict.message}", style="red")
            elif self._reasons[reason] == ERRORS_PER_REASON + 1:
                self._print(f"more sources end as {reason}: the ledger has them all, `nava-curate stats` counts them")

    def collecting(self, stage: str) -> None:
        """A stage looks at all rows of the run."""
        self._print(f"{stage} looks at the whole run")

    def unit_replaced(self, before: Verdict, after: Verdict) -> None:
        """A later pass carried a source on that had settled as `before`."""
        self._statuses[before.status] -= 1
        self._statuses[after.status] += 1

    def cutting_again(self, num_clips: int) -> None:
        """Media of clips that were packed or cut are missing or damaged."""
        self._print(f"{num_clips} clips have to be cut again: their media are gone or damaged")

    def packing(self, total: int, done: int, *, is_redrawn: bool = False) -> None:
        """Packing begins, `done` shards being there already; `is_redrawn` if all clips are dealt out anew."""
        self._shards = (done, total)
        if is_redrawn:
            self._print(f"shards are to have another size: all clips move into {total}")

    def shard_done(self, name: str, num_clips: int) -> None:
        """A shard was published."""
        assert self._shards is not None
        self._shards = (self._shards[0] + 1, self._shards[1])
        self._print(f"packed shard {name} ({num_clips} clips)")

    def show(self, snapshot: Snapshot) -> None:
        """Refreshes the display from the monitor's snapshot."""
        self._snapshot = snapshot
        new = snapshot.at_work if self._forecast.num_left else []
        self._forecast.in_hand = {at.unit: at.duration_us for at in new if at.part is None}
        if self._live.is_started:
            self._live.update(
                Group(Text(self.headline()), self._table(), *(Text(printable(line)) for line in self._at_work()))
            )
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self._print("; ".join([self.headline(), *self._at_work()]))

    def headline(self) -> str:
        """One line: what is done, how fast, how long it will take."""
        now, told = time.monotonic(), self._forecast
        text = f"{self._num_sources - told.num_left}/{self._num_sources} sources in {now - self._started:.0f} s"
        if told.num_left and not told.num_done and not self._snapshot.stages:
            text += ", starting workers: loading models"
        if told.known_us:
            text += f", {_span(told.done_us / 1e6)} of {_span(told.known_us / 1e6)} media known so far"
        rate, left_s = told.rate(now), told.left_s(now)
        if rate is not None and told.num_left:
            text += f", {rate:.1f} s of media a second"
        if left_s is not None:
            text += f", about {_span(left_s)} left"
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self._statuses.items()) if count > 0)
        if counts:
            text += f" ({counts})"
        if self._shards is not None:
            text += f"; {self._shards[0]}/{self._shards[1]} shards"
        return text

    def _at_work(self) -> list[str]:
        longest = sorted(self._snapshot.at_work, key=lambda at: -at.for_s)[:AT_WORK_SHOWN]
        return [at_work_line(at) for at in longest]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("stage", "rows", "rejected", "errors", "rows/s", "busy", "s/row"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        elapsed = max(time.monotonic() - self._started, 1e-3)
        for stage, tally in self._snapshot.stages.items():
            per_row = tally.wall_s / max(tally.rows, 1)
            cells = (
                stage, str(tally.rows), str(tally.rejects), str(tally.errors),
                f"{tally.rows / elapsed:.2f}", f"{tally.wall_s:.0f} s", f"{per_row:.2f}",
            )  # fmt: skip
            table.add_row(*map(Text, cells))
        return table

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(Text(printable(line), style=style or ""), soft_wrap=True)


def at_work_line(at: AtWork) -> str:
    """What one worker is at."""
    part = "" if at.part is None else f", part {at.part.number + 1} of {at.part.count}"
    return f"{at.stage} {at.for_s:.0f} s on {at.unit}{part}"


def _span(seconds: float) -> str:
    """A length of time in the unit a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
