"""Writing and re-reading one clip. Runs inside the decoder's child process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import Any

import av
import numpy as np

from schemas.errors import MediaError
from stages.media_open import Geometry, clock_shift, geometry, open_media, pick
from stages.media_picture import Damage, Picture, packets, pictures, pictures_between
from stages.media_sound import write_sound

THUMB_PX = 16
"""Side of the grey thumbnails by which written frames are told apart from their neighbours."""
AAC_FRAME = 1024
COPY_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
COPY_FORMATS = ("yuv420p", "yuvj420p")
H264_IDR = 5
"""NAL unit type of a picture after which nothing refers back (ITU-T H.264, table 7-1)."""
MAX_TIMESCALE = 2**31 - 1
COPY_LOOKBACK_PACKETS = 2000
LIMITED_RANGE = 1
"""libav's AVCOL_RANGE_MPEG."""


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
    allow_copy: bool
    audio_bitrate: int


def cut(
    path: str,
    out: str,
    span: list[int],
    crf: int,
    preset: str,
    allow_copy: bool,
    audio_bitrate: int,
    sound: str | None,
    rate_hz: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Writes the clip to `out` and thumbnails of its frames to `out`.thumbs; returns what was written.

    `span` is [start_pts, end_pts, num, den]; `sound` names a file of raw float32 [n, 2] that starts with the picture.
    """
    before_s = time.process_time()
    order = Order(path, out, span[0], span[1], Fraction(span[2], span[3]), crf, preset, allow_copy, audio_bitrate)
    samples = None if sound is None else np.fromfile(sound, np.float32).reshape(-1, 2)
    shown = _source_frames(order, max_pixels)
    first = next(shown, None)
    if first is None:
        raise MediaError("No frame lies inside the clip's span.", reason="no_frames")
    copied = _copy(order, first, shown, samples, rate_hz) if allow_copy else None
    if copied is None:
        shown = _source_frames(order, max_pixels)
        written = _encode(order, shown, samples, rate_hz)
    else:
        written = copied
    np.stack(written["thumbs"]).tofile(f"{out}.thumbs")
    return {**written, "thumbs": f"{out}.thumbs", "cut_cpu_s": time.process_time() - before_s}


def _source_frames(order: Order, max_pixels: int) -> Iterator[tuple[Any, Picture]]:
    """(stream, frame) of every frame inside the span."""
    start = order.start_pts * order.time_base
    stream, frames = pictures_between(partial(open_media, order.path), None, start, Damage(), max_pixels)
    if Fraction(stream.time_base) != order.time_base:
        raise MediaError(
            f"The span counts in {order.time_base} s but the picture's clock in {stream.time_base} s.",
            reason="cut_mismatch",
            remedy="Measure the asset again; it is not the one the span was made from.",
        )
    for picture in frames:
        if picture.pts >= order.end_pts:
            return
        yield stream, picture


def _thumb(frame: Any) -> np.ndarray:
    small: np.ndarray = frame.reformat(THUMB_PX, THUMB_PX, "gray", interpolation="AREA", threads=1).to_ndarray()
    return small


# --- encoding


def _encode(
    order: Order, shown: Iterator[tuple[Any, Picture]], samples: np.ndarray | None, rate_hz: int
) -> dict[str, Any]:
    """Encodes the frames to H.264 without B-frames: decoding order is display order, so every reader agrees on times."""
    stream, first = next(shown)
    shape = geometry(first.frame, stream)
    width, height = (max(2, side - side % 2) for side in shape.display_size)
    pts: list[int] = []
    thumbs: list[np.ndarray] = []
    with _open_output(order, rate_hz) as container:
        video = container.add_stream("libx264", rate=_mean_rate(stream))
        context = video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = video.time_base = order.time_base
        context.thread_count = 1
        context.flags |= av.codec.context.Flags.bitexact
        context.options = {
            "crf": str(order.crf),
            "preset": order.preset,
            "x264-params": "bframes=0:threads=1:lookahead-threads=1:sliced-threads=0" + _assembly(),
        }
        colorspace = 1 if first.frame.format.is_rgb else int(first.frame.colorspace)
        _tag_colour(context, first.frame, colorspace)
        audio = _add_sound(container, samples, rate_hz, order.audio_bitrate)
        prepared = _prepared(_chain(first, shown), stream, shape, (width, height), order)
        held: list[Any] = []
        for frame in prepared:
            frame.color_range, frame.colorspace = LIMITED_RANGE, colorspace
            pts.append(frame.pts)
            thumbs.append(_thumb(frame))
            held += video.encode(frame)
        held += video.encode(None)
        ends = dict(zip(pts, [*pts[1:], order.end_pts - order.start_pts], strict=True))
        for packet in held:
            packet.duration = ends[packet.pts] - packet.pts
        _interleave(container, video, held, audio, samples, rate_hz)
    return {"mode": "encode", "pts": pts, "thumbs": thumbs, "size": [width, height], "codec": "h264"}


@cache
def _assembly() -> str:
    """Keeps x264 off AVX-512, where the processor has it.

    With AVX-512, x264 core 165 gave other bits for the same frames in about 1 of 60 cuts wherever the width is no
    multiple of 16 (always in the last macroblock column); with AVX2 in none of 768.
    """
    try:
        has_it = " avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        has_it = False
    return ":asm=AVX2" if has_it else ""


def _chain(first: Picture, shown: Iterator[tuple[Any, Picture]]) -> Iterator[Picture]:
    yield first
    for _, picture in shown:
        yield picture


def _mean_rate(stream: Any) -> Fraction:
    """Only a hint for the encoder's rate control; times come from the pts."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)


def _tag_colour(context: Any, frame: Any, colorspace: int) -> None:
    """Keeps the colour tags of the source, except that the range becomes limited (1) and RGB becomes BT.709 (1)."""
    context.color_range, context.colorspace = LIMITED_RANGE, colorspace
    context.color_primaries = frame.color_primaries
    context.color_trc = frame.color_trc


def _prepared(
    frames: Iterator[Picture], stream: Any, shape: Geometry, size: tuple[int, int], order: Order
) -> Iterator[Any]:
    """Upright yuv420p frames of `size`, deinterlaced where they hold two fields, pts counted from the clip's start."""
    graph, seen = None, None
    for picture in frames:
        frame = picture.frame
        frame.pts, frame.time_base = picture.pts - order.start_pts, order.time_base
        frame.pict_type = 0
        kind = (frame.width, frame.height, frame.format.name)
        if kind != seen:
            if graph is not None:
                yield from _flushed(graph, order)
            graph, seen = _graph(frame, shape, size, order), kind
        assert graph is not None
        graph.push(frame)
        yield from _pulled(graph, order)
    if graph is not None:
        yield from _flushed(graph, order)


def _graph(frame: Any, shape: Geometry, size: tuple[int, int], order: Order) -> Any:
    turns = {0: [], 1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}
    width, height = size
    matrix = ":out_color_matrix=bt709" if frame.format.is_rgb else ""
    steps = [
        *([("bwdif", "mode=send_frame:deint=interlaced")] if frame.interlaced_frame else []),
        *([("hflip", "")] if shape.is_mirrored else []),
        *turns[shape.quarter_turns],
        ("scale", f"{width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int:out_range=tv{matrix}"),
        ("setsar", "1"),
        ("format", "yuv420p"),
    ]
    graph = av.filter.Graph()
    graph.threads = 1  # the same input must give the same bytes
    base = order.time_base
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:pixel_aspect=1/1"
        f":time_base={base.numerator}/{base.denominator}"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    nodes = [graph.add("buffer", source)]
    nodes += [graph.add(name, argument) if argument else graph.add(name) for name, argument in steps]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _pulled(graph: Any, order: Order) -> Iterator[Any]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        ticks = frame.pts * Fraction(frame.time_base) / order.time_base
        frame.pts, frame.time_base = round(ticks), order.time_base
        frame.pict_type = 0
        yield frame


def _flushed(graph: Any, order: Order) -> Iterator[Any]:
    graph.push(None)
    yield from _pulled(graph, order)


# --- muxing


def _open_output(order: Order, rate_hz: int) -> Any:
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


def _add_sound(container: Any, samples: np.ndarray | None, rate_hz: int, bitrate: int) -> Any:
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


def _interleave(
    container: Any, video: Any, pictures_out: list[Any], audio: Any, samples: np.ndarray | None, rate_hz: int
) -> None:
    """Muxes all packets in the order of their decoding times."""
    tagged = [(float(p.dts * p.time_base), 0, i, p) for i, p in enumerate(pictures_out)]
    if audio is not None and samples is not None:
        sound = list(_sound_packets(audio, samples, rate_hz))
        tagged += [(float(p.dts * p.time_base), 1, i, p) for i, p in enumerate(sound)]
    for _, _, _, packet in sorted(tagged, key=lambda item: item[:3]):
        container.mux(packet)


# --- copying


def _copy(
    order: Order,
    first: tuple[Any, Picture],
    shown: Iterator[tuple[Any, Picture]],
    samples: np.ndarray | None,
    rate_hz: int,
) -> dict[str, Any] | None:
    """Copies the packets if they decode to exactly the span's frames without any other packet, else None."""
    stream, picture = first
    frame, shape = picture.frame, geometry(picture.frame, stream)
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
        frames = [(picture.pts, _thumb(frame))]
        frames += [(p.pts, _thumb(p.frame)) for _, p in shown if not p.frame.is_corrupt]
        pts = [at - order.start_pts for at, _ in frames]
        presented = [p.pts + clock_shift(source, source_stream) - order.start_pts for p in chosen]
        if sorted(presented) != pts or (presented != pts and not _is_regular(pts, order)):
            return None
        _mux_copy(order, source, source_stream, chosen, pts, samples, rate_hz)
    size = [frame.width, frame.height]
    return {"mode": "copy", "pts": pts, "thumbs": [thumb for _, thumb in frames], "size": size, "codec": "h264"}


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
    with _open_output(order, rate_hz) as container:
        video = container.add_stream_from_template(stream)
        video.time_base = order.time_base
        video.metadata.clear()
        audio = _add_sound(container, samples, rate_hz, order.audio_bitrate)
        for packet, at, dts in zip(chosen, presented, times, strict=True):
            packet.stream = video
            packet.time_base = order.time_base
            packet.pts, packet.dts, packet.duration = at, dts, ends[at] - at
        _interleave(container, video, chosen, audio, samples, rate_hz)


# --- reading back


def verify(path: str, out: str, max_pixels: int) -> dict[str, Any]:
    """What a reader finds in a written clip: frame times, sound start; sound in `out`, thumbnails in `out`.thumbs."""
    with open_media(path) as container:
        stream = pick(container, "video", None)
        base, duration = Fraction(stream.time_base), stream.duration
        damage = Damage()
        found = [(p.pts, _thumb(p.frame)) for p in pictures(container, stream, damage, max_pixels)]
        has_sound = bool(container.streams.audio)
    np.stack([thumb for _, thumb in found]).tofile(f"{out}.thumbs")
    answer: dict[str, Any] = {
        "pts": [pts for pts, _ in found],
        "time_base": [base.numerator, base.denominator],
        "duration_pts": duration,
        "damaged_packets": damage.packets,
        "sound": None,
    }
    if has_sound:
        sound = write_sound(partial(open_media, path), None, out, None, 2)
        answer["sound"] = {
            "start": [sound.start_s.numerator, sound.start_s.denominator],
            "rate_hz": sound.rate_hz,
            "shape": [sound.num_samples, sound.channels],
        }
    return answer
