"""What was measured of single media files, one JSON line each: `nava-curate score` writes it, `nava-train evaluate` reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from schemas.records import Struct


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFile:
    """One file, whole: what the stages of one recipe say of it and of the clips it was divided into."""

    uri: str
    """Where it lies, as it was given."""
    sha256: str | None = None
    """Of its bytes; null where they could not be read."""
    num_bytes: int | None = None
    mtime_ns: int | None = None
    made_by: str
    """What the measurements are the answer to: versions and settings of all stages. Others are not comparable."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """Stage -> hash of its version, its settings and those of the stages it reads."""
    error: str | None = None
    """Why the file could not be measured, in words; null where it could."""
    asset: Mapping[str, Struct] = field(default_factory=dict)
    """Column -> what was measured on the whole file."""
    clips: tuple[Mapping[str, Struct], ...] = ()
    """Column -> what was measured on each clip of it."""

    @classmethod
    def of(cls, line: str) -> MeasuredFile:
        """The file that a line tells of. Raises ValueError or TypeError for a line that is none."""
        told = json.loads(line)
        return cls(**told | {"clips": tuple(told.get("clips", ()))})

    def line(self) -> str:
        """The file as a line of JSON, without the line's end; what is no number is null."""
        return json.dumps(_plain(asdict(self)), ensure_ascii=False, allow_nan=False)


def read_measured(path: Path) -> Iterator[MeasuredFile]:
    """The files that the lines of `path` tell of; the beginning of a line that was never finished is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield MeasuredFile.of(line)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
