"""The benchmark of the record in small: what it counts is what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale, synthetic_ledger

pytestmark = pytest.mark.slow


def test_a_peak_is_the_commands_own() -> None:
    """And not what the process that started it holds."""
    held = np.ones(40_000_000)
    few = scale.measured(["-c", "pass"])["peak_mb"]
    many = scale.measured(["-c", "held = bytes(range(256)) * 400_000"])["peak_mb"]
    assert many - few > 90
    assert few < held.nbytes / 1e6 / 2


def test_a_command_that_fails_gives_no_figure() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        scale.measured(["-c", "raise SystemExit(3)"])


def test_a_settled_run_is_not_touched_again(tmp_path: Path) -> None:
    size = synthetic_ledger.Size(120, 1, 1, share_of_copies=0.0)
    synthetic_ledger.write(str(tmp_path), size, scale.without_cut())
    assert scale.part("resume", str(tmp_path))["commits"] == 0


def test_one_source_touches_no_more_shards_than_it_has_clips(tmp_path: Path) -> None:
    synthetic_ledger.write(str(tmp_path), synthetic_ledger.Size(3000))
    found = scale.part("pack_plan", str(tmp_path))
    assert 0 < found["shards_touched"] <= found["clips_of_that_source"]
    assert found["shards_touched"] < found["num_shards"]


def test_a_row_of_the_index_is_counted_without_its_files() -> None:
    found = scale.part("index", "5000")
    assert found["rows"] > 0
    assert found["bytes_per_row"] == 18


def test_bounds_are_met_or_missed_by_their_own_figures() -> None:
    found = {"driver": {"cpu_ms_per_source": 4.1, "ratio": 1.3}, "stats": {"cpu_s": 1.0, "peak_mb": 451.0}}
    told = {line.split()[0]: line.split()[-1] for line in scale.held(found, 100_000)}
    assert told == {
        "driver.cpu_ms_per_source": "MISSED", "driver.ratio": "met", "stats.cpu_s": "met", "stats.peak_mb": "MISSED"
    }  # fmt: skip
    assert not [line for line in scale.held(found, 3) if line.startswith("stats")]
