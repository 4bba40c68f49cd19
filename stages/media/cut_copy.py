"""Copying packets unchanged, where they decode to exactly the clip's frames. Runs in the decoder's child process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import av
import numpy as np

from stages.media.choose import pick
from stages.media.mux import Order, add_sound, interleave, open_output, thumbnail
from stages.media.open import clock_shift, open_media
from stages.media.picture import Damage, ShownPicture, packets

COPY_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
COPY_FORMATS = ("yuv420p", "yuvj420p")
H264_IDR = 5
"""NAL unit type of a picture after which nothing refers back (ITU-T H.264, table 7-1)."""
COPY_LOOKBACK_PACKETS = 2000


def copy_packets(
    order: Order,
    first: tuple[Any, ShownPicture],
    shown: Iterator[tuple[Any, ShownPicture]],
    samples: np.ndarray | None,
    rate_hz: int,
) -> dict[str, Any] | None:
    """Copies the packets if they decode to exactly the span's frames without any other packet, else None."""
    stream, picture = first
    frame, shape = picture.frame, picture.shape
    container_name = stream.container.format.name
    if (
        stream.codec_context.codec.canonical_name != "h264"
        or container_name not in COPY_CONTAINERS
        or frame.format.name not in COPY_FORMATS
        or not shape.is_plain
        or frame.interlaced_frame
        or (frame.width % 2, frame.height % 2) != (0, 0)
        or picture.pts != order.start_pts
    ):
        return None
    index = stream.index
    with open_media(order.path) as source:
        source_stream = pick(source, "video", index)
        chosen = _copyable(source, source_stream, order)
        if chosen is None:
            return None
        frames = [(picture.pts, thumbnail(frame))]
        frames += [(p.pts, thumbnail(p.frame)) for _, p in shown if not p.frame.is_corrupt and p.shape == shape]
        pts = [at - order.start_pts for at, _ in frames]
        presented = [p.pts + clock_shift(source, source_stream) - order.start_pts for p in chosen]
        if sorted(presented) != pts or (presented != pts and not _is_regular(pts, order)):
            return None
        _mux_copy(order, source, source_stream, chosen, pts, samples, rate_hz)
    size = [frame.width, frame.height]
    told = {"size": size, "crop": [0, 0, *size], "whole": size, "codec": "h264"}
    return {"mode": "copy", "pts": pts, "thumbs": [thumb for _, thumb in frames], **told}


def _copyable(source: Any, stream: Any, order: Order) -> list[Any] | None:
    """The packets of the span in decoding order if they are one closed run: an IDR first, nothing foreign between."""
    shift = clock_shift(source, stream)
    try:
        source.seek(order.start_pts - shift, stream=stream, backward=True, any_frame=False)
    except (av.error.FFmpegError, OSError):
        return None
    chosen: list[Any] = []
    pending_foreign = False
    damage = Damage()
    for number, packet in enumerate(packets(source, stream, damage)):
        if packet.pts is None or packet.is_discard:
            if packet.size == 0:
                break
            return None
        at = packet.pts + shift
        if not chosen:
            if at == order.start_pts and packet.is_keyframe and _holds_idr(packet, stream):
                chosen.append(packet)
            elif number > COPY_LOOKBACK_PACKETS or at > order.start_pts:
                return None
            continue
        if at < order.start_pts:
            return None
        if at >= order.end_pts:
            pending_foreign = True
            if packet.is_keyframe:
                break
        elif pending_foreign:
            return None
        else:
            chosen.append(packet)
    return chosen if chosen and not damage.packets else None


def _is_regular(pts: list[int], order: Order) -> bool:
    """All frames equally long: MP4 states lengths in decoding order, so reordered frames of uneven length lose them."""
    return len({b - a for a, b in pairwise([*pts, order.end_pts - order.start_pts])}) == 1


def _holds_idr(packet: Any, stream: Any) -> bool:
    """Whether an H.264 packet holds an IDR slice; length-prefixed (avcC) streams only."""
    extradata = stream.codec_context.extradata or b""
    if len(extradata) < 7 or extradata[0] != 1:
        return False
    width = (extradata[4] & 3) + 1
    data, at = bytes(packet), 0
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        if data[at + width] & 31 == H264_IDR:
            return True
        at += width + length
    return False


def decode_times(pts: list[int], step: int) -> list[int]:
    """Strictly increasing decoding times for packets with these presentation times, as late as possible.

    `step` is the distance used before the first presentation time.
    """
    ordered = sorted(pts)
    delay = max(i - ordered.index(at) for i, at in enumerate(pts)) if pts else 0
    delay = max(0, delay)
    before = [ordered[0] - step * (delay - i) for i in range(delay)]
    return before + ordered[: len(pts) - delay]


def _mux_copy(
    order: Order, source: Any, stream: Any, chosen: list[Any], pts: list[int], samples: np.ndarray | None, rate_hz: int
) -> None:
    shift = clock_shift(source, stream)
    presented = [p.pts + shift - order.start_pts for p in chosen]
    ends = dict(zip(pts, [*pts[1:], order.end_pts - order.start_pts], strict=True))
    step = max(1, ends[0])
    times = decode_times(presented, step)
    with open_output(order, rate_hz) as container:
        video = container.add_stream_from_template(stream)
        video.time_base = order.time_base
        video.metadata.clear()
        audio = add_sound(container, samples, rate_hz, order.audio_bitrate)
        for packet, at, dts in zip(chosen, presented, times, strict=True):
            packet.stream = video
            packet.time_base = order.time_base
            packet.pts, packet.dts, packet.duration = at, dts, ends[at] - at
        interleave(container, video, chosen, audio, samples, rate_hz)
