"""What a diarizer answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.spans import Turn
from schemas.stretches import Stretch


@dataclass(frozen=True)
class Diarized:
    """Who speaks when in one sound, on its own clock."""

    turns: list[Turn]
    """In order of start."""
    alone: dict[Stretch, NDArray[np.float32]] = field(default_factory=dict)
    """Stretches, a few seconds long at most, in which one voice alone was heard, and their embeddings."""
