"""The media members of a curated shard as arrays: frames at asked-for times, cropped to a bucket, and sound at a rate.

The members were cut and measured by our own packer, so they are decoded here without a child process, and their pictures
are upright with square pixels: the cutter turns and scales frames that are not, and copies only packets of those that are
(`stages/media/cut_copy.py`, `cut_encode.py`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError

BT601, BT709, UNSPECIFIED = 5, 1, 2
"""libav's AVCOL_SPC_* numbers."""
HD_HEIGHT_PX = 720
"""Untagged pictures from this height on are read as BT.709, smaller ones as BT.601: what players do."""
TIME_TOLERANCE_S = 1e-3
"""How early a frame may be and still be on screen: what containers that keep milliseconds round by, far below a frame."""
Picture = NDArray[np.uint8]


def read_frames(data: memoryview, times_s: Sequence[float], height_px: int, width_px: int) -> Iterator[Picture]:
    """RGB [H, W, 3] of the frame on screen at each time (ascending, clip clock), scaled to cover H x W, centre-cropped.

    Raises MediaError when the clip ends before the last time: no frame is made up.
    """
    import av

    wanted = iter(times_s)
    time_s = next(wanted, None)
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            shown: Any = None
            for frame in container.decode(stream):
                while time_s is not None and shown is not None and frame.time > time_s + TIME_TOLERANCE_S:
                    yield fitted(shown, height_px, width_px)
                    time_s = next(wanted, None)
                shown = frame
                if time_s is None:
                    return
            end_s = float(shown.time + shown.duration * shown.time_base) if shown is not None else 0.0
            while time_s is not None and shown is not None and time_s < end_s + TIME_TOLERANCE_S:
                yield fitted(shown, height_px, width_px)
                time_s = next(wanted, None)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"the mp4 member cannot be decoded: {error}.") from error
    if time_s is not None:
        raise MediaError(f"the picture ends at {end_s:.3f} s, a frame at {time_s:.3f} s is wanted.", reason="too_short")


def fitted(frame: Any, height_px: int, width_px: int) -> Picture:
    """RGB of one decoded frame, scaled to cover the bucket, centre-cropped."""
    scale = max(width_px / frame.width, height_px / frame.height)
    width, height = max(width_px, round(frame.width * scale)), max(height_px, round(frame.height * scale))
    colorspace = int(frame.colorspace)
    if colorspace == UNSPECIFIED:
        colorspace = BT709 if frame.height >= HD_HEIGHT_PX else BT601
    scaled = frame.reformat(width, height, "rgb24", src_colorspace=colorspace, interpolation="BICUBIC").to_ndarray()
    top, left = (height - height_px) // 2, (width - width_px) // 2
    return np.ascontiguousarray(scaled[top : top + height_px, left : left + width_px])


def read_sound(source: memoryview | Path, rate_hz: int, name: str) -> NDArray[np.float32]:
    """Sound [channels, samples] at `rate_hz` of the first audio stream, more than two channels mixed down to two.

    Raises MediaError when there is none or it cannot be decoded; `name` is what the error calls the source.
    """
    import av

    try:
        with av.open(str(source) if isinstance(source, Path) else io.BytesIO(source), mode="r") as container:
            stream = container.streams.audio[0]
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate_hz)
            blocks = [block for frame in container.decode(stream) for block in resampler.resample(frame)]
            blocks += resampler.resample(None)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{name} holds no sound that can be decoded: {error}.") from error
    if not blocks:
        raise MediaError(f"{name} holds no sound.")
    return np.concatenate([block.to_ndarray() for block in blocks], axis=1).astype(np.float32)
