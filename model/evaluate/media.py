"""Samples and their references as arrays: frames with their times, and mono sound. Decoded by PyAV in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError

MOST_FRAMES = 3_000
"""Two minutes at 25 per second; longer samples are looked at up to there."""


def read_pictures(
    path: Path, side_px: int, form: Literal["gray", "rgb24"] = "gray", every: int = 1
) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """(frames [H, W] or [H, W, 3] whose shorter side is at most `side_px`, their times in seconds). Raises MediaError.

    Every frame, or every 2nd and so on. A picture file is one frame at 0.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames: list[NDArray[np.uint8]] = []
            times: list[float] = []
            for frame in islice(container.decode(stream), 0, MOST_FRAMES, every):
                scale = min(1.0, side_px / min(frame.width, frame.height))
                size = (round(frame.width * scale), round(frame.height * scale))
                frames.append(frame.reformat(*size, form).to_ndarray())
                times.append(float(frame.time or 0.0))
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} holds no picture that can be decoded: {error}.") from error
    return frames, np.array(times)


def each_picture(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames RGB [H, W, 3] in the size they have, one after the other, so that no more than one is held. Raises MediaError."""
    import av

    try:
        with av.open(str(path)) as container:
            for frame in islice(container.decode(container.streams.video[0]), MOST_FRAMES):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} holds no picture that can be decoded: {error}.") from error


def read_chosen(path: Path, choose: Callable[[int, float], Sequence[int]]) -> list[NDArray[np.uint8]]:
    """Frames RGB [H, W, 3] in the size they have, those that `choose` names of how many there are, and how many a second.

    The file is decoded twice, so that no more than these are held. Numbers are from 0, and may come in any order and twice.
    Raises MediaError.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            num_frames, fps = sum(1 for _ in container.decode(stream)), float(stream.average_rate or 0)
        if not num_frames or not fps:
            raise MediaError(f"{path.name} holds {num_frames} frames at {fps:g} a second.")
        wanted = list(choose(num_frames, fps))
        kept = set(wanted)
        with av.open(str(path)) as container:
            numbered = enumerate(islice(container.decode(container.streams.video[0]), max(kept) + 1))
            held = {at: frame.to_ndarray(format="rgb24") for at, frame in numbered if at in kept}
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} holds no picture that can be decoded: {error}.") from error
    return [held[at] for at in wanted]


def mono_sound(path: Path, rate_hz: int) -> tuple[NDArray[np.float32], float]:
    """(mono samples at `rate_hz`, time in seconds of the first on the clock of the picture). Raises MediaError."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_hz)
            blocks, start_s = [], None
            for frame in container.decode(stream):
                start_s = float(frame.time or 0.0) if start_s is None else start_s
                blocks += [block.to_ndarray() for block in resampler.resample(frame)]
            blocks += [block.to_ndarray() for block in resampler.resample(None)]
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} holds no sound that can be decoded: {error}.") from error
    if not blocks:
        raise MediaError(f"{path.name} holds no sound.")
    return np.concatenate(blocks, axis=1)[0].astype(np.float32), start_s or 0.0
