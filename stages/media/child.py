"""The decoder's child process, see `stages.child`: probes, decodes and cuts, and leaves arrays in files.

Of other people's packages it imports av and numpy only, and decord where that engine is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.child import Message, contain, serve

OPERATIONS = {
    "probe": "stages.media.probe:probe",
    "audio": "stages.media.child:audio",
    "frames": "stages.media.child:frames",
    "cut": "stages.media.cut_encode:cut",
    "verify": "stages.media.cut_encode:verify",
}
"""Operation -> `module:function`, called with the request's arguments; a generator yields chunk messages."""


def audio(path: str, out: str, stream: int | None, rate_hz: int | None, channels: int | None) -> Message:
    """Writes the sound of `path` to `out` as raw float32 and returns what is in there."""
    from stages.media.open import open_media
    from stages.media.sound import write_sound

    sound = write_sound(partial(open_media, path), stream, out, rate_hz, channels)
    return {
        "start": ratio(sound.start_s),
        "rate_hz": sound.rate_hz,
        "shape": [sound.num_samples, sound.channels],
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
        Path(name).write_bytes(run.images.data)  # unlike `tofile` it says why a disk takes no more
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


def _answer(operation: str, arguments: Message) -> Any:
    module, _, name = OPERATIONS[operation].partition(":")
    return getattr(import_module(module), name)(**arguments)


def main() -> None:
    """Serves requests until stdin closes."""
    answers = contain()
    import av

    av.logging.set_level(av.logging.PANIC)
    serve(answers, _answer)


if __name__ == "__main__":
    main()
