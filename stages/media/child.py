"""The decoder's child process, see `stages.child`: probes, decodes and cuts.

It leaves pictures in memory that it shares with its parent (the file descriptor in its fourth argument), other arrays in files.

Of other people's packages it imports av and numpy only, and decord where that engine is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import MediaError
from schemas.machine import is_trouble
from stages.child import Message, contain, serve

if TYPE_CHECKING:
    from stages.media.picture import FrameRun
    from stages.media.shared import PictureRoom

OPERATIONS = {
    "probe": "stages.media.probe:probe",
    "audio": "stages.media.child:audio",
    "frames": "stages.media.child:frames",
    "watch": "stages.media.child:watch",
    "cut": "stages.media.cut_encode:cut",
    "verify": "stages.media.cut_encode:verify",
}
"""Operation -> `module:function`, called with the request's arguments; a generator yields chunks."""


def audio(path: str, out: str, wanted: Message, max_pixels: int, stored: Message | None) -> Message:
    """Writes the sound of `path`, or the one `stored` of it, to `out` as raw float32 and returns what is in there."""
    from stages.media.listen import SoundWanted, StoredSound, write_sound

    sound = write_sound(path, out, SoundWanted(**wanted), max_pixels, StoredSound(**stored) if stored else None)
    return {
        "start": ratio(sound.start_s),
        "rate_hz": sound.rate_hz,
        "shape": [sound.num_samples, sound.channels],
    }


def frames(
    path: str, start: str | None, end: str | None, view: Message, chunk: int, engine: str, max_pixels: int
) -> Generator[FrameRun]:
    """Draws the frames between two instants in one view."""
    from stages.media.open import open_media
    from stages.media.picture import Damage, View, drawn_runs, pictures_between

    room, wanted = _room(), View(**view)
    first, last = (Fraction(t) if t is not None else None for t in (start, end))
    runs = None
    if engine == "decord":
        from stages.media.decord_frames import Wanted, decord_runs

        runs = decord_runs(path, Wanted(first, last, wanted, chunk), max_pixels, room)
    if runs is None:
        stream, shown = pictures_between(
            partial(open_media, path, max_pixels=max_pixels), None, first, Damage(), max_pixels
        )
        runs = drawn_runs(stream, shown, last, [wanted], chunk, room)
    yield from runs


def watch(path: str, views: list[Message], chunk: int, max_pixels: int) -> Generator[FrameRun, None, Message]:
    """Decodes every picture of `path` once and draws it in all views, see `stages.media.probe.watched`."""
    from stages.media.picture import View
    from stages.media.probe import watched

    return watched(path, [View(**view) for view in views], chunk, max_pixels, _room())


def _room() -> PictureRoom:
    from stages.media.shared import PictureRoom, Shared

    return PictureRoom(Shared(int(sys.argv[4])))


def ratio(value: Fraction) -> str:
    """An exact fraction as text."""
    return f"{value.numerator}/{value.denominator}"


def _answer(operation: str, arguments: Message) -> Any:
    module, _, name = OPERATIONS[operation].partition(":")
    with _plain_errors(arguments["path"]):
        result = getattr(import_module(module), name)(**arguments)
    return _plainly(result, arguments["path"]) if isinstance(result, Generator) else result


def _plainly(chunks: Generator[Any, None, Any], path: str) -> Generator[Any, None, Any]:
    with _plain_errors(path):
        return (yield from chunks)


@contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """What libav cannot make sense of is the file's fault, wherever it says so."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if is_trouble(error) or isinstance(error, MemoryError):
            raise
        msg = f"'{Path(path).name}' holds what libav cannot make sense of ({error.strerror})."
        raise MediaError(msg, reason="not_decodable") from error


def main() -> None:
    """Serves requests until stdin closes."""
    answers = contain()
    import av

    av.logging.set_level(av.logging.PANIC)
    serve(answers, _answer)


if __name__ == "__main__":
    main()
