"""Whether every file of a ledger can be read: commits of its log, then the data files they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.store import RunDir
from schemas.errors import LedgerError

LOG = "ledger/_delta_log"
FROM_A_COPY = "Take it back from a copy; without one, curate into a new --out."


def ledger_problems(ledger: Ledger) -> Iterator[str]:
    """Torn commits, and if there are none damaged or missing data files; reads each of them once."""
    from deltalake.exceptions import DeltaError

    run = RunDir(ledger.uri.rpartition("/")[0])
    torn = list(_torn_commits(run))
    yield from torn
    if torn:
        return
    try:
        files = pa.table(ledger.table.get_add_actions(flatten=True)).to_pylist()
    except LedgerError as error:
        yield str(error)
        return
    except (DeltaError, OSError, ValueError) as error:
        yield f"the ledger's log cannot be read: {error}. {FROM_A_COPY}"
        return
    for told in files:
        yield from _file_problems(run, told)


def _torn_commits(run: RunDir) -> Iterator[str]:
    names = [name for name in run.names(LOG) if name.endswith(".json") and name.removesuffix(".json").isdigit()]
    if not names:
        yield f"{LOG} has no commits: there is no ledger here. {FROM_A_COPY}"
        return
    numbers = [int(name.removesuffix(".json")) for name in names]
    gaps = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    if gaps:
        yield f"{LOG} lacks commit {gaps[0]}. {FROM_A_COPY}"
    for name in names:
        try:
            actions = [json.loads(line) for line in run.read(f"{LOG}/{name}").splitlines()]
            is_whole = bool(actions) and all(isinstance(action, dict) for action in actions)
        except ValueError:
            is_whole = False
        if not is_whole:
            remedy = FROM_A_COPY
            if name == names[-1]:
                remedy = "It is the newest: delete it and run the same command again, which does its units once more."
            yield f"{LOG}/{name} is torn. {remedy}"


def _file_problems(run: RunDir, told: dict[str, Any]) -> Iterator[str]:
    import pyarrow.parquet as pq

    name = f"ledger/{told['path']}"
    entry = run.entry(name)
    if entry is None:
        yield f"{name} is missing, which the ledger names. {FROM_A_COPY}"
        return
    if entry.num_bytes != told["size_bytes"]:
        yield f"{name} has {entry.num_bytes} bytes; expected {told['size_bytes']}. {FROM_A_COPY}"
        return
    try:
        with run.open(name) as file:
            for _ in pq.ParquetFile(file).iter_batches():
                pass
    except (pa.ArrowException, OSError) as error:
        yield f"{name} cannot be read: {error}. {FROM_A_COPY}"
