"""Decoding sound onto its timestamps, mixing channels and changing the rate. Runs inside the decoder's child process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np

from schemas.errors import MediaError
from stages.media.picture import Damage, decoded

GAP_TOLERANCE_S = Fraction(1, 100)
"""Smallest hole or overlap acted upon. Shorter than any codec's packet (AAC 21 ms, Opus 20 ms, MP3 24 ms), so a lost
packet is always made good; longer than the rounding of millisecond containers."""
GAP_CONFIRM_FRAMES = 8
"""A hole must show in most of this many following packets; live streams stamp single packets some 20 ms off."""
MAX_GAP_S = 3600
"""A jump of the clock beyond this is a broken timestamp, not a pause."""
FREE_GAPS_S, GAPS_TO_SOUND = 60, 2
"""All holes together may be this long, or this many times the sound between them. More are broken timestamps as well."""
EARLY_GAPS_S = 600
"""How much more they may be for a while: sound may follow."""
SILENT_RATIO = 1e-6
"""A channel 60 dB below the loudest one carries nothing and is left out of the mix."""
CANCEL_RATIO = 0.1
"""The mix cancels if it holds less than this share of the power that unrelated channels would give."""

BS775_WEIGHTS = {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0, "LFE2": 0.0}
"""ITU-R BS.775-4, table 2, to one channel: centre in full, left and right -3 dB, surround -6 dB, no LFE."""
SURROUND_WEIGHT = 0.5
BLOCK_SAMPLES = 1 << 18
"""Samples moved at once, 1 MiB per channel."""


@dataclass
class Decoded:
    """One decoded frame of sound: `samples` float32 [n, channels] at the stream's rate, `pts_s` or None."""

    samples: np.ndarray
    pts_s: Fraction | None


class FloatFrames:
    """Decoded frames as float32 at the rate and layout of the first frame, even if the stream changes midway."""

    def __init__(self, container: Any, stream: Any, damage: Damage) -> None:
        self._frames = decoded(container, stream, damage)
        self.rate_hz = 0
        self.channels: list[str] = []

    def __iter__(self) -> Iterator[Decoded]:
        resampler, seen, layout = None, None, None
        for frame in self._frames:
            kind = (frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)
            if layout is None:
                layout, self.rate_hz = frame.layout, frame.sample_rate
                self.channels = [channel.name for channel in layout.channels]
            if kind != seen:
                resampler, seen = av.AudioResampler(format="flt", layout=layout, rate=self.rate_hz), kind
            assert resampler is not None
            pts_s = frame.pts * frame.time_base if frame.pts is not None else None
            length = _stated_length(frame)
            frame.pts = None
            for part in resampler.resample(frame):
                samples = part.to_ndarray().reshape(-1, len(self.channels))
                if not np.isfinite(samples).all():
                    np.nan_to_num(samples, copy=False)
                yield Decoded(samples[:length], pts_s)
                pts_s = None


def _stated_length(frame: Any) -> int | None:
    """Samples of the frame that are meant to be heard, where the container counts in samples and says fewer than came.

    Block codecs pad their last frame; MP4 states its true length in the packet's duration.
    """
    if frame.duration and frame.time_base == Fraction(1, frame.sample_rate) and frame.duration < frame.samples:
        return int(frame.duration)
    return None


@dataclass
class Placement:
    """What was needed to put packets where their timestamps say."""

    start_s: Fraction | None = None
    num_samples: int = 0
    gap_s: float = 0.0
    """Silence inserted in holes."""
    overlap_s: float = 0.0
    """Sound dropped because two packets claim the same time."""


