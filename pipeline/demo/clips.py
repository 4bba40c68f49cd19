"""Single files of chosen truth, for tests and benchmarks. Each function writes one file and returns it with its truth."""

from __future__ import annotations

from pathlib import Path

from pipeline.demo import sound as sounds
from pipeline.demo.scenes import Shot, Talking, film
from pipeline.demo.sound import Line, Shift
from pipeline.demo.truth import Made, describe, spoken_truth
from pipeline.demo.write import Encoding, encode

EDGE_S = 0.4
"""Quiet before the first and after the last word."""


def talking_clip(
    path: Path,
    offset_ms: float = 0.0,
    drift_ms_per_s: float = 0.0,
    duration_s: float = 6.0,
    who: str = "ann",
    snr_db: float = 30.0,
    encoding: Encoding = Encoding(),
    seed: int = 0,
) -> Made:
    """One person speaking in one shot; the sound lies `offset_ms` late (negative: early) and drifts as given.

    The room's noise covers the whole length, so no silence gives the shift away. Costs about 0.3 s per second of 320x240.
    """
    path = Path(path)
    shift = Shift(offset_ms, drift_ms_per_s)
    reach_s = max(0.0, shift.heard_s(duration_s) - duration_s), max(0.0, -shift.heard_s(0.0))
    lines = sounds.lines_in(who, EDGE_S + reach_s[1], duration_s - EDGE_S - reach_s[0], seed)
    track = shift.apply(sounds.mix(lines, duration_s)) + sounds.room_noise(duration_s, snr_db, seed)
    num_frames = encoding.frames_in(duration_s)
    picture = Talking([who], encoding.width_px, encoding.height_px, seed)
    shots = [Shot(picture, num_frames, who)]
    encode(path, film(shots, _mouths(lines), encoding.frame_time_s), track, encoding)
    truth = {"fps": float(encoding.fps), "cuts": [], "hard_cuts": [], "num_frames": num_frames, "snr_db": snr_db}
    truth |= spoken_truth(lines, shift) | {"faces": picture.boxes_px()}
    return describe(path, "talking", f"{who} speaks facing the camera; sound {offset_ms:+g} ms", truth)


def _mouths(lines: list[Line]):
    return lambda who, time_s: sounds.mouth_at(lines, who, time_s)
