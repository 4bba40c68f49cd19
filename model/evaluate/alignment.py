"""Whether sound and picture go together: the measured offset of lips and events, and AV-Align."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.metric import Metric, Vector, seconds_of, weighted_mean
from model.evaluate.records import EvalCase, Reading
from schemas.errors import MediaError
from schemas.records import Struct

LEAST_CONFIDENCE = 3.0
"""Below it an offset says little: the bound of the shipped recipe `quickstart`."""
SIDE_PX = 256
SOUND_HZ = 22_050
"""librosa's own rate, at which the published metric finds onsets."""
LEAST_FLOW_PX = 0.1
"""Motion below this is no peak (MOVA's toolkit)."""
SYNC, MATCH = "sync", "match"

Clip = Mapping[str, Struct]


def _measured(case: EvalCase, kind: str) -> list[Clip]:
    clips = case.made.clips if case.made is not None else ()
    return [clip for clip in clips if (told := clip.get(SYNC)) and (told["kind"], told["status"]) == (kind, "measured")]


def reason(case: EvalCase, kind: str) -> str:
    """Why sync measured nothing of a kind, speech or event, in words."""
    clips = case.made.clips if case.made is not None else ()
    said = sorted({str(told["status"]) for clip in clips if (told := clip.get(SYNC))} - {"measured"})
    return ", ".join(said) or (f"nothing in it is judged by {kind}" if clips else "it has no clip")


def offset(kind: str, *, is_signed: bool = False) -> Callable[[EvalCase], Reading]:
    """Reads by how many ms the sound is off, either way; signed, late is positive and errors of a set cancel."""

    def read(case: EvalCase) -> Reading:
        clips = [clip for clip in _measured(case, kind) if clip[SYNC]["confidence"] >= LEAST_CONFIDENCE]
        if not clips:
            found = _measured(case, kind)
            return Reading(None, why="no offset stands out" if found else reason(case, kind))
        size = float if is_signed else abs
        return Reading(weighted_mean([(size(clip[SYNC]["offset_ms"]), seconds_of(clip)) for clip in clips]))

    return read


def of_lips(column: str) -> Callable[[EvalCase], Reading]:
    """Reads a column of the lips' agreement over the clips in which somebody is seen to speak."""

    def read(case: EvalCase) -> Reading:
        found = [(clip[SYNC][column], seconds_of(clip)) for clip in _measured(case, "speech")]
        return Reading(weighted_mean(found)) if found else Reading(None, why=reason(case, "speech"))

    return read


def event_agreement(case: EvalCase) -> Reading:
    """Reads how far sounds set in where the picture moves, over chance, in the clips of a sample in which nobody speaks."""
    found = [
        (clip[MATCH]["onset_agreement"], seconds_of(clip))
        for clip in _measured(case, "event")
        if (clip.get(MATCH) or {}).get("onset_agreement") is not None
    ]
    if found:
        return Reading(weighted_mean(found))
    return Reading(None, why="nothing is heard to begin" if _measured(case, "event") else reason(case, "event"))


def onsets_s(samples: NDArray[np.float32]) -> Vector:
    """Times of onsets in mono sound at `SOUND_HZ`, as librosa finds them with its defaults."""
    from librosa.onset import onset_detect

    return np.asarray(onset_detect(y=samples, sr=SOUND_HZ, units="time"), np.float64)


def motion_px(frames: Sequence[NDArray[np.uint8]]) -> Vector:
    """Mean length of Farneback's optical flow into each of two and more grey frames; the first is taken as the second."""
    import cv2

    found = []
    for before, after in pairwise(frames):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # the published settings
        found.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean()))
    return np.array([found[0], *found])


def peaks(curve: Vector, least: float) -> NDArray[np.int64]:
    """Indices at which a curve is higher than on both sides, and at least `least`."""
    inner = (curve[1:-1] > curve[:-2]) & (curve[1:-1] > curve[2:]) & (curve[1:-1] >= least)
    return np.flatnonzero(inner) + 1


