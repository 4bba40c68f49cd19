"""One film: its shots, what is said in it and what is heard under it; written to a file together with its truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.demo import sound as sounds
from pipeline.demo.scenes import DrawnPicture, DrawnShot, Then, frame_weights, frames_of, transitions
from pipeline.demo.sound import IN_SYNC, Line, Shift, Sound
from pipeline.demo.truth import Made, describe, spoken_truth
from pipeline.demo.voice import SAMPLE_RATE_HZ
from pipeline.demo.write import Encoding, encode

CUT: Then = "cut"


@dataclass(frozen=True)
class DemoFilm:
    """Shots in order, lines of speech (scene time), the shift of the sound, and a bed (noise, music) under the whole."""

    shots: Sequence[DrawnShot]
    lines: Sequence[Line] = ()
    shift: Shift = IN_SYNC
    bed: Sound | None = None
    has_sound: bool = True

    def num_frames(self) -> int:
        """Frames of all shots and transitions."""
        return len(frame_weights(self.shots))

    def sound(self, duration_s: float) -> Sound:
        """What is heard: the lines through the shift, over the bed, which is not shifted."""
        track = self.shift.apply(sounds.mix(self.lines, duration_s))
        if self.bed is not None:
            sounds.add(track, self.bed, 0.0)
        return track

    def check(self, encoding: Encoding) -> None:
        """Raises ValueError when someone speaks on screen while a frame does not show them."""
        for index, weights in enumerate(frame_weights(self.shots)):
            time_s = encoding.frame_time_s(index)
            seen = {name for shot, _ in weights for name in self.shots[shot].picture.boxes_px()}
            for line in self.lines:
                if line.on_screen and line.start_s <= time_s < line.end_s and line.who not in seen:
                    raise ValueError(f"{line.who} speaks on screen at {time_s:.2f} s, where {sorted(seen)} are seen")


def edited(
    lines: Sequence[Line], pictures: Sequence[DrawnPicture], encoding: Encoding, then: Sequence[tuple[Then, int]] = ()
) -> Iterator[DrawnShot]:
    """One shot per line, showing its picture; transitions lie in the middle of the pauses. `then`: (kind, blend frames)."""
    fps = float(encoding.fps)
    first = 0
    for index, (line, picture) in enumerate(zip(lines, pictures, strict=True)):
        if index + 1 == len(lines):
            yield DrawnShot(picture, round((line.end_s + 0.5) * fps) - first, line.who)
            return
        kind, blend = then[index] if then else (CUT, 0)
        length = {"cut": 0, "dissolve": blend, "fade": 2 * blend + blend // 2}[kind]
        begin = round((line.end_s + lines[index + 1].start_s) / 2 * fps - length / 2)
        yield DrawnShot(picture, begin - first, line.who, kind, blend)
        first = begin + length


def write_film(
    path: Path,
    film: DemoFilm,
    encoding: Encoding,
    category: str,
    seen_and_heard: str,
    more_truth: dict[str, Any] | None = None,
) -> Made:
    """The film as a file of `encoding`, with its truth: cuts, transitions, turns, words, sync and `more_truth`."""
    film.check(encoding)
    duration_s = encoding.end_s(film.num_frames())
    mouths = lambda who, time_s: sounds.mouth_at(film.lines, who, time_s)  # noqa: E731
    skip = round(encoding.sound_start_s * SAMPLE_RATE_HZ)
    track = film.sound(duration_s)[skip:] if film.has_sound else None
    num_frames = encode(path, frames_of(film.shots, mouths, encoding.frame_time_s), track, encoding)
    truth: dict[str, Any] = {
        "frame_index": "0-based decode order",
        "fps": float(encoding.fps),
        "num_frames": num_frames,
    }
    truth |= transitions(film.shots)
    if film.lines:
        truth |= spoken_truth(film.lines, film.shift)
    return describe(path, category, seen_and_heard, truth | (more_truth or {}))
