"""Runs of the toy catalogue in this process: one source through the workers, a settled ledger, a whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.ask.queries import Run
from pipeline.config import parse_recipe
from pipeline.execute.adapter import Worker
from pipeline.execute.here import here
from pipeline.execute.hop import Hop
from pipeline.execute.monitor import Monitor
from pipeline.ledger import Ledger
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from pipeline.run import measure, write_facts
from pipeline.show.progress import Progress
from pipeline.store import RunDir
from pipeline.unit import Unit
from schemas.ids import source_id
from schemas.leaves import nested
from schemas.records import VERDICT, Source, Verdict


def toy_source(name: str, **facts: Any) -> Source:
    """A source of 20 s in 5 shots of 2 clips each, or as `facts` say (see `toy_stages`)."""
    metadata = json.dumps({"frames": 500, "shot": 100, "clip": 40} | facts)
    return Source(source_id=source_id(name), uri=name, metadata=metadata)


def advance(recipe: dict[str, Any], source: Source, monitor: Monitor | None = None) -> Unit:
    """The unit after all worker groups of the first pass, through the Arrow schema between them as on a cluster."""
    monitor = monitor or Monitor()
    plan = make_plan(parse_recipe(recipe))
    unit = Unit.of_source(source)
    for group in range(len(plan.passes[0].groups)):
        unit = Hop.of(plan, unit).unit()
        Worker(plan, (0, group), "", monitor).advance(unit)
    return unit


@contextmanager
def settled(
    recipe: dict[str, Any], sources: Sequence[Source], folder: Path, *, retry_errors: bool = False
) -> Iterator[Ledger]:
    """The ledger of a whole run up to packing: toy clips have no media to be cut from. The same folder resumes it."""
    plan, directory = make_plan(parse_recipe(recipe)), RunDir(folder)
    with LedgerWriter(directory.url("ledger"), plan) as writer:
        union = write_facts(directory, plan, sources)
        with here(plan, directory) as executor, Progress(len(union), 0, quiet=True) as progress:
            measure(plan, union, executor, writer, progress, retry_errors=retry_errors)
    yield Ledger(directory.url("ledger"))


def verdicts(ledger: Ledger, level: str) -> dict[str, Verdict]:
    """Row id -> how it settled."""
    return {row["row_id"]: Verdict.of(nested("verdict", row, VERDICT)) for row in ledger.rows(level)}


def make_run(recipe: dict[str, Any], sources: Sequence[Source], folder: Path) -> Run:
    """A finished run without shards."""
    with settled(recipe, sources, folder):
        return Run(str(folder))
