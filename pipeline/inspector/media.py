"""Media of clips for the page: bytes of packed ones where they lie, all others cut when they are asked for.

What is cut, and pictures of clips, are kept in the cache folder, the least used going first. Files are opened by the door to
media alone, in its child process with its limits, and never more than `WORKERS` at once.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inspector.session import RunView
from pipeline.store import RunDir
from schemas.errors import MediaError
from schemas.files import write_whole
from schemas.records import Clip
from schemas.scratch import Scratch
from schemas.shard import SOUND_RATE_HZ

WORKERS = 2
CACHE_BYTES = 2_000_000_000
POSTER_PX = 320
POSTER_S = Fraction(1, 4)
"""Stretch in which a picture is looked for."""
PEAKS_PER_S = 100
MOST_PEAKS = 1_400
"""Pairs, so that an answer stays below 4 kB however long the clip is."""
CHUNK_BYTES = 1 << 18
FAILED_S = 10.0
"""How long what failed is not tried again."""
PICTURE, SOUND = "mp4", "flac"
KINDS = {PICTURE: "video/mp4", SOUND: "audio/flac"}


@dataclass(frozen=True)
class Blob:
    """Bytes that can be served: a stretch of a file below the run, or a file of the cache."""

    name: str
    """Entry of the run's folder, or path of the cache's file."""
    offset: int
    num_bytes: int
    kind: str
    etag: str
    run: RunDir | None
    """None: a file of the cache."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, counted from the beginning of the blob."""
        opened = open(self.name, "rb") if self.run is None else self.run.open(self.name)  # noqa: SIM115 closed below
        with opened as file:
            file.seek(self.offset + start)
            left = end - start
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk


def packed_blob(view: RunView, clip_id: str, member: str) -> Blob | None:
    """A member of a packed clip; None where the clip is in no shard, or the shard is not a file below the run."""
    packed = view.packed
    place = None if packed is None else packed.find(clip_id, (PICTURE, SOUND))
    if packed is None or place is None:
        return None
    name = f"shards/{place.shard}" + ("" if place.shard.endswith(".tar") else ".tar")
    if view.run.dir.is_local and not _is_below(Path(view.run.dir.root), name):
        return None
    offset, num_bytes = place.members[member]
    return Blob(name, offset, num_bytes, KINDS[member], f"{place.crc32:08x}-{member}", view.run.dir)


def _is_below(root: Path, name: str) -> bool:
    """Whether an entry is a file inside a folder once all links are followed."""
    path = (root / name).resolve()
    return path.is_relative_to(root.resolve()) and path.is_file()


