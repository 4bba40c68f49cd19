"""The cutting benchmark counts what happened, and finds the project's cuts exact."""

from __future__ import annotations

import pytest

from benchmarks.quality_cuts import ERRORS, score_cuts


@pytest.mark.slow
def test_generated_cuts_of_every_encoding_are_exact() -> None:
    found = score_cuts(num_cuts=9, seed=4)["generated"]
    assert found["cuts"] == sum(found["modes"].values()) == 9
    assert found["failures"] == {}
    assert found["wrong_pictures"] == 0
    assert found["largest"] == dict.fromkeys(ERRORS, 0)
    assert found["encode_cpu_s_per_s"] > 0
