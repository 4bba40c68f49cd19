"""Writing and re-reading one clip. Runs inside the decoder's child process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from schemas.errors import MediaError
from stages.media.blur import PixelBox, hide_faces
from stages.media.choose import pick
from stages.media.cut_copy import copy_packets
from stages.media.geometry import Geometry
from stages.media.listen import SoundWanted, write_sound
from stages.media.mux import Order, add_sound, interleave, open_output, thumbnail
from stages.media.open import clock_shift, open_media
from stages.media.picture import Damage, ShownPicture, packets, pictures, pictures_between

LIMITED_RANGE = 1
"""libav's AVCOL_RANGE_MPEG."""
FORWARD_S = 5
"""How far ahead a clip may lie to be reached by decoding on: key frames are usually up to ten seconds apart."""


def cut(
    path: str,
    out: str,
    span: list[int],
    encoding: dict[str, Any],
    allow_copy: bool,
    sound: str | None,
    rate_hz: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Writes the clip to `out` and thumbnails of its frames to `out`.thumbs; returns what was written.

    `span` is [start_pts, end_pts, num, den]; `encoding` is of fields of `Order`; `sound` names a file of raw
    float32 [n, 2] that starts with the picture.
    """
    before_s = time.process_time()
    order = Order(path, out, span[0], span[1], Fraction(span[2], span[3]), **encoding)
    samples = None if sound is None else np.fromfile(sound, np.float32).reshape(-1, 2)
    shown = _Taken(_source_frames(order, max_pixels))
    first = next(shown, None)
    if first is None:
        raise MediaError("No frame lies inside the clip's span.", reason="no_frames")
    may_copy = allow_copy and order.crop is None and not order.faces
    written = copy_packets(order, first, shown, samples, rate_hz) if may_copy else None
    if written is None:
        again = chain([first], shown) if shown.num == 1 else _source_frames(order, max_pixels)
        written = _encode(order, again, samples, rate_hz)
    return {**written, "thumbs": _left(written["thumbs"], out), "cut_cpu_s": time.process_time() - before_s}


def _left(thumbs: list[np.ndarray], out: str) -> dict[str, Any]:
    """Leaves thumbnails in `out`.thumbs; where, and in which shape."""
    stacked, file = np.stack(thumbs), f"{out}.thumbs"
    Path(file).write_bytes(stacked.data)
    return {"file": file, "shape": list(stacked.shape)}


class _Taken(Iterator[tuple[Any, ShownPicture]]):
    """Counts what was taken."""

    def __init__(self, shown: Iterator[tuple[Any, ShownPicture]]) -> None:
        self._shown, self.num = shown, 0

    def __next__(self) -> tuple[Any, ShownPicture]:
        found = next(self._shown)
        self.num += 1
        return found


@dataclass
class _Source:
    """A file that is being decoded, and the frame after the last clip that was cut out of it."""

    file: tuple[str, int, int]
    stream: Any
    frames: Iterator[ShownPicture]
    following: ShownPicture | None = None

    def leads_to(self, order: Order) -> bool:
        """Whether the clip is sooner reached from here than by a seek, which lands on the key frame before it."""
        if self.following is None or self.file != _identity(order.path):
            return False
        ahead_s = (order.start_pts - self.following.pts) * order.time_base
        return Fraction(self.stream.time_base) == order.time_base and 0 <= ahead_s <= FORWARD_S


_left_off: _Source | None = None
"""Where the last cut of this process ended: the clips of an asset come in order, so that its frames are decoded once for all."""


def _identity(path: str) -> tuple[str, int, int]:
    stat = Path(path).stat()
    return path, stat.st_size, stat.st_mtime_ns


def _source_frames(order: Order, max_pixels: int) -> Iterator[tuple[Any, ShownPicture]]:
    """(stream, frame) of every frame inside the span."""
    global _left_off
    source, _left_off = _left_off, None
    if source is None or not source.leads_to(order):
        source = _Source(_identity(order.path), *_opened(order, max_pixels))
    following = [] if source.following is None else [source.following]
    for picture in chain(following, source.frames):
        if picture.pts >= order.end_pts:
            source.following, _left_off = picture, source
            return
        if picture.pts >= order.start_pts:
            yield source.stream, picture


def _opened(order: Order, max_pixels: int) -> tuple[Any, Iterator[ShownPicture]]:
    start = order.start_pts * order.time_base
    stream, frames = pictures_between(partial(open_media, order.path), None, start, Damage(), max_pixels)
    if Fraction(stream.time_base) != order.time_base:
        raise MediaError(
            f"The span counts in {order.time_base} s but the picture's clock in {stream.time_base} s.",
            reason="cut_mismatch",
            remedy="Measure the asset again; it is not the one the span was made from.",
        )
    return stream, frames


# --- encoding


def _encode(
    order: Order, shown: Iterator[tuple[Any, ShownPicture]], samples: np.ndarray | None, rate_hz: int
) -> dict[str, Any]:
    """Encodes the frames to H.264 without B-frames: decoding order is display order, so every reader agrees on times."""
    stream, first = next(shown)
    whole = even_size(first.shape)
    crop = (0, 0, *whole) if order.crop is None else inner_box(whole, order.crop)
    pts: list[int] = []
    thumbs: list[np.ndarray] = []
    with open_output(order, rate_hz) as container:
        video = container.add_stream("libx264", rate=_mean_rate(stream))
        context = video.codec_context
        context.width, context.height, context.pix_fmt = *crop[2:], "yuv420p"
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
        audio = add_sound(container, samples, rate_hz, order.audio_bitrate)
        prepared = _prepared(chain([first], (picture for _, picture in shown)), (whole, crop), order)
        held: list[Any] = []
        for frame in prepared:
            frame.color_range, frame.colorspace = LIMITED_RANGE, colorspace
            hide_faces(frame, float(frame.pts * order.time_base), order.faces, order.blur, (whole, crop))
            pts.append(frame.pts)
            thumbs.append(thumbnail(frame))
            held += video.encode(frame)
        held += video.encode(None)
        ends = dict(zip(pts, [*pts[1:], order.end_pts - order.start_pts], strict=True))
        for packet in held:
            packet.duration = ends[packet.pts] - packet.pts
        interleave(container, video, held, audio, samples, rate_hz)
    return {"mode": "encode", "pts": pts, "thumbs": thumbs, "size": list(crop[2:]), "crop": crop, "whole": whole}


def even_size(shape: Geometry) -> tuple[int, int]:
    """(width, height) of the upright picture with square pixels, in whole blocks of chroma."""
    width, height = shape.display_size
    return max(2, width - width % 2), max(2, height - height % 2)


def inner_box(whole: tuple[int, int], crop: tuple[float, float, float, float]) -> PixelBox:
    """(x, y, width, height) in pixels of the part `crop`, (left, top, right, bottom) as shares: even, and nowhere larger."""
    left, top = (min(2 * math.ceil(edge * side / 2), side - 2) for edge, side in zip(crop[:2], whole, strict=True))
    right, bottom = (2 * math.floor(edge * side / 2) for edge, side in zip(crop[2:], whole, strict=True))
    return left, top, max(2, right - left), max(2, bottom - top)


@cache
def _assembly() -> str:
    """Keeps x264 off AVX-512, where the processor has it.

    With AVX-512, x264 core 165 gave other bits for the same frames in 19 of 1326 cuts of pictures whose width is no
    multiple of 16 (the difference began in the last macroblock column); with AVX2 in none of 1368.
    """
    try:
        has_it = " avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        has_it = False
    return ":asm=AVX2" if has_it else ""


def _mean_rate(stream: Any) -> Fraction:
    """Only a hint for the encoder's rate control; times come from the pts."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)


def _tag_colour(context: Any, frame: Any, colorspace: int) -> None:
    """Keeps the colour tags of the source, except that the range becomes limited (1) and RGB becomes BT.709 (1)."""
    context.color_range, context.colorspace = LIMITED_RANGE, colorspace
    context.color_primaries = frame.color_primaries
    context.color_trc = frame.color_trc


def _prepared(frames: Iterator[ShownPicture], part: tuple[tuple[int, int], PixelBox], order: Order) -> Iterator[Any]:
    """Upright yuv420p frames of a size, and of them the box in `part`; deinterlaced where they hold two fields.

    pts count from the clip's start.
    """
    graph, seen = None, None
    for picture in frames:
        frame = picture.frame
        frame.pts, frame.time_base = picture.pts - order.start_pts, order.time_base
        frame.pict_type = 0
        kind = (picture.shape, frame.format.name)
        if kind != seen:
            if graph is not None:
                yield from _flushed(graph, order)
            graph, seen = _graph(frame, picture.shape, part, order), kind
        assert graph is not None
        graph.push(frame)
        yield from _pulled(graph, order)
    if graph is not None:
        yield from _flushed(graph, order)


def _graph(frame: Any, shape: Geometry, part: tuple[tuple[int, int], PixelBox], order: Order) -> Any:
    turns = {0: [], 1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}
    (width, height), (x, y, *inner) = part
    matrix = ":out_color_matrix=bt709" if frame.format.is_rgb else ""
    steps = [
        *([("bwdif", "mode=send_frame:deint=interlaced")] if frame.interlaced_frame else []),
        *([("hflip", "")] if shape.is_mirrored else []),
        *turns[shape.quarter_turns],
        ("scale", f"{width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int:out_range=tv{matrix}"),
        ("setsar", "1"),
        ("format", "yuv420p"),
        *([("crop", f"{inner[0]}:{inner[1]}:{x}:{y}")] if tuple(inner) != (width, height) else []),
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


# --- reading back


def verify(path: str, out: str, num_decoded: int | None, max_pixels: int) -> dict[str, Any]:
    """What a reader finds in a written clip: frame times, sound start; sound in `out`, thumbnails in `out`.thumbs.

    With `num_decoded` only as many pictures are decoded, and the others' times are those of their packets.
    """
    damage = Damage()
    with open_media(path) as container:
        stream = pick(container, "video", None)
        base, duration = Fraction(stream.time_base), stream.duration
        shown = islice(pictures(container, stream, damage, max_pixels), num_decoded)
        found = [(p.pts, thumbnail(p.frame)) for p in shown]
        has_sound = bool(container.streams.audio)
    pts = [at for at, _ in found]
    if num_decoded is not None:
        pts += _presented(path, damage)[len(pts) :]
    answer: dict[str, Any] = {
        "thumbs": _left([thumb for _, thumb in found], out),
        "pts": pts,
        "time_base": [base.numerator, base.denominator],
        "duration_pts": duration,
        "damaged_packets": damage.packets,
        "sound": None,
    }
    if has_sound:
        sound = write_sound(path, out, SoundWanted(None, 2))
        answer["sound"] = {
            "start": [sound.start_s.numerator, sound.start_s.denominator],
            "rate_hz": sound.rate_hz,
            "shape": [sound.num_samples, sound.channels],
        }
    return answer


def _presented(path: str, damage: Damage) -> list[int]:
    """pts of all packets of the picture, in order of display."""
    with open_media(path) as container:
        stream = pick(container, "video", None)
        shift = clock_shift(container, stream)
        return sorted(p.pts + shift for p in packets(container, stream, damage) if p.pts is not None and p.size)
