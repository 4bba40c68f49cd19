"""Carries sources through a plan, pass by pass, commits every finished unit, packs what was kept. Running it again resumes.

sources --> workers of pass 0 --> one ledger commit per source
        --> Collect over all rows --> workers of pass 1 --> the unit's rows replaced, one commit --> ...
kept clips --> packers --> tar + index --> one ledger commit per shard
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline import pack
from pipeline.config import Recipe
from pipeline.execute.collect import Collected, collect
from pipeline.execute.gates import begin, settle_rest
from pipeline.execute.monitor import Snapshot
from pipeline.ledger import Ledger, ledger_schema
from pipeline.plan import Plan, StageSpec, make_plan, render
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from pipeline.unit import Unit
from schemas.arrow_file import table_bytes
from schemas.errors import RecipeError
from schemas.records import SOURCE, Source, Struct, Verdict


class Executor(Protocol):
    """Where the work is done: `pipeline.execute.here` or `pipeline.execute.on_ray`."""

    def carry(self, number: int, units: Iterable[Unit]) -> Iterator[Unit]:
        """`units` after the workers of pass `number`, in the order in which they finish."""
        ...

    def pack(self, tasks: Sequence[pack.ShardTask]) -> Iterator[tuple[pack.ShardTask, list[dict[str, Any]]]]:
        """Each shard once it is published, with the ledger rows of its clips."""
        ...

    def nodes(self) -> dict[str, int]:
        """Node -> workers started there."""
        ...

    def watched(self, show: Callable[[Snapshot], None]) -> AbstractContextManager[None]:
        """Shows what the workers are at while the body runs."""
        ...


Opener = Callable[[Plan, RunDir], AbstractContextManager[Executor]]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    num_sources: int
    num_done_before: int
    num_shards: int
    nodes: dict[str, int]


def run(
    recipe: Recipe,
    sources: Sequence[Source],
    out: str,
    opener: Opener,
    *,
    retry_errors: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Curates `sources` into the run directory `out`; units already in its ledger are not touched again.

    `opener` gives the executor. `retry_errors` first takes back the units in which anything settled as an error, say
    because a server was away. Raises RecipeError or LedgerError before any work starts, and PlanError when a stage
    cannot start in a worker.
    """
    if not sources:
        raise RecipeError("no input files were found.", remedy="Give files, folders, globs, URLs or a manifest.")
    plan = make_plan(recipe)
    directory = RunDir(out)
    ledger = Ledger(directory.url("ledger"), ledger_schema(plan))
    ledger.create(recipe.measure_hash())
    given = [source.source_id for source in sources]
    if retry_errors:
        ledger.reopen([source_id for source_id in ledger.with_errors() if source_id in set(given)])
    write_facts(directory, plan, sources)
    todo = [source for source in sources if not ledger.passes(source.source_id)]
    done_before = len(sources) - len(todo)
    with opener(plan, directory) as executor, Progress(len(sources), done_before, quiet) as progress:
        with executor.watched(progress.show):
            measure(plan, todo, executor, ledger, progress)
            tasks = pack.plan_shards(ledger, recipe)
            _pack(executor, tasks, directory, ledger, progress)
        pack.write_manifest(directory, tasks, recipe)
        nodes = executor.nodes()
    return RunResult(len(sources), done_before, len(tasks), nodes)


def measure(plan: Plan, todo: Sequence[Source], executor: Executor, ledger: Ledger, progress: Progress) -> None:
    """Carries `todo` through pass 0, then every unit of the ledger that later passes concern through those."""
    for unit in executor.carry(0, map(Unit.of_source, todo)):
        ledger.commit(unit.source.source_id, unit.ledger_rows())
        progress.unit_done(verdict_of(unit))
    for number in range(1, len(plan.passes)):
        _next_pass(plan, number, executor, ledger, progress)


def _next_pass(plan: Plan, number: int, executor: Executor, ledger: Ledger, progress: Progress) -> None:
    """Carries on every unit that has not been through pass `number`, or of which its Collect now says something else."""
    each = plan.passes[number]
    assert each.collect is not None
    progress.collecting(each.collect.name)
    said = collect(each.collect, ledger)
    todo = _concerned(each.collect, number, said, ledger)
    if not todo:
        return
    before: dict[str, Verdict] = {}

    def begun() -> Iterator[Unit]:
        for unit in ledger.units(todo):
            before[unit.source.source_id] = verdict_of(unit)
            begin(plan, number, unit, said.get(unit.source.source_id, {}))
            yield unit

    for unit in executor.carry(number, begun()) if each.groups else begun():
        if not each.groups:
            settle_rest(plan, number, unit)
        ledger.replace(unit, number + 1)
        progress.unit_replaced(before.pop(unit.source.source_id), verdict_of(unit))


def verdict_of(unit: Unit) -> Verdict:
    """How the source of a finished unit settled."""
    assert unit.asset.verdict is not None
    return unit.asset.verdict


def _concerned(spec: StageSpec, number: int, said: Collected, ledger: Ledger) -> list[str]:
    """Source ids of the units that pass `number` has to carry on; one look at the Collect's own column."""
    rows = ledger.table(spec.adds_to, [spec.column])
    ids, sources, before = (rows[name].to_pylist() for name in ("row_id", "source_id", spec.column))
    nothing: Mapping[str, Struct] = {}
    changed = {
        source
        for row_id, source, known in zip(ids, sources, before, strict=True)
        if said.get(source, nothing).get(row_id) != known
    }
    unfinished = {source for source in ledger.source_ids() if ledger.passes(source) <= number}
    return sorted(changed | unfinished)


def _pack(
    executor: Executor, tasks: Sequence[pack.ShardTask], directory: RunDir, ledger: Ledger, progress: Progress
) -> None:
    waiting = [
        task for task in tasks if not (ledger.passes(task.unit_id) and directory.exists(f"index/{task.name}.arrow"))
    ]
    progress.packing(len(tasks), len(tasks) - len(waiting))
    for task, rows in executor.pack(waiting):
        ledger.commit(task.unit_id, rows)
        progress.shard_done(task.name, len(task.clips))


def write_facts(directory: RunDir, plan: Plan, sources: Sequence[Source]) -> None:
    """Writes what a run was given: sources.arrow, recipe.yaml, plan.txt."""
    import pyarrow as pa
    import yaml

    rows = [{each.name: getattr(source, each.name) for each in SOURCE} for source in sources]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(SOURCE)))
    directory.write("sources.arrow", table_bytes(table))
    directory.write("recipe.yaml", yaml.safe_dump(plan.recipe.model_dump(mode="json"), sort_keys=False).encode())
    directory.write("plan.txt", render(plan).encode())
