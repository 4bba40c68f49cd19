"""Pictures and sound of a file, decoded in a child process that can be killed. The only place where media is read.

A decoder is driven by untrusted bytes: it may crash, hang or ask for any amount of memory. It therefore runs in a
child with an address-space limit and a time limit after which it is killed; a broken file costs itself and nothing
else. Pictures come back through memory that both share, other arrays through mapped files in the worker's scratch folder.

All times are on the asset clock: the container's own clock after edit lists, as exact fractions of a second.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from pydantic import Field, field_validator

from schemas.errors import ItemError, MachineError, MediaError
from schemas.machine import is_trouble
from schemas.recipe import RecipePart
from schemas.spans import SPEECH_RATE_HZ
from stages.child import Child, ChildDiedError, ChildError, ChildTimeoutError
from stages.media.shared import FRAMES_DECODED, PixelFormat, Shared
from stages.media.waveform import KeptSounds, Waveform, mapped
from stages.objects import at_store, fetch

MAX_PIXELS = 7680 * 4320
"""Largest frame accepted: 8K UHD."""
RETIRE_GB = 1.2
"""Memory a child may have touched before another takes over: libav gives back not all it took, and after half an hour
of different files a child held 3.4 GB. One ordinary file needs 0.2 to 0.6 GB."""
FileIdentity = tuple[str, int, int]
"""Path, bytes, time of the last change in ns."""
STORED_PART = 4
"""Sound is stored as it is in a quarter of its scratch: three times as much is left for the forms that are made of it."""
KEPT_REMOTE_FILES = 2
"""Remote assets kept in scratch at a time."""


class DecoderConfig(RecipePart):
    """Who decodes frames, and within which limits; a file that exceeds one costs itself and nothing else."""

    engine: Literal["pyav", "decord"] = "pyav"
    """pyav: exact on everything libav reads, and salvages damaged files.

    decord: less processor time for frames far apart, more for all of them (docs/decoding.md), where it can be exact: upright
    H.264 of square pixels in MP4, MOV and Matroska; all else is still decoded by pyav. It knows frame numbers only, so
    times come from the container, and damage is an error. Some ordinary files make it spin until `timeout_s`.
    """
    memory_gb: float = Field(default=4.0, gt=0)
    """Address space of the decoder's process."""
    timeout_s: float = Field(default=600.0, gt=0)
    """How long a request may stand still before its process is killed; one that makes progress may take its time."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Larger frames are refused."""
    scratch_gb: float = Field(default=48.0, gt=0)
    """Disk that the sound of one asset may take, as float32 in all forms that stages ask for: 48 GB are some 16 h of stereo.

    Up to a quarter of it holds the sound as it is, so that it is decoded once; longer sound is decoded for each form.
    """
    audio_languages: tuple[str, ...] = ()
    """Languages of the sound to use, best first, as files tag it (`[eng, en]`); it is taken before any flag. Files in which no
    track has one of them are heard as if nothing were set: probe.audio_language tells."""

    @field_validator("engine")
    @classmethod
    def _is_installed(cls, engine: str) -> str:
        if engine == "decord" and find_spec("decord") is None:
            raise ValueError("decord is not installed: pip install decord, or use engine: pyav")
        return engine


@dataclass
class Frames:
    """Upright pictures with square pixels, in display order."""

    images: np.ndarray
    """uint8 [n, height, width, 3] RGB, or as `Look.format` says."""
    pts: np.ndarray
    """int64 [n], in units of num/den seconds."""
    end_pts: int
    """pts at which the frame after the last one begins."""
    num: int
    den: int
    is_damaged: np.ndarray
    """bool [n]: known to come from damaged data, or after such a frame with no whole key frame between."""

    @property
    def times_s(self) -> np.ndarray:
        """float64 [n]: when each frame begins on the asset clock, for computing; the pts are exact."""
        return self.pts * (self.num / self.den)


class Look(TypedDict, total=False):
    """Which frames, and how they are to look."""

    start: Fraction | None
    end: Fraction | None
    """Exact instants, half open; None: from the beginning, to the end."""
    long_side_px: int | None
    """Only ever shrinks."""
    size: tuple[int, int] | None
    """(width, height)."""
    format: PixelFormat
    """rgb24 [height, width, 3], gray [height, width], or yuv420p [height x 3/2, width], its planes one below the other."""
    max_fps: float | None
    """Leaves frames out on a regular time grid."""


