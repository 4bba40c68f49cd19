"""The sound of test media as every benchmark hears it: mono at 16 kHz, on the asset clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ
from stages.base import Context

F32 = NDArray[np.float32]


class Sounds:
    """Mono 16 kHz sound of the manifest's files, read by the project's own decoder."""

    def __init__(self, media_dir: Path, context: Context) -> None:
        self.media_dir, self.context = media_dir, context

    def of(self, item: dict[str, Any]) -> tuple[F32, float]:
        """(samples, start in seconds on the asset clock)."""
        sound = self.context.media.audio(self.media_dir / item["path"], rate_hz=SPEECH_RATE_HZ, mono=True)
        return np.array(sound.samples), float(sound.start)
