"""What a command loads before it answers: start-up is most of what a question costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import synthetic_ledger
from pipeline.ledger import Ledger
from schemas.records import Level

HEAVY = ("ray", "torch", "matplotlib", "pandas", "cv2", "av", "scipy", "httpx")
COMMANDS = """
import json, sys
from pipeline.cli import app
for words, unneeded in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
    print("loaded", sorted(set(unneeded) & set(sys.modules)))
"""
ARRAYS = """
import sys
import pyarrow as pa
from schemas.plain_arrow import without_pandas
without_pandas()
table = pa.Table.from_pylist([{"a": 1, "b": [{"c": None}]}])
assert pa.array([{"a": 1}]).to_pylist() == [{"a": 1}]
assert "pandas" not in sys.modules, "pyarrow imported it after all"
assert len(table.to_pandas()) == 1, "who needs pandas has it"
"""


def alone(code: str, *arguments: str) -> str:
    """What code printed in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ledger in the real schema."""
    folder = str(tmp_path_factory.mktemp("synthetic"))
    synthetic_ledger.write(folder, synthetic_ledger.Size(40))
    return folder


@pytest.mark.slow
def test_a_command_opens_no_library_that_it_does_not_need(run: str) -> None:
    """One after the other in one interpreter, which keeps what any of them has opened."""
    clip = Ledger(f"{run}/ledger").scan(Level.CLIP).select("row_id").limit(1).collect().item()
    commands = [
        (("plan", "quickstart"), (*HEAVY, "polars", "deltalake", "fsspec")),
        (("stats", run), HEAVY),
        (("stats", run, "--json", "--set", "gates.sync.confidence.min=2"), HEAVY),
        (("status", run), HEAVY),
        (("why", clip, "--run", run), HEAVY),
    ]
    *answers, rest = alone(COMMANDS, json.dumps(commands)).split("loaded []\n")
    assert len(answers) == len(commands), rest
    assert all(answers)


def test_arrays_of_plain_data_need_no_pandas() -> None:
    alone(ARRAYS)
