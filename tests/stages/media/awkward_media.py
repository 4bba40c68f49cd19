"""Small media files with something awkward about them, made on the spot."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS = 25


@dataclass(frozen=True)
class Film:
    """A picture in which one bright bar moves on grey of a given level."""

    size: tuple[int, int] = (96, 64)
    codec: str = "mpeg2video"
    sar: Fraction = Fraction(1)
    level: int = 90
    num: int = 25
    starts: Sequence[int] = (0,)
    """Seconds at which the clock stands when it begins, and after equal parts of the frames."""


@dataclass(frozen=True)
class Track:
    """A tone, or silence at 0 Hz."""

    tone_hz: float
    rate_hz: int = 48_000
    channels: int = 1
    codec: str = "pcm_s16le"
    seconds: float = 1.0
    flags: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    starts: Sequence[float] = (0,)
    """As for `Film`."""


def write(path: Path, films: Sequence[Film], tracks: Sequence[Track], **options: str) -> Path:
    """`path`, in the container that its suffix says, packets in the order of time."""
    with av.open(str(path), "w", options=options) as out:
        streams: list[tuple[Any, Any]] = []
        for film in films:
            stream = out.add_stream(film.codec, rate=FPS)
            stream.width, stream.height = film.size
            stream.pix_fmt = "yuvj420p" if film.codec == "mjpeg" else "yuv420p"
            stream.codec_context.sample_aspect_ratio = film.sar
            stream.codec_context.thread_count = 1
            streams.append((stream, _pictures(film, stream.pix_fmt)))
        for track in tracks:
            stream = out.add_stream(track.codec, rate=track.rate_hz, layout="mono" if track.channels == 1 else "stereo")
            stream.metadata.update(track.tags)
            stream.disposition = av.stream.Disposition(track.flags)
            streams.append((stream, _tones(track, stream.codec_context)))
        packets: list[Any] = []
        for stream, frames in streams:
            for frame in frames:
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts if p.dts is not None else p.pts) * p.time_base)):
            out.mux(packet)
    return path


def _pictures(film: Film, pix_fmt: str) -> list[Any]:
    width, height = film.size
    part = film.num // len(film.starts)
    found = []
    for n in range(film.num):
        image = np.full((height * 3 // 2, width), 128, np.uint8)
        image[:height] = film.level
        image[:height, 4 * n % (width - 8) : 4 * n % (width - 8) + 8] = 230
        frame = av.VideoFrame.from_ndarray(image, format="yuv420p").reformat(format=pix_fmt)
        frame.pts, frame.time_base = film.starts[n // part] * FPS + n, Fraction(1, FPS)
        found.append(frame)
    return found


def _tones(track: Track, codec: Any) -> list[Any]:
    num, step = int(track.seconds * track.rate_hz), 1024
    times = np.arange(num) / track.rate_hz
    wave = (0.4 * np.sin(2 * np.pi * track.tone_hz * times) * 32767).astype(np.int16)
    part = math.ceil(num / len(track.starts))
    found = []
    resampler = av.AudioResampler(format=codec.format.name, layout=codec.layout.name, rate=track.rate_hz)
    for begin in range(0, num, step):
        samples = np.repeat(wave[begin : begin + step, None], track.channels, 1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=codec.layout.name)
        frame.sample_rate, frame.time_base = track.rate_hz, Fraction(1, track.rate_hz)
        frame.pts = begin + int(track.starts[begin // part] * track.rate_hz)
        found += resampler.resample(frame)
    return found


def frequency_of(samples: np.ndarray, rate_hz: int) -> float:
    """The loudest tone in float [n], in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate_hz)[int(spectrum.argmax())])


def multiplex(path: Path, programs: Sequence[Path]) -> Path:
    """One transport stream of several, each with PIDs of its own, under one table of programs."""
    lists = [[data[at : at + 188] for at in range(0, len(data), 188)] for data in map(Path.read_bytes, programs)]
    maps = [_map_pid(packets) for packets in lists]
    section = b"".join(struct.pack(">HH", number + 1, 0xE000 | pid) for number, pid in enumerate(maps))
    head = struct.pack(">BHHBBB", 0, 0xB000 | (len(section) + 9), 1, 0xC1, 0, 0) + section
    table = b"\x47\x40\x00\x10\x00" + head + struct.pack(">I", _crc32(head))
    out = [table.ljust(188, b"\xff")]
    rest = [[packet for packet in packets if _pid(packet) != 0] for packets in lists]
    longest = max(map(len, rest))
    for at in range(longest):
        out += [packets[at] for packets in rest if at < len(packets)]
    path.write_bytes(b"".join(out))
    return path


def scrambled(path: Path, pids: Sequence[int], begin: float = 0.0) -> Path:
    """A copy of a transport stream in which packets of `pids` behind `begin` of the file are marked scrambled, and are."""
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(1)
    for at in range(int(len(data) * begin) // 188 * 188, len(data), 188):
        if _pid(data[at : at + 4]) in pids:
            data[at + 3] |= 0x80
            data[at + 8 : at + 188] = noise.integers(0, 256, 180, np.uint8).tobytes()
    out = path.with_name(f"scrambled_{path.name}")
    out.write_bytes(data)
    return out


def _pid(packet: bytes | bytearray) -> int:
    return (packet[1] & 31) << 8 | packet[2]


def _map_pid(packets: Sequence[bytes]) -> int:
    table = next(packet for packet in packets if _pid(packet) == 0)
    return (table[15] & 31) << 8 | table[16]


def _crc32(data: bytes) -> int:
    """Of MPEG-2 sections: not reflected, not inverted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def animated_png(path: Path, width: int, height: int) -> Path:
    """One that says it is so large; its only picture is zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + 3 * width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", 1, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 25, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )
    return path


def wave_file(path: Path, rate_hz: int, channels: int, num: int) -> Path:
    """A header that says so, and zeros."""
    data = bytes(2 * num * channels)
    rate = min(0xFFFFFFFF, rate_hz * 2 * channels)
    head = struct.pack("<IHHIIHH", 16, 1, channels, rate_hz, rate, 2 * channels & 0xFFFF, 16)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    )
    return path
