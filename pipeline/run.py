"""Carries sources through a plan, pass by pass, commits what is finished, packs what was kept. Running it again resumes.

sources --> leases --> workers of pass 0 --> rows, many units to a commit
        --> Collect over all rows --> leases --> workers of pass 1 --> the units' rows replaced --> ...
cut media --> packers --> tar + index --> manifest

The driver sees leases and finished units, never what is measured. What a unit has been through is told by its rows, so a
recipe that gained or changed a stage or a gate completes a run that is there: only what is missing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import polars as pl
import pyarrow as pa

from pipeline import pack
from pipeline.addresses import willing
from pipeline.config import Recipe
from pipeline.execute.collect import collect
from pipeline.execute.heartbeat import beating
from pipeline.execute.lease import Lease, Settled
from pipeline.execute.monitor import Snapshot
from pipeline.execute.spent import Bill, Book
from pipeline.ledger import Ledger
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import Plan, make_plan, render
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from schemas.arrow_file import read_table, table_bytes
from schemas.errors import RecipeError, ShardError
from schemas.plain_arrow import without_pandas
from schemas.records import SOURCE, Level, Source


class Executor(Protocol):
    """Where the work is done: `pipeline.execute.here` or `pipeline.execute.on_ray`."""

    def carry(self, lease: Lease) -> Iterator[Settled]:
        """The units of a lease of any size, as they finish."""
        ...

    def pack(self, tasks: Iterable[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[str]]]:
        """Each shard once it is published, or with the ids of clips whose media were damaged, and is not."""
        ...

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there."""
        ...

    def cores(self) -> float:
        """CPUs that it can use."""
        ...

    def spent(self) -> Bill:
        """CPU seconds so far, by who spent them."""
        ...

    def watched(self, show: Callable[[Snapshot], None]) -> AbstractContextManager[None]:
        """Shows what the workers are at while the body runs."""
        ...


SOURCES, SKIPPED = "sources.arrow", "skipped.tsv"
PACK_ROUNDS = 4
"""Times that packing begins anew because media were gone or damaged."""
Opener = Callable[[Plan, RunDir], AbstractContextManager[Executor]]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    num_sources: int
    num_done_before: int
    num_shards: int
    nodes: dict[str, int]
    num_refused: int = 0
    """Sources given that were taken down or have opted out."""


def run(
    recipe: Recipe,
    sources: Sequence[Source],
    out: str,
    opener: Opener,
    *,
    retry_errors: bool = False,
    quiet: bool = False,
    is_process: bool = False,
    skipped: str = "",
) -> RunResult:
    """Curates `sources` into the run directory `out`; units already in its ledger are not touched again.

    `opener` gives the executor. `retry_errors` first takes back the units in which anything settled as an error, say
    because a server was away. `is_process` says that this process is there for the run: what it has spent so far counts.
    `skipped` names what lay among the inputs and is no source, for skipped.tsv.
    Raises RecipeError or LedgerError before any work starts, and PlanError when a stage cannot start in a worker.
    """
    without_pandas()
    if not sources:
        raise RecipeError("no input files were found.", remedy="Give files, folders, globs, URLs or a manifest.")
    plan = make_plan(recipe)
    directory = RunDir(out)
    admitted = willing(sources, read_sources(directory), recipe.opt_out, directory)
    num_refused, sources = len(sources) - len(admitted), admitted
    book = Book(directory, is_process=is_process)
    with directory.claimed(), LedgerWriter(directory.url("ledger"), plan) as writer:
        sources = write_facts(directory, plan, sources)
        if skipped:
            directory.write(SKIPPED, skipped.encode())
        num_done = len(sources) - len(_todo(plan, 0, sources, writer.ledger, retry_errors))
        with opener(plan, directory) as executor, Progress(len(sources), num_done, quiet) as progress:
            with (
                book.of(executor) as note,
                beating(directory, progress.headline) as beat,
                executor.watched(_all(progress.show, beat, lambda _: note())),
            ):
                measure(plan, sources, executor, writer, progress, retry_errors=retry_errors)
                num_shards = pack_kept(plan, sources, executor, writer, progress)
            nodes = executor.nodes()
    return RunResult(len(sources), num_done, num_shards, nodes, num_refused)


def _all(*told: Callable[[Snapshot], None]) -> Callable[[Snapshot], None]:
    def seen(snapshot: Snapshot) -> None:
        for each in told:
            each(snapshot)

    return seen


