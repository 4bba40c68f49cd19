"""Running `transcribe` on one file, and speech whose words are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.transcribe.stage import Transcribe, TranscribeConfig
from tests.rows import asset_row, struct_of


def row_for(path: Path, metadata: dict[str, Any] | None = None, has_audio: bool = True) -> dict[str, Any]:
    probe = struct_of("probe", has_audio=has_audio)
    return asset_row(path, probe=probe, metadata=json.dumps(metadata or {}))


def run_stage(context: Any, config: TranscribeConfig, row: dict[str, Any]) -> dict[str, Any]:
    stage = Transcribe(config)
    stage.setup(context)
    result = stage.measure(row)
    assert set(result) == {field.name for field in Transcribe.adds}
    return result
