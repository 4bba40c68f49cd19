"""Questions in SQL over the facts of clips: one SELECT over one table, in a process of its own that can open nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ask.clips import ClipLists
from schemas.errors import LedgerError
from schemas.files import whole_path
from schemas.records import Level

TABLE = "facts"
MOST_ROWS = 10_000
LIMIT_S = 5.0
START_S = 5.0
"""On top, for the process to start."""
MEMORY_MB = 2_000
"""On top of the mapped facts."""
LONGEST = 5_000
"""Characters of a question."""
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
TEXT = re.compile(r"'(?:[^']|'')*'")
FUNCTION_TABLES = re.compile(r"\b(?:read|scan)_\w+\s*\(", re.IGNORECASE)
WRITES = re.compile(r"\b(?:create|drop|delete|truncate|insert|update|explain|show|copy|attach)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SqlAnswer:
    """A table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    is_cut: bool
    """Whether there are more rows than are told."""


def checked(sql: str) -> str:
    """The question without comments. Raises LedgerError if it is not one SELECT over `facts`."""
    text = COMMENT.sub(" ", sql).strip().rstrip(";").strip()
    bare = TEXT.sub("''", text)
    remedy = f"Write one SELECT over {TABLE}, such as: SELECT source_id, count(*) FROM {TABLE} GROUP BY 1."
    if len(text) > LONGEST:
        raise LedgerError(f"the question has {len(text)} characters; at most {LONGEST} are read.", remedy=remedy)
    if not re.match(r"(?:select|with)\b", bare, re.IGNORECASE) or ";" in bare or WRITES.search(bare):
        raise LedgerError("only one SELECT is answered.", remedy=remedy)
    if FUNCTION_TABLES.search(bare):
        raise LedgerError("functions that read files are not answered.", remedy=remedy)
    return text


def ask_sql(lists: ClipLists, sql: str, folder: Path) -> SqlAnswer:
    """The answer of a child process with limits on time and memory. Raises LedgerError with what the parser says.

    `folder` takes the facts of runs that are too small to be cached.
    """
    question = {
        "sql": checked(sql),
        "file": str(_file(lists, folder)),
        "rows": MOST_ROWS,
        "mb": MEMORY_MB,
        "s": LIMIT_S,
    }
    command = [sys.executable, "-m", "pipeline.ask.query_child"]
    try:
        done = subprocess.run(
            command, input=json.dumps(question), capture_output=True, text=True, timeout=LIMIT_S + START_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise LedgerError(
            f"no answer within {LIMIT_S:.0f} s.", remedy="Ask for fewer columns, or add a WHERE or a LIMIT."
        ) from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        msg = f"the question took more than {LIMIT_S:.0f} s or {MEMORY_MB} MB."
        raise LedgerError(msg, remedy="Ask for fewer columns, or add a WHERE or a LIMIT.") from None
    if "error" in told:
        remedy = "Put names that have dots in them in double quotes." if "." in sql else ""
        raise LedgerError(f"{told['error'].rstrip('.')}.", remedy=remedy)
    return SqlAnswer(tuple(told["columns"]), tuple(map(tuple, told["rows"])), told["is_cut"])


def _file(lists: ClipLists, folder: Path) -> Path:
    """The facts of clips as an Arrow file."""
    kept = lists.run.facts.path(Level.CLIP)
    if kept is not None:
        return kept
    path = folder / f"facts-{lists.run.ledger.table.version()}.arrow"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_path(path) as partial:
            lists.rows.collect().write_ipc(partial)
    return path
