"""Whether it is the right person: voices against the voice that was given, faces against those of the real recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluate.distances import frechet
from model.evaluate.metric import Metric, SeenFile, SetMetric, Vector, has_reference, has_voice, of_asset, weighted_mean
from model.evaluate.records import EvalCase, Reading
from schemas.measured import MeasuredFile

SAME_FACE = 0.6
"""dlib's own bound: faces that are closer are one person."""


def speakers_of(measured: MeasuredFile | None) -> Sequence[Mapping[str, Any]]:
    """Voices of a file in order of first appearance, those of which there is a vector."""
    found = (measured.asset.get("diarize") or {}).get("speakers") if measured is not None else None
    return [each for each in found or () if each["embedding"] is not None]


def voice_similarity(case: EvalCase) -> Reading:
    """Cosine of the sample's voice and the one it was given.

    Where several voices speak in the recording, they are held against each other in their order of appearance, weighted by
    how long they speak, and a voice that does not appear counts 0: exchanged voices are wrong voices.
    """
    wanted = speakers_of(case.voice)
    made = speakers_of(case.made)
    if not wanted:
        return Reading(None, why="no voice is heard in the recording it was given")
    if not made:
        return Reading(None, why="no voice is heard in it")
    if len(wanted) == 1:
        return Reading(_cosine(max(made, key=lambda each: each["speech_s"]), wanted[0]))
    pairs = [(_cosine(made[at], each) if at < len(made) else 0.0, each["speech_s"]) for at, each in enumerate(wanted)]
    return Reading(weighted_mean(pairs))


def _cosine(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    a, b = (np.asarray(each["embedding"], float) for each in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def face_of(measured: MeasuredFile | None) -> Vector | None:
    """The vector of the face that is longest to be seen in a file."""
    tracks = [
        (track["end_s"] - track["start_s"], track["embedding"])
        for clip in (measured.clips if measured is not None else ())
        for track in (clip.get("faces") or {}).get("tracks") or ()
        if track["embedding"] is not None
    ]
    return np.asarray(max(tracks, key=lambda each: each[0])[1], float) if tracks else None


def face_distance(case: EvalCase) -> Reading:
    """Euclidean distance of the face longest seen in the sample and in the real recording."""
    wanted, made = face_of(case.reference), face_of(case.made)
    if wanted is None:
        return Reading(None, why="no face is seen well in the real recording")
    if made is None:
        return Reading(None, why="no face is seen well in it")
    return Reading(float(np.linalg.norm(made - wanted)))


def voice_vector(seen: SeenFile) -> Vector | None:
    """The vector of the voice that speaks longest in a file."""
    found = speakers_of(seen.measured)
    return np.asarray(max(found, key=lambda each: each["speech_s"])["embedding"], float) if found else None


VOICE_MODEL = "Resemblyzer and CAM++ from packages, cosines averaged"
OWN_LIKENESS = (
    Metric(
        name="voice_similarity", doc="cosine of the voice heard and the voice given", unit="cosine", better="higher",
        read=voice_similarity, applies=has_voice, model=VOICE_MODEL, stage="diarize", crop="speech of one voice alone",
        reads_recording=True,
    ),
    Metric(
        name="num_voices", doc="voices told apart", unit="count", better="neither", read=of_asset("diarize", "num_speakers"),
        model="segmentation networks and speaker networks from packages", stage="diarize", crop="the whole sound",
    ),
    Metric(
        name="face_distance", doc=f"distance of the face seen and the real one; one person below {SAME_FACE}", better="lower",
        read=face_distance, applies=has_reference, model="dlib face recognition from its package", stage="faces",
        crop="best portrait of the longest face", reads_recording=True,
    ),
)  # fmt: skip
OWN_SETS = (
    SetMetric(
        name="fd_voice", doc="Frechet distance of the voices of all samples and of all real recordings", better="lower",
        describe=voice_vector, distance=frechet, model=VOICE_MODEL, stage="diarize", crop="speech of one voice alone",
    ),
)  # fmt: skip
