"""Networks in local folders, as transformers saves them: config.json and model.safetensors. Nothing is downloaded."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelError
from schemas.files import sha256_of

Vector = NDArray[np.float64]
WEIGHTS = "model.safetensors"


class LocalNetwork:
    """A folder with a network, loaded when it is first asked."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = folder, device
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                f"{folder} has no {WEIGHTS}.", remedy="Save the network as transformers saves models, in safetensors."
            )
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    @property
    def kind(self) -> str:
        """What transformers calls the network."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def sha256(self) -> str:
        """Of its weights."""
        return sha256_of(self.folder / WEIGHTS)[0]

    def load(self, name: str) -> Any:
        """The network as transformers' class `name`, for inference."""
        import transformers

        given = {"local_files_only": True, "use_safetensors": True}
        return getattr(transformers, name).from_pretrained(self.folder, **given).eval().to(self.device)

    def front_end(self, name: str, **options: Any) -> Any:
        """What prepares its input, transformers' class `name`."""
        import transformers

        return getattr(transformers, name).from_pretrained(self.folder, local_files_only=True, **options)

    def picture_front_end(self) -> Any:
        """What prepares its pictures, in the slow way that published figures were made in."""
        return self.front_end("AutoImageProcessor", use_fast=False)


def spectrograms_by_numpy() -> None:
    """Has transformers make spectrograms without torchaudio, whose wheels do not import beside a CPU build of torch.

    To be called before the first sound tagger; its figures are then the same on every machine.
    """
    import warnings

    from transformers.utils import import_utils

    import_utils._torchaudio_available = False
    warnings.filterwarnings("ignore", message="At least one mel filter")  # 128 bands have one, as published


def cosine(one: Vector, other: Vector) -> float:
    """Of two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
