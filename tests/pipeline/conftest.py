"""The toy catalogue, in place of the real one, for tests of the machinery."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

import stages


@pytest.fixture
def toy_recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The toy recipe as plain data, its stages in the catalogue."""
    import toy_stages

    for name in list(stages.CATALOG):
        monkeypatch.delitem(stages.CATALOG, name)
    for name, target in toy_stages.CATALOG.items():
        monkeypatch.setitem(stages.CATALOG, name, target)
    return toy_stages.RECIPE
