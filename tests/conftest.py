"""Fixtures shared by all tests: real media where there is some, known-truth media made here everywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ray_runs import curate_media, shared_folder, write_media

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


@pytest.fixture(scope="session")
def demo_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The media of `make demo`; sources.jsonl lists them."""
    return shared_folder(tmp_path_factory, "demo-media", write_media)


@pytest.fixture(scope="session")
def demo_run(demo_media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `make demo`, made by the real command on real Ray. Who uses it is marked `ray` and `slow`."""
    return shared_folder(tmp_path_factory, "demo-run", partial(curate_media, demo_media)) / "run"


def shares_fixtures(item: pytest.Item) -> bool:
    """Whether a test uses what is made once per module."""
    made = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(definitions[-1].scope == "module" for definitions in made)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they use.

    One that reads the demo's run may be the one that starts Ray for it. Those that share a fixture of their module stay on
    one worker of pytest-xdist, so that it is made once. Who makes the demo's run comes first, and who waits for it last.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None and shares_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
        if "demo_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=place_of)


def place_of(item: pytest.Item) -> int:
    """When its turn is: tests that start Ray one after the other take longest together, and the demo's run is one of theirs."""
    group, needs_demo = item.get_closest_marker("xdist_group"), "demo_run" in getattr(item, "fixturenames", ())
    if group is not None and group.args == ("ray",):
        return 0 if needs_demo else 1
    return 3 if needs_demo else 2


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