def placed(frames: FloatFrames, report: Placement) -> Iterator[np.ndarray]:
    """Blocks of float32 [n, channels] that join without a break; holes are silence, overlaps lose their later half.

    A frame is moved only if it *and* the median of the frames after it disagree with the running count by more than
    GAP_TOLERANCE_S: jitter of single timestamps therefore neither tears nor stretches the sound.
    """
    waiting: deque[tuple[int | None, np.ndarray]] = deque()
    counted = 0  # native samples that precede the newest waiting frame if nothing is missing
    shift = 0  # samples inserted (or dropped, if negative) so far

    def release() -> Iterator[np.ndarray]:
        nonlocal shift
        rate_hz = frames.rate_hz
        offset, samples = waiting[0]
        known = [o for o, _ in waiting if o is not None]
        if offset is not None:
            tolerance = GAP_TOLERANCE_S * rate_hz
            middle = sorted(known)[len(known) // 2]
            if abs(offset - shift) > tolerance and abs(middle - shift) > tolerance:
                step = offset - shift
                if abs(step) > MAX_GAP_S * rate_hz:
                    raise broken_clock(f"The sound's clock jumps by {step / rate_hz:.0f} s.")
                if step > 0:
                    report.gap_s += step / rate_hz
                    check_gaps(report.gap_s, report.num_samples / rate_hz + step / rate_hz - report.gap_s, EARLY_GAPS_S)
                    for done in range(0, step, BLOCK_SAMPLES):
                        yield np.zeros((min(BLOCK_SAMPLES, step - done), samples.shape[1]), np.float32)
                    shift += step
                else:
                    dropped = min(-step, len(samples))
                    report.overlap_s += dropped / rate_hz
                    samples = samples[dropped:]
                    shift -= dropped
        waiting.popleft()
        if len(samples):
            yield samples

    for frame in frames:
        if report.start_s is None:
            report.start_s = frame.pts_s if frame.pts_s is not None else Fraction(0)
        offset = None if frame.pts_s is None else round((frame.pts_s - report.start_s) * frames.rate_hz) - counted
        counted += len(frame.samples)
        waiting.append((offset, frame.samples))
        if len(waiting) >= GAP_CONFIRM_FRAMES:
            yield from _count(release(), report)
    while waiting:
        yield from _count(release(), report)
    if report.gap_s:
        check_gaps(report.gap_s, report.num_samples / frames.rate_hz - report.gap_s)


def check_gaps(gap_s: float, sound_s: float, early_s: float = 0.0) -> None:
    """Raises MediaError where holes are out of all proportion to the sound between them."""
    if gap_s > max(FREE_GAPS_S, GAPS_TO_SOUND * sound_s) + early_s:
        raise broken_clock(f"{gap_s:.0f} s without any packet of sound lie between {max(0.0, sound_s):.1f} s of it.")


def broken_clock(what: str) -> MediaError:
    """The error of a file whose times cannot be true."""
    return MediaError(
        what,
        reason="broken_timestamps",
        remedy="Remux the file, for instance by splitting it where recordings were joined.",
    )


def _count(blocks: Iterator[np.ndarray], report: Placement) -> Iterator[np.ndarray]:
    for block in blocks:
        report.num_samples += len(block)
        yield block


class ChannelStatistics:
    """Power of each channel and of any mix of them, accumulated over blocks."""

    def __init__(self) -> None:
        self.products: np.ndarray | None = None

    def add(self, block: np.ndarray) -> None:
        """Adds float32 [n, channels]."""
        wide = block.astype(np.float64)
        product = wide.T @ wide
        self.products = product if self.products is None else self.products + product

    def mono_weights(self, channels: list[str]) -> np.ndarray:
        """Weights [channels] of the mono mix, see `default_mono_weights`, corrected by what the channels hold.

        Silent channels are left out; if the rest cancels out (phase inverted), the loudest channel stands alone.
        """
        weights = default_mono_weights(channels)
        assert self.products is not None
        power = np.diag(self.products)
        if power.max(initial=0.0) <= 0:
            return weights
        loudest: np.ndarray = np.eye(len(channels))[int(np.argmax(power))]
        active = np.where(power > SILENT_RATIO * power.max(), weights, 0.0)
        if active.sum() <= 0:
            return loudest
        active /= active.sum()
        mixed, unrelated = active @ self.products @ active, (active**2 * power).sum()
        return loudest if mixed < CANCEL_RATIO * unrelated else active


def default_mono_weights(channels: list[str]) -> np.ndarray:
    """BS.775 weights [channels] of a mono mix, summing to 1; equal weights for mono and unnamed layouts."""
    if len(channels) <= 2 or "FC" not in channels:
        return np.full(len(channels), 1.0 / len(channels))
    weights = np.array([BS775_WEIGHTS.get(name, SURROUND_WEIGHT) for name in channels])
    mixed: np.ndarray = weights / weights.sum()
    return mixed


def stereo_weights(channels: list[str]) -> np.ndarray:
    """Weights [channels, 2] of a stereo mix, each column summing to at most 1: mono is copied, stereo kept."""
    if len(channels) == 1:
        return np.ones((1, 2))
    if len(channels) == 2:
        return np.eye(2)
    sides = np.zeros((len(channels), 2))
    for row, name in enumerate(channels):
        if name.startswith("LFE"):
            continue
        left, right = name.endswith("L"), name.endswith("R")
        level = 1.0 if name in ("FL", "FR") else 0.7071
        sides[row] = (0.0 if right else level, 0.0 if left else level)
    mixed: np.ndarray = sides / np.maximum(sides.sum(0), 1e-9).max()
    return mixed


class Channels(Protocol):
    """What sound has, known with its first block."""

    @property
    def rate_hz(self) -> int:
        """Samples a second."""
        ...

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        ...


class Mixable(Channels, Protocol):
    """Sound that may come of several microphones."""

    @property
    def is_tracks(self) -> bool:
        """Whether the channels are these, rather than sides of one."""
        ...


def resampled(blocks: Iterator[np.ndarray], frames: Channels, rate_hz: int | None) -> Iterator[np.ndarray]:
    """Blocks float32 [n, channels] at `rate_hz`, sample 0 at the same instant as before (libswresample, default filter).

    None keeps the rate of `frames`.
    """
    resampler, layout = None, ""
    for block in blocks:
        if rate_hz in (None, frames.rate_hz):
            yield block
            continue
        if resampler is None:
            layout = f"{block.shape[1]}c" if block.shape[1] > 2 else ("mono", "stereo")[block.shape[1] - 1]
            resampler = av.AudioResampler(format="flt", layout=layout, rate=rate_hz)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block, np.float32).reshape(1, -1), format="flt", layout=layout
        )
        frame.sample_rate = frames.rate_hz
        yield from _arrays(resampler.resample(frame), block.shape[1])
    if resampler is not None:
        yield from _arrays(resampler.resample(None), len(av.AudioLayout(layout).channels))


