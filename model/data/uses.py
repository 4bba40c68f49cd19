"""What a part of the mixture trains on of its rows, and how many tokens that is."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.data.index import ShardIndex
from schemas.budget import PX_PER_TOKEN, Use
from schemas.errors import PlanError


class Uses:
    """The rows of an index as they are trained on: all that they have, or less of it."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def has(self, use: Use) -> NDArray[np.bool_]:
        """[num_rows] which rows have what is to be trained on."""
        has_video, has_audio = self._index.has_video, self._index.has_audio
        return (has_video | (use == "audio")) & (has_audio | (use in ("video", "image")))

    def tokens(self, rows: NDArray[np.int64], use: Use | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Video and audio tokens of rows; None: of everything they have. Raises PlanError as `of_one_frame` does."""
        nothing = np.zeros(len(rows), np.int64)
        if use == "image":
            return self.of_one_frame[rows].astype(np.int64), nothing
        video = nothing if use == "audio" else self._index.video_tokens[rows].astype(np.int64)
        audio = nothing if use == "video" else self._index.audio_tokens[rows].astype(np.int64)
        return video, audio

    @cached_property
    def of_one_frame(self) -> NDArray[np.int32]:
        """[num_rows] tokens of one latent frame, 0 without a picture. Cost: a pass over the sizes in the index.

        Raises PlanError where a clip's tokens are not those of whole frames of its size.
        """
        size = self._index.numbers("height_px", "width_px")
        height, width = (-(-size[name].astype(np.int32) // PX_PER_TOKEN) for name in ("height_px", "width_px"))
        tokens = np.where(self._index.has_video, height * width, 0).astype(np.int32)
        shown = np.flatnonzero(self._index.has_video)
        if (wrong := shown[self._index.video_tokens[shown] % np.maximum(tokens[shown], 1) > 0]).size:
            row = int(wrong[0])
            raise PlanError(
                f"{wrong.size} clips have no whole number of frames, the first {self._index.clip_id(row)}: "
                f"{self._index.video_tokens[row]} tokens, {tokens[row]} a frame of "
                f"{size['width_px'][row]}x{size['height_px'][row]} px.",
                remedy="Encode them again with `nava-train encode`; use: image needs latent shards.",
            )
        return tokens