class Decoder:
    """Reads media files, each request in a child process with limits. One per worker; safe to use from one thread."""

    def __init__(
        self, scratch_dir: Path | str, config: DecoderConfig = DecoderConfig(), retire_gb: float = RETIRE_GB
    ) -> None:
        self.scratch_dir = Path(scratch_dir)
        self.engine, self.max_pixels = config.engine, config.max_pixels
        self.memory_gb, self.timeout_s = config.memory_gb, config.timeout_s
        self.scratch_gb, self.audio_languages = config.scratch_gb, config.audio_languages
        self.retire_gb = retire_gb
        self.cpu_s = 0.0
        """Processor time of the children so far."""
        self.ended_cpu_s = 0.0
        """Of those that were ended: the system has told it to this process as its ended children's."""
        self.frames_decoded = 0
        """Pictures they decoded so far, whatever for."""
        self._idle: list[_DecoderChild] = []
        self._sounds = KeptSounds()
        self._remote: dict[str, Path] = {}
        self._serial = 0
        weakref.finalize(self, _kill_all, self._idle)

    def close(self) -> None:
        """Ends the idle child and forgets the sound it keeps."""
        _kill_all(self._idle)
        self._sounds.forget()

    def localise(self, path_or_url: str | Path) -> Path:
        """A local path to `path_or_url`; URLs of the run's store are fetched into scratch, the last two are kept.

        Raises MediaError("asset_unreachable") where there is no such object, and MachineError where the store is away.
        """
        text = str(path_or_url)
        if "://" not in text:
            return Path(text)
        if text.startswith("file://"):
            return Path(text.removeprefix("file://"))
        if text in self._remote and self._remote[text].exists():
            return self._remote[text]
        name = hashlib.sha256(text.encode()).hexdigest()[:16] + Path(text.partition("?")[0]).suffix
        target = self._scratch(f"remote-{name}")
        self._remote.pop(text, None)
        try:
            at_store(text, lambda: fetch(text, target))
            self._remote[text] = target
        except FileNotFoundError as error:
            raise MediaError(f"'{text}' is not there any more.", reason="asset_unreachable") from error
        finally:
            if text not in self._remote:
                target.unlink(missing_ok=True)
        while len(self._remote) > KEPT_REMOTE_FILES:
            self._remote.pop(next(iter(self._remote))).unlink(missing_ok=True)
        return target

    def probe(
        self,
        path: Path | str,
        *,
        decode: bool = True,
        picture: dict[str, Any] | None = None,
        keeps_sound: bool = False,
    ) -> dict[str, Any]:
        """The probe stage's struct for `path`; with `decode` False damage is only what the container admits.

        `picture` is what `watch` returned, where the picture was decoded already. With `keeps_sound` the sound, which is decoded
        for this, is what `audio` makes its answers of, unless it takes more than a quarter of `scratch_gb`.
        """
        room: dict[str, Any] = {}
        if decode and keeps_sound:
            self._sounds.turn_to(identity_of(path))
            room = {"out": str(self._scratch("sound")), "most_bytes": self._room() // STORED_PART}
        told = self.ask(
            "probe",
            path=str(path),
            decode=decode,
            max_pixels=self.max_pixels,
            languages=self.audio_languages,
            picture=picture,
            **room,
        )
        if told["sound"]:
            self._sounds.store(told["sound"])
        elif room:
            Path(room["out"]).unlink(missing_ok=True)
        asset: dict[str, Any] = told["asset"]
        return asset

    def audio(
        self,
        path: Path | str,
        *,
        rate_hz: int | None = SPEECH_RATE_HZ,
        mono: bool = True,
        channels: int | None = None,
        stream: int | None = None,
        is_kept: bool = True,
    ) -> Waveform:
        """The whole sound of `path`, from `stream` or the one `probe` chooses; cached for the last asset if `is_kept`.

        Mono is mixed after ITU-R BS.775 with the centre in full; silent channels are left out and where channels
        cancel each other the loudest stands alone. `mono=False` keeps the file's channels, `channels=2` makes stereo
        of any layout; `rate_hz=None` keeps the file's rate. Raises MediaError("no_audio") if there is no sound.
        """
        channels = channels or (1 if mono else None)
        if not is_kept:
            return self._audio(path, rate_hz, channels, stream)
        self._sounds.turn_to(identity_of(path))
        kept, form = self._sounds.forms, (rate_hz, channels, stream)
        if form not in kept:
            kept[form] = self._audio(path, *form, None if stream is not None else self._sounds.stored)
        return kept[form]

    def _room(self) -> int:
        """Bytes of scratch that sound may still take."""
        return int(self.scratch_gb * 1e9) - self._sounds.num_bytes

    def _audio(
        self,
        path: Path | str,
        rate_hz: int | None,
        channels: int | None,
        stream: int | None,
        stored: dict[str, Any] | None = None,
    ) -> Waveform:
        out = self._scratch("sound")
        try:
            wanted = {"rate_hz": rate_hz, "channels": channels, "stream": stream, "languages": self.audio_languages}
            told = self.ask(
                "audio",
                path=str(path),
                out=str(out),
                wanted=wanted | {"most_bytes": self._room()},
                max_pixels=self.max_pixels,
                stored=stored,
            )
            samples = mapped(out, np.float32, told["shape"])
        finally:
            out.unlink(missing_ok=True)
        if channels == 1:
            samples = samples[:, 0]
        return Waveform(samples, told["rate_hz"], Fraction(told["start"]))

    def frames(self, path: Path | str, **look: Unpack[Look]) -> Frames:
        """All frames with start <= time < end, as `iter_frames` gives them, in one array.

        Raises MediaError("no_frames") if there are none and MediaError("too_many_frames") if they would need more
        than half of the decoder's memory limit.
        """
        runs: list[Frames] = []
        budget = int(self.memory_gb * 2**30 / 2)
        for run in self.iter_frames(path, **look):
            runs.append(replace(run, images=run.images.copy()))
            budget -= run.images.nbytes
            if budget < 0:
                raise MediaError(
                    f"The frames of '{Path(path).name}' need more than {self.memory_gb / 2:.1f} GB at once.",
                    reason="too_many_frames",
                    remedy="Ask for a shorter stretch or smaller pictures, or use iter_frames.",
                )
        if not runs:
            raise MediaError(f"No frame of '{Path(path).name}' lies in the stretch asked for.", reason="no_frames")
        images, pts, is_damaged = (
            np.concatenate([getattr(run, name) for run in runs]) for name in ("images", "pts", "is_damaged")
        )
        return replace(runs[-1], images=images, pts=pts, is_damaged=is_damaged)

    def iter_frames(self, path: Path | str, *, chunk: int = 64, **look: Unpack[Look]) -> Generator[Frames]:
        """Runs of up to `chunk` frames, whose images are there until the next run is asked for.

        Frames are turned and stretched as a viewer would show them, all to the first frame's size.
        """
        start, end = look.pop("start", None), look.pop("end", None)
        request = {
            "path": str(path),
            "start": None if start is None else str(start),
            "end": None if end is None else str(end),
            "view": look,
            "chunk": chunk,
            "engine": self.engine,
            "max_pixels": self.max_pixels,
        }
        for message, memory in self._request("frames", request):
            if "pts" in message:
                yield _frames(message, message["drawn"][0], memory)

    def watch(
        self, path: Path | str, looks: Sequence[Look], *, chunk: int = 32
    ) -> Generator[tuple[Frames, list[Frames]], None, dict[str, Any]]:
        """All pictures of `path`, decoded once and drawn for every one of `looks`, by runs of up to `chunk`.

        A run is (all of its frames, without images; those of each look), and what it shows is there until the next is asked
        for. In the end it returns what `probe` may be given as `picture`. Looks have no `start` and `end`.
        """
        request = {"path": str(path), "views": list(looks), "chunk": chunk, "max_pixels": self.max_pixels}
        message: dict[str, Any] = {}
        for message, memory in self._request("watch", request):
            if "pts" in message:
                run = _frames(message, None, memory)
                yield run, [_frames(message, drawn, memory) for drawn in message["drawn"]]
        return message

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The child's answer to one request that has no chunks. Raises MediaError."""
        answers = list(self._request(operation, arguments))
        return answers[-1][0]

    def _request(self, operation: str, arguments: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Shared]]:
        """Chunk messages as they come, then the final answer, each with the memory in which it left what it tells of.

        The child is killed if the caller stops early.

        Where a child was killed from outside another is asked, once, and what it says again is left out. Raises MediaError
        for what the file did, and OSError or MachineError for what the machine did (`stages.child`).
        """
        num_given = 0
        try:
            for answer in self._once(operation, arguments):
                num_given += 1
                yield answer
        except MachineError:
            for number, answer in enumerate(self._once(operation, arguments)):
                if number >= num_given:
                    yield answer

    def _once(self, operation: str, arguments: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Shared]]:
        child = self._child()
        name, is_whole = Path(arguments.get("path", "")).name, False
        try:
            for answer in child.request(operation, arguments, self.timeout_s):
                yield answer["chunk"] if "chunk" in answer else answer["done"], child.memory
            is_whole = True
        except ItemError as error:
            raise MediaError(error.message, reason=error.reason, remedy=error.remedy) from None
        except ChildError as error:
            raise _media_error(error, name, self.timeout_s) from None
        finally:
            self.cpu_s += child.cpu_since()
            self.frames_decoded += child.counted_since()[FRAMES_DECODED]
            if child.is_busy or child.has_grown:
                self._end(child)
            else:
                self._idle.append(child)
            if not is_whole and "out" in arguments:
                out = Path(arguments["out"]).name
                for left in (*self.scratch_dir.glob(out), *self.scratch_dir.glob(f"{out}.*")):
                    left.unlink(missing_ok=True)

    def _child(self) -> _DecoderChild:
        """An idle child that still lives, else a new one: whoever ended it in the meantime did not end it over a file."""
        while self._idle:
            child = self._idle.pop()
            if child.exit_status is None:
                return child
            self._end(child)
        return _DecoderChild(self.memory_gb, self.retire_gb, self.scratch_gb)

    def _end(self, child: _DecoderChild) -> None:
        child.kill()
        self.ended_cpu_s += child.cpu_s

    def _scratch(self, name: str) -> Path:
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        self._serial += 1
        return self.scratch_dir / f"{name}-{os.getpid()}-{self._serial}"


