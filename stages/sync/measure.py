"""How late the sound of a clip is, from what was seen and heard in it: by lips where somebody speaks, else by events.

Pure: no decoder, no ledger, no recipe. `measure` asks what can be measured at all and hands over to whoever can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from schemas.spans import SpeechSpan
from schemas.stretches import Stretch, covered_s
from stages.engines.face_tracks import Tracks
from stages.media.waveform import Waveform
from stages.picture import freezes
from stages.sync.active import Mouth
from stages.sync.channels import Signal, lags_s
from stages.sync.config import SyncConfig
from stages.sync.engine import SyncEngine
from stages.sync.lip_shapes import mouth_features
from stages.sync.lips import judge_lips
from stages.sync.onset import onset_curve
from stages.sync.peaks import find_peak
from stages.sync.result import FaceDistances, Offset, Status, SyncResult, nobody_known

MIN_FPS = 8.0
"""Below this a syllable (about 0.2 s) falls between two frames."""
MIN_FRAMES = 16
SILENT_RMS = 1e-4
"""-80 dB of full scale: below the noise of any microphone."""
STATIC_CHANGE = 0.15
"""Mean grey levels per frame below which a frame repeats the one before; a re-encoded photograph has 0.00 to 0.05."""
STATIC_SHARE = 0.95
FREEZE_S = 0.3
"""A freeze to lips; to a viewer it takes `stages.picture.FREEZE_S`. A mouth that stands still says nothing about the sound."""
MIN_SPEECH_S = 0.3
"""Speech a clip needs to be judged by lips."""


def measure(
    seen: Tracks,
    sound: Waveform | None,
    speech: Sequence[Stretch] | None,
    spans: Sequence[SpeechSpan],
    engine: SyncEngine,
    config: SyncConfig,
) -> SyncResult:
    """What sync says of one clip, from what was seen and heard in it.

    `speech` are the stretches of speech on the asset clock, None if nobody looked for any; then a face decides whether
    lips or events are measured. `spans` are the clip's, on its own clock.
    """
    clip = Stretch(float(seen.times_s[0]), seen.end_s)
    if sound is not None and _is_silent(sound, clip):
        sound = None
    obstacle = _obstacle(seen, sound, clip.duration_s, config.min_s)
    if sound is None or obstacle is not None:
        return SyncResult(status=obstacle or "no_sound", active=nobody_known(len(spans)))
    is_speech = bool(seen.lasting) if speech is None else covered_s(clip, speech) >= MIN_SPEECH_S
    if not is_speech:
        return measure_events(seen, sound, len(spans), config.max_offset_s)
    seen_s = {number: track.times_s for number, track in enumerate(seen.lasting)}
    mouths = mouths_of(seen, sound, engine)
    judged = judge_lips(mouths, spans, engine, config.window_s, clip, seen_s)
    told = [(mouth.track, mouth.evidence.distances_told()) for mouth in mouths]
    distances = [FaceDistances(track, *each) for track, each in told if each is not None]
    return replace(judged, distances=distances)


def measure_events(seen: Tracks, sound: Waveform, num_spans: int, max_offset_s: float) -> SyncResult:
    """The offset at which the picture moves where the sound sets in; a hint, whatever its confidence."""
    lags = lags_s(max_offset_s)
    curve = onset_curve(seen.change, seen.times_s, seen.end_s, sound, max_offset_s)
    return SyncResult(
        status="measured",
        kind="event",
        engine="onset",
        finding="unclear",
        offset=Offset(find_peak(curve, lags), curve, lags),
        active=nobody_known(num_spans),
    )


def mouths_of(seen: Tracks, sound: Waveform, engine: SyncEngine) -> list[Mouth]:
    """The faces that can be held against the sound; where the picture stands still they count for nothing."""
    frozen = frozen_stretches(seen)
    mouths = []
    for number, track in enumerate(seen.lasting):
        features = _without(mouth_features(track, float(seen.times_s[0]), seen.end_s), frozen)
        evidence = engine.evidence(track, features, sound)
        if evidence is not None:
            mouths.append(Mouth(number, features, evidence))
    return mouths


def frozen_stretches(seen: Tracks) -> list[Stretch]:
    """Where the picture stands still for `FREEZE_S` or longer, on the asset clock."""
    times = np.append(seen.times_s, seen.end_s)
    is_repeat = np.append(False, seen.change[1:] < STATIC_CHANGE)
    return [Stretch(float(times[first]), float(times[end])) for first, end in freezes(is_repeat, times, FREEZE_S)]


def _without(features: Signal, stretches: Sequence[Stretch]) -> Signal:
    """`features` that count for nothing inside `stretches`."""
    weights = features.weights.copy()
    for stretch in stretches:
        weights[(features.times_s >= stretch.start_s) & (features.times_s < stretch.end_s)] = 0.0
    return Signal(features.first, features.values, weights)


def _is_silent(sound: Waveform, clip: Stretch) -> bool:
    """Whether the clip's sound is no more than the noise of a converter."""
    samples = sound.cut(*(Fraction(at).limit_denominator(1_000_000) for at in (clip.start_s, clip.end_s)))
    return not len(samples) or float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) < SILENT_RMS


def _obstacle(seen: Tracks, sound: Waveform | None, duration_s: float, min_s: float) -> Status | None:
    """Why nothing can be measured, or None."""
    if sound is None:
        return "no_sound"
    if duration_s < min_s:
        return "too_short"
    if len(seen.times_s) < MIN_FRAMES or len(seen.times_s) / duration_s < MIN_FPS:
        return "too_few_frames"
    return "static_picture" if (seen.change[1:] < STATIC_CHANGE).mean() >= STATIC_SHARE else None
