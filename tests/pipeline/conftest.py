"""The toy catalogue, in place of the real one, for tests of the machinery."""

from __future__ import annotations

from typing import Any

import pytest

import stages
from tests.pipeline import toy_stages


@pytest.fixture
def toy_recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The toy recipe as plain data, its stages in the catalogue."""
    for name in list(stages.CATALOG):
        monkeypatch.delitem(stages.CATALOG, name)
    for name, target in toy_stages.CATALOG.items():
        monkeypatch.setitem(stages.CATALOG, name, target)
    return toy_stages.RECIPE