def overlap_of_peaks(heard_s: Vector, seen_s: Vector, frame_s: float) -> float:
    """Peaks heard and seen less than a frame apart, each counted once, over all peaks; 0 where there is none at all."""
    left = list(seen_s)
    num_shared = 0
    for at in heard_s:
        near = next((index for index, seen in enumerate(left) if abs(seen - at) < frame_s), None)
        if near is not None:
            left.pop(near)
            num_shared += 1
    num_all = len(heard_s) + len(seen_s) - num_shared
    return num_shared / num_all if num_all else 0.0


def av_align_of(path: Path) -> float:
    """AV-Align of one file. Raises MediaError where it lacks picture or sound."""
    frames, times_s = read_pictures(path, SIDE_PX)
    if len(frames) < 3:
        raise MediaError(f"{path.name}: {len(frames)} frames show no motion.", reason="too_short")
    sound, start_s = mono_sound(path, SOUND_HZ)
    frame_s = float(np.median(np.diff(times_s)))
    seen_s = times_s[peaks(motion_px(frames), LEAST_FLOW_PX)]
    return overlap_of_peaks(onsets_s(sound) + start_s, seen_s, frame_s)


def _av_align(case: EvalCase) -> Reading:
    if case.sample is None:
        return Reading(None, why="missing")
    try:
        return Reading(av_align_of(case.sample))
    except MediaError as error:
        return Reading(None, why=str(error))


LIPS = "mouth shapes against sound (own scale, no published one)"
WHOLE = "every clip with a face, whole"


def lips_by(settings: Sequence[str]) -> str:
    """What holds lips against sound with settings of a recipe, KEY=VALUE, of which the last of a key counts."""
    told = dict(each.split("=", 1) for each in settings)
    if told.get("stages.sync.engine") != "syncnet":
        return LIPS
    return f"SyncNet in {Path(told.get('stages.sync.weights_path', '')).name}, by stage {SYNC}"


AV_ALIGN = Metric(
    name="av_align", doc="onsets heard and motion seen within a frame of each other, of all", unit="ratio", better="higher",
    read=_av_align, model="librosa onsets, Farneback flow; no weights", decoder="PyAV", crop=f"whole picture at {SIDE_PX} px",
)  # fmt: skip
OWN_ALIGNMENT = (
    Metric(
        name="lip_offset_ms", doc="how far sound and lips are apart, either way", unit="ms", better="lower",
        read=offset("speech"), model=LIPS, stage=SYNC, crop=WHOLE,
    ),
    Metric(
        name="lip_confidence", doc="how far the offset stands out", better="higher", read=of_lips("confidence"),
        model=LIPS, stage=SYNC, crop=WHOLE,
    ),
    Metric(
        name="lip_agreement", doc="the same within 80 ms of no offset", better="higher", read=of_lips("agreement"),
        model=LIPS, stage=SYNC, crop=WHOLE,
    ),
    Metric(
        name="event_offset_ms", doc="how far sounds and motion are apart, either way", unit="ms", better="lower",
        read=offset("event"), model="onsets against motion", stage=SYNC, crop="whole picture of clips without lips",
    ),
    Metric(
        name="event_agreement", doc="how far sounds set in where the picture moves, over chance", better="higher",
        read=event_agreement, model="onsets against jerks of motion (own scale, no published one)", stage=MATCH,
        crop="clips without speech, whole",
    ),
    AV_ALIGN,
)  # fmt: skip
VERSEBENCH_ALIGNMENT = (
    Metric(
        name="signed_offset_ms", doc="mean of signed offsets, in which late and early cancel, as Verse-Bench has it",
        unit="ms", better="neither", read=offset("speech", is_signed=True), model=LIPS, stage=SYNC, crop=WHOLE,
    ),
)  # fmt: skip
