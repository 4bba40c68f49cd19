"""The toy catalogue, in place of the real one, for tests of the machinery; and a small real run for what comes after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import stages
from tests.pipeline import toy_stages
from tests.ray_runs import shared_folder


@pytest.fixture
def toy_recipe() -> Iterator[dict[str, Any]]:
    """The toy recipe as plain data, its stages in the catalogue. The real ones come back in their order, which is told."""
    with patch.dict(stages.CATALOG, toy_stages.CATALOG, clear=True):
        yield toy_stages.RECIPE


@pytest.fixture(scope="session")
def whole_light_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(media, run): four clips, curated and packed without Ray, for all workers; test_pack.py alone touches the media."""
    folder = shared_folder(tmp_path_factory, "light", make_light_run)
    return folder / "media", folder / "run"


def make_light_run(folder: Path) -> None:
    from pipeline.demo import ball_clip
    from tests.pipeline.light_run import curate

    (folder / "media").mkdir()
    for seed in range(4):
        ball_clip(folder / "media" / f"{seed}.mp4", duration_s=3.0, seed=seed)
    curate(folder / "media", folder / "run")


@pytest.fixture
def light_run(whole_light_run: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be damaged. The media keep their place and times, as the ledger knows them."""
    shutil.copytree(whole_light_run[1], tmp_path / "run")
    return whole_light_run[0], tmp_path / "run"
