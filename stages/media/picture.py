"""Decoding pictures in display order. Runs inside the decoder's child process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

import av
import numpy as np

from stages.child import count, progress
from stages.media.choose import pick
from stages.media.clock import MAX_DEMUX_ERRORS, OneClock, is_steady
from stages.media.geometry import Geometry, Shapes
from stages.media.open import check_pixels, clock_shift
from stages.media.shared import FRAMES_DECODED, Interpolation, PictureRoom, PixelFormat

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts")
"""Containers whose timestamps are stored, hence the same after a seek; all others are decoded from their start."""
MOST_BYTES = 256 << 20
"""Of the pictures of one run in one view: a run of large pictures is shorter than asked for."""
SHRUNK = 0.95
"""Share of both stored sides below which a picture was shrunk, rather than fitted to square pixels or even sides."""
SEEK_MARGIN_S = 10
"""How much earlier the second attempt of a seek starts when the first one landed past the wanted frame."""


@dataclass
class Damage:
    """What went wrong while reading one stream."""

    packets: int = 0
    """Packets that could not be read or decoded, or that came out flagged corrupt."""
    lost: int = 0
    """Those of them that could not be read or decoded: what builds upon them is broken."""
    messages: list[str] = field(default_factory=list)

    def note(self, error: BaseException | str) -> None:
        """Counts one damaged packet and keeps the first few messages."""
        self.packets += 1
        self.lost += isinstance(error, BaseException)
        if len(self.messages) < 5:
            text = error if isinstance(error, str) else getattr(error, "strerror", None) or str(error)
            self.messages.append(text)


def packets(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """The packets of `stream` on the file's one clock, the final flush packet included; read errors are counted, not raised."""
    reader, clock = container.demux(stream), OneClock(container, stream)
    failures = 0
    while True:
        try:
            packet = next(reader)
        except (StopIteration, EOFError):
            return
        except (av.error.FFmpegError, OSError, IndexError) as error:
            if not isinstance(
                error, IndexError
            ):  # PyAV stumbles, once, over a stream that begins in the middle of the file
                damage.note(error)
            failures += 1
            if failures >= MAX_DEMUX_ERRORS:
                return
            reader = container.demux(stream)
            continue
        if packet.is_corrupt:
            damage.note("the container flags a packet as corrupt")
        progress()
        clock.put(packet)
        yield packet


def nothing(_: Any) -> None:
    """Takes no note."""


def decoded(container: Any, stream: Any, damage: Damage, noted: Callable[[Any], None] = nothing) -> Iterator[Any]:
    """Decoded frames of `stream` as they come; decode errors are counted, not raised.

    `noted` is told of every packet once it has been decoded.
    """
    for packet in packets(container, stream, damage):
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            damage.note(error)
            continue
        noted(packet)
        for frame in frames:
            if stream.type == "video":
                count(FRAMES_DECODED)
            yield frame


@dataclass(frozen=True)
class ShownPicture:
    """One decoded frame and its place on the stream's clock."""

    frame: Any
    pts: int
    duration: int
    """In pts; 0 where the container does not say."""
    shape: Geometry
    """How it becomes upright with square pixels."""
    is_damaged: bool = False
    """Decoded from damaged data, or after such a frame with no whole key frame in between."""


class FrameClock:
    """Decides which timestamp of a decoded frame to believe.

    Its presentation time, unless that runs backwards more often than the decoding time does, or the container (AVI)
    stores no times at all and the presentation times were guessed. A frame without either follows the one before.
    """

    def __init__(self, stream: Any, container_name: str, shift: int) -> None:
        self._step = _usual_step(stream)
        self._is_guessed = container_name == "avi"
        self._shift = shift
        self._last: int | None = None
        self._last_pts = self._last_dts = -(1 << 63)
        self._faulty_pts = self._faulty_dts = 0

    def pts_of(self, frame: Any) -> int:
        """Presentation time of the next frame that came out of the decoder."""
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        is_distrusted = self._is_guessed or self._faulty_pts > self._faulty_dts
        if dts is not None and (pts is None or is_distrusted):
            pts = dts
        elif pts is None or is_distrusted:
            pts = 0 if self._last is None else self._last + self._step
        self._last = int(pts)
        return self._last + self._shift


