"""Where the trainer's samples come from, and how clips become latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from schemas.recipe import RecipePart, apply_overrides, validated


class EncodeConfig(RecipePart):
    """How clips become latents, offline by `nava-train encode` or online ahead of the trainer."""

    codecs: Path
    """Folder of the frozen networks (docs/checkpoints.md)."""
    max_frames: int = Field(default=121, ge=1)
    """Longest window at 24 fps; 121 is the release's 5.04 s. Shorter clips keep 4n+1 of their own frames."""
    min_frames: int = Field(default=33, ge=1)
    """Shortest window worth training on, the release's limit; a shorter clip is left out and counted."""
    max_windows: int = Field(default=1, ge=1)
    """Windows taken of one clip, side by side from its beginning."""
    resolution: Literal[256, 512, 640, 960] | None = None
    """Column of the official bucket table; None takes the largest that does not upscale the clip."""
    device: str = "cpu"
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Numbers that the frozen picture, sound and text networks compute in."""


class DataConfig(RecipePart):
    """Where samples come from and how they are read."""

    shards: str
    """Folder or fsspec URL of the latent shards; of curated shards when encoding online."""
    index: str | None = None
    """Folder or URL of their index; None: the `index` folder beside `shards`."""
    split: str | None = "train"
    num_workers: int = Field(default=4, ge=1)
    prefetch_packs: int = Field(default=4, ge=1)
    has_checksums: bool = True
    online: EncodeConfig | None = None
    """Encode on the fly with these settings, in processes ahead of the trainer, for those who cannot store latents."""
    num_encoders: int = Field(default=1, ge=1)
    """Encoder processes of each rank when encoding online."""

    @property
    def index_path(self) -> str:
        """The index that belongs to the shards."""
        return self.index or f"{self.shards.rstrip('/').rpartition('/')[0]}/index"


def read_encode_config(codecs: Path, overrides: Sequence[str]) -> EncodeConfig:
    """Encoding settings with `key=value` applied. Raises RecipeError, naming the key."""
    return validated(EncodeConfig, apply_overrides({"codecs": str(codecs)}, overrides), "encode settings")
