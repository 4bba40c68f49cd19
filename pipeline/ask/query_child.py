"""Answers one question in SQL over a mapped Arrow file: a process that gives up the right to open anything first.

Reads a question from standard input and writes the answer to standard output, both as JSON; see `pipeline.ask.query_box`.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa


def main() -> None:
    """One question."""
    asked: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(answered(asked), default=str))


def answered(asked: dict[str, Any]) -> dict[str, Any]:
    """columns, rows and is_cut, or an error in words. A first question sets Polars going, which opens files of its own."""
    import polars as pl

    with pa.memory_map(asked["file"]) as mapped:
        facts = pl.from_arrow(pa.ipc.open_file(mapped).read_all(), rechunk=False)
    with pl.SQLContext(facts=facts, eager=False) as context:
        context.execute("SELECT count(*) FROM facts").collect()
        confine(float(asked["s"]), int(asked["mb"]))
        try:
            found = context.execute(asked["sql"]).head(asked["rows"] + 1).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            return {"error": " ".join(str(error).partition("This error occurred")[0].split())[:400]}
    rows = found.head(asked["rows"])
    return {"columns": rows.columns, "rows": rows.rows(), "is_cut": len(found) > asked["rows"]}


def confine(seconds: float, megabytes: int) -> None:
    """No more files, so much CPU and so much more memory for this process, for good."""
    used_kb = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")
    )
    memory = used_kb * 1024 + megabytes * 1_000_000
    cores = 2
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds * cores) + 2, int(seconds * cores) + 3))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
