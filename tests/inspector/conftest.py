"""A small real run with a kept and a rejected clip, and the inspector over it without a socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from starlette.testclient import TestClient

import stages
from pipeline.ask.queries import Run
from pipeline.inspector.app import Inspector
from pipeline.inspector.guard import Access
from pipeline.inspector.session import Session
from tests.pipeline import toy_stages
from tests.ray_runs import shared_folder

PORT = 8470
BASE = f"http://127.0.0.1:{PORT}"
HOSTILE = "<img src=x onerror=alert(1)>"
LONGEST_US = 3_500_000


@pytest.fixture
def toy_recipe() -> Iterator[dict[str, Any]]:
    """The toy recipe as plain data, its stages in the catalogue."""
    with patch.dict(stages.CATALOG, toy_stages.CATALOG, clear=True):
        yield toy_stages.RECIPE


def write_run(folder: Path) -> None:
    """Three bouncing balls of 3 s, which are kept, and one of 4 s, which a gate turns away."""
    from pipeline.demo import ball_clip
    from tests.pipeline.light_run import curate

    (folder / "media").mkdir()
    for seed, length_s in enumerate((3.0, 3.0, 3.0, 4.0)):
        ball_clip(folder / "media" / f"{seed}.mp4", duration_s=length_s, seed=seed)
    hostile = folder / "media" / "3.mp4"
    hostile.rename(folder / "media" / f"{HOSTILE}.mp4")
    curate(folder / "media", folder / "run", f"gates.clip.duration_us={{max: {LONGEST_US}}}")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run; only read."""
    return shared_folder(tmp_path_factory, "inspected", write_run) / "run"


@pytest.fixture
def damaged_run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(whole_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this worker."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def session(whole_run: Path, cache: Path, tmp_path: Path) -> Session:
    """The run, opened for pages, with marks of this test alone."""
    return Session(str(whole_run), cache=cache, marks=tmp_path / "marks.jsonl")


@pytest.fixture
def access() -> Access:
    """Served on loopback."""
    return Access("127.0.0.1", PORT)


@pytest.fixture
def client(session: Session, access: Access) -> Iterator[TestClient]:
    """A browser's place, without a browser."""
    with TestClient(Inspector(session, access).app(), BASE, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def ids(whole_run: Path) -> dict[str, str]:
    """Status -> a clip that has it; `source` -> a source."""
    clips = Run(str(whole_run)).ledger.rows("clip", columns=["verdict.status", "source_id"])
    found = {row["verdict.status"]: row["row_id"] for row in clips}
    return {**found, "source": clips[0]["source_id"]}
