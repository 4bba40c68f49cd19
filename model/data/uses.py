"""What a part of the mixture trains on of its rows, and how many tokens that is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.data.index import ShardIndex
from schemas.budget import Modality


class Uses:
    """The rows of an index as they are trained on: all that they have, or less of it."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def has(self, use: Modality) -> NDArray[np.bool_]:
        """[num_rows] which rows have what is to be trained on."""
        has_video, has_audio = self._index.has_video, self._index.has_audio
        return (has_video | ("video" not in use)) & (has_audio | (use == "video"))

    def tokens(self, rows: NDArray[np.int64], use: Modality | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Video and audio tokens of rows; None: of everything they have."""
        nothing = np.zeros(len(rows), np.int64)
        video = nothing if use == "audio" else self._index.video_tokens[rows].astype(np.int64)
        audio = nothing if use == "video" else self._index.audio_tokens[rows].astype(np.int64)
        return video, audio
