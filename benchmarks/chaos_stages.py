"""Stand-ins for the two stages that load networks to listen to speech, for media in which nobody speaks."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.records import Row
from stages.base import Measure, StageConfig
from stages.diarize.stage import Diarize
from stages.transcribe.stage import Transcribe


class NoWords(Measure[StageConfig]):
    """What `transcribe` measures where there is no sound."""

    name, version, level, reads = "transcribe", "none", "asset", Transcribe.reads
    adds = Transcribe.adds
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """Nothing, whatever the row."""
        return nothing(self.adds)


class Nobody(Measure[StageConfig]):
    """What `diarize` measures where there is no sound."""

    name, version, level, reads = "diarize", "none", "asset", Diarize.reads
    adds = Diarize.adds
    Config = StageConfig

    def measure(self, row: Row) -> dict[str, Any]:
        """Nobody, whatever the row."""
        return nothing(self.adds) | {"num_speakers": 0}


def nothing(adds: pa.StructType) -> dict[str, Any]:
    """Empty lists, and null for all else."""
    return {field.name: [] if pa.types.is_list(field.type) else None for field in adds}
