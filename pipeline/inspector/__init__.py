"""The inspector: a local web page over a run, and the same as one file. `nava-curate inspect` and `nava-curate report`."""

from __future__ import annotations

from importlib.util import find_spec

from schemas.errors import RecipeError

PACKAGES = ("starlette", "uvicorn", "jinja2", "altair", "vl_convert")
"""What the extra `inspect` installs."""


def needed() -> None:
    """Raises RecipeError where a package of the extra is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        msg = f"the inspector needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed."
        raise RecipeError(msg, remedy='Install it with: pip install "nava-engine[inspect]".')
