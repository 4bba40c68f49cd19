"""A whole run without Ray on generated clips, for tests of what comes after measuring."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.config import parse_recipe
from pipeline.execute.here import here
from pipeline.run import RunResult, run
from schemas.recipe import apply_overrides
from stages.download.sources import expand_sources

LIGHT: dict[str, Any] = {
    "name": "light",
    "audit_fraction": 0.0,
    "stages": {
        "download": {},
        "probe": {},
        "shot_split": {"engine": "content"},
        "transcribe": {},
        "diarize": {},
        "clip": {},
        "picture": {},
        "audio": {},
        "duplicates": {},
        "cut": {},
    },
    "gates": {
        "probe": {"has_video": {"equals": True}},
        "picture": {"brightness": {"min": 0}},
        "duplicates": {"is_representative": {"equals": True}},
    },
    "pack": {"target_shard_mb": 0.01},
}
"""Media without speech: this is all about the machinery. Shards are so small that hardly two clips share one"""


def curate(media: Path | str, out: Path | str, *overrides: str, retry_errors: bool = False) -> RunResult:
    """The run of `media` into `out`, in this process."""
    recipe = parse_recipe(apply_overrides(LIGHT, overrides))
    return run(recipe, expand_sources([str(media)]), str(out), here, retry_errors=retry_errors, quiet=True)


def files_of(out: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything in `shards`, `index` and `cuts`."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("shards", "index", "cuts")
        for path in sorted((out / folder).rglob("*"))
        if path.is_file()
    }