def pictures(container: Any, stream: Any, damage: Damage, max_pixels: int) -> Iterator[ShownPicture]:
    """Decoded frames in strictly increasing pts.

    One that does not move time forward (joined recordings that overlap) is left out and counted as damaged.
    """
    check_pixels(stream.width, stream.height, max_pixels)
    last, clock = None, FrameClock(stream, container.format.name, clock_shift(container, stream))
    is_damaged, lost = False, damage.lost
    shapes = Shapes(stream)
    for frame in decoded(container, stream, damage, shapes.note):
        check_pixels(frame.width, frame.height, max_pixels)
        pts = clock.pts_of(frame)
        shape = shapes.of(frame)
        is_damaged = frame.is_corrupt or (not frame.key_frame and (is_damaged or damage.lost > lost))
        lost = damage.lost
        if frame.is_corrupt:
            damage.note("a frame was decoded from damaged data")
        if last is not None and pts <= last:
            damage.note("a frame does not move time forward")
            continue
        last = pts
        yield ShownPicture(frame, pts, int(frame.duration or 0), shape, is_damaged)


def _usual_step(stream: Any) -> int:
    """The usual frame length in pts, at least 1."""
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    return max(1, round(1 / (rate * Fraction(stream.time_base))))


def last_duration(picture: ShownPicture, previous_pts: int | None, stream: Any) -> int:
    """Length of the last frame in pts: as stated, else like the frame before it, else the stream's usual one."""
    if picture.duration > 0:
        return picture.duration
    return picture.pts - previous_pts if previous_pts is not None else _usual_step(stream)


@dataclass(frozen=True)
class View:
    """How frames are wanted."""

    size: tuple[int, int] | None = None
    """Exact (width, height) after turning; None keeps the display size."""
    long_side_px: int | None = None
    """Scale down so that the longer side has this length; never scales up."""
    format: PixelFormat = "rgb24"
    """rgb24 [height, width, 3], gray [height, width], or the planes of yuv420p [height x 3/2, width] one below the other."""
    max_fps: float | None = None


