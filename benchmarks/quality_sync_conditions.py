"""How sync holds where it is harder: films made from talking clips by known changes, judged by models fitted on strangers.

Small faces, repeated and dropped pictures, noise, quiet sound, short stretches and drifting sound are made here; what is true
of a clip's sync stays true. `benchmarks.quality_sync` runs this on the clips it judges, and by the model it judges them by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.fit_sync import Reader, through_noise
from stages.engines.face_tracks import FaceTrack, Tracks
from stages.media.waveform import Waveform
from stages.sync.film import Film

SMALL_FACE_PX = 40
SHORT_S = 2.0
TEST_NOISE_DB = 3.0
"""Louder than that of `benchmarks.fit_sync`, of another colour and other samples."""
QUIET = 10 ** (-40 / 20)
REPEATED_HZ = 30.0
DRIFTS_S_PER_S = (-0.008, -0.003, 0.0, 0.003, 0.008)

AnyFilm = TypeVar("AnyFilm", bound=Film)


def made_harder(films: Sequence[AnyFilm]) -> dict[str, list[AnyFilm]]:
    """What was done -> the films after it, their sync as it was; for what needs no decoding."""
    return {
        "white noise": [
            _heard(film, through_noise(film.heard.sound, TEST_NOISE_DB, tilt=0.0, seed=2)) for film in films
        ],
        "quiet": [_heard(film, quiet(film.heard.sound)) for film in films],
        "every second picture": [
            replace(film, seen=_pictures(film.seen, np.arange(0, len(film.seen.times_s), 2))) for film in films
        ],
        "pictures repeated": [replace(film, seen=repeated(film.seen, REPEATED_HZ)) for film in films],
        "stretches of 2 s": [part for film in films for part in parts(film, SHORT_S)],
    }


def _heard(film: AnyFilm, sound: Waveform) -> AnyFilm:
    return replace(film, heard=replace(film.heard, sound=sound))


def quiet(sound: Waveform) -> Waveform:
    """`sound` 40 dB softer, rounded to 16 bits as a file would."""
    return replace(sound, samples=(np.round(sound.samples * QUIET * 32767) / 32767).astype(np.float32))


def drifting(film: AnyFilm, late_s_per_s: float) -> AnyFilm:
    """`film` with sound that runs late by so much more every second, nothing late in its middle."""
    sound = film.heard.sound
    middle = (film.start_s + film.end_s) / 2
    times = float(sound.start) + np.arange(len(sound.samples)) / sound.rate_hz
    samples = np.interp(times - late_s_per_s * (times - middle), times, sound.samples)
    return _heard(film, replace(sound, samples=samples.astype(np.float32)))


def repeated(seen: Tracks, rate_hz: float) -> Tracks:
    """What would be seen had the pictures been brought to a higher rate by showing some of them twice."""
    count = int((seen.end_s - seen.times_s[0]) * rate_hz)
    times = seen.times_s[0] + np.arange(count) / rate_hz
    return _pictures(seen, np.searchsorted(seen.times_s, times + 1e-6, side="right") - 1, times)


def _pictures(seen: Tracks, places: np.ndarray, times: np.ndarray | None = None) -> Tracks:
    """The pictures at `places`, shown at `times`; a face is on those on which it was."""
    times = seen.times_s[places] if times is None else times
    frame = np.round(seen.times_s, 6)

    def followed(face: FaceTrack) -> FaceTrack:
        has = {t: n for n, t in enumerate(np.round(face.times_s, 6).tolist())}
        pairs = [(has[t], when) for t, when in zip(frame[places].tolist(), times.tolist(), strict=True) if t in has]
        rows = [row for row, _ in pairs]
        return replace(
            face, times_s=np.array([when for _, when in pairs]), points=face.points[rows], boxes=face.boxes[rows]
        )

    return replace(seen, faces=[followed(face) for face in seen.faces], times_s=times, change=seen.change[places])


def parts(film: AnyFilm, length_s: float) -> Iterator[AnyFilm]:
    """Stretches of a film one after another."""
    for low_s in np.arange(film.start_s, film.end_s - length_s + 0.05, length_s).tolist():
        yield film.part(low_s, low_s + length_s)


def small_and_mirrored(reader: Reader, path: Path, seen: Tracks, scratch: Path) -> Tracks | None:
    """The faces of a file made anew with its picture mirrored and so small that the longest-seen face is 40 px wide."""
    width_px = float(np.median(seen.faces[0].boxes[:, 2] - seen.faces[0].boxes[:, 0]))
    small = scratch / f"{path.stem}_small.mp4"
    write_small(path, small, SMALL_FACE_PX / width_px * seen.width_px)
    found = reader.seen(small)
    return found if found.faces else None


def write_small(source: Path, target: Path, width_px: float) -> None:
    """Writes the pictures of `source`, `width_px` wide and mirrored, each at its own time; no sound."""
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = read.streams.video[0]
        scale = width_px / stream.codec_context.width
        width, height = (
            max(2, round(side * scale / 2) * 2) for side in (stream.codec_context.width, stream.codec_context.height)
        )
        out = written.add_stream("libx264", rate=25, options={"crf": "14", "preset": "veryfast", "bf": "0"})
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        out.codec_context.time_base = Fraction(1, 90_000)
        last = -1
        for frame in read.decode(stream):
            at = -1 if frame.pts is None else round(frame.pts * stream.time_base * 90_000)
            if at > last:
                picture = frame.reformat(width, height, "rgb24").to_ndarray()[:, ::-1]
                new = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
                new.pts, new.time_base, last = at, Fraction(1, 90_000), at
                written.mux(out.encode(new))
        written.mux(out.encode())
