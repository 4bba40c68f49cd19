"""Decoding pictures in display order. Runs inside the decoder's child process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import tee
from typing import Any

import av
import numpy as np

from schemas.errors import MediaError
from stages.child import progress
from stages.media.open import Geometry, clock_shift, geometry, pick

MAX_DEMUX_ERRORS = 100
"""Read errors after which the rest of a file is given up as unreadable."""
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts")
"""Containers whose timestamps are stored, hence the same after a seek; all others are decoded from their start."""
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
    """The packets of `stream`, the final flush packet included; read errors are counted, not raised."""
    reader = container.demux(stream)
    failures = 0
    while True:
        try:
            packet = next(reader)
        except (StopIteration, EOFError):
            return
        except (av.error.FFmpegError, OSError) as error:
            damage.note(error)
            failures += 1
            if failures >= MAX_DEMUX_ERRORS:
                return
            reader = container.demux(stream)
            continue
        if packet.is_corrupt:
            damage.note("the container flags a packet as corrupt")
        progress()
        yield packet


def decoded(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Decoded frames of `stream` as they come; decode errors are counted, not raised."""
    for packet in packets(container, stream, damage):
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            damage.note(error)
            continue
        yield from frames


@dataclass(frozen=True)
class ShownPicture:
    """One decoded frame and its place on the stream's clock."""

    frame: Any
    pts: int
    duration: int
    """In pts; 0 where the container does not say."""
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
    last, clock = None, FrameClock(stream, container.format.name, clock_shift(container, stream))
    is_damaged, lost = False, damage.lost
    for frame in decoded(container, stream, damage):
        if frame.width * frame.height > max_pixels:
            raise MediaError(
                f"A frame of {frame.width}x{frame.height} pixels is larger than the limit of {max_pixels} pixels.",
                reason="too_many_pixels",
                remedy="Raise decoder.max_pixels in the recipe if this is meant.",
            )
        pts = clock.pts_of(frame)
        is_damaged = frame.is_corrupt or (not frame.key_frame and (is_damaged or damage.lost > lost))
        lost = damage.lost
        if frame.is_corrupt:
            damage.note("a frame was decoded from damaged data")
        if last is not None and pts <= last:
            damage.note("a frame does not move time forward")
            continue
        last = pts
        yield ShownPicture(frame, pts, int(frame.duration or 0), is_damaged)


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
    is_gray: bool = False
    max_fps: float | None = None


class Renderer:
    """Turns decoded frames into upright uint8 arrays of one size, fixed by the first frame."""

    def __init__(self, first: Any, stream: Any, view: View) -> None:
        self.geometry: Geometry = geometry(first, stream)
        self.width, self.height = target_size(self.geometry.display_size, view)
        self.is_gray = view.is_gray
        turned = self.geometry.quarter_turns % 2
        self._inner = (self.height, self.width) if turned else (self.width, self.height)
        self.shape = (self.height, self.width) if view.is_gray else (self.height, self.width, 3)
        self._reformatter = av.video.reformatter.VideoReformatter()

    def draw(self, frame: Any, out: np.ndarray) -> None:
        """Writes `frame` into `out`, uint8 [height, width(, 3)]. Bilinear with antialiasing when shrinking."""
        width, height = self._inner
        image = self._reformatter.reformat(
            frame, width, height, "gray" if self.is_gray else "rgb24", interpolation="BILINEAR", threads=1
        ).to_ndarray()
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
    if container.format.name in SEEKABLE:
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


def wanted_slots(pts: Iterable[int], time_base: Fraction, max_fps: float | None) -> Iterator[bool]:
    """For each frame whether to keep it, so that at most one falls into each slot of a grid of `max_fps`."""
    slot: int | None = None
    for time in pts:
        if max_fps is None:
            yield True
            continue
        now = time * time_base * Fraction(max_fps).limit_denominator(1000) // 1
        yield now != slot
        slot = now


@dataclass
class Chunk:
    """A run of frames in memory, ready to be handed over."""

    images: np.ndarray
    pts: list[int]
    end_pts: int
    num_damaged: int = 0


def chunks(stream: Any, frames: Iterator[ShownPicture], end: Fraction | None, view: View, size: int) -> Iterator[Chunk]:
    """Drawn frames before `end`, in runs of `size`. `end_pts` is the pts of the frame that follows the run."""
    renderer: Renderer | None = None
    buffer = np.empty(0, np.uint8)
    pts: list[int] = []
    last: ShownPicture | None = None
    previous: int | None = None
    end_pts: int | None = None
    num_damaged = 0
    frames, stamps = tee(frames)
    wanted = wanted_slots((picture.pts for picture in stamps), stream.time_base, view.max_fps)
    for picture, is_wanted in zip(frames, wanted, strict=False):
        if end is not None and picture.pts * stream.time_base >= end:
            end_pts = picture.pts
            break
        if renderer is None:
            renderer = Renderer(picture.frame, stream, view)
            buffer = np.empty((size, *renderer.shape), np.uint8)
        previous, last = (last.pts if last else None), picture
        if not is_wanted:
            continue
        if len(pts) == size:
            yield Chunk(buffer, pts, picture.pts, num_damaged)
            pts, num_damaged = [], 0
        renderer.draw(picture.frame, buffer[len(pts)])
        pts.append(picture.pts)
        num_damaged += picture.is_damaged
    if renderer is not None and last is not None and pts:
        if end_pts is None:
            end_pts = last.pts + last_duration(last, previous, stream)
        yield Chunk(buffer[: len(pts)], pts, end_pts, num_damaged)
