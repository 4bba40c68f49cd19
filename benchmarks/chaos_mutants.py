"""Media files that are damaged at random, through the decoder as stages use it and through whole runs.

Seeds are generated in the containers and codecs that PyAV writes; a mutant is a seed after one or two mutations, drawn by
its number alone, so that any of them can be made again. What is asked of the product: every mutant is read or refused with
an ItemError, in time and within the decoder's limits; a run settles all of them, its hours add up, and nothing is left.
"""

from __future__ import annotations

import random
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import yaml

import stages
from benchmarks.chaos_kills import RECIPE, STAND_INS, Command
from benchmarks.chaos_watch import folders_left
from pipeline.ask.queries import Run
from pipeline.ask.verify import problems
from pipeline.demo.voice import SAMPLE_RATE_HZ
from pipeline.demo.write import Encoding, encode
from schemas.errors import ItemError
from schemas.records import Level
from stages.media.decoder import Decoder, DecoderConfig

SMALL = Encoding(width_px=96, height_px=64, gop_frames=12)
SEED_S = 1.5
VIDEOS: dict[str, Encoding] = {
    "h264.mp4": SMALL,
    "hevc.mp4": replace(SMALL, video_codec="libx265"),
    "h264.mkv": SMALL,
    "vp9.webm": replace(SMALL, video_codec="libvpx-vp9", audio_codec="libopus"),
    "mpeg4.avi": replace(SMALL, video_codec="mpeg4", audio_codec="libmp3lame"),
    "mpeg2.ts": replace(SMALL, video_codec="mpeg2video", audio_codec="mp2"),
    "mpeg2.mpg": replace(SMALL, video_codec="mpeg2video", audio_codec="mp2"),
    "h264.mov": SMALL,
    "h264.flv": replace(SMALL, audio_codec="libmp3lame"),
}
SOUNDS = {"sound.wav": "pcm_s16le", "sound.flac": "flac", "sound.mp3": "libmp3lame", "sound.ogg": "libopus"}
TAGS = (
    b"mvhd", b"tkhd", b"mdhd", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"elst", b"stsd", b"trun", b"tfhd", b"avcC", b"hvcC",
    b"fmt ", b"data", b"avih", b"strh", b"strf", b"idx1", b"FLV", b"onMetaData", b"OggS", b"fLaC", b"Xing",
    b"\x1a\x45\xdf\xa3", b"\x2a\xd7\xb1", b"\x44\x89", b"\x16\x54\xae\x6b", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x47\x40",
)  # fmt: skip
"""Beginnings of what says how long, how large and where: boxes of MP4, chunks of RIFF, elements of Matroska, packs of MPEG."""
EXTREMES = (0, 1, 0x7F, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LIMIT_S = 40.0
"""Standing still for longer is a hang; an undamaged seed takes a few hundredths of a second."""
MOST_SCRATCH = 256 << 20
"""Bytes in scratch while one mutant of some kilobytes is read, beyond which it is a bomb."""
BATCH = 50
"""Mutants in one run."""
RUN_LIMIT_S = 900.0
Rng = random.Random


class Mutant(NamedTuple):
    """A damaged file."""

    name: str
    """Number, mutations and the seed's name, with its suffix."""
    data: bytes


def flip(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Single bits anywhere."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 5, 50))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def scribble(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Bytes near the beginning or the end, where headers and indexes are."""
    found, reach = bytearray(data), min(len(data), rng.choice((64, 1024)))
    for _ in range(rng.choice((1, 4, 16))):
        at = rng.randrange(reach)
        found[at if rng.random() < 0.6 else len(found) - 1 - at] = rng.randrange(256)
    return bytes(found)


def cut_short(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Only the first part, or only the last."""
    at = rng.randrange(1, len(data))
    return data[at // 2 :] if rng.random() < 0.25 else data[:at]


def lengthen(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Foreign bytes in between, or a part many times."""
    at, size = rng.randrange(len(data)), rng.choice((1, 188, 4096))
    more = rng.randbytes(size) if rng.random() < 0.5 else data[at : at + size] * rng.choice((1, 8, 64))
    return data[:at] + more + data[at:]


def drop(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Without a part, or with zeros for it."""
    at, size = rng.randrange(len(data)), rng.choice((1, 16, 188, 4096))
    gone = data[at : at + size]
    return data[:at] + (bytes(len(gone)) if rng.random() < 0.5 else b"") + data[at + size :]


def exchange(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """Two parts in each other's place."""
    size = max(1, min(rng.choice((16, 512, 4096)), len(data) // 4))
    low = rng.randrange(len(data) - 2 * size + 1)
    high = rng.randrange(low + size, len(data) - size + 1)
    middle = data[low + size : high]
    return data[:low] + data[high : high + size] + middle + data[low : low + size] + data[high + size :]


def exaggerate(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """An extreme number just before or behind a tag; near the beginning where there is none."""
    found = bytearray(data)
    tags = [at + len(tag) for tag in TAGS for at in _places(data, tag)] or [rng.randrange(min(len(data), 2000))]
    for _ in range(rng.choice((1, 1, 3))):
        at = max(0, rng.choice(tags) + rng.choice((-8, *range(0, 40, 2))))
        number = struct.pack(rng.choice((">I", "<I", ">Q", ">H")), rng.choice(EXTREMES) & 0xFFFF)
        if rng.random() < 0.8:
            number = struct.pack(rng.choice((">I", "<I")), rng.choice(EXTREMES))
        found[at : at + len(number)] = number[: max(0, len(found) - at)]
    return bytes(found)


def join(data: bytes, rng: Rng, others: Sequence[bytes]) -> bytes:
    """The beginning of one and the end of another, or one behind another."""
    other = rng.choice(others)
    if rng.random() < 0.4:
        return data + other
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


MUTATIONS: tuple[Callable[[bytes, Rng, Sequence[bytes]], bytes], ...] = (
    flip, scribble, cut_short, lengthen, drop, exchange, exaggerate, exaggerate, join,
)  # fmt: skip


def _places(data: bytes, tag: bytes, most: int = 200) -> Iterator[int]:
    at = data.find(tag)
    while at >= 0 and most:
        yield at
        at, most = data.find(tag, at + 1), most - 1


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of undamaged media of 1.5 s, moving pictures and noise."""
    random_ = np.random.default_rng(0)
    picture = random_.integers(0, 256, (SMALL.height_px, SMALL.width_px, 3), dtype=np.uint8)
    sound = random_.normal(0, 0.1, (int(SEED_S * SAMPLE_RATE_HZ), 1)).astype(np.float32)
    found = {}
    for name, encoding in VIDEOS.items():
        frames = (np.roll(picture, 3 * number, axis=1) for number in range(encoding.frames_in(SEED_S)))
        encode(folder / name, frames, sound, encoding)
        found[name] = (folder / name).read_bytes()
    found["fragmented.mp4"] = _fragmented(folder / "h264.mp4")
    for name, codec in SOUNDS.items():
        _write_sound(folder / name, sound, codec)
        found[name] = (folder / name).read_bytes()
    return found


def _fragmented(path: Path) -> bytes:
    """The same packets as an MP4 that has its index in pieces."""
    import av

    to = path.with_name("fragmented.mp4")
    with av.open(str(path)) as whole, av.open(str(to), "w", options={"movflags": "frag_keyframe+empty_moov"}) as parts:
        streams = {stream.index: parts.add_stream_from_template(stream) for stream in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                parts.mux(packet)
    return to.read_bytes()


def _write_sound(path: Path, sound: np.ndarray, codec: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray((sound.T * 32767).astype(np.int16), format="s16", layout="mono")
        frame.rate, frame.pts = SAMPLE_RATE_HZ, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def mutants(seeds: dict[str, bytes], seed: int, first: int = 0) -> Iterator[Mutant]:
    """Mutants number `first` and on, without end. The same seeds, seed and number give the same bytes."""
    names, bodies, number = list(seeds), list(seeds.values()), first
    while True:
        rng, name = Rng(f"{seed} {number}"), names[number % len(names)]
        chosen = rng.sample(MUTATIONS, 2 if rng.random() < 0.15 else 1)
        data = bodies[number % len(names)]
        for mutation in chosen:
            data = mutation(data, rng, bodies) or b"\0" if len(data) > 16 else data
        yield Mutant(f"{number}-{'-'.join(each.__name__ for each in chosen)}-{name}", data)
        number += 1


@dataclass
class Tried:
    """What came of many mutants. All that is in `bad` is a fault of the product."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Reason, or `read`, of every mutant."""
    bad: list[dict[str, str]] = field(default_factory=list)
    """Mutant, kind of fault, and what was said: `hang`, `exception`, `litter`, `bomb`, `stopped`, `orphan`, `unclear`,
    `lost`, `unsound` (what `nava-curate verify --deep` says, hours that do not add up among it)."""
    slowest_s: float = 0.0

    def fault(self, mutant: str, kind: str, said: object) -> None:
        """Notes one."""
        self.bad.append({"mutant": mutant, "kind": kind, "said": str(said)[:600]})

    def figures(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "tried": self.tried,
            "read": self.outcomes["read"],
            "refused": sum(count for outcome, count in self.outcomes.items() if outcome != "read"),
            "faults": dict(Counter(each["kind"] for each in self.bad)),
            "slowest_s": round(self.slowest_s, 2),
            "outcomes": dict(self.outcomes.most_common()),
            "bad": self.bad,
        }


def through_decoder(each: Iterator[Mutant], num: int, folder: Path, until: float) -> Tried:
    """Probes, watches and listens to `num` mutants, as far as the time `until` (`time.monotonic`) allows."""
    found, scratch = Tried(), folder / "scratch"
    decoder = Decoder(scratch, DecoderConfig(timeout_s=LIMIT_S))
    try:
        for mutant in islice(each, num):
            if time.monotonic() > until:
                break
            path, began = folder / mutant.name, time.monotonic()
            path.write_bytes(mutant.data)
            found.outcomes[_read(decoder, path, mutant.name, found)] += 1
            found.tried += 1
            found.slowest_s = max(found.slowest_s, time.monotonic() - began)
            left = [file.name for file in scratch.iterdir()] if scratch.exists() else []
            if left:
                found.fault(mutant.name, "litter", left)
            path.unlink()
    finally:
        decoder.close()
    return found


def _read(decoder: Decoder, path: Path, name: str, found: Tried) -> str:
    """Reason of the first refusal, or `read`."""
    try:
        decoder.probe(path, decode=False)
        facts: dict[str, Any] = decoder.probe(path)
        if facts["has_video"]:
            for run in decoder.iter_frames(path, long_side_px=64):
                len(run.pts)
        if facts["has_audio"]:
            size = decoder.audio(path).samples.nbytes
            if size > MOST_SCRATCH:
                found.fault(name, "bomb", f"{size / 1e6:.0f} MB of sound")
    except ItemError as error:
        if error.reason == "decode_timeout":
            found.fault(name, "hang", error)
        elif len(str(error).splitlines()) != 1 or "Traceback" in str(error):
            found.fault(name, "unclear", error)
        return error.reason
    except Exception as error:
        found.fault(name, "exception", repr(error))
        return "exception"
    return "read"


def through_runs(each: Iterator[Mutant], num: int, folder: Path, until: float) -> Tried:
    """Whole runs of `BATCH` mutants without Ray, until `num` are through or the time `until` is over."""
    found = Tried()
    with patch.dict(stages.CATALOG):
        exec(STAND_INS)  # what is asked about a run has to know the stages it was made by
        while found.tried < num and time.monotonic() < until:
            batch = folder / f"batch-{found.tried}"
            (batch / "media").mkdir(parents=True)
            for mutant in islice(each, min(BATCH, num - found.tried)):
                (batch / "media" / mutant.name).write_bytes(mutant.data)
                found.tried += 1
            _run(batch, found)
            shutil.rmtree(batch)
    return found


def _run(batch: Path, found: Tried) -> None:
    (batch / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (batch / "sitecustomize.py").write_text(STAND_INS)
    names, began = sorted(path.name for path in (batch / "media").iterdir()), time.monotonic()
    command = Command(batch, batch / "run", is_here=True)
    code = command.wait(RUN_LIMIT_S)
    found.slowest_s = max(found.slowest_s, time.monotonic() - began)
    if code != 0:
        found.fault(names[0], "stopped", f"exit code {code}: {command.said()[0]}")
    elif not command.is_clear(is_killed=False):
        found.fault(names[0], "unclear", command.said()[0])
    for process in command.watch.outlived():
        found.fault(names[0], "orphan", process.command)
    for left in folders_left(command.temporary):
        found.fault(names[0], "litter", left)
    if code == 0:
        _settled(batch / "run", names, found)
    command.clean()


def _settled(out: Path, names: Sequence[str], found: Tried) -> None:
    """Counts what became of every mutant of a run that ended well."""
    run = Run(str(out))
    rows = {Path(row["source.uri"]).name: row for row in run.ledger.rows(Level.ASSET)}
    for name in names:
        if name not in rows:
            found.fault(name, "lost", "not in the ledger")
            continue
        is_error = rows[name]["verdict.status"] == "error"
        reason = rows[name]["verdict.reason"] if is_error else "read"
        found.outcomes[reason] += 1
        if reason in ("unexpected", "worker_crash", "worker_memory", "decode_timeout"):
            found.fault(name, "exception" if reason == "unexpected" else "hang", rows[name]["verdict.message"])
    for problem in problems(run, is_deep=True):
        found.fault(names[0], "unsound", problem)
