"""Encoded files whose bytes depend only on what goes in: PyAV, one encoder thread, bit-exact muxing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.voice import SAMPLE_RATE_HZ

Image = NDArray[np.uint8]
Sound = NDArray[np.float32]


@dataclass(frozen=True)
class Encoding:
    """How a file is written: RGB frames of width_px x height_px, both even.

    `fps` is exact; with variable frame rate `pts` gives each frame's time in `time_base` instead. A sound that starts late
    (`sound_start_s`) has no packets before: the container states its start.
    """

    width_px: int = 320
    height_px: int = 240
    fps: Fraction = Fraction(25)
    video_codec: str = "libx264"
    audio_codec: str = "aac"
    pts: tuple[int, ...] | None = None
    time_base: Fraction | None = None
    sound_start_s: float = 0.0
    quality: int = 22
    gop_frames: int = 50
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def clock(self) -> Fraction:
        """Time base of the picture: one frame, unless given."""
        return self.time_base or 1 / self.fps

    def frames_in(self, duration_s: float) -> int:
        """Number of whole frames that fit into `duration_s` (of the given pts, with variable frame rate)."""
        if self.pts is not None:
            return sum(float(pts * self.clock) < duration_s for pts in self.pts)
        return int(duration_s * self.fps + Fraction(1, 1000))

    def stored_in(self, path: Path, num_frames: int) -> Encoding:
        """The encoding with the frame times that `path`'s container can store: Matroska and WebM round to milliseconds."""
        if path.suffix not in (".mkv", ".webm"):
            return self
        times_ms = (self.frame_pts(index) * self.clock * 1000 for index in range(num_frames))
        return replace(self, pts=tuple(floor(at + Fraction(1, 2)) for at in times_ms), time_base=Fraction(1, 1000))

    def frame_pts(self, index: int) -> int:
        """When frame `index` is shown, in units of `clock`."""
        return index if self.pts is None else self.pts[index]

    def frame_time_s(self, index: int) -> float:
        """When frame `index` is shown, seconds on the container clock."""
        return float(self.frame_pts(index) * self.clock)

    def end_s(self, num_frames: int) -> float:
        """When the last of `num_frames` stops being shown; the last of irregular frames lasts 1 / fps."""
        return float(
            num_frames * self.clock if self.pts is None else self.pts[num_frames - 1] * self.clock + 1 / self.fps
        )


# x264's macroblock tree gave other bytes in about 1 of 12 runs of one input, with one thread; without it 80 of 80 agreed.
# libvpx's realtime mode adapts its effort to the clock.
_VIDEO_OPTIONS = {
    "libx264": {"preset": "veryfast", "x264-params": "threads=1:mbtree=0:cpu-independent=1"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none"},
    "libvpx": {"deadline": "good", "cpu-used": "5"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "5"},
}


def encode(path: Path, frames: Iterable[Image], sound: Sound | None, encoding: Encoding = Encoding()) -> int:
    """Number of frames written to `path`; container by its suffix (.mp4 .mov .mkv .webm).

    `frames` are RGB (height, width, 3) with even sizes; `sound` is float32 (samples,) or (samples, channels) at
    SAMPLE_RATE_HZ whose first sample is heard at `encoding.sound_start_s` on the container clock.
    """
    import av

    container_options = {"fflags": "+bitexact"}
    if path.suffix in (".mp4", ".mov"):
        container_options |= {"movflags": "+faststart", "movie_timescale": str(SAMPLE_RATE_HZ)}
    with av.open(str(path), "w", options=container_options) as container:
        video = container.add_stream(encoding.video_codec, rate=encoding.fps)
        video.width, video.height, video.pix_fmt = encoding.width_px, encoding.height_px, "yuv420p"
        video.codec_context.time_base = encoding.clock
        video.codec_context.gop_size = encoding.gop_frames
        video.codec_context.thread_count = 1
        quality = {"crf": str(encoding.quality), "flags": "+bitexact"}
        if encoding.video_codec.startswith("libvpx"):
            quality["b"] = "600k"
        video.codec_context.options = _VIDEO_OPTIONS.get(encoding.video_codec, {}) | quality | encoding.extra
        audio = None
        if sound is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[1 if sound.ndim == 1 else sound.shape[1]]
            audio = container.add_stream(encoding.audio_codec, rate=SAMPLE_RATE_HZ, layout=layout)
            audio.codec_context.options = {"flags": "+bitexact", "b": "128k"}
        count = 0
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = count if encoding.pts is None else encoding.pts[count]
            frame.time_base = encoding.clock
            container.mux(video.encode(frame))
            count += 1
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            _encode_sound(container, audio, sound, round(encoding.sound_start_s * SAMPLE_RATE_HZ))
    return count


def _encode_sound(container: Any, audio: Any, sound: Sound, start_sample: int) -> None:
    import av

    planes = np.ascontiguousarray(sound.reshape(len(sound), -1).T)
    layout = audio.codec_context.layout.name
    step = audio.codec_context.frame_size or 1024
    for begin in range(0, planes.shape[1], step):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes[:, begin : begin + step]), "fltp", layout)
        frame.sample_rate, frame.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
        frame.pts = start_sample + begin
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def turn_display(path: Path, quarter_turns: int) -> None:
    """Writes into an .mp4 or .mov that its picture is to be shown turned clockwise by `quarter_turns` x 90 degrees.

    Sets the display matrix of the first track's header (tkhd, ISO/IEC 14496-12), as phones do; no picture is touched.
    """
    content = bytearray(path.read_bytes())
    header = content.find(b"tkhd")
    if header < 0 or content[header + 4] != 0:
        raise ValueError(f"{path} has no track header of version 0: write it as .mp4 or .mov first")
    width, height = (int.from_bytes(content[header + at : header + at + 4], "big") for at in (80, 84))
    one = 1 << 16
    matrix = {
        0: (one, 0, 0, 0, one, 0, 0, 0),
        1: (0, one, 0, -one, 0, 0, height, 0),
        2: (-one, 0, 0, 0, -one, 0, width, height),
        3: (0, -one, 0, one, 0, 0, 0, width),
    }[quarter_turns % 4]
    packed = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    content[header + 44 : header + 76] = packed
    path.write_bytes(content)
