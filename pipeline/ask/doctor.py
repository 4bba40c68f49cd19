"""What a machine has of what recipes need. Nothing is started, and no network is loaded."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pipeline.execute.cluster import local_cluster
from schemas.errors import RecipeError
from schemas.files import cache_folder
from stages.engines.packaged import WEIGHTS, packaged

DISTRIBUTION = "nava-engine"
LIBRARIES = ("av", "ctranslate2", "deltalake", "dlib", "onnxruntime", "polars", "ray", "torch")
OTHER_NAMES = {"dlib": "dlib-bin"}
"""Library -> what pip calls it."""
LEAST_FREE_GB = 10.0
"""Room for media that are cut; a run of films says what it needs."""
GRAPHICS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    is_there: bool
    is_needed: bool
    """Whether the shipped recipes do without it."""
    said: str
    """What was found, or what to do."""


def examined() -> list[Finding]:
    """Everything that was looked for; weights are read whole and held against their SHA-256."""
    return [*_machine(), *_libraries(), *_weights()]


def _machine() -> Iterator[Finding]:
    has = local_cluster()
    is_new = sys.version_info >= (3, 11)
    yield Finding("python", is_new, True, f"{platform.python_version()} at {sys.executable}")
    yield Finding("machine", True, True, f"{has.cpus:g} CPUs, {has.memory_gb:.0f} GB, {platform.platform(terse=True)}")
    cards = sorted(GRAPHICS.iterdir()) if GRAPHICS.is_dir() else []
    said = f"{len(cards)} of NVIDIA" if cards else "none: every shipped recipe runs on CPUs"
    yield Finding("graphics cards", bool(cards), False, said)
    for name, folder in (("scratch", tempfile.gettempdir()), ("here", os.getcwd())):
        free_gb = shutil.disk_usage(folder).free / 1e9
        remedy = "" if free_gb >= LEAST_FREE_GB else "; films need more: set TMPDIR" if name == "scratch" else "; low"
        yield Finding(f"disk, {name}", free_gb >= LEAST_FREE_GB, False, f"{free_gb:.0f} GB free in {folder}{remedy}")
    cache = cache_folder()
    above = next(each for each in (cache, *cache.parents) if each.exists())
    can_write = os.access(above, os.W_OK)
    yield Finding("cache", can_write, False, str(cache) if can_write else f"{cache} cannot be written; give --cache")


def _libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        if find_spec(name) is None:
            yield Finding(name, False, True, "not installed: pip install --no-deps -r constraints.txt")
        else:
            with suppress(metadata.PackageNotFoundError):
                yield Finding(name, True, True, metadata.version(OTHER_NAMES.get(name, name)))


def _weights() -> Iterator[Finding]:
    optional = [text for text in metadata.requires(DISTRIBUTION) or () if "extra ==" in text]
    for name, wanted in WEIGHTS.items():
        is_needed = not any(text.startswith(wanted.pin) for text in optional)
        try:
            path = packaged(name)
        except RecipeError as error:
            yield Finding(name, False, is_needed, str(error))
        else:
            yield Finding(name, True, is_needed, f"{path.stat().st_size / 1e6:.1f} MB, as stated, {wanted.licence}")
