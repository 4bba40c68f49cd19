"""Fixtures shared by all tests: real media where there is some, known-truth media made here everywhere else."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.ray_runs import curate_media, shared_folder, write_media

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 else: the longest chain of tests would wait for all others
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

RAY = "ray"
"""The group of tests that start Ray, one after the other."""
FEW = 2
"""Slow tests of a small file."""


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they use, and gives them their place.

    One that reads the demo's run may be the one that starts Ray for it. Tests of a file stay on one worker of pytest-xdist,
    so that what it shares is made once and what it imports is imported once; those that read the demo's run are apart, as
    they may have to wait for it. Tests that start Ray take longest together and come first, before them who makes that run.
    Of the others files with many slow tests are first, then come those who wait for it, and small files fill up the end.
    """
    for item in items:
        file = item.nodeid.split("::")[0]
        if needs_demo(item):
            for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)):
                item.add_marker(mark)
            file += " of the demo"
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(file))
    num_slow = Counter(group_of(item) for item in items if item.get_closest_marker("slow"))
    num_all = Counter(map(group_of, items))
    waiting = {group_of(item) for item in items if needs_demo(item)}

    def place_of(item: pytest.Item) -> tuple[int, int, int]:
        group = group_of(item)
        if group == RAY:
            return (0 if needs_demo(item) else 1), 0, 0
        place = 3 if group in waiting else 2 if num_slow[group] > FEW else 4
        return place, -num_slow[group], -num_all[group]

    items.sort(key=place_of)


def pytest_collection_finish() -> None:
    """What imports and collection made stays to the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def needs_demo(item: pytest.Item) -> bool:
    """Whether it reads the demo's run."""
    return "demo_run" in getattr(item, "fixturenames", ())


def group_of(item: pytest.Item) -> str:
    """Those of one group run on one worker of pytest-xdist."""
    mark = item.get_closest_marker("xdist_group")
    assert mark is not None, item.nodeid
    return str(mark.args[0])


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