class MediaShelf:
    """Media that are made when they are asked for, and kept. Safe to use from many threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="media")
        self._jobs: dict[str, tuple[Future[Path], float]] = {}
        self._lock = threading.RLock()
        self._local = threading.local()

    def cut(self, clip: Clip, member: str, view: RunView) -> Future[Path]:
        """The clip as it was measured, cut out of its asset; both members are made together."""
        name = f"{clip.clip_id}.{member}"
        return self._made(name, lambda path: self._cut(clip, path.with_name(clip.clip_id), view), group=clip.clip_id)

    def poster(self, clip: Clip, view: RunView) -> Future[Path]:
        """A JPEG of the clip's middle, at most `POSTER_PX` wide."""
        return self._made(f"{clip.clip_id}.jpg", lambda path: write_whole(path, self._picture(clip, view)))

    def peaks(self, clip: Clip, view: RunView) -> Future[Path]:
        """Least and greatest sample of stretches of the clip's sound, as JSON."""

        def make(path: Path) -> None:
            blob = packed_blob(view, clip.clip_id, SOUND)
            if blob is None:
                made = path.with_name(f"{clip.clip_id}.{SOUND}")
                if not made.exists():
                    self._cut(clip, path.with_name(clip.clip_id), view)
                data = made.read_bytes()
            else:
                data = b"".join(blob.read(0, blob.num_bytes))
            write_whole(path, json.dumps(peaks_of(data)).encode())

        return self._made(f"{clip.clip_id}.json", make)

    def blob(self, path: Path) -> Blob:
        """A made file, for serving."""
        stat = path.stat()
        kind = KINDS.get(path.suffix[1:], "image/jpeg")
        return Blob(str(path), 0, stat.st_size, kind, f"{stat.st_size:x}-{stat.st_mtime_ns:x}", None)

    def close(self) -> None:
        """Lets nothing new begin."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _made(self, name: str, make: Callable[[Path], None], group: str | None = None) -> Future[Path]:
        """The file of this name, once it is there; whoever asks meanwhile waits for the same one."""
        path = self.folder / name
        with self._lock:
            job, ended = self._jobs.get(group or name, (None, 0.0))
            if job is not None and (not job.done() or time.monotonic() < ended + FAILED_S):
                return _then(job, path)
            if path.exists():
                os.utime(path)
                done: Future[Path] = Future()
                done.set_result(path)
                return done

            def run() -> Path:
                self.folder.mkdir(parents=True, exist_ok=True)
                make(path)
                self._shrink()
                return path

            job = self._pool.submit(run)
            self._jobs[group or name] = job, 0.0
            job.add_done_callback(lambda done: self._ended(group or name, done))
            return job

    def _ended(self, name: str, job: Future[Path]) -> None:
        """Forgets a job; one that failed is remembered for a while, so that whoever asks again is told."""
        has_failed = job.cancelled() or job.exception() is not None
        with self._lock:
            now = time.monotonic()
            self._jobs = {each: told for each, told in self._jobs.items() if not 0.0 < told[1] < now - FAILED_S}
            if has_failed:
                self._jobs[name] = job, now
            else:
                self._jobs.pop(name, None)

    def _shrink(self) -> None:
        """Removes what was not asked for longest until the rest fits."""
        files = sorted(((stat := path.stat()).st_mtime, stat.st_size, path) for path in self.folder.iterdir())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= CACHE_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _decoder(self, view: RunView) -> Any:
        """The decoder of this thread."""
        from stages.media.decoder import Decoder

        if not hasattr(self._local, "decoder"):
            self._local.scratch = Scratch("inspect")
            self._local.decoder = Decoder(self._local.scratch.name, view.run.recipe.decoder)
        return self._local.decoder

    def _cut(self, clip: Clip, stem: Path, view: RunView) -> None:
        import soundfile  # type: ignore[import-untyped]

        from stages.media.cutting import cut_clip

        path = asset_file(clip)
        with Scratch("inspect") as folder:
            out = Path(folder, f"made.{PICTURE}")
            report = cut_clip(path, clip.span, out, decoder=self._decoder(view))
            sound = np.zeros((0, 2), np.float32) if report.sound is None else report.sound
            heard = io.BytesIO()
            soundfile.write(heard, sound, SOUND_RATE_HZ, format="FLAC", subtype="PCM_16")
            write_whole(stem.with_suffix(f".{SOUND}"), heard.getvalue())
            write_whole(stem.with_suffix(f".{PICTURE}"), out.read_bytes())

    def _picture(self, clip: Clip, view: RunView) -> bytes:
        from PIL import Image

        middle = clip.span.start + clip.span.duration / 2
        decoder = self._decoder(view)
        blob = packed_blob(view, clip.clip_id, PICTURE)
        if blob is None:
            path, base = asset_file(clip), Fraction(0)
        else:
            path, base = Path(self._local.scratch.name, f"poster.{PICTURE}"), clip.span.start
            path.write_bytes(b"".join(blob.read(0, blob.num_bytes)))
        try:
            frames = decoder.frames(path, start=middle - base, end=middle - base + POSTER_S, long_side_px=POSTER_PX)
        except MediaError:
            whole = clip.span.start - base, clip.span.end - base
            frames = decoder.frames(path, start=whole[0], end=whole[1], long_side_px=POSTER_PX, max_fps=1.0)
        out = io.BytesIO()
        Image.fromarray(frames.images[0]).save(out, "JPEG", quality=80)
        return out.getvalue()


def asset_file(clip: Clip) -> Path:
    """The local file of a clip's asset, as it was measured. Raises MediaError where there is none."""
    text = clip.asset.path
    if "://" in text:
        raise MediaError(
            "The source lies on an object store, and only local ones are cut for this page.", reason="asset_remote"
        )
    path = Path(text)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MediaError(
            f"The source is not at '{path}' any more ({error.strerror}).", reason="asset_missing"
        ) from error
    if size != clip.asset.num_bytes:
        raise MediaError(
            f"'{path.name}' has changed since it was measured: {clip.asset.num_bytes} bytes then, {size} now.",
            reason="source_changed",
        )
    return path


def peaks_of(flac: bytes) -> dict[str, Any]:
    """Sound as int8 pairs (least, greatest) at a fixed rate, base64, for the waveform."""
    import soundfile

    sound, rate = soundfile.read(io.BytesIO(flac), dtype="float32", always_2d=True)
    pairs = peaks(np.ascontiguousarray(sound.T).mean(axis=0), rate)  # ten times as fast as over pairs, to the same bits
    return {
        "schema": 1,
        "duration_s": len(sound) / rate,
        "num_pairs": len(pairs),
        "peaks": base64.b64encode(pairs.tobytes()).decode(),
    }


def peaks(sound: NDArray[np.float32], rate_hz: int) -> NDArray[np.int8]:
    """Int8 [num_pairs, 2] of float32 [n], full scale being 127."""
    if not len(sound):
        return np.zeros((0, 2), np.int8)
    num = min(MOST_PEAKS, max(1, round(len(sound) / rate_hz * PEAKS_PER_S)), len(sound))
    starts = np.linspace(0, len(sound), num, endpoint=False).astype(np.int64)
    found = np.stack([np.minimum.reduceat(sound, starts), np.maximum.reduceat(sound, starts)], axis=1)
    pairs: NDArray[np.int8] = np.clip(np.rint(found * 127), -127, 127).astype(np.int8)
    return pairs


def waited(job: Future[Path], seconds: float) -> Path | None:
    """What a job has made within this time; None while it is at it. Raises what it raised."""
    try:
        return job.result(seconds)
    except TimeoutError:
        return None


def _then(job: Future[Path], path: Path) -> Future[Path]:
    """`path`, as soon as the job that makes it among others is done."""
    found: Future[Path] = Future()

    def passed(done: Future[Path]) -> None:
        error = done.exception()
        if error is None:
            found.set_result(path)
        else:
            found.set_exception(error)

    job.add_done_callback(passed)
    return found
