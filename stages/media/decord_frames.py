"""Frames by decord instead of PyAV, where it can be exact. Runs inside the decoder's child process.

decord 0.6 knows frame numbers, not timestamps, and ignores rotation and pixel aspect. Measured against PyAV: equal
pixels; for its cost see docs/decoding.md. Its batch call spins for ever on some ordinary H.264 files
(github.com/dmlc/decord, issue 375), so frames are fetched one by one; its sound reader leaks and is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from schemas.errors import MediaError
from stages.child import count
from stages.media.choose import pick
from stages.media.open import clock_shift, open_media
from stages.media.picture import (
    Damage,
    Drawn,
    FrameRun,
    Slots,
    View,
    last_duration,
    packets,
    pictures,
    target_size,
)
from stages.media.shared import FRAMES_DECODED, PictureRoom

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601 luma weights."""

EXACT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers in which decord's seeks were seen to give the right frame; not so in MPEG-PS, MPEG-TS, AVI and ASF."""
EXACT_CODEC = "h264"
"""Codec in which they were; near the end of one HEVC file of 502 frames, frame 500 came out as 501 (benchmarks/decode.py)."""
MIN_SIDE_PX = 16
"""Smaller pictures come out of decord with a broken shape."""


@dataclass(frozen=True)
class Wanted:
    """Which frames, how, and how many at a time."""

    start: Fraction | None
    end: Fraction | None
    view: View
    size: int


def decord_runs(path: str, wanted: Wanted, max_pixels: int, room: PictureRoom) -> Iterator[FrameRun] | None:
    """Runs of frames, or None where decord would not give exactly the frames PyAV gives."""
    import decord

    damage = Damage()
    with open_media(path) as container:
        stream = pick(container, "video", None)
        first = next(pictures(container, stream, damage, max_pixels), None)
        is_known = container.format.name in EXACT and stream.codec_context.name == EXACT_CODEC
        is_known &= wanted.view.format != "yuv420p"
        if first is None or not is_known or not first.shape.is_plain:
            return None
        width, height = target_size(first.shape.display_size, wanted.view)
    if min(width, height) < MIN_SIDE_PX:
        return None
    with open_media(path) as container:
        stream = pick(container, "video", None)
        shift, base = clock_shift(container, stream), Fraction(stream.time_base)
        found = [(p.pts, p) for p in packets(container, stream, damage) if p.size and not p.is_discard]
        if damage.packets or not found or any(pts is None for pts, _ in found):
            return None
        times = sorted({pts + shift for pts, _ in found})
        last = max(found, key=lambda item: item[0])[1]
        end_pts = times[-1] + last_duration(last, times[-2] if len(times) > 1 else None, stream)
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    except decord.DECORDError:
        return None
    if len(reader) != len(times) or times[0] != first.pts:
        return None
    return _runs(reader, [*times, end_pts], base, wanted, room)


def _runs(reader: Any, times: list[int], base: Fraction, wanted: Wanted, room: PictureRoom) -> Iterator[FrameRun]:
    import decord

    inside = [
        i
        for i, pts in enumerate(times[:-1])
        if (wanted.start is None or pts * base >= wanted.start) and (wanted.end is None or pts * base < wanted.end)
    ]
    after = inside[-1] + 1 if inside else 0
    slots = Slots(base, wanted.view.max_fps)
    shown = [i for i in inside if slots.is_new(times[i])]
    for low in range(0, len(shown), wanted.size):
        numbers = shown[low : low + wanted.size]
        try:
            images = np.stack([_decoded(reader, i) for i in numbers])
        except decord.DECORDError as error:
            raise MediaError(
                f"decord stopped between frames {numbers[0]} and {numbers[-1]}: {str(error).strip().splitlines()[0]}",
                reason="decord_failed",
                remedy="Use decoder.engine: pyav in the recipe, which goes on after damage.",
            ) from None
        if wanted.view.format == "gray":
            images = np.rint(images @ LUMA).astype(np.uint8)
        if not low:
            room.open(images.nbytes)
        at, place = room.take(images.shape)
        place[...] = images
        room.turn()
        following = shown[low + wanted.size] if low + wanted.size < len(shown) else after
        drawn = Drawn(at, images.shape, list(range(len(numbers))))
        yield FrameRun(base.as_integer_ratio(), [times[i] for i in numbers], times[following], [], [drawn])


def _decoded(reader: Any, number: int) -> Any:
    count(FRAMES_DECODED)
    return reader[number].asnumpy()
