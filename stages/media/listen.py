"""The sound of a file: which of its tracks are heard, as one, and where it is written. In the decoder's child."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from schemas.errors import MediaError
from stages.child import progress
from stages.media.choose import Chosen, choose, pick
from stages.media.clock import version_at
from stages.media.open import open_media
from stages.media.picture import Damage
from stages.media.sound import BLOCK_SAMPLES, FloatFrames, Mixer, Placement, placed, resampled

HEARD_PEAK = 1e-3
"""60 dB below full scale: a track that never gets louder holds nothing."""
RATES_HZ = (2_000, 768_000)
"""Slowest and fastest sampling in use; a header that says anything else is broken, and slow ones would be hours of nothing."""
MAX_CHANNELS = 64
KNOWN_FILES = 32

Reopen = Callable[[], Any]
_chosen: dict[tuple[Any, ...], tuple[int, ...]] = {}
"""Which streams were chosen by listening."""


@dataclass(frozen=True)
class Sound:
    """Where the samples of a stream were written, and what they are."""

    start_s: Fraction
    rate_hz: int
    channels: int
    num_samples: int


def heard_streams(path: str, languages: Sequence[str], chosen: Chosen | None = None) -> tuple[int, ...]:
    """Indices of the streams of sound that are heard as one: the best of `chosen` in which there is anything to hear.

    Opens the file at `path` where neither is known. Raises MediaError("no_audio") if there is none.
    """
    reopen = partial(open_media, path)
    key = (*version_at(path), *languages)
    if key not in _chosen:
        if chosen is None:
            with reopen() as container:
                return heard_streams(path, languages, choose(container, languages))
        groups = [tuple(s.index for s in group) for group in chosen.audio]
        sounding = (g for g in groups if len(groups) == 1 or any(_sounds(reopen, index) for index in g))
        _chosen[key] = next(sounding, next(iter(groups), ()))
        while len(_chosen) > KNOWN_FILES:
            del _chosen[next(iter(_chosen))]
    if not _chosen[key]:
        raise MediaError("There is no sound that can be decoded.", reason="no_audio")
    return _chosen[key]


def _sounds(reopen: Reopen, index: int) -> bool:
    """Whether anything can be heard in a stream; decodes it until something is."""
    with reopen() as container:
        frames = FloatFrames(container, picked(container, index), Damage())
        return any(float(np.abs(part.samples).max(initial=0.0)) > HEARD_PEAK for part in frames)


def picked(container: Any, index: int) -> Any:
    """The stream of sound `index`. Raises MediaError for sound that no recorder writes."""
    stream = pick(container, "audio", index)
    rate_hz, channels = stream.rate or 0, stream.channels or 0
    if rate_hz and not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise MediaError(
            f"The header says {rate_hz} samples of sound a second, which nothing records.",
            reason="broken_sound",
            remedy="Correct the header, or take the sound out (ffmpeg -an).",
        )
    if channels > MAX_CHANNELS:
        raise MediaError(
            f"The header says {channels} channels of sound; {MAX_CHANNELS} are the limit.",
            reason="broken_sound",
            remedy="Correct the header, or take the sound out (ffmpeg -an).",
        )
    return stream


class HeardSound:
    """The sound of one stream, or of several mono tracks as the channels of one; blocks float32 [n, channels]."""

    def __init__(self, reopen: Reopen, streams: Sequence[int], damage: Damage) -> None:
        self.placement = Placement()
        self.is_tracks = len(streams) > 1
        """Whether the channels are separate microphones rather than sides of one."""
        self._containers = [reopen() for _ in streams]
        self._frames = [FloatFrames(c, picked(c, s), damage) for c, s in zip(self._containers, streams, strict=True)]

    def __enter__(self) -> HeardSound:
        return self

    def __exit__(self, *_: object) -> None:
        for container in self._containers:
            container.close()

    @property
    def start_s(self) -> Fraction:
        """Instant of the first sample; 0 without any."""
        return self.placement.start_s or Fraction(0)

    @property
    def rate_hz(self) -> int:
        """Samples a second; 0 before the first block."""
        return self._frames[0].rate_hz

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        return [f"T{n}" for n in range(len(self._frames))] if self.is_tracks else self._frames[0].channels

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self.is_tracks:
            yield from placed(self._frames[0], self.placement)
            return
        placements = [self.placement, *(Placement() for _ in self._frames[1:])]
        blocks = [placed(frames, told) for frames, told in zip(self._frames, placements, strict=True)]
        firsts = [next(each, None) for each in blocks]
        rate_hz = next((f.rate_hz for f, first in zip(self._frames, firsts, strict=True) if first is not None), 0)
        self._frames[0].rate_hz = rate_hz
        starts = [
            told.start_s or Fraction(0) for told, first in zip(placements, firsts, strict=True) if first is not None
        ]
        begin = min(starts, default=Fraction(0))
        columns = [
            _column(first, rest, frames, rate_hz, (told.start_s or Fraction(0)) - begin)
            for first, rest, frames, told in zip(firsts, blocks, self._frames, placements, strict=True)
        ]
        num = 0
        for block in _beside(columns):
            num += len(block)
            yield block
        self.placement.start_s = begin if starts else None
        self.placement.num_samples = num


@dataclass(frozen=True)
class StoredSound:
    """A `HeardSound` written down, raw float32 [n, channels], of which other forms are made without decoding again."""

    path: str
    start: str
    """Instant of the first sample, an exact fraction."""
    rate_hz: int
    channels: list[str]
    is_tracks: bool

    @property
    def start_s(self) -> Fraction:
        """Instant of the first sample."""
        return Fraction(self.start)

    def __enter__(self) -> StoredSound:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[np.ndarray]:
        samples = np.memmap(self.path, np.float32, "r").reshape(-1, len(self.channels))
        for first in range(0, len(samples), BLOCK_SAMPLES):
            progress()
            yield samples[first : first + BLOCK_SAMPLES]


def _column(
    first: np.ndarray | None, rest: Iterator[np.ndarray], frames: FloatFrames, rate_hz: int, late_s: Fraction
) -> Iterator[np.ndarray]:
    """One track, float32 [n], at `rate_hz`, with silence before it."""
    if first is None:
        return

    def blocks() -> Iterator[np.ndarray]:
        yield first
        yield from rest

    yield np.zeros(round(late_s * rate_hz), np.float32)
    for block in resampled(blocks(), frames, rate_hz):
        yield block[:, 0]


def _beside(columns: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Blocks float32 [n, columns]; a column that ends is silent from there on."""
    waiting = [np.zeros(0, np.float32) for _ in columns]
    is_over = [False] * len(columns)
    while True:
        for number, column in enumerate(columns):
            while not is_over[number] and not len(waiting[number]):
                more = next(column, None)
                is_over[number] = more is None
                waiting[number] = waiting[number] if more is None else more
        sizes = [len(part) for part in waiting if len(part)]
        if not sizes:
            return
        size = min(sizes)
        block = np.zeros((size, len(columns)), np.float32)
        for number, part in enumerate(waiting):
            block[:, number] = part[:size] if len(part) else 0
            waiting[number] = part[size:]
        yield block