def _arrays(frames: Any, channels: int) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame.to_ndarray().reshape(-1, channels)


class Mixer:
    """Mixes native channels to the wanted number, and learns on the way whether the mix was a good one."""

    def __init__(self, frames: Mixable, channels: int | None, weights: np.ndarray | None) -> None:
        self.frames, self.channels, self.weights = frames, channels, weights
        self.is_one = channels == 1 or (channels is not None and frames.is_tracks)
        """Whether all is mixed to one, which each of `channels` then holds."""
        self.statistics = ChannelStatistics()

    def mix(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks float32 [n, channels out] from blocks [n, native channels]."""
        for block in blocks:
            if self.weights is None:
                self.weights = self._default()
            if self.is_one and block.shape[1] > 1:
                self.statistics.add(block)
            yield block @ self.weights.astype(np.float32)

    def better_weights(self) -> np.ndarray | None:
        """Mono weights to mix with instead, now that all channels were heard; None if these were right."""
        if self.statistics.products is None or self.weights is None:
            return None
        better = self._spread(self.statistics.mono_weights(self.frames.channels))
        return None if np.allclose(better, self.weights) else better

    def _default(self) -> np.ndarray:
        names = self.frames.channels
        if self.is_one:
            return self._spread(default_mono_weights(names))
        return stereo_weights(names) if self.channels == 2 else np.eye(len(names))

    def _spread(self, weights: np.ndarray) -> np.ndarray:
        return np.repeat(weights[:, None], self.channels or 1, axis=1)
