"""A server to fetch from, the stage that fetches, and no proxies but those of a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stages.download.stage import Download, DownloadConfig
from tests.stages.download.web import Server, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def stage(context: Any) -> Callable[..., Download]:
    def make(**options: Any) -> Download:
        chosen = {"allow_private_hosts": True, "backoff_s": 0.0, "timeout_s": 10.0} | options
        made = Download(DownloadConfig(**chosen))
        made.setup(context)
        return made

    return make
