"""Sources on object stores, by fsspec's own back ends against servers on loopback: objects, prefixes, patterns, lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from schemas.errors import DownloadError, RecipeError
from stages.download.sources import list_inputs
from tests.pipeline.flaky_store import BUCKET, FlakyStore, flaky_store
from tests.stages.download.loopback_gcs import loopback_gcs
from tests.stages.download.web import fetch

OBJECTS = {
    "raw/a.mp4": b"first" * 1000,
    "raw/a.srt": b"words",
    "raw/b [id].mp4": b"second",
    "raw/deep/c.webm": b"third",
    "raw/run/recipe.yaml": b"",
    "raw/run/ledger/_delta_log/0.json": b"",
    "raw/run/assets/aa.mp4": b"",
    "list.csv": b"uri,licence\nraw/a.mp4,CC0\n",
}


@pytest.fixture(scope="module")
def moto() -> Iterator[FlakyStore]:
    with flaky_store() as found:
        yield found


@pytest.fixture
def s3(moto: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
        for name, content in OBJECTS.items():
            fs.pipe_file(f"{BUCKET}/{name}", content)
    yield f"s3://{BUCKET}"
    fs.clear_instance_cache()


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with loopback_gcs(OBJECTS) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        fs = fsspec.filesystem("gs")
        yield "gs://bucket"
        fs.clear_instance_cache()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.mark.slow
def test_objects_prefixes_patterns_and_lists(store: str, stage: Callable[..., Any]) -> None:
    def names(item: str) -> list[str]:
        return [row.uri.removeprefix(f"{store}/raw/") for row in list_inputs([item]).sources]

    for prefix in (f"{store}/raw", f"{store}/raw/"):
        assert names(prefix) == ["a.mp4", "b [id].mp4", "deep/c.webm"]
    assert names(f"{store}/raw/*.mp4") == ["a.mp4", "b [id].mp4"]
    assert names(f"{store}/raw/**/*.webm") == ["deep/c.webm"]
    assert names(f"{store}/raw/b [id].mp4") == ["b [id].mp4"]
    with pytest.raises(RecipeError, match="Nothing that can be a source"):
        names(f"{store}/raw/*.mkv")
    with pytest.raises(RecipeError, match="Nothing that can be a source"):
        names(f"{store}/nothing/")
    listing = list_inputs([f"{store}/raw", f"{store}/list.csv"])
    assert [row.licence for row in listing.sources] == ["CC0", None, None]
    for row, content in zip(listing.sources, [OBJECTS["raw/a.mp4"], b"second", b"third"], strict=True):
        got = fetch(stage(), row.uri)
        assert Path(got["path"]).read_bytes() == content
        assert got["sha256"] == hashlib.sha256(content).hexdigest()
    with pytest.raises(DownloadError) as caught:
        fetch(stage(attempts=1), f"{store}/raw/none.mp4")
    assert caught.value.reason == "not_found"