class Renderer:
    """Turns pictures into upright uint8 arrays of one size, fixed by the first; one of another shape is stretched to it."""

    def __init__(self, first: Geometry, view: View) -> None:
        self.width, self.height = target_size(first.display_size, view)
        self._format = view.format
        if view.format == "yuv420p":
            self.width, self.height = (max(2, side - side % 2) for side in (self.width, self.height))
            self.shape: tuple[int, ...] = (self.height * 3 // 2, self.width)
        else:
            self.shape = (self.height, self.width) if view.format == "gray" else (self.height, self.width, 3)
        self._turn(first)
        coded = first.coded_width, first.coded_height
        self._is_shrinking = all(side < SHRUNK * old for side, old in zip(self._inner, coded, strict=True))
        self._reformatter = av.video.reformatter.VideoReformatter()

    def _turn(self, geometry: Geometry) -> None:
        self.geometry = geometry
        turned = geometry.quarter_turns % 2
        self._inner = (self.height, self.width) if turned else (self.width, self.height)

    def scale(self, frame: Any, geometry: Geometry, interpolation: Interpolation = "BILINEAR") -> Any:
        """The frame in the wanted size and format, not yet turned; with antialiasing when shrinking."""
        if geometry is not self.geometry:
            self._turn(geometry)
        narrow = {"dst_color_range": "MPEG"} if self.is_planar else {}
        return self._reformatter.reformat(
            frame, *self._inner, self._format, interpolation=interpolation, threads=1, **narrow
        )

    def place(self, scaled: Any, out: np.ndarray) -> None:
        """Writes what `scale` returned last into `out`, turned."""
        if not self.is_planar:
            self._place(scaled.to_ndarray(), out)
            return
        at, pixels = 0, out.reshape(-1)
        for plane, half in zip(scaled.planes, (1, 2, 2), strict=True):
            stored = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            size = (self.height // half, self.width // half)
            self._place(stored, pixels[at : at + size[0] * size[1]].reshape(size))
            at += size[0] * size[1]

    def serves(self, smaller: Renderer) -> Interpolation | None:
        """How `smaller` may be drawn from what this one made of the picture; None for not at all.

        Colour from planes of at least twice its sides: less than half as much as from 720p, and no colour of a 96 x 54 picture
        moves by more than 4 levels. Grey from planes that were shrunk: a quarter to a third of what 720p and 1080p take. By
        area, as bilinear twice would blur: on 17 real files the variance of the Laplacian at 384 px is 0.97 to 1.19 times, in
        the median 1.01 times, what one step leaves.
        """
        share = min(side / small for side, small in zip(self._inner, smaller._inner, strict=True))
        if not self.is_planar:
            return None
        if smaller._format == "gray":
            return "AREA" if self._is_shrinking and share >= 1 else None
        return "BILINEAR" if smaller._format == "rgb24" and share >= 2 else None

    @property
    def is_planar(self) -> bool:
        """Whether it keeps planes, from which others may be drawn."""
        return self._format == "yuv420p"

    def _place(self, image: np.ndarray, out: np.ndarray) -> None:
        if self.geometry.is_mirrored:
            image = image[:, ::-1]
        out[...] = np.rot90(image, self.geometry.quarter_turns)


def target_size(display: tuple[int, int], view: View) -> tuple[int, int]:
    """(width, height) of the wanted pictures."""
    if view.size is not None:
        return view.size
    width, height = display
    if view.long_side_px is None or max(display) <= view.long_side_px:
        return display
    scale = Fraction(view.long_side_px, max(display))
    return max(1, round(width * scale)), max(1, round(height * scale))


def pictures_between(
    reopen: Any, index: int | None, start: Fraction | None, damage: Damage, max_pixels: int
) -> tuple[Any, Iterator[ShownPicture]]:
    """(stream, frames from the first one with time >= `start` on), seeking where that is exact.

    `reopen()` gives a fresh container. A seek is only trusted when a frame at or before `start` came out of it, for
    the first frames after a seek may be missing their references; otherwise an earlier point, then the very start,
    is tried.
    """
    container = reopen()
    stream = pick(container, "video", index)
    if start is None:
        return stream, pictures(container, stream, damage, max_pixels)
    first_pts = -((-start / stream.time_base) // 1)
    if container.format.name in SEEKABLE and is_steady(container):
        for back_s in (0, SEEK_MARGIN_S):
            target = int(first_pts - back_s / stream.time_base) - clock_shift(container, stream)
            try:
                container.seek(target, stream=stream, backward=True, any_frame=False)
            except (av.error.FFmpegError, OSError):
                break
            frames = pictures(container, stream, Damage(), max_pixels)
            found = next(frames, None)
            if found is not None and found.pts <= first_pts:
                return stream, _from(first_pts, found, frames)
        container.close()
        container = reopen()
        stream = pick(container, "video", index)
    frames = pictures(container, stream, damage, max_pixels)
    return stream, _from(first_pts, next(frames, None), frames)


def _from(first_pts: int, found: ShownPicture | None, rest: Iterator[ShownPicture]) -> Iterator[ShownPicture]:
    """`found` and `rest` without what lies before `first_pts`."""
    if found is not None and found.pts >= first_pts:
        yield found
    for picture in rest:
        if picture.pts >= first_pts:
            yield picture


class Slots:
    """A regular time grid of `max_fps`, of which each slot takes the first frame that falls into it; None takes all."""

    def __init__(self, time_base: Fraction, max_fps: float | None) -> None:
        self._per_pts = None if max_fps is None else time_base * Fraction(max_fps).limit_denominator(1000)
        self._slot: int | None = None

    def is_new(self, pts: int) -> bool:
        """Whether the frame at `pts`, later than all before, is the first of its slot."""
        if self._per_pts is None:
            return True
        before, self._slot = self._slot, int(pts * self._per_pts // 1)
        return self._slot != before


@dataclass(frozen=True)
class Drawn:
    """What one view shows of a run of frames."""

    at: int
    """Byte of the shared memory at which the pictures begin."""
    shape: tuple[int, ...]
    frames: list[int]
    """Which of the run's frames they are."""


@dataclass(frozen=True)
class FrameRun:
    """A run of decoded frames, drawn in every view asked for, ready to be handed over."""

    time_base: tuple[int, int]
    pts: list[int]
    end_pts: int
    """pts of the frame that follows the run."""
    damaged: list[int]
    """Which of them are known to be damaged."""
    drawn: list[Drawn]


class _Drawing:
    """One view of a file, filled run by run with `size` pictures at most."""

    def __init__(self, view: View, first: Geometry, time_base: Fraction, size: int) -> None:
        self._slots = Slots(time_base, view.max_fps)
        self.renderer = Renderer(first, view)
        self._takes_all = view.max_fps is None
        self._source: _Drawing | None = None
        self._interpolation: Interpolation = "BILINEAR"
        self._scaled: tuple[ShownPicture, Any] | None = None
        self._shape = (max(1, min(size, MOST_BYTES // prod(self.renderer.shape))), *self.renderer.shape)
        self.num_bytes = prod(self._shape)

    def draw_from(self, larger: _Drawing) -> None:
        """A view of all pictures is drawn from what `larger` makes of each, whether that wants it or not, if it serves."""
        how = larger.renderer.serves(self.renderer)
        if how is not None and self._takes_all and larger is not self:
            self._source, self._interpolation = larger, how

    def begin(self, room: PictureRoom) -> None:
        """An empty run in the room's present place."""
        self._at, self._images = room.take(self._shape)
        self._frames: list[int] = []

    @property
    def is_full(self) -> bool:
        return len(self._frames) == len(self._images)

    def wants(self, pts: int) -> bool:
        return self._slots.is_new(pts)

    def draw(self, picture: ShownPicture, number: int) -> None:
        """Draws a picture into its place of the run."""
        self.renderer.place(self.scaled(picture), self._images[len(self._frames)])
        self._frames.append(number)

    def scaled(self, picture: ShownPicture) -> Any:
        """The frame of a picture in this view's size and format."""
        if self._scaled is None or self._scaled[0] is not picture:
            frame = picture.frame if self._source is None else self._source.scaled(picture)
            self._scaled = picture, self.renderer.scale(frame, picture.shape, self._interpolation)
        return self._scaled[1]

    def drawn(self) -> Drawn:
        return Drawn(self._at, (len(self._frames), *self._shape[1:]), self._frames)


def _drawings(views: Sequence[View], first: Geometry, time_base: Fraction, size: int) -> list[_Drawing]:
    """One for each view, smaller ones drawn from the largest that keeps planes, where that serves."""
    drawings = [_Drawing(view, first, time_base, size) for view in views]
    planar = [drawing for drawing in drawings if drawing.renderer.is_planar]
    if planar:
        largest = max(planar, key=lambda drawing: prod(drawing.renderer.shape))
        for drawing in drawings:
            drawing.draw_from(largest)
    return drawings


def _begin(drawings: Sequence[_Drawing], room: PictureRoom | None) -> None:
    """An empty run of each in the next place of `room`."""
    if room is not None:
        room.turn()
        for drawing in drawings:
            drawing.begin(room)


def drawn_runs(
    stream: Any,
    frames: Iterable[ShownPicture],
    end: Fraction | None,
    views: Sequence[View],
    size: int,
    room: PictureRoom | None,
) -> Iterator[FrameRun]:
    """Runs of the frames before `end`, each ended by the view that has drawn `size` of them, or by `size` without a view.

    `room` is where views are drawn; without a view there need be none.
    """
    drawings: list[_Drawing] = []
    base = Fraction(stream.time_base).as_integer_ratio()
    pts: list[int] = []
    damaged: list[int] = []
    last: ShownPicture | None = None
    previous: int | None = None
    end_pts: int | None = None
    for picture in frames:
        if end is not None and picture.pts * stream.time_base >= end:
            end_pts = picture.pts
            break
        if last is None:
            drawings = _drawings(views, picture.shape, stream.time_base, size)
            if room is not None:
                room.open(sum(drawing.num_bytes for drawing in drawings))
            _begin(drawings, room)
        wanting = [drawing for drawing in drawings if drawing.wants(picture.pts)]
        if any(drawing.is_full for drawing in wanting) or (not drawings and len(pts) == size):
            yield FrameRun(base, pts, picture.pts, damaged, [drawing.drawn() for drawing in drawings])
            pts, damaged = [], []
            _begin(drawings, room)
        for drawing in wanting:
            drawing.draw(picture, len(pts))
        if picture.is_damaged:
            damaged.append(len(pts))
        pts.append(picture.pts)
        previous, last = (last.pts if last else None), picture
    if last is not None and pts:
        if end_pts is None:
            end_pts = last.pts + last_duration(last, previous, stream)
        yield FrameRun(base, pts, end_pts, damaged, [drawing.drawn() for drawing in drawings])
