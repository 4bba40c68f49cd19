"""Which streams of a file are used. Runs inside the decoder's child process."""

from __future__ import annotations

from typing import Any

import av

from schemas.errors import MediaError

SECONDARY_AUDIO = ("comment", "hearing_impaired", "visual_impaired", "dub", "karaoke", "clean_effects", "non_diegetic")


def has_decoder(stream: Any) -> bool:
    """Whether this build of libav can decode `stream`."""
    return stream.codec_context is not None and stream.codec_context.codec is not None


def choose_video(container: Any) -> Any | None:
    """The video stream to use: never a cover picture; the largest, then the one flagged default, then the first."""
    flags = av.stream.Disposition
    pictures = flags.attached_pic | flags.still_image | flags.timed_thumbnails
    streams = [s for s in container.streams.video if has_decoder(s) and not s.disposition & pictures]
    if not streams:
        return None
    return max(streams, key=lambda s: (s.width * s.height, bool(s.disposition & flags.default), -s.index))


def choose_audio(container: Any) -> Any | None:
    """The sound stream to use: no commentary or dub if there is another; flagged default, highest rate, first."""
    flags = av.stream.Disposition
    aside = flags(0)
    for name in SECONDARY_AUDIO:
        aside |= getattr(flags, name)
    streams = [s for s in container.streams.audio if has_decoder(s)]
    if not streams:
        return None

    def rank(s: Any) -> tuple[bool, bool, int, int, int]:
        return (not s.disposition & aside, bool(s.disposition & flags.default), s.rate or 0, s.channels or 0, -s.index)

    return max(streams, key=rank)


def pick(container: Any, kind: str, index: int | None) -> Any:
    """The stream with `index`, or the default one of `kind` ("video" or "audio"). Raises MediaError if there is none."""
    if index is None:
        stream = choose_video(container) if kind == "video" else choose_audio(container)
    else:
        found = [s for s in container.streams if s.index == index and s.type == kind and has_decoder(s)]
        stream = found[0] if found else None
    if stream is None:
        word = "picture" if kind == "video" else "sound"
        which = "" if index is None else f" in stream {index}"
        raise MediaError(f"There is no {word} that can be decoded{which}.", reason=f"no_{kind}")
    stream.codec_context.thread_count = 1
    return stream
