"""The check of a GPU, rehearsed on the CPU: every part runs, what cannot run there is a row, and nothing ends it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import PARTS, Setting, main, run_parts


@pytest.mark.slow
def test_every_part_runs_and_failures_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--json", str(out), "--device", "cpu", "--preset", "nava_tiny", "--backends", "sdpa", "varlen"]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    main()
    rows = json.loads(out.read_text())["rows"]
    assert {row["part"] for row in rows} == set(PARTS)
    assert all("needs half precision on CUDA" in row["failed"] for row in rows if row.get("backend") == "varlen")
    of_sdpa = [row for row in rows if row.get("backend") == "sdpa"]
    assert not [row for row in of_sdpa if "failed" in row]
    assert all(row["is_finite"] for row in of_sdpa if row["part"] == "empty")
    assert all(row["is_equal"] for row in of_sdpa if row["part"] == "repeat")
    assert all(row["cosine"] > 0.99 for row in of_sdpa if row["part"] == "parity")
    assert all(row["estimated_bytes"] > 0 for row in of_sdpa if row["part"] == "pack")
    assert all(row["products_repeat"] and row["products_error"] < 1e-5 for row in rows if row["part"] == "rows")


def test_time_that_is_used_up_is_said() -> None:
    (row,) = run_parts(Setting("nava_tiny", "cpu", ("sdpa",), 1.0), ["pack"], minutes=-1)
    assert "not begun" in row["failed"]
