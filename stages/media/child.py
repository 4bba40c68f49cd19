"""The decoder's child process: reads one JSON request per line, answers in JSON lines, leaves arrays in files.

Started by `stages.media.decoder` as `python -P -m stages.media.child MEMORY_BYTES RETIRE_BYTES`. It imports av and numpy only,
may not use more address space than it was told, and ends when its parent does. A request ends with a line holding
either `done` or `error`; picture requests send a `chunk` line before each of these and wait for a line on stdin, so
that at most two chunks exist at a time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

PARENT_POLL_S = 2.0

OPERATIONS = {
    "probe": "stages.media.probe:probe",
    "audio": "stages.media.child:audio",
    "frames": "stages.media.child:frames",
    "cut": "stages.media.cut_encode:cut",
    "verify": "stages.media.cut_encode:verify",
}
"""Operation -> `module:function`, called with the request's arguments; a generator yields chunk messages."""

Message = dict[str, Any]


def audio(path: str, out: str, stream: int | None, rate_hz: int | None, channels: int | None) -> Message:
    """Writes the sound of `path` to `out` as raw float32 and returns what is in there."""
    from stages.media.open import open_media
    from stages.media.sound import write_sound

    sound = write_sound(partial(open_media, path), stream, out, rate_hz, channels)
    return {
        "start": ratio(sound.start_s),
        "rate_hz": sound.rate_hz,
        "shape": [sound.num_samples, sound.channels],
        "damaged_packets": sound.damage.packets,
        "gap_s": float(sound.placement.gap_s),
    }


def frames(
    path: str, out: str, start: str | None, end: str | None, view: Message, chunk: int, engine: str, max_pixels: int
) -> Iterator[Message]:
    """Writes runs of frames to `out`.0, `out`.1, ... as raw uint8 and yields a message for each."""
    from stages.media.open import open_media
    from stages.media.picture import Damage, View, chunks, pictures_between

    wanted = View(tuple(view["size"]) if view["size"] else None, view["long_side_px"], view["is_gray"], view["max_fps"])
    first, last = (Fraction(t) if t is not None else None for t in (start, end))
    found = None
    if engine == "decord":
        from stages.media.decord_frames import decord_chunks

        found = decord_chunks(path, first, last, wanted, chunk, max_pixels)
    if found is None:
        stream, shown = pictures_between(partial(open_media, path), None, first, Damage(), max_pixels)
        found = Fraction(stream.time_base), chunks(stream, shown, last, wanted, chunk)
    base, runs = found
    for number, run in enumerate(runs):
        name = f"{out}.{number}"
        run.images.tofile(name)
        yield {
            "file": name,
            "shape": list(run.images.shape),
            "pts": run.pts,
            "end_pts": run.end_pts,
            "num_damaged": run.num_damaged,
            "time_base": ratio(base),
        }


def ratio(value: Fraction) -> str:
    """An exact fraction as text."""
    return f"{value.numerator}/{value.denominator}"


def _serve(requests: Any, answers: Any, retire_bytes: int) -> None:
    """Answers requests one by one; every final answer says whether this process has grown too large to serve another.

    libav gives back not all it took: after half an hour of different files a child held 3.4 GB, and healthy files
    failed at the limit.
    """
    from schemas.errors import ItemError

    def spent() -> Message:
        return {"cpu_s": time.process_time(), "is_spent": _peak_bytes() > retire_bytes}

    def say(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    for line in requests:
        request = json.loads(line)
        module, _, name = OPERATIONS[request.pop("operation")].partition(":")
        try:
            operation: Callable[..., Any] = getattr(import_module(module), name)
            result = operation(**request)
            if isinstance(result, Iterator):
                for chunk in result:
                    say({"chunk": chunk})
                    requests.readline()
                result = {}
            say({"done": result, **spent()})
        except ItemError as error:
            answer = {"error": error.message, "reason": error.reason, "remedy": error.remedy}
            say({**answer, **spent()})
        except MemoryError:
            say({"error": "Decoding needs more memory than allowed.", "reason": "decode_memory", "remedy": ""})
            return


def _peak_bytes() -> int:
    """Most memory this program held. `ru_maxrss` will not do on Linux: it begins at the size of the parent that forked."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _watch_parent(parent: int) -> None:
    """Ends this process once `parent` is gone, even in the middle of a decode."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def main() -> None:
    """Serves requests until stdin closes."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not disturb the answers
    import av

    av.logging.set_level(av.logging.PANIC)
    with open(0, encoding="utf-8", closefd=False) as requests:
        _serve(requests, answers, int(sys.argv[2]))


if __name__ == "__main__":
    main()