@dataclass(frozen=True)
class SoundWanted:
    """How the sound of a file is wanted."""

    rate_hz: int | None
    """None keeps the file's."""
    channels: int | None
    """1 mixes down (BS.775, in a second pass where silent or cancelling channels ask for other weights), 2 gives
    stereo, of mono tracks their mix on both sides, None keeps what the file has."""
    stream: int | None = None
    """None: the one `heard_streams` chooses."""
    languages: Sequence[str] = ()
    most_bytes: int | None = None
    """Of the written samples; None sets no limit."""


def write_sound(
    path: str, out: str, wanted: SoundWanted, max_pixels: int | None = None, stored: StoredSound | None = None
) -> Sound:
    """Writes float32 [n, channels] to `out`, raw. Raises MediaError where there is none or it is too long.

    `stored` is the file's own sound, where somebody has heard it before.
    """

    def hear() -> HeardSound | StoredSound:
        if stored is not None:
            return stored
        streams = heard_streams(path, wanted.languages) if wanted.stream is None else (wanted.stream,)
        return HeardSound(partial(open_media, path, max_pixels=max_pixels), streams, Damage())

    sound, mixer = _write_once(hear, out, wanted)
    better = mixer.better_weights()
    return sound if better is None else _write_once(hear, out, wanted, better)[0]


def _write_once(
    hear: Callable[[], HeardSound | StoredSound], out_path: str, wanted: SoundWanted, weights: np.ndarray | None = None
) -> tuple[Sound, Mixer]:
    count, width, num_bytes = 0, 0, 0
    with hear() as heard, open(out_path, "wb") as out:
        mixer = Mixer(heard, wanted.channels, weights)
        for block in resampled(mixer.mix(iter(heard)), heard, wanted.rate_hz):
            num_bytes += block.size * 4
            if wanted.most_bytes is not None and num_bytes > wanted.most_bytes:
                raise MediaError(
                    f"The sound needs more than the {wanted.most_bytes / 1e9:.3g} GB of scratch that are left for it.",
                    reason="too_long",
                    remedy="Raise decoder.scratch_gb in the recipe if the file is that long, or split it.",
                )
            write_samples(out, block)
            count, width = count + len(block), block.shape[1]
        start_s, rate_hz = heard.start_s, heard.rate_hz
    if not count:
        raise MediaError("No sound could be decoded.", reason="no_sound_decoded")
    return Sound(start_s, wanted.rate_hz or rate_hz, width, count), mixer


def write_samples(out: BinaryIO, block: np.ndarray) -> None:
    """Writes float32, raw; unlike `tofile` it says why a disk takes no more."""
    out.write(np.ascontiguousarray(block, np.float32).data)


def store_sound(heard: HeardSound, out_path: str | None, most_bytes: int) -> StoredSound | None:
    """Listens to all of `heard`, and writes it to `out_path` on the way; None where there is no place for it, or no sound."""
    is_kept = out_path is not None
    with open(out_path or os.devnull, "wb") as out:
        for block in heard:
            is_kept = is_kept and out.tell() + block.size * 4 <= most_bytes
            if is_kept:
                write_samples(out, block)
    if out_path is None or not is_kept or not heard.placement.num_samples:
        return None
    return StoredSound(out_path, str(heard.start_s), heard.rate_hz, heard.channels, heard.is_tracks)