class _DecoderChild(Child):
    """The child and the memory in which it leaves pictures."""

    def __init__(self, memory_gb: float, retire_gb: float, scratch_gb: float) -> None:
        self.memory = Shared.new()
        shared = self.memory.descriptor
        limits = {"memory_gb": memory_gb, "retire_gb": retire_gb, "file_gb": scratch_gb}
        super().__init__("stages.media.child", str(shared), shared=(shared,), **limits)

    def kill(self) -> None:
        super().kill()
        self.memory.close()


def _frames(message: dict[str, Any], drawn: dict[str, Any] | None, memory: Shared) -> Frames:
    """The frames of a run that `drawn` shows; all of them, without images, for None."""
    pts = np.array(message["pts"], np.int64)
    is_damaged = np.zeros(len(pts), np.bool_)
    is_damaged[message["damaged"]] = True
    images = np.zeros((len(pts), 0), np.uint8)
    if drawn is not None:
        images = memory.view(drawn["at"], tuple(drawn["shape"]))
        pts, is_damaged = pts[drawn["frames"]], is_damaged[drawn["frames"]]
    num, den = message["time_base"]
    return Frames(images, pts, message["end_pts"], num, den, is_damaged)


def _kill_all(children: list[_DecoderChild]) -> None:
    while children:
        children.pop().kill()


def _media_error(error: ChildError, name: str, timeout_s: float) -> MediaError:
    """What became of the file `name`, as the ledger shall know it."""
    if isinstance(error, ChildTimeoutError):
        return MediaError(
            f"Decoding '{name}' took longer than {timeout_s:g} s and was stopped.",
            reason="decode_timeout",
            remedy="Raise decoder.timeout_s in the recipe if the file is that long.",
        )
    if isinstance(error, ChildDiedError):
        last = f": {error.last_line}" if error.last_line else ""
        return MediaError(f"The decoder {error.how} while working on '{name}'{last}.", reason="decoder_crashed")
    return MediaError(
        "Decoding needs more memory than allowed.",
        reason="decode_memory",
        remedy="Raise decoder.memory_gb in the recipe if the file is worth it.",
    )


def identity_of(path: Path | str) -> FileIdentity:
    """What tells a file from what it was before. Raises MediaError if it cannot be read."""
    try:
        stat = os.stat(path)
    except OSError as error:
        if is_trouble(error):
            raise
        raise MediaError(f"'{path}' cannot be read: {error.strerror}.", reason="file_missing") from error
    return str(path), stat.st_size, stat.st_mtime_ns
