"""Fixtures shared by all tests: real media where there is some, known-truth media made here everywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="session")
def media_dir() -> Path:
    """Folder of real clips with a manifest.json; the test is skipped where there is none."""
    given = os.environ.get("NAVA_TEST_MEDIA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "media"
    if not (folder / "manifest.json").is_file():
        pytest.skip("no real test media here; set NAVA_TEST_MEDIA to a folder with a manifest.json")
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Any:
    """What a worker lends its stages, on a scratch folder of this test."""
    from stages.base import Context

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Context(scratch, str(tmp_path / "store"))


@pytest.fixture
def make_row(context: Any) -> Callable[[Path], dict[str, Any]]:
    """Makes the asset row of a local file with its download and probe structs measured for real."""
    from stages import load

    def make(path: Path) -> dict[str, Any]:
        row: dict[str, Any] = {"source_id": "s0", "uri": str(path), "licence": None, "metadata": "{}"}
        for name in ("download", "probe"):
            cls = load(name)
            stage = cls(cls.Config())
            stage.setup(context)
            (result,) = stage.process([row])
            if isinstance(result, Exception):
                raise result
            row[name] = result
        return row

    return make
