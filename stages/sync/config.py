"""Settings of stage `sync`, and of the repair that acts on what it measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.base import StageConfig


class SyncRepair(StageConfig):
    """Whether the sound of a kept clip is moved by its measured offset when it is cut. Gates judge it before that."""

    enabled: bool = False
    """Off: clips are cut as they were found."""
    min_offset_ms: float = 20.0
    """Smaller offsets are left alone: they lie within half an audio latent (40 ms)."""
    min_confidence: float = 7.0
    """Only measurements at least this sure are acted on."""


class SyncConfig(StageConfig):
    """Engine and effort."""

    engine: Literal["mouth", "syncnet"] = "mouth"
    """mouth: embedded, offline. syncnet: the published network, needs `weights_path`, wants a GPU."""
    weights_path: str = ""
    """Official-format SyncNet weights (syncnet_v2.model); only for engine syncnet."""
    device: str = "cpu"
    """Where SyncNet runs: cpu, cuda, cuda:1."""
    max_offset_s: float = Field(default=1.3, ge=0.5, le=5.0)
    """Largest offset looked for by the mouth engine and on sound events. Wider finds more chance agreement."""
    min_s: float = Field(default=1.5, gt=0)
    """Shorter clips are not measured."""
    window_s: float = Field(default=3.0, ge=1.0)
    """Length of the windows, half overlapping, that clips longer than 1.5 windows are also measured in."""

    @model_validator(mode="after")
    def _complete(self) -> SyncConfig:
        if self.engine == "syncnet" and not self.weights_path:
            raise ValueError("engine syncnet needs weights_path, the path of syncnet_v2.model")
        return self