def measure(
    plan: Plan,
    sources: Sequence[Source],
    executor: Executor,
    writer: LedgerWriter,
    progress: Progress,
    *,
    retry_errors: bool = False,
    lost: Mapping[str, str] | None = None,
) -> None:
    """Carries every source that needs it through every pass; what is finished is in the ledger when this returns.

    `lost` are clips that have to be cut again, with their sources.
    """
    for number, each in enumerate(plan.passes):
        todo = _todo(plan, number, sources, writer.ledger, retry_errors)
        again = set(lost.values()) if lost and plan.cutter in each.stages else set()
        todo += [source for source in sources if source.source_id in again - {other.source_id for other in todo}]
        if each.collect is not None:
            progress.collecting(each.collect.name)
            changed = set(collect(each.collect, writer.ledger, RunDir(writer.ledger.uri.rpartition("/")[0])))
            waiting = {source.source_id for source in todo}
            todo += [source for source in sources if source.source_id in changed - waiting]
        there = set(writer.ledger.passed()["source_id"])
        lease = Lease(number, tuple(todo), frozenset(there), retry_errors and number == 0, frozenset(lost or ()))
        for settled in executor.carry(lease):
            is_part = settled.part is not None and not settled.is_head
            writer.add(settled.source_id, settled.rows(), is_there=settled.source_id in there, is_part=is_part)
            if not settled.is_done:
                there.add(settled.source_id)
            if number == 0 and settled.source_id not in again:
                progress.unit_done(settled)
            elif settled.before is not None and settled.is_done:
                progress.unit_replaced(settled.before, settled.verdict)
        writer.flush()


def _todo(plan: Plan, number: int, sources: Sequence[Source], ledger: Ledger, retry_errors: bool) -> list[Source]:
    """The sources that have not been through pass `number` of this very plan; one look at two columns of the ledger."""
    through = {plan.identity(later) for later in range(number, len(plan.passes))}
    done = set(ledger.passed().filter(pl.col("passed").is_in(through))["source_id"])
    if retry_errors and number == 0:
        done -= _with_errors(ledger)
    return [source for source in sources if source.source_id not in done]


def _with_errors(ledger: Ledger) -> set[str]:
    """Source ids of units in which the source, a shot or a clip settled as an error."""
    found: set[str] = set()
    for level in Level:
        is_error = pl.col("verdict.status") == "error"
        found |= set(ledger.scan(level).filter(is_error).select("source_id").unique().collect()["source_id"])
    return found


def pack_kept(
    plan: Plan, sources: Sequence[Source], executor: Executor, writer: LedgerWriter, progress: Progress
) -> int:
    """Makes the shards of a settled run what they should be, and publishes them; returns how many there are.

    Media that are gone or damaged are cut again first. Raises ShardError if they never come out whole.
    """
    directory = RunDir(writer.ledger.uri.rpartition("/")[0])
    for _ in range(PACK_ROUNDS):
        packing = pack.plan_shards(writer.ledger, plan, directory)
        if packing.lost:
            progress.cutting_again(len(packing.lost))
            measure(plan, sources, executor, writer, progress, lost=packing.lost)
            continue
        progress.packing(len(packing.names), packing.num_there, is_redrawn=packing.is_redrawn)
        is_damaged = False
        for task, damaged in executor.pack(packing.tasks()):
            is_damaged |= bool(damaged)
            if not damaged:
                progress.shard_done(task.name, len(task.clips))
        if not is_damaged:
            pack.publish(directory, packing, plan.recipe)
            return len(packing.names)
    raise ShardError(
        f"media of clips under {directory.url('')} were cut {PACK_ROUNDS} times and damaged each time.",
        remedy="Check the disk; then the same command goes on.",
    )


def write_facts(directory: RunDir, plan: Plan, sources: Sequence[Source]) -> list[Source]:
    """Writes what a run was given: sources.arrow, recipe.yaml, plan.txt. Returns all sources of its life, old ones first."""
    import yaml

    union = {source.source_id: source for source in read_sources(directory)}
    union |= {source.source_id: source for source in sources}
    rows = [{each.name: getattr(source, each.name) for each in SOURCE} for source in union.values()]
    directory.write(SOURCES, table_bytes(pa.Table.from_pylist(rows, schema=pa.schema(list(SOURCE)))))
    directory.write("recipe.yaml", yaml.safe_dump(plan.recipe.model_dump(mode="json"), sort_keys=False).encode())
    directory.write("plan.txt", render(plan).encode())
    return list(union.values())


def read_sources(directory: RunDir) -> list[Source]:
    """The sources a run was given so far; none for one that has not begun."""
    if not directory.exists(SOURCES):
        return []
    return [Source.of(row) for row in read_table(directory.read(SOURCES)).to_pylist()]
