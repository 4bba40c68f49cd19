"""Writing one MP4 with exact times: what encoded and copied clips have in common. Runs in the decoder's child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import av
import numpy as np

THUMB_PX = 16
"""Side of the grey thumbnails by which written frames are told apart from their neighbours."""
AAC_FRAME = 1024
MAX_TIMESCALE = 2**31 - 1


@dataclass(frozen=True)
class Order:
    """What is to be written."""

    path: str
    out: str
    start_pts: int
    end_pts: int
    time_base: Fraction
    crf: int
    preset: str
    audio_bitrate: int
    crop: tuple[float, float, float, float] | None = None
    """(left, top, right, bottom) of the part of the upright picture that is written, shares of its sides; None for all."""
    faces: Sequence[Sequence[Sequence[float]]] = ()
    """What is hidden, see `stages.media.blur`."""
    blur: str = "none"
    """How: gaussian or fill."""


def thumbnail(frame: Any) -> np.ndarray:
    """uint8 [THUMB_PX, THUMB_PX] grey."""
    small: np.ndarray = frame.reformat(THUMB_PX, THUMB_PX, "gray", interpolation="AREA", threads=1).to_ndarray()
    return small


def open_output(order: Order, rate_hz: int) -> Any:
    """An MP4 whose movie clock divides both the picture's and the sound's, so that edit lists are exact."""
    movie = lcm(order.time_base.denominator, rate_hz)
    options = {
        "movflags": "+faststart",
        "fflags": "+bitexact",
        "movie_timescale": str(movie if movie <= MAX_TIMESCALE else rate_hz),
        "video_track_timescale": str(_track_timescale(order.time_base)),
    }
    return av.open(order.out, "w", format="mp4", options=options)


def _track_timescale(time_base: Fraction) -> int:
    """A multiple of the clock of at least 10 kHz, as players expect; exact for every pts."""
    scale = time_base.denominator
    while scale < 10_000:
        scale *= 2
    return scale


def add_sound(container: Any, samples: np.ndarray | None, rate_hz: int, bitrate: int) -> Any:
    """The AAC stream of the clip's sound; None without sound."""
    if samples is None:
        return None
    stream = container.add_stream("aac", rate=rate_hz)
    stream.codec_context.layout = "stereo"
    stream.codec_context.bit_rate = bitrate
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    stream.codec_context.time_base = Fraction(1, rate_hz)
    return stream


def _sound_packets(stream: Any, samples: np.ndarray, rate_hz: int) -> Iterator[Any]:
    """AAC packets; the encoder's priming gets negative times, which the container hides behind an edit list."""
    planes = np.ascontiguousarray(samples.T)
    for low in range(0, planes.shape[1], AAC_FRAME):
        block = np.ascontiguousarray(planes[:, low : low + AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, low, Fraction(1, rate_hz)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def interleave(
    container: Any, video: Any, pictures_out: list[Any], audio: Any, samples: np.ndarray | None, rate_hz: int
) -> None:
    """Muxes all packets in the order of their decoding times."""
    tagged = [(float(p.dts * p.time_base), 0, i, p) for i, p in enumerate(pictures_out)]
    if audio is not None and samples is not None:
        sound = list(_sound_packets(audio, samples, rate_hz))
        tagged += [(float(p.dts * p.time_base), 1, i, p) for i, p in enumerate(sound)]
    for _, _, _, packet in sorted(tagged, key=lambda item: item[:3]):
        container.mux(packet)
