"""LSE-C and LSE-D: SyncNet's distances between faces and sound, measured by stage `sync` with weights from a local file.

Of one face, by the mean distance at each offset from -15 to +15 frames: LSE-D is the least, LSE-C the median minus the
least (Chung & Zisserman 2016, Prajwal et al. 2020). Which faces count is a protocol's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluate.alignment import SYNC, Clip, reason
from model.evaluate.metric import Metric, always, has_text, of_set3, seconds_of, weighted_mean
from model.evaluate.records import EvalCase, EvalItem, Protocol, Reading
from schemas.files import sha256_of

WEIGHTS = "syncnet_v2.model"
"""Name of the published file."""
FRAMES = 5
"""Frames that the published code has more than windows."""
LEAST_TRACK = 100
"""Frames that a face is to be seen for and more, in the published pipeline (its `min_track`)."""
LEAST_SCENE_S = 2.0
"""Verse-Bench's: scenes that are shorter do not count."""

Face = dict[str, Any]
"""A row of `sync.distances`: track, num_windows, means [31]."""
Chosen = Sequence[tuple[Face, float]]
"""Faces with their weights."""


def lse_d(face: Face) -> float:
    """The least of the mean distances: how far lips and sound are apart where they fit best."""
    return float(np.min(face["means"]))


def lse_c(face: Face) -> float:
    """How far the least lies below the median of the 31."""
    return float(np.median(face["means"]) - np.min(face["means"]))


def longest_faces(clips: Sequence[Clip]) -> Chosen:
    """Of every clip the face seen longest, by its windows."""
    faces = [max(clip[SYNC]["distances"], key=lambda face: int(face["num_windows"])) for clip in clips]
    return [(face, float(face["num_windows"])) for face in faces]


def first_faces(clips: Sequence[Clip]) -> Chosen:
    """Of every clip of 2 s and more the face seen first, all alike (Verse-Bench)."""
    long = [clip for clip in clips if seconds_of(clip) >= LEAST_SCENE_S]
    return [(min(clip[SYNC]["distances"], key=lambda face: int(face["track"])), 1.0) for clip in long]


def lasting_faces(clips: Sequence[Clip]) -> Chosen:
    """All faces seen for more than 100 frames, all alike (SyncNet's own pipeline, which MOVA's toolkit runs)."""
    faces = [face for clip in clips for face in clip[SYNC]["distances"]]
    return [(face, 1.0) for face in faces if face["num_windows"] + FRAMES > LEAST_TRACK]


def of_faces(
    figure: Callable[[Face], float], choose: Callable[[Sequence[Clip]], Chosen]
) -> Callable[[EvalCase], Reading]:
    """Reads the mean of a figure over the faces that count."""

    def read(case: EvalCase) -> Reading:
        clips = case.made.clips if case.made is not None else ()
        measured = [clip for clip in clips if (clip.get(SYNC) or {}).get("distances")]
        if not measured:
            return Reading(None, why=reason(case, "speech"))
        chosen = choose(measured)
        if not chosen:
            return Reading(None, why="its faces or clips are shorter than the protocol asks for")
        return Reading(weighted_mean([(figure(face), weight) for face, weight in chosen]))

    return read


RULES: Mapping[Protocol, tuple[Callable[[Sequence[Clip]], Chosen], Callable[[EvalItem], bool], str]] = {
    "own": (longest_faces, always, "the face of each clip that is seen longest, clips by its length"),
    "versebench": (first_faces, has_text, "first face of each scene of 2 s and more; own face detector"),
    "mova": (lasting_faces, of_set3, "all faces of more than 100 frames, set3 alone; own face detector"),
}
"""Which faces count, of which items, and both in words. Seed-TTS has sound alone."""


def distance_metrics(weights: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """LSE-C and LSE-D as `protocol` takes them, by the SyncNet in a file; those that it has."""
    if protocol not in RULES:
        return ()
    choose, applies, crop = RULES[protocol]
    how: dict[str, Any] = {
        "applies": applies, "model": f"SyncNet in {weights.name}", "sha256": sha256_of(weights)[0], "stage": SYNC,
        "crop": crop, "settings": ("stages.sync.engine=syncnet", f"stages.sync.weights_path={weights.absolute()}"),
    }  # fmt: skip
    confidence = Metric(
        name="lse_c", doc="median of SyncNet's distances less the least", better="higher",
        read=of_faces(lse_c, choose), **how,
    )  # fmt: skip
    if protocol == "versebench":
        return (confidence,)
    distance = Metric(
        name="lse_d", doc="least of SyncNet's distances", better="lower", read=of_faces(lse_d, choose), **how
    )
    return confidence, distance
